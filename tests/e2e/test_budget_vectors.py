"""Budgets under attack, in the real process: threats.md A15 and B11, rows of policy.md section 4
("What fails in the field"), and what an agent with a shell would try.

What counts is what the origins saw: connections, requests, bytes.
"""

import contextlib
import gzip
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from tests.kit.faults import FaultyProxy
from tests.kit.http1 import format_request
from tests.kit.http2 import Http2
from tests.kit.proxy import Proxy, read_all, wait_until
from tests.kit.purse import API, ROGUE, Purse, Purses, open_purses
from tests.kit.streams import (
    SCRIPTS,
    TAKEN,
    body_of,
    chunk,
    close_of,
    frame,
    head_of,
    open_socket,
    read_frame,
    take,
)
from tests.kit.sum_log import sum_log

CALLS = 50
GONE = "gone.test.example"  # nobody listens there
MUTE = "mute.test.example"  # takes the connection and says nothing, not even TLS
RULES = f"""
  - {{ id: gone, verdict: allow, match: {{ host: [{GONE}, {MUTE}], path: "/**", dest_ip: loopback }} }}
  - {{ id: small, verdict: allow, match: {{ host: {ROGUE}, methods: [GET, POST], path: "/small/*", dest_ip: loopback }}, with: {{ max_request: 1kB, max_response: 1kB }} }}
"""  # noqa: E501  one rule per line reads best
WHERE = ("nowhere", "resolve", "reserve", "store", "dial")
LIMITS = {
    **{f"one-{where}-{way}": "{ requests: 1 }" for where in WHERE for way in "12"},
    "locked": "{ requests: 100, bytes_in: 10MB, bytes_out: 10MB }",
    "exits": "{ requests: 1000, bytes_in: 100MB, bytes_out: 100MB, steps: 1000 }",
    "few": "{ requests: 5 }",
    "reset": "{ requests: 10, bytes_in: 10MB, bytes_out: 1MB }",
    "silent": "{ bytes_out: 200, bytes_in: 10MB }",
    "silent-in": "{ bytes_out: 10MB, bytes_in: 200 }",
    "flood": "{ requests: 3 }",
    "lies": "{ requests: 1000, bytes_in: 100MB, bytes_out: 100MB }",
}


@pytest.fixture(scope="module")
def purses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Purses]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        open_purses(
            tmp_path_factory.mktemp("vectors"),
            LIMITS,
            kind=FaultyProxy,
            rules=RULES,
            resolve=[
                f"{GONE}:443:127.0.0.1:{nobody}",
                f"{MUTE}:443:127.0.0.1:{mute.getsockname()[1]}",
            ],
            wishes=["set.first_byte_timeout_s=0.4", "set.connect_timeout_s=0.8"],
            env={"TOLLKEEPER_CONTRACTS": "1"},
        ) as made,
    ):
        made.rogue.scripts.update(SCRIPTS)
        made.rogue.scripts |= {f"/small{path}": script for path, script in SCRIPTS.items()}
        yield made


@pytest.fixture(autouse=True)
def close_connections(purses: Purses) -> Iterator[None]:
    yield
    purses.close_connections()


def faulty(purses: Purses) -> FaultyProxy:
    return cast("FaultyProxy", purses.proxy)


# --- A15, and "check-then-add: N parallel calls pass"


@pytest.mark.parametrize("way", ["1", "2"])
@pytest.mark.parametrize("where", WHERE)
def test_a15_fifty_calls_on_a_budget_of_one_are_one_at_the_origin(
    purses: Purses, where: str, way: str
) -> None:
    """Also where every one of them waits between the check and what follows."""
    purse = purses[f"one-{where}-{way}"]
    origin = purses.origin
    before = len(origin.requests), origin.connections
    path = f"/ok/a15-{where}-{way}"
    with contextlib.ExitStack() as stack:
        if way == "1":
            clients = [purse.http1() for _ in range(CALLS)]
        else:
            client = purse.http2()
        if where != "nowhere":
            stack.enter_context(faulty(purses).fault(f"{where}:sluggish"))
        if way == "1":
            with ThreadPoolExecutor(CALLS) as pool:
                statuses = list(pool.map(lambda one: one.ask(path, API).status, clients))
        else:
            streams = [client.send(path, API) for _ in range(CALLS)]
            statuses = [answer.status for answer in client.read(*streams)]
    assert sorted(set(statuses)) == [200, 403]
    assert statuses.count(200) == 1
    purses.origin.catch_up()
    assert (len(purses.origin.requests), purses.origin.connections) == (
        before[0] + 1,
        before[1] + 1,
    )
    purse.settle()
    assert purse.spent == {"requests": 1}
    if where != "nowhere":
        assert faulty(purses).struck


