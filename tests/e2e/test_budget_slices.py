"""Streams of unknown length, held slice by slice, in the real process: few records, no byte before
its record is durable, and together no more than the limit.
"""

import contextlib
import json
import random
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.faults import FaultyProxy
from tests.kit.http1 import format_request
from tests.kit.proxy import wait_until
from tests.kit.purse import API, FAST, ROGUE, Purse, Purses, count_head, open_purses
from tests.kit.streams import (
    CHUNKED,
    POUR_CHUNK,
    SCRIPTS,
    SLICE,
    TAKEN,
    chunk,
    close_of,
    dechunk,
    frame,
    head_of,
    open_socket,
    read_frame,
)

STREAM = head_of("POST /take", CHUNKED, host=ROGUE)
POUR_HEAD = count_head("HTTP/1.1 200 OK", "Connection: close")
LIMITS = {
    "plenty": "{ bytes_out: 1GB, bytes_in: 1GB }",
    "unmetered-out": "{ bytes_in: 1GB }",
    "unmetered-in": "{ bytes_out: 1GB }",
    "tiny": "{ bytes_out: 1MB, bytes_in: 1MB }",
    "crowd": "{ bytes_in: 2MB }",
    "crowd-out": "{ bytes_out: 2MB }",
    "slow-disk": "{ bytes_out: 100MB, bytes_in: 100MB }",
}


@pytest.fixture(scope="module")
def purses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Purses]:
    with open_purses(
        tmp_path_factory.mktemp("slices"),
        LIMITS,
        kind=FaultyProxy,
        env={"TOLLKEEPER_CONTRACTS": "1"},
    ) as made:
        made.rogue.scripts.update(SCRIPTS)
        yield made


@pytest.fixture(autouse=True)
def close_connections(purses: Purses) -> Iterator[None]:
    yield
    purses.close_connections()


def last_counts(purse: Purse) -> tuple[int, int]:
    """Bytes out and in of the last outcome."""
    outcome = purse.settle()[-1]
    return outcome["bytes_out"], outcome["bytes_in"]


def test_a_long_talk_renews_its_slices_both_ways(purses: Purses) -> None:
    purse = purses["plenty"]
    purses.origin.frames.clear()
    before = len(purse.of("reserve"))
    client = open_socket(purse)
    size, count = 16_000, 80
    for number in range(count):
        client.connection.sendall(frame(bytes([number]) * size))
        got = b""
        while len(got) < size:
            got += read_frame(client)[1]  # a frame may come in fragments
        assert got == bytes([number]) * size
    client.connection.sendall(frame(b"\x03\xe8", 8))
    assert close_of(client) == 1000
    out, came = last_counts(purse)
    assert out - size * count == purses.origin.received[-1].index(b"\r\n\r\n") + 4
    assert came - size * count == purses.origin.sent[-1].index(b"\r\n\r\n") + 4
    assert 4 <= len(purse.of("reserve")) - before <= 20


def test_many_streams_of_one_connection_renew_their_slices(purses: Purses) -> None:
    """HTTP/2 on both sides, lengths unknown."""
    purse = purses["plenty"]
    before, slices = len(purse.settle()), len(purse.of("reserve"))
    client = purse.http2(FAST)
    streams = [client.send(f"/big/{1_000_000 + number}", FAST) for number in range(5)]
    answers = client.read(*streams)
    assert [len(answer.body) for answer in answers] == [1_000_000 + number for number in range(5)]
    head = count_head("HTTP/1.1 200 ", "content-type: application/json", "x-origin: h2")
    counted = [outcome["bytes_in"] for outcome in purse.settle()[before:]]
    assert sorted(counted) == [head + 1_000_000 + number for number in range(5)]
    assert len(purse.of("reserve")) - slices <= 5 * 6


def test_thousands_of_tiny_frames_make_few_records(purses: Purses) -> None:
    purse = purses["tiny"]
    client = open_socket(purse)
    for _ in range(20):
        client.connection.sendall(frame(b"t") * 100)
    for _ in range(2000):
        read_frame(client)
    client.connection.sendall(frame(b"\x03\xe8", 8))
    assert close_of(client) == 1000
    (outcome,) = purse.settle()
    assert len(purse.of("reserve")) == 0
    assert outcome["bytes_out"] < 2300


def test_thousands_of_one_byte_chunks_make_few_records(purses: Purses) -> None:
    """Also with little left, where slices are small."""
    purse = purses["tiny"]
    before = len(purse.of("reserve"))
    with purse.http1() as client:
        head = format_request("/echo", API, "POST", ["Transfer-Encoding: chunked"])
        client.connection.sendall(head + chunk(b"c") * 3000 + b"0\r\n\r\n")
        assert client.read().body == b"c" * 3000
    outcome = purse.settle()[-1]
    assert outcome["bytes_out"] == head_of("POST /echo", CHUNKED) + 3000
    assert len(purse.of("reserve")) - before == 0


