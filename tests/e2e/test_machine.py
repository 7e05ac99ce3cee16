"""Faults of the machine under a real server: full and read-only disks, a log that is touched, a
second server, signals, ports.
"""

import json
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from audit.folder import open_log
from audit.writer import Writer
from tests.kit.certificates import Authority
from tests.kit.http1 import Answer, Http1, format_request
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, run_command, wait_until, write_policy
from tests.kit.volume import fill, read_only, small_volume

API = "api.test.example"
RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: {API}, path: ["/ok/**", "/drip/*", "/slow/*"], dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best
MEGABYTE = 1 << 20

Start = Callable[..., Proxy]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Origin, Path]]:
    authority = Authority(tmp_path_factory.mktemp("machine"))
    with Origin(tls=authority.server_context(API)) as running:
        yield running, authority.pem


@pytest.fixture
def prepare(upstream: tuple[Origin, Path], tmp_path: Path) -> Iterator[Start]:
    """Makes servers that are not started yet, and ends them."""
    running, pem = upstream
    made: list[Proxy] = []

    def build(*options: str, folder: Path = tmp_path, **rest: Any) -> Proxy:
        policy = write_policy(tmp_path / "policies.yaml", RULES)
        pins = [f"{API}:443:127.0.0.1:{running.port}"]
        proxy = Proxy(folder, policy, *options, resolve=pins, upstream_ca=pem, **rest)
        made.append(proxy)
        return proxy

    yield build
    for proxy in made:
        if hasattr(proxy, "process"):
            proxy.stop(signal.SIGKILL)


def ask(proxy: Proxy, path: str) -> Answer:
    """One request in a tunnel of its own; the answer to CONNECT where that is refused."""
    place = f"{API}:443"
    with proxy.connect(15.0) as connection:
        connection.sendall(format_request(place, place, "CONNECT"))
        client = Http1(connection)
        answer = client.read_head()
        if answer.status != 200:
            body = client.exactly(int(answer.value("content-length")))
            return Answer(answer.status, answer.reason, answer.headers, body)
        with Http1(proxy.secure(connection, API)) as inside:
            return inside.ask(path, API)


def reason_of(answer: Answer) -> str:
    return "" if answer.status == 200 else str(json.loads(answer.body)["reason"])


def failed_start(proxy: Proxy) -> tuple[int, str]:
    """Exit code and stderr of a server that must not come up."""
    proxy.start(wait=False)
    code = proxy.process.wait(30)
    proxy.stop()
    assert proxy.port == 0, "the port was opened"
    return code, proxy.stderr


def segment(proxy: Proxy) -> Path:
    (found,) = (proxy.state / "log").glob("*.jsonl")
    return found


# --- a full disk


def check_recovery(
    proxy: Proxy, break_it: Callable[[], object], mend: Callable[[], object]
) -> None:
    """Denied while it is full, served again when it is not, and all of it on record."""
    assert ask(proxy, "/ok/before").status == 200
    break_it()
    assert wait_until(lambda: ask(proxy, "/ok/full").status == 403)
    for _ in range(3):
        answer = ask(proxy, "/ok/full")
        assert (answer.status, reason_of(answer)) == (403, "audit-disk-full")
        assert json.loads(answer.body)["retryable"] is True
    status, body = proxy.scrape("/readyz")
    assert status == 503
    assert json.loads(body)["checks"]["log"].startswith(("disk-full", "short-write"))
    assert 'tollkeeper_audit_failures_total{cause="' in proxy.scrape("/metrics")[1]
    mend()
    assert wait_until(lambda: proxy.scrape("/readyz")[0] == 200, timeout_s=15.0)
    assert ask(proxy, "/ok/after").status == 200
    assert proxy.records("recovery")[-1]["cause"] == "disk-full"
    assert sum(event["n"] for event in proxy.records("dropped")) >= 4
    assert proxy.stop() == 0
    assert proxy.verify().returncode == 0, proxy.verify().stdout


def test_a_full_volume_denies_everything_until_there_is_room(
    prepare: Start, upstream: tuple[Origin, Path], tmp_path: Path
) -> None:
    with small_volume(tmp_path / "volume", 12 * MEGABYTE) as volume:
        proxy = prepare(folder=volume).start()
        before = len(upstream[0].requests)
        check_recovery(proxy, lambda: fill(volume), (volume / "filler").unlink)
        assert len(upstream[0].requests) == before + 2
        proxy.stop()


def test_the_last_megabytes_are_kept_for_the_record_of_the_trouble(
    prepare: Start, tmp_path: Path
) -> None:
    """Three of them are free, and traffic is denied already."""
    with small_volume(tmp_path / "volume", 12 * MEGABYTE) as volume:
        proxy = prepare(folder=volume).start()
        assert ask(proxy, "/ok/1").status == 200
        fill(volume, leave_bytes=3 * MEGABYTE)
        assert wait_until(lambda: ask(proxy, "/ok/2").status == 403)
        assert proxy.stop() == 0
        kinds = [event["kind"] for event in proxy.records()]
        assert kinds[-1] == "log.close"
        assert "dropped" in kinds
        assert proxy.verify().returncode == 0