# --- B11: locked, corrupt, gone, hanging


@contextlib.contextmanager
def locked(purses: Purses) -> Iterator[None]:
    """Somebody else holds the ledger's exclusive lock."""
    with contextlib.closing(sqlite3.connect(purses.proxy.state / "ledger.db", timeout=5)) as other:
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def moved(purses: Purses) -> Iterator[None]:
    """The ledger is not where it was."""
    path = purses.proxy.state / "ledger.db"
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


@contextlib.contextmanager
def hanging(purses: Purses) -> Iterator[None]:
    """It never answers."""
    with faulty(purses).fault("reserve:hang"):
        yield


@pytest.mark.parametrize("trouble", [locked, moved, hanging])
def test_b11_a_ledger_that_cannot_answer_denies_and_nothing_arrives(
    purses: Purses, trouble: Callable[[Purses], contextlib.AbstractContextManager[None]]
) -> None:
    purse = purses["locked"]
    with purse.http1() as client:
        assert client.ask("/ok/1", API).status == 200
    purse.settle()
    before = purse.spent
    purses.origin.catch_up()
    seen = purses.origin.connections, purses.origin.touched, purses.origin.bytes_received
    with trouble(purses):
        for _ in range(3):
            began = time.monotonic()
            with purse.http1() as client:
                answer = client.ask("/ok/2", API)
            assert time.monotonic() - began < 2.0
            denial = body_of(answer.body)
            assert (answer.status, denial["reason"]) == (403, "ledger-unavailable")
            assert denial["retryable"] is True
        status, text = purses.proxy.scrape("/readyz")
        assert status == 503, text
    purses.origin.catch_up()
    after = purses.origin.connections, purses.origin.touched, purses.origin.bytes_received
    assert after == seen
    assert wait_until(lambda: ask_ok(purse), timeout_s=5.0)
    purse.settle()
    assert purse.spent["requests"] == before["requests"] + 1
    assert purses.proxy.scrape("/readyz")[0] == 200


def ask_ok(purse: Purse) -> bool:
    with purse.http1() as client:
        return client.ask("/ok/3", API).status == 200


def test_b11_a_stream_is_cut_at_what_it_holds_when_the_ledger_is_locked(purses: Purses) -> None:
    purse = purses["locked"]
    purses.rogue.scripts["/endless"] = drip_blocks
    with purse.http1(ROGUE) as client:
        client.send("/endless", ROGUE)
        client.exactly(20_000)
        with locked(purses):
            came = 20_000 + len(read_all(client.connection))
    outcome = purse.settle()[-1]
    assert outcome["cut"] == "ledger-unavailable"
    granted = sum(
        one["amount"]
        for event in purse.events
        if outcome["ref"] in (event.get("ref"), event.get("id"))
        for one in event.get("reserve", ())
        if one["unit"] == "bytes_in"
    )
    assert outcome["bytes_in"] == granted
    assert came * 0.98 < granted


