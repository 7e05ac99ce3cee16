"""kill -9 under load, at 30 seeded points: nothing was forwarded that is not on disk.

The origin itself looks: when a request head arrives there, the record that allows it must already
be in the log file. After each kill the log must verify, and the next start must go on with it.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.verify import verify
from tests.kit.certificates import Authority
from tests.kit.http1 import Http1
from tests.kit.origin import Origin, Seen
from tests.kit.proxy import Proxy, wait_until, write_policy

API = "api.test.example"
RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: {API}, path: "/k/**", methods: [GET, POST], dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best
KILLS = 30
CLIENTS = 4
TAIL_BYTES = 256 * 1024  # of the log: more than is written while one request is under way


class Witness:
    """Reads the log file at the moment in which a request arrives."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.unrecorded: list[str] = []
        self.seen: list[str] = []

    def look(self, seen: Seen) -> None:
        path = seen.line.split()[1]
        self.seen.append(path)
        if f'"path":"{path}"'.encode() not in self._tail():
            self.unrecorded.append(path)

    def _tail(self) -> bytes:
        (segment,) = self._log.glob("*.jsonl")
        with segment.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read()


class Load:
    """Clients that ask as fast as they are answered, allowed and denied, until told to stop."""

    def __init__(self, proxy: Proxy, name: str) -> None:
        self._proxy = proxy
        self._stop = threading.Event()
        self.answered = 0
        self._threads = [
            threading.Thread(target=self._run, args=(f"{name}-{number}",), daemon=True)
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            with (
                contextlib.suppress(OSError, ValueError),
                Http1(self._proxy.tunnel(API, 443, timeout_s=5.0)) as client,
            ):
                for _ in range(8):
                    number += 1
                    client.ask(f"/k/{name}/{number}", API, method="POST", body=b"load")
                    self.answered += 1
                client.ask(f"/denied/{name}/{number}", API)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[Origin, Path]]:
    authority = Authority(tmp_path / "origin")
    with Origin(tls=authority.server_context(API)) as running:
        yield running, authority.pem


@pytest.mark.timeout(240)
def test_nothing_is_forwarded_unrecorded_across_thirty_kills(
    origin: tuple[Origin, Path], tmp_path: Path
) -> None:
    running, pem = origin
    policy = write_policy(tmp_path / "policies.yaml", RULES)
    witness = Witness(tmp_path / "state" / "log")
    running.on_head = witness.look
    chance = random.Random(20261120)
    pins = [f"{API}:443:127.0.0.1:{running.port}"]
    proxy = Proxy(tmp_path, policy, resolve=pins, upstream_ca=pem)
    for kill in range(KILLS):
        proxy.start()
        load = Load(proxy, f"{kill}")
        try:
            wanted = chance.randrange(1, 60)
            assert wait_until(lambda: load.answered >= wanted, timeout_s=30.0)  # noqa: B023
            time.sleep(chance.random() * 0.02)
        finally:
            proxy.stop(signal.SIGKILL)
            load.stop()
        report = verify(proxy.state / "log")
        assert report.exit_code == 3, report
        assert report.verdict in ("open", "torn"), report
    allowed = {
        event["target"]["path"]: event["verdict"]
        for event in proxy.records("decision")
        if event["stage"] == "request"
    }
    assert witness.unrecorded == []
    assert len(witness.seen) == len(set(witness.seen)) >= KILLS
    assert [path for path in witness.seen if allowed.get(path) != "allow"] == []
    opens = [event["after"] for event in proxy.records("log.open")]
    assert opens[2:] == ["crash"] * (KILLS - 1)
    proxy.start()
    assert proxy.stop() == 0
    assert verify(proxy.state / "log").exit_code == 0