def test_a_file_size_limit_is_a_full_disk(prepare: Start) -> None:
    """The same without root: a write stops in the middle of a record."""
    proxy = prepare().start()
    pid, (soft, hard) = proxy.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    assert ask(proxy, "/ok/1").status == 200

    def limit() -> None:
        size = segment(proxy).stat().st_size + 100
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    check_recovery(proxy, limit, lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard)))
    assert list((proxy.state / "log").glob("torn-*.bin"))


# --- a log that cannot be written, or was touched


def test_a_log_that_is_read_only_at_the_start_keeps_the_port_closed(
    prepare: Start, tmp_path: Path
) -> None:
    run_command("init", str(tmp_path))
    proxy = prepare()
    with read_only(proxy.state / "log"):
        code, said = failed_start(proxy)
    assert code == 2
    assert f"`{proxy.state / 'log'}`: read-only file system" in said
    assert "Traceback" not in said
    assert proxy.verify().returncode == 0


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.rename(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


def link(path: Path) -> None:
    os.link(path, path.with_suffix(".link"))


def remove_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("log.gone"))


@pytest.mark.parametrize("touch", [remove, replace, truncate, extend, link, remove_folder])
def test_a_log_that_was_touched_denies_everything(
    prepare: Start, upstream: tuple[Origin, Path], touch: Callable[[Path], None]
) -> None:
    proxy = prepare().start()
    assert ask(proxy, "/ok/before").status == 200
    assert wait_until(lambda: proxy.records("outcome"))
    time.sleep(0.1)
    touch(segment(proxy))
    before = len(upstream[0].requests)
    for _ in range(3):
        answer = ask(proxy, "/ok/after")
        assert (answer.status, reason_of(answer)) == (403, "audit-unavailable")
    assert len(upstream[0].requests) == before
    status, body = proxy.scrape("/readyz")
    assert status == 503
    assert json.loads(body)["checks"]["log"].startswith("log-changed")
    metrics = proxy.scrape("/metrics")[1]
    assert 'tollkeeper_audit_failures_total{cause="log-changed"} 1.0' in metrics


def test_a_log_that_was_removed_is_not_made_anew(prepare: Start) -> None:
    proxy = prepare().start()
    assert proxy.stop() == 0
    segment(proxy).unlink()
    code, said = failed_start(proxy)
    assert code == 2
    assert "holds no log" in said
    assert not list((proxy.state / "log").iterdir())