def drip_blocks(connection: Any, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(b"d" * 10_000)
        time.sleep(0.005)


def test_b11_a_corrupt_ledger_denies_until_a_restart_folds_the_log(tmp_path: Path) -> None:
    with open_purses(tmp_path, {"daily": "{ requests: 3 }"}) as purses:
        purse = purses["daily"]
        assert ask_ok(purse)
        purse.settle()
        for suffix in ("", "-wal", "-shm"):
            path = purses.proxy.state / f"ledger.db{suffix}"
            if path.exists():
                with path.open("r+b") as file:
                    file.write(b"\xff" * path.stat().st_size)
        before = purses.origin.connections
        for _ in range(3):
            with purse.http1() as client:
                answer = client.ask("/ok/2", API)
            assert (answer.status, body_of(answer.body)["reason"]) == (403, "ledger-unavailable")
        purses.origin.catch_up()
        assert purses.origin.connections == before
        purses.proxy.stop()
        purses.proxy.start()
        assert [ask_ok(purse) for _ in range(3)] == [True, True, False]
        assert purse.spent == {"requests": 3}


# --- "reservation leaks -> false exhaustion": every exit path returns what it held


def end_upload(purse: Purse, body: bytes, *fields: str, path: str = "/take?exit") -> None:
    """The begin of an upload, then the client goes on as the body says."""
    with purse.http1(ROGUE) as client:
        client.connection.sendall(format_request(path, ROGUE, "POST", fields) + body)
        client.connection.settimeout(0.5)
        read_all(client.connection)


def leave(purse: Purse, path: str, host: str = ROGUE, *, after_bytes: int = 0) -> None:
    with purse.http1(host) as client:
        client.send(path, host)
        if after_bytes:
            client.exactly(after_bytes)
        else:
            time.sleep(0.1)
    purse.purses.close_connections()


def get(purse: Purse, path: str, host: str = ROGUE, **rest: Any) -> None:
    with purse.http1(host) as client, contextlib.suppress(OSError):
        client.connection.settimeout(3)
        client.ask(path, host, **rest)


def reset(purse: Purse, *, at_once: bool) -> None:
    client = purse.http2(ROGUE)
    stream = client.send("/take?exit", ROGUE, method="POST", body=b"r" * 100)
    if not at_once:
        time.sleep(0.1)
    abandon(client, stream)
    time.sleep(0.05)


def abandon(client: Http2, *streams: int) -> None:
    for stream in streams:
        client._h2.reset_stream(stream)
    client._flush()


def talk(purse: Purse, last: bytes) -> None:
    client = open_socket(purse)
    client.connection.sendall(frame(b"hello"))
    read_frame(client)
    client.connection.sendall(last)
    client.connection.settimeout(3)
    read_all(client.connection)


def raw(answer: bytes) -> Callable[[Purse], None]:
    def run(purse: Purse) -> None:
        purse.purses.rogue.answer("/raw", answer)
        get(purse, "/raw")

    return run


def struck(fault: str) -> Callable[[Purse], None]:
    def run(purse: Purse) -> None:
        with faulty(purse.purses).fault(fault), contextlib.suppress(OSError):
            get(purse, "/ok/1", API)
            assert wait_until(lambda: faulty(purse.purses).struck)

    return run


CHUNKED = "Transfer-Encoding: chunked"
EXITS: dict[str, Callable[[Purse], None]] = {
    "allowed": lambda purse: get(purse, "/ok/1", API),
    "no rule": lambda purse: get(purse, "/ok/1", API, method="DELETE"),
    "nobody listens": lambda purse: get(purse, "/", GONE),
    "nobody says a word": lambda purse: get(purse, "/", MUTE),
    "gone before the upstream says a word": lambda purse: leave(purse, "/", MUTE),
    "no answer in time": lambda purse: get(purse, "/take?exit"),
    "closed without an answer": raw(b""),
    "garbage": raw(b"no http at all\r\n\r\n"),
    "half a head": raw(b"HTTP/1.1 200 OK\r\nX-"),
    "half a body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
    "broken chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "407": raw(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"),
    "unasked 101": raw(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
    "gone before the answer": lambda purse: leave(purse, "/take?exit"),
    "gone in the answer": lambda purse: leave(purse, "/pour?exit", after_bytes=500),
    "half an upload": lambda purse: end_upload(purse, b"half", "Content-Length: 100"),
    "a broken chunk": lambda purse: end_upload(purse, b"5\r\nhello\r\nzz\r\n", CHUNKED),
    "a trailer": lambda purse: end_upload(purse, b"1\r\nx\r\n0\r\nX-T: 1\r\n\r\n", CHUNKED),
    "too long a request": lambda purse: end_upload(
        purse, chunk(b"x" * 5000), CHUNKED, path="/small/take"
    ),
    "too long an answer": lambda purse: leave(purse, "/small/pour-close", after_bytes=900),
    "reset at once": lambda purse: reset(purse, at_once=True),
    "reset later": lambda purse: reset(purse, at_once=False),
    "goodbye": lambda purse: talk(purse, frame(b"\x03\xe8", 8)),
    "a broken frame": lambda purse: talk(purse, b"\xff\xff\xff\xff"),
    "nobody's fault: reserve": struck("reserve:hang"),
    "nobody's fault: decide": struck("decide:raise"),
    "nobody's fault: record": struck("store:timeout"),
    "nobody's fault: ticket": struck("digest:raise"),
    "nobody's fault: forward": struck("forward:raise"),
    "nobody's fault: dial": struck("dial:raise"),
    "nobody's fault: ticket's check": struck("check-ticket-1:raise"),
    "nobody's fault: the answer": struck("step.response-head:raise"),
    "nobody's fault: its end": struck("step.response-end:raise"),
    "nobody's fault: cancelled": struck("judge:cancel"),
}


@pytest.mark.parametrize("leave_by", EXITS.values(), ids=EXITS)
def test_every_way_out_returns_what_was_held(
    purses: Purses, leave_by: Callable[[Purse], None]
) -> None:
    """Row "reservation leaks"; and what the ledger then says is what the log adds up to (I6)."""
    purse = purses["exits"]
    with contextlib.suppress(ConnectionError):
        leave_by(purse)
    purses.close_connections()
    assert wait_until(lambda: not any(purse.held.values()), timeout_s=5.0), (
        purse.held,
        purse.events[-2:],
    )
    purse.settle()
    assert wait_until(
        lambda: (
            {unit: n for unit, n in purse.spent.items() if n}
            == sum_log(purses.proxy.state / "log").get("exits/exits", {})
        )
    )


# --- what an agent with a shell would try


def test_requests_sent_ahead_on_one_connection_are_counted_one_by_one(purses: Purses) -> None:
    purse = purses["few"]
    before = len(purses.origin.requests)
    with purse.http1() as client:
        client.connection.sendall(format_request("/ok/pipe", API) * 20)
        received = read_all(client.connection)
    assert (received.count(b"HTTP/1.1 200"), received.count(b"HTTP/1.1 403")) == (5, 1)
    assert len(purses.origin.requests) == before + 5
    purse.settle()
    assert purse.spent == {"requests": 5}


def test_streams_that_are_reset_at_once_hold_nothing_and_hide_nothing(purses: Purses) -> None:
    """Row "reservation leaks": head, end and reset in one piece."""
    purse = purses["reset"]
    before = len(purses.rogue.heads)
    client = purse.http2(ROGUE)
    for number in range(40):
        abandon(client, client.send(f"/take?reset{number}", ROGUE, method="POST", body=b"r" * 100))
    outcomes = purse.settle()
    arrived = len(purses.rogue.heads) - before
    assert {one.get("error") for one in outcomes} == {"client-gone"}
    assert purse.spent["requests"] == len([one for one in outcomes if one["bytes_out"]])
    assert arrived <= purse.spent["requests"]
    assert ask_ok_2(purse)


def ask_ok_2(purse: Purse) -> bool:
    return purse.http2().ask("/ok/after", API).status == 200


def test_a_reset_ends_a_download_that_nobody_reads(purses: Purses) -> None:
    purse = purses["lies"]
    client = purse.http2(ROGUE)
    stream = client.send("/pour?reset", ROGUE)
    client.read_some(stream, 50_000)
    abandon(client, stream)
    outcome = purse.settle()[-1]
    assert outcome["error"] == "client-gone"


@pytest.mark.parametrize("text", [b"", b"x"], ids=["empty", "one byte"])
def test_messages_of_nothing_are_no_way_round_a_budget(purses: Purses, text: bytes) -> None:
    """Row "WebSocket path skips guards": an empty message counts as one byte, control frames do not
    cross."""
    purse = purses["silent" if not text else "silent-in"]
    purses.origin.frames.clear()
    client = open_socket(purse)
    with contextlib.suppress(OSError):
        for _ in range(200):
            client.connection.sendall(frame(text, 1) + frame(b"hidden", 9) + frame(b"hidden", 10))
    assert close_of(client) == 1008
    outcome = purse.settle()[-1]
    assert outcome["cut"] == "budget-exhausted"
    crossed = [one for one in purses.origin.frames if one[0] & 0x0F < 8]
    head = purses.origin.received[-1].index(b"\r\n\r\n") + 4
    assert outcome["bytes_out"] == head + len(crossed)
    assert b"hidden" not in purses.origin.received[-1]
    unit = "bytes_in" if text else "bytes_out"
    assert purse.spent[unit] <= 200


def test_a_flood_of_connects_takes_nothing(purses: Purses) -> None:
    purse = purses["flood"]
    for _ in range(60):
        purse.tunnel().close()
    purses.close_connections()
    assert purse.spent == purse.held == {"requests": 0}
    assert [ask_ok(purse) for _ in range(4)] == [True, True, True, False]


def test_an_upstream_that_answers_early_still_has_its_upload_counted(purses: Purses) -> None:
    def answer_early(connection: Any, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        take(connection, head)

    purses.rogue.scripts["/early"] = answer_early
    purse = purses["lies"]
    size = 1_000_000
    with purse.http1(ROGUE) as client:
        field = f"Content-Length: {size}"
        client.connection.sendall(format_request("/early?early", ROGUE, "POST", [field]))
        with contextlib.suppress(OSError):
            for _ in range(size // 10_000):
                client.connection.sendall(b"e" * 10_000)
        assert client.read().status == 413
    outcome = purse.settle()[-1]
    head = head_of("POST /early?early", f"content-length: {size}", host=ROGUE)
    assert wait_until(lambda: head + len(TAKEN["early"]) == outcome["bytes_out"])


LIES: dict[str, tuple[bytes, int]] = {
    "too short": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"s" * 500, 500),
    "too long": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + b"s" * 500, 10),
    "206": (
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-9/99\r\nContent-Length: 10\r\n\r\n0123456789",
        10,
    ),
    "compressed": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
        + gzip.compress(b"0" * 500_000, mtime=0),
        len(gzip.compress(b"0" * 500_000, mtime=0)),
    ),
}