def pull(purse: Purse, path: str, host: str = API) -> int:
    """Bytes of a chunked answer's body that came, framing included."""
    count = 0
    with purse.http1(host) as client:
        client.send(path, host)
        if client.read_head().status != 200:
            return 0
        client.connection.settimeout(20)
        data, tail = bytes(client._held), b""
        with contextlib.suppress(OSError):
            while True:
                count += len(data)
                tail = (tail + data)[-7:]
                if tail == b"\r\n0\r\n\r\n":
                    break
                data = client.connection.recv(262_144)
                if not data:
                    break
    return count


STREAM_BYTES = 50_000_000


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_large_stream_goes_through_with_few_records(
    purses: Purses, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an unknown length, with a budget and without; how fast is printed, not judged."""
    purses.rogue.scripts["/fifty"] = pour_fifty
    purses.rogue.scripts["/drain"] = drain
    speeds = []
    for purse in (purses[f"unmetered-{direction}"], purses["plenty"]):
        before, slices = len(purse.settle()), len(purse.of("reserve"))
        began = time.monotonic()
        if direction == "in":
            assert STREAM_BYTES < pull(purse, "/fifty", ROGUE) < STREAM_BYTES * 1.01
        else:
            push(purse)
        speeds.append(STREAM_BYTES / 1e6 / (time.monotonic() - began))
        outcome = purse.settle()[before]
        assert outcome[f"bytes_{direction}"] > STREAM_BYTES
        if purse.name == "plenty":
            assert len(purse.of("reserve")) - slices <= STREAM_BYTES / SLICE * 1.1
    with capsys.disabled():
        print(f"\n50 MB {direction}: {speeds[0]:.0f} MB/s unlimited, {speeds[1]:.0f} MB/s metered")


def pour_fifty(connection: ssl.SSLSocket, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    block = b"f" * 100_000
    for _ in range(STREAM_BYTES // len(block)):
        connection.sendall(block)


def drain(connection: ssl.SSLSocket, _head: bytes) -> None:
    tail = b""
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        data = connection.recv(262_144)
        if not data:
            return
        tail = (tail + data)[-16:]
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def push(purse: Purse) -> None:
    with purse.http1(ROGUE) as client:
        head = format_request("/drain", ROGUE, "POST", ["Transfer-Encoding: chunked"])
        client.connection.settimeout(20)
        client.connection.sendall(head)
        block = chunk(b"f" * 100_000)
        for _ in range(STREAM_BYTES // 100_000):
            client.connection.sendall(block)
        client.connection.sendall(b"0\r\n\r\n")
        assert client.read().status == 200


def test_many_streams_at_once_get_together_no_more_than_the_limit(purses: Purses) -> None:
    purse = purses["crowd"]
    counts: list[int] = []

    def run() -> None:
        with contextlib.suppress(OSError, ConnectionError, ValueError):
            counts.append(pull(purse, "/pour-close", ROGUE))

    run_all([run] * 24)
    outcomes = purse.settle()
    assert outcomes
    heads = len(outcomes) * POUR_HEAD
    assert purse.spent["bytes_in"] == sum(one["bytes_in"] for one in outcomes) <= 2_000_000
    assert purse.spent["bytes_in"] > 1_900_000
    assert sum(map(len_of_chunks, counts)) <= purse.spent["bytes_in"] - heads


def len_of_chunks(count: int) -> int:
    """At least so much of what came was payload: the rest is our framing."""
    return count - (count // 100 + 2) * 12 if count > 2000 else 0


def test_many_uploads_at_once_get_together_no_more_than_the_limit(purses: Purses) -> None:
    purse = purses["crowd-out"]

    def run(number: int) -> None:
        with contextlib.suppress(OSError, ConnectionError), purse.http1(ROGUE) as client:
            path = f"/take?crowd{number}"
            head = format_request(path, ROGUE, "POST", ["Transfer-Encoding: chunked"])
            client.connection.sendall(head)
            for _ in range(1000):
                client.connection.sendall(chunk(b"o" * 4000))

    run_all([lambda number=number: run(number) for number in range(16)])
    outcomes = purse.settle()
    taken = [len(dechunk(bytes(TAKEN.get(f"crowd{number}", b"")))) for number in range(16)]
    assert purse.spent["bytes_out"] == sum(one["bytes_out"] for one in outcomes) <= 2_000_000
    assert sum(taken) + len(outcomes) * STREAM <= purse.spent["bytes_out"]
    assert sum(taken) > 1_800_000


def run_all(works: list[Any]) -> None:
    """At the same time, each in a thread."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def read_log(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """What is durably held of bytes, in both directions, by path of the request."""
    held: dict[str, int] = {}
    paths: dict[str, str] = {}
    for segment in sorted(folder.glob("*.jsonl")):
        for line in segment.read_bytes().split(b"\n")[:-1]:
            event = json.loads(line)["event"]
            if event["kind"] == "decision" and event["reserve"]:
                paths[event["id"]] = event["target"]["path"]
            for one in event.get("reserve", ()):
                ref = event.get("ref") or event["id"]
                if one["unit"].startswith("bytes_"):
                    key = f"{paths[ref]} {one['unit']}"
                    held[key] = held.get(key, 0) + one["amount"]
    return held, paths


def start_streams(purse: Purse, purses: Purses, came: dict[str, int]) -> list[threading.Thread]:
    """One download and one upload without end, each in a thread; `came` is what the client got."""

    def download() -> None:
        with contextlib.suppress(OSError, ConnectionError), purse.http1(ROGUE) as client:
            client.send("/pour", ROGUE)
            client.read_head()
            while data := client.connection.recv(65_536):
                came["in"] = came.get("in", 0) + len(data)

    def upload() -> None:
        with contextlib.suppress(OSError, ConnectionError), purse.http1(ROGUE) as client:
            head = format_request("/take", ROGUE, "POST", ["Transfer-Encoding: chunked"])
            client.connection.sendall(head)
            while True:
                client.connection.sendall(chunk(b"k" * 5000))

    TAKEN.pop("", None)
    threads = [threading.Thread(target=run, daemon=True) for run in (download, upload)]
    for thread in threads:
        thread.start()
    return threads


def check_held(purses: Purses, came: dict[str, int]) -> tuple[int, int]:
    """What passed is held on the disk; returns what passed, payload in and out."""
    payload = came.get("in", 0) * 100 // POUR_CHUNK - 200
    taken = len(TAKEN.get("", b""))
    arrived = taken * 5000 // len(chunk(b"k" * 5000)) - 5000
    held, _ = read_log(purses.proxy.state / "log")
    assert payload <= held.get("/pour bytes_in", 0)
    assert arrived <= held.get("/take bytes_out", 0)
    return payload, arrived


def test_no_byte_of_a_slice_passes_before_its_record_is_durable(
    tmp_path: Path,
) -> None:
    """Killed at any moment: what client and upstream have is held in the log."""
    chance = random.Random(7)
    limits = {"killed": "{ bytes_out: 1GB, bytes_in: 1GB }"}
    with open_purses(tmp_path, limits) as purses:
        purses.rogue.scripts.update(SCRIPTS)
        purse = purses["killed"]
        for _ in range(2):
            before = read_log(purses.proxy.state / "log")[0]
            came: dict[str, int] = {}
            threads = start_streams(purse, purses, came)
            assert wait_until(lambda came=came: came.get("in", 0) and TAKEN.get(""))  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.4))
            purses.proxy.stop(signal.SIGKILL)
            for thread in threads:
                thread.join(10)
            purses.close_connections()
            time.sleep(0.1)  # what is still on its way to the origin
            held = read_log(purses.proxy.state / "log")[0]
            for key in held:
                held[key] -= before.get(key, 0)
            payload = came["in"] * 100 // POUR_CHUNK - 200
            arrived = len(dechunk(bytes(TAKEN[""])))
            assert 0 < payload <= held["/pour bytes_in"], (payload, held)
            assert 0 < arrived <= held["/take bytes_out"], (arrived, held)
            purses.proxy.start()
            assert wait_until(lambda: purse.spent)
            assert purse.spent == {unit: purse.granted(unit) for unit in purse.spent}


def test_a_slow_disk_slows_the_streams_and_lets_nothing_ahead(purses: Purses) -> None:
    purse = purses["slow-disk"]
    came: dict[str, int] = {}
    with purses.proxy.fault("disk:sluggish"):  # type: ignore[attr-defined]
        start_streams(purse, purses, came)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            check_held(purses, came)
            time.sleep(0.05)
    passed = check_held(purses, came)
    purses.close_connections()
    purse.settle()
    assert min(passed) > SLICE, passed
    assert purses.proxy.struck, "the disk was not slow"  # type: ignore[attr-defined]


def test_a_disk_that_fails_cuts_the_streams_at_what_is_held(tmp_path: Path) -> None:
    """Their outcomes are lost with it, so the next run counts in full what they held."""
    limits = {"broken": "{ bytes_out: 1GB, bytes_in: 1GB }"}
    with open_purses(tmp_path, limits, kind=FaultyProxy) as purses:
        purses.rogue.scripts.update(SCRIPTS)
        purse = purses["broken"]
        came: dict[str, int] = {}
        threads = start_streams(purse, purses, came)
        assert wait_until(lambda: came.get("in", 0) > SLICE)
        with purses.proxy.fault("disk:io-error"):  # type: ignore[attr-defined]
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
        passed = check_held(purses, came)
        purses.proxy.stop()
        purses.proxy.start()
        assert wait_until(lambda: purse.spent)
        assert purse.spent == {unit: purse.granted(unit) for unit in purse.spent}
        assert purse.spent["bytes_in"] >= passed[0] > 0
        assert purse.spent["bytes_out"] >= passed[1] > 0