def test_a_torn_last_line_is_moved_away_and_told(prepare: Start) -> None:
    proxy = prepare().start()
    assert ask(proxy, "/ok/1").status == 200
    proxy.stop(signal.SIGKILL)
    path = segment(proxy)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = lines[-1][: len(lines[-1]) // 2]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    assert proxy.verify().returncode == 3
    proxy.start()
    (recovery,) = proxy.records("recovery")
    assert (recovery["cause"], recovery["bytes"]) == ("torn-tail", len(torn))
    (kept,) = (proxy.state / "log").glob("torn-*.bin")
    assert kept.read_bytes() == torn
    assert ask(proxy, "/ok/2").status == 200
    assert proxy.stop() == 0
    assert proxy.verify().returncode == 0


def test_a_flipped_bit_keeps_the_port_closed_and_costs_nothing(prepare: Start) -> None:
    """Line 5 of 10,000: it is named, and every byte stays as it was found."""
    proxy = prepare().start()
    assert proxy.stop() == 0
    writer = Writer.open(proxy.state / "log", software="tollkeeper/test")
    for number in range(10_000):
        change = {"agent": f"a{number}", "action": "add", "by": "test", "session": "s"}
        writer.submit({"kind": "credential.change", **change})
    writer.close()
    path = segment(proxy)
    flipped = bytearray(path.read_bytes())
    lines = bytes(flipped).splitlines(keepends=True)
    assert len(lines) > 10_000
    at = sum(map(len, lines[:4])) + len(lines[4]) // 2
    flipped[at] ^= 1
    path.write_bytes(bytes(flipped))
    listing = sorted(entry.name for entry in path.parent.iterdir())
    code, said = failed_start(proxy)
    assert code == 2
    assert f"{path}:5: " in said
    assert "audit verify" in said
    assert path.read_bytes() == bytes(flipped)
    assert sorted(entry.name for entry in path.parent.iterdir()) == listing
    checked = proxy.verify("--json")
    assert checked.returncode == 1
    assert json.loads(checked.stdout)["line"] == 5
    flipped[at] ^= 1
    path.write_bytes(bytes(flipped))
    proxy.start()
    assert ask(proxy, "/ok/again").status == 200


# --- two of them


def test_a_second_server_on_the_same_state_refuses(prepare: Start) -> None:
    first = prepare().start()
    code, said = failed_start(prepare())
    assert code == 2
    assert "in use by another writer" in said
    assert ask(first, "/ok/still").status == 200
    assert first.stop() == 0
    assert first.verify().returncode == 0


def test_a_writer_beside_the_server_finds_the_lock(prepare: Start) -> None:
    proxy = prepare().start()
    with pytest.raises(RuntimeError, match="in use by another writer"):
        open_log(proxy.state / "log", 0)


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_what_is_under_way(prepare: Start, number: signal.Signals) -> None:
    proxy = prepare().start()
    answers: list[Answer] = []
    client = Http1(proxy.tunnel(API, 443, timeout_s=15.0))
    with client:
        client.send("/slow/1", API)
        assert proxy.wait_for("decision", 2)
        ending = threading.Thread(target=lambda: answers.append(client.read()))
        ending.start()
        proxy.process.send_signal(number)
        assert wait_until(lambda: "draining" in proxy.stderr)
        with pytest.raises(OSError):
            proxy.connect().close()
        ending.join(15)
        assert proxy.process.wait(15) == 0
    assert [answer.status for answer in answers] == [200]
    assert proxy.records()[-1]["kind"] == "log.close"
    assert proxy.records("outcome")[-1]["status"] == 200
    proxy.stop()
    assert proxy.verify().returncode == 0


def test_a_stream_that_does_not_end_is_cut_after_the_drain_timeout(prepare: Start) -> None:
    proxy = prepare("--drain-timeout", "1").start()
    with Http1(proxy.tunnel(API, 443, timeout_s=15.0)) as client:
        client.send("/drip/0.05", API)
        assert client.read_head().status == 200
        started = time.monotonic()
        assert proxy.stop() == 0
        assert 0.8 < time.monotonic() - started < 8
        with pytest.raises(OSError):
            list(client.chunks())
    assert proxy.records("outcome")[-1]["error"] == "draining"
    assert proxy.verify().returncode == 0


def test_a_second_stop_does_not_wait(prepare: Start) -> None:
    proxy = prepare("--drain-timeout", "60").start()
    with Http1(proxy.tunnel(API, 443, timeout_s=15.0)) as client:
        client.send("/drip/0.05", API)
        assert client.read_head().status == 200
        proxy.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: "draining" in proxy.stderr)
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(10) == 0
    proxy.stop()
    assert proxy.verify().returncode == 0


# --- starting


def test_a_port_that_is_taken_is_said_in_one_line(prepare: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag in ("--listen", "--admin"):
            proxy = prepare(flag, f"127.0.0.1:{port}")
            code, said = failed_start(proxy)
            assert code == 2, said
            assert "address already in use" in said.lower()
            assert flag in said
            assert "Traceback" not in said
            assert proxy.verify().returncode == 0, "the log was closed in order"


@pytest.mark.parametrize("text", ["", "version: 1\nrules: [{ id: x }]\n", "\0", "version: 2\n"])
def test_a_broken_policy_never_opens_the_port(prepare: Start, text: str) -> None:
    proxy = prepare()
    proxy.policy.write_text(text, encoding="utf-8")
    code, said = failed_start(proxy)
    assert code in (1, 2)
    assert str(proxy.policy) in said
    assert "Traceback" not in said


def test_a_state_directory_that_others_may_write_is_refused(prepare: Start) -> None:
    proxy = prepare().start()
    assert proxy.stop() == 0
    proxy.state.chmod(0o777)
    code, said = failed_start(proxy)
    assert code == 2
    assert "anybody may write" in said
    proxy.state.chmod(0o700)
    (proxy.state / "ca" / "ca.key").chmod(0o644)
    code, said = failed_start(proxy)
    assert code == 2
    assert "ca.key" in said


def test_it_serves_without_assert_statements(prepare: Start) -> None:
    """`python -O` removes them: nothing of ours may hang on one."""
    proxy = prepare(python=(sys.executable, "-O")).start()
    assert ask(proxy, "/ok/optimised").status == 200
    answer = ask(proxy, "/denied")
    assert (answer.status, reason_of(answer)) == (403, "no-rule-matched")
    assert proxy.stop() == 0
    assert proxy.verify().returncode == 0


def test_records_carry_the_time_of_this_machine(prepare: Start) -> None:
    before = datetime.now(UTC)  # noqa: TID251  compared with a clock we do not hold
    proxy = prepare().start()
    proxy.stop()
    last = json.loads(segment(proxy).read_bytes().splitlines()[-1])["chain"]["ts"]
    assert abs((datetime.fromisoformat(last) - before).total_seconds()) < 60