@pytest.mark.parametrize(("answer", "size"), LIES.values(), ids=LIES)
def test_what_an_upstream_says_about_a_length_changes_no_figure(
    purses: Purses, answer: bytes, size: int
) -> None:
    """Row "compressed or odd encoding hides usage": bytes are counted as they came."""
    purses.rogue.answer("/lie", answer)
    purse = purses["lies"]
    before = purse.spent["bytes_in"]
    get(purse, "/lie")
    outcome = purse.settle()[-1]
    assert outcome["bytes_in"] == answer.index(b"\r\n\r\n") + 4 + size
    assert purse.spent["bytes_in"] == before + outcome["bytes_in"]


def test_an_upload_that_stops_half_way_pays_for_the_half(purses: Purses) -> None:
    purse = purses["lies"]
    with purse.http1(ROGUE) as client:
        field = "Content-Length: 100000"
        client.connection.sendall(
            format_request("/take?half", ROGUE, "POST", [field]) + b"h" * 5000
        )
        assert wait_until(lambda: len(TAKEN.get("half", b"")) == 5000)
        client.connection.shutdown(socket.SHUT_WR)
        outcome = purse.settle()[-1]
    head = head_of("POST /take?half", "content-length: 100000", host=ROGUE)
    assert outcome["bytes_out"] == head + 5000


def test_a_chunk_of_nothing_ends_the_upload_and_what_follows_is_a_request(purses: Purses) -> None:
    purse = purses["lies"]
    before = len(purse.of("decision"))
    with purse.http1() as client:
        head = format_request("/echo", API, "POST", [CHUNKED])
        client.connection.sendall(head + chunk(b"one") + b"0\r\n\r\n" + chunk(b"two"))
        assert client.read().body == b"one"
    outcome = purse.settle()[-1]
    assert outcome["bytes_out"] == head_of("POST /echo", CHUNKED.lower()) + 3
    assert len(purse.of("decision")) == before + 1


# --- "two servers on one state directory"


def test_a_second_server_on_the_state_directory_refuses_and_changes_nothing(
    purses: Purses, tmp_path: Path
) -> None:
    purse = purses["lies"]
    purse.settle()
    before = purse.spent
    second = Proxy(tmp_path, purses.proxy.policy, "--state", str(purses.proxy.state))
    second.state = purses.proxy.state
    second.start(wait=False)
    assert second.process.wait(20) != 0
    second.stop()
    assert "lock" in second.stderr or "busy" in second.stderr or "running" in second.stderr
    assert purse.spent == before
    with purse.http1() as client:
        assert client.ask("/ok/second", API).status == 200
