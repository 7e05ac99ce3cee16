"""Byte budgets in the real process: what the outcome and the ledger say is what a counting upstream
saw, and not one byte more than the limit passes.

Each agent has a budget of its own, so the tests share one server and nothing else.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.faults import FaultyProxy
from tests.kit.http1 import format_request
from tests.kit.origin import Origin
from tests.kit.proxy import wait_until
from tests.kit.purse import API, FAST, ROGUE, Purse, Purses, count_head, open_purses
from tests.kit.streams import (
    CHUNKED,
    SCRIPTS,
    SLICE,
    TAKEN,
    body_of,
    chunk,
    close_of,
    dechunk,
    frame,
    head_of,
    open_socket,
    read_frame,
    read_rest,
)

DOWNLOAD = count_head("HTTP/1.1 200 Answer", "Content-Length: 1000", "X-Origin: yes")


UPLOAD = head_of("POST /echo", "content-length: 1000")
STREAM = head_of("POST /take", CHUNKED, host=ROGUE)
POURED = ("chunked", "close", "sse")
LIMITS = {
    "plenty": "{ bytes_out: 1GB, bytes_in: 1GB }",
    "upload-fits": f"{{ bytes_out: {UPLOAD + 1000} }}",
    "upload-too-long": f"{{ bytes_out: {UPLOAD + 999} }}",
    "chunks": f"{{ bytes_out: {STREAM + 1000} }}",
    "frames": f"{{ bytes_out: {STREAM + 1000} }}",
    "frames-on": f"{{ bytes_out: {head_of('POST /echo', CHUNKED, host=FAST) + 1000} }}",
    "download-fits": f"{{ bytes_in: {DOWNLOAD + 1000} }}",
    "download-too-long": f"{{ bytes_in: {DOWNLOAD + 999} }}",
    "head-too-long": "{ bytes_in: 10 }",
    **{f"cut-{way}-{form}": "{ bytes_in: 2000 }" for way in "12" for form in POURED},
    "cut-upstream-2": "{ bytes_in: 70000 }",
    "talk-out": "{ bytes_out: 1000, bytes_in: 1MB }",
    "talk-in": "{ bytes_out: 1MB, bytes_in: 1000 }",
    "rpc": "{ bytes_out: 1MB, bytes_in: 1MB }",
    "gone": "{ bytes_out: 1MB, bytes_in: 100MB }",
    "gone-talk": "{ bytes_out: 1MB, bytes_in: 1MB }",
}


@pytest.fixture(scope="module")
def purses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Purses]:
    with open_purses(
        tmp_path_factory.mktemp("bytes"),
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


@pytest.fixture
def plenty(purses: Purses) -> Purse:
    """An agent that runs out of nothing."""
    return purses["plenty"]


POUR_HEADS = {
    "chunked": count_head("HTTP/1.1 200 OK", "Content-Type: text/plain", CHUNKED),
    "sse": count_head("HTTP/1.1 200 OK", "Content-Type: text/event-stream", CHUNKED),
    "close": count_head("HTTP/1.1 200 OK", "Connection: close"),
}


def last_counts(purse: Purse) -> tuple[int, int]:
    """Bytes out and in of the last outcome."""
    outcome = purse.settle()[-1]
    return outcome["bytes_out"], outcome["bytes_in"]


# --- the figures


def check_figures(purse: Purse, origin: Origin, before: dict[str, int]) -> None:
    """Outcome, ledger and the origin's last connection agree, byte by byte (no chunks)."""
    bytes_out, bytes_in = last_counts(purse)
    assert bytes_out == len(origin.received[-1])
    assert bytes_in == len(origin.sent[-1])
    assert purse.spent["bytes_out"] == before["bytes_out"] + bytes_out
    assert purse.spent["bytes_in"] == before["bytes_in"] + bytes_in


FORMS: dict[str, tuple[str, str, tuple[str, ...], bytes]] = {
    "GET": ("GET", "/ok/1", (), b""),
    "fields": ("GET", "/ok/1?a=b", ("X-One: 1", "Accept: */*"), b""),
    "POST": ("POST", "/echo", (), b"x" * 5000),
    "POST of nothing": ("POST", "/echo", ("Content-Length: 0",), b""),
    "HEAD": ("HEAD", "/big/5000", (), b""),
    "204": ("GET", "/status/204", (), b""),
    "304": ("GET", "/status/304", (), b""),
    "302": ("GET", "/status/302", (), b""),
    "404": ("GET", "/status/404", (), b""),
    "close-delimited": ("GET", "/close", (), b""),
    "longer than a slice": ("POST", "/echo", (), b"y" * (SLICE + 70_000)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_figures_are_what_the_upstream_counted(
    purses: Purses, plenty: Purse, form: tuple[str, str, tuple[str, ...], bytes]
) -> None:
    method, path, fields, body = form
    before = plenty.spent
    with plenty.http1() as client:
        client.ask(path, API, method=method, headers=fields, body=body)
    check_figures(plenty, purses.origin, before)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_figures_are_the_same_for_a_client_of_http2(
    purses: Purses, plenty: Purse, form: tuple[str, str, tuple[str, ...], bytes]
) -> None:
    method, path, fields, body = form
    if len(body) > 60_000:
        body = body[:60_000]  # what the client's window takes at once
    pairs = [tuple(one.lower().split(": ")) for one in fields if "Length" not in one]
    if body:
        pairs.append(("content-length", str(len(body))))
    before = plenty.spent
    client = plenty.http2()
    client.ask(path, API, method=method, headers=pairs, body=body)
    check_figures(plenty, purses.origin, before)


def test_figures_of_chunked_bodies_are_payload_without_framing(
    purses: Purses, plenty: Purse
) -> None:
    with plenty.http1() as client:
        client.connection.sendall(
            format_request("/echo", API, "POST", ["Transfer-Encoding: chunked"])
            + b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
        )
        assert client.read().body == b"hello!"
    assert last_counts(plenty) == (
        head_of("POST /echo", CHUNKED) + 6,
        count_head("HTTP/1.1 200 Answer", "Content-Length: 6", "X-Origin: yes") + 6,
    )
    with plenty.http1() as client:
        client.ask("/trailers", API)  # a trailer of HTTP/1.1 reaches nobody
    assert last_counts(plenty)[1] == count_head("HTTP/1.1 200 OK", CHUNKED) + 2
    with plenty.http1() as client:
        client.connection.sendall(
            format_request("/echo", API, "POST", ["Transfer-Encoding: chunked"]) + b"0\r\n\r\n"
        )
        assert client.read().body == b""
    assert last_counts(plenty)[0] == head_of("POST /echo", CHUNKED)
    assert purses.origin.requests[-1].body == b""


def test_interim_answers_are_not_counted_and_reach_nobody(plenty: Purse) -> None:
    with plenty.http1() as client:
        assert client.ask("/hints", API).status == 200
    body = len(json.dumps({"path": "/hints"}))
    head = count_head("HTTP/1.1 200 Answer", f"Content-Length: {body}", "X-Origin: yes")
    assert last_counts(plenty)[1] == head + body


def test_expect_100_continue_is_counted_like_any_upload(purses: Purses, plenty: Purse) -> None:
    before = plenty.spent
    with plenty.http1() as client:
        client.connection.sendall(
            format_request("/echo", API, "POST", ["Expect: 100-continue", "Content-Length: 2000"])
        )
        assert client.read_head().status == 100
        client.connection.sendall(b"e" * 2000)
        assert client.read().body == b"e" * 2000
    check_figures(plenty, purses.origin, before)
    assert purses.origin.requests[-1].values("expect") == []  # it is answered here


def test_each_request_of_a_redirect_is_charged_on_its_own(purses: Purses, plenty: Purse) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: https://{API}/ok/2\r\nContent-Length: 0\r\n\r\n"
    purses.rogue.answer("/moved", head.encode())
    before = len(plenty.settle())
    with plenty.http1(ROGUE) as client:
        moved = client.ask("/moved", ROGUE)
    with plenty.http1() as client:
        client.ask(moved.value("location").removeprefix(f"https://{API}"), API)
    assert [one["status"] for one in plenty.settle()[before:]] == [302, 200]


def test_grpc_streams_are_counted_with_their_trailers(purses: Purses) -> None:
    """HTTP/2 on both sides; the figures are those of HTTP/1.1 heads."""
    purse = purses["rpc"]
    client = purse.http2(FAST)
    message = b"\0\0\0\0\x05hello"
    fields = [("te", "trailers"), ("content-type", "application/grpc")]
    answer = client.ask("/rpc", FAST, method="POST", headers=fields, body=message)
    assert answer.trailers == (("grpc-status", "0"), ("grpc-message", "fine"))
    out, came = last_counts(purse)
    _, _, seen, _ = purses.fast.requests[-1]
    lines = [f"{name}: {value}" for name, value in seen.items() if not name.startswith(":")]
    assert out == head_of("POST /rpc", *lines, CHUNKED, host=FAST) + len(message)
    head = count_head("HTTP/1.1 200 ", "content-type: application/grpc", "x-origin: h2")
    trailers = len("grpc-status: 0\r\ngrpc-message: fine\r\n")
    assert came == head + len(message) + trailers
    assert purse.spent == {"bytes_out": out, "bytes_in": came}


# --- uploads


def test_an_upload_that_fits_to_the_byte_passes_and_nothing_behind_it(purses: Purses) -> None:
    purse = purses["upload-fits"]
    before = purses.origin.connections
    with purse.http1() as client:
        assert client.ask("/echo", API, method="POST", body=b"u" * 1000).status == 200
    purse.settle()
    assert purse.spent["bytes_out"] == UPLOAD + 1000 == len(purses.origin.received[-1])
    with purse.http1() as client:
        answer = client.ask("/ok/1", API)
    assert answer.status == 403
    assert body_of(answer.body)["remaining"] == {"upload-fits": {"bytes_out": 0}}
    purses.origin.catch_up()
    assert purses.origin.connections == before + 1


@pytest.mark.parametrize("way", ["http1", "http2"])
def test_an_upload_one_byte_too_long_is_denied_before_anything_leaves(
    purses: Purses, way: str
) -> None:
    purse = purses["upload-too-long"]
    before = purses.origin.connections
    client: Any = getattr(purse, way)()
    if way == "http1":
        answer = client.ask("/echo", API, method="POST", body=b"u" * 1000)
    else:
        length = [("content-length", "1000")]
        answer = client.ask("/echo", API, method="POST", headers=length, body=b"u" * 1000)
    denial = body_of(answer.body)
    assert (answer.status, denial["reason"], denial["retryable"]) == (
        403,
        "budget-exhausted",
        False,
    )
    assert denial["remaining"] == {"upload-too-long": {"bytes_out": UPLOAD + 999}}
    purses.origin.catch_up()
    assert purses.origin.connections == before
    assert purse.settle() == []
    assert purse.spent["bytes_out"] == 0


def test_a_chunked_upload_is_cut_at_the_last_byte_that_was_held(purses: Purses) -> None:
    purse = purses["chunks"]
    with purse.http1(ROGUE) as client:
        head = format_request("/take?chunks", ROGUE, "POST", ["Transfer-Encoding: chunked"])
        client.connection.sendall(head)
        with contextlib.suppress(OSError):
            for number in range(40):
                client.connection.sendall(chunk(bytes([65 + number % 26]) * 77))
        answer = client.read()
    assert (answer.status, body_of(answer.body)["reason"]) == (403, "budget-exhausted")
    (outcome,) = purse.settle()
    query = len("?chunks")
    assert outcome["bytes_out"] == purse.spent["bytes_out"] == STREAM + 1000
    assert outcome["cut"] == "budget-exhausted"
    expected = b"".join(bytes([65 + number % 26]) * 77 for number in range(40))
    assert wait_until(lambda: len(dechunk(bytes(TAKEN["chunks"]))) >= 1000 - query)
    assert dechunk(bytes(TAKEN["chunks"])) == expected[: 1000 - query]


def test_an_upload_over_http2_is_cut_at_the_last_byte_that_was_held(purses: Purses) -> None:
    purse = purses["frames"]
    client = purse.http2(ROGUE)
    stream = client.begin("/take?frames", ROGUE)
    client.upload(stream, b"f" * 77, times=40)
    answer = client.read(stream)[0]
    assert (answer.status, body_of(answer.body)["reason"]) == (403, "budget-exhausted")
    (outcome,) = purse.settle()
    assert outcome["bytes_out"] == purse.spent["bytes_out"] == STREAM + 1000
    assert wait_until(lambda: len(dechunk(bytes(TAKEN["frames"]))) >= 1000 - len("?frames"))
    assert dechunk(bytes(TAKEN["frames"])) == b"f" * (1000 - len("?frames"))


def test_an_upload_on_to_an_upstream_of_http2_is_cut_alike(purses: Purses) -> None:
    purse = purses["frames-on"]
    client = purse.http2(FAST)
    stream = client.begin("/echo", FAST)
    client.upload(stream, b"f" * 77, times=40)
    assert client.read(stream)[0].status == 403
    (outcome,) = purse.settle()
    assert outcome["bytes_out"] == purse.spent["bytes_out"]
    assert outcome["settle"][0]["amount"] == head_of("POST /echo", CHUNKED, host=FAST) + 1000


# --- downloads


def test_a_download_that_fits_to_the_byte_passes(purses: Purses) -> None:
    purse = purses["download-fits"]
    with purse.http1() as client:
        assert len(client.ask("/big/1000", API).body) == 1000
    purse.settle()
    assert purse.spent["bytes_in"] == DOWNLOAD + 1000 == len(purses.origin.sent[-1])
    with purse.http1() as client:
        assert client.ask("/ok/1", API).status == 403


@pytest.mark.parametrize("way", ["http1", "http2"])
def test_a_download_one_byte_too_long_is_answered_403_and_costs_its_head(
    purses: Purses, way: str
) -> None:
    purse = purses["download-too-long"]
    before = purse.spent.get("bytes_in", 0)
    client: Any = getattr(purse, way)()
    length = 1000 if not before else 1000 - DOWNLOAD + len("1000") - len(str(1000 - DOWNLOAD))
    answer = client.ask(f"/big/{length}", API)
    denial = body_of(answer.body)
    assert (answer.status, denial["reason"], denial["retryable"]) == (
        403,
        "budget-exhausted",
        False,
    )
    outcome = purse.settle()[-1]
    head = DOWNLOAD - len("1000") + len(str(length))
    assert (outcome["cut"], outcome["bytes_in"]) == ("budget-exhausted", head)
    assert purse.spent["bytes_in"] == before + head
    assert denial["remaining"]["download-too-long"]["bytes_in"] <= DOWNLOAD + 999


def test_a_head_longer_than_what_is_left_costs_all_that_is_left(purses: Purses) -> None:
    purse = purses["head-too-long"]
    with purse.http1() as client:
        assert client.ask("/ok/1", API).status == 403
    (outcome,) = purse.settle()
    assert outcome["bytes_in"] > 10  # counted as it was
    assert [one["amount"] for one in outcome["settle"]] == [10]
    assert purse.spent["bytes_in"] == 10


@pytest.mark.parametrize("form", POUR_HEADS)
@pytest.mark.parametrize("way", ["1", "2"])
def test_a_download_without_end_is_cut_at_the_last_byte_that_was_held(
    purses: Purses, way: str, form: str
) -> None:
    purse = purses[f"cut-{way}-{form}"]
    path = "/pour-close" if form == "close" else f"/pour?{form}"
    if way == "1":
        with purse.http1(ROGUE) as client:
            client.send(path, ROGUE)
            head = client.read_head()
            body = dechunk(read_rest(client))
    else:
        client2 = purse.http2(ROGUE)
        stream = client2.send(path, ROGUE)
        head = client2.read(stream)[0]
        assert head.status == 0  # reset
        body = head.body
    (outcome,) = purse.settle()
    assert (outcome["status"], outcome["cut"]) == (200, "budget-exhausted")
    assert outcome["bytes_in"] == purse.spent["bytes_in"] == 2000
    assert len(body) == 2000 - POUR_HEADS[form]


def test_a_download_from_an_upstream_of_http2_is_cut_alike(purses: Purses) -> None:
    purse = purses["cut-upstream-2"]
    client = purse.http2(FAST)
    answer = client.ask("/big/100000", FAST)  # no Content-Length
    (outcome,) = purse.settle()
    head = count_head("HTTP/1.1 200 ", "content-type: application/json", "x-origin: h2")
    assert outcome["bytes_in"] == purse.spent["bytes_in"] == 70_000
    assert len(answer.body) == 70_000 - head


# --- WebSockets


def sizes_of_data(frames: list[tuple[int, bytes]]) -> int:
    return sum(len(data) for head, data in frames if head & 0x0F in (0, 1, 2))


@pytest.mark.parametrize("unit", ["out", "in"])
def test_frames_pass_as_long_as_they_are_held_whole(purses: Purses, unit: str) -> None:
    """The first frame that does not fit is not sent; both sides are told 1008."""
    purse = purses[f"talk-{unit}"]
    purses.origin.frames.clear()
    client = open_socket(purse)
    with contextlib.suppress(OSError):
        for _ in range(40):
            client.connection.sendall(frame(b"w" * 100))
    assert close_of(client) == 1008
    (outcome,) = purse.settle()
    assert outcome["cut"] == "budget-exhausted"
    limited = f"bytes_{unit}"
    assert outcome[limited] == purse.spent[limited]
    assert 900 < outcome[limited] <= 1000
    sent = sizes_of_data(purses.origin.frames)
    assert outcome["bytes_out"] - sent == len(purses.origin.received[-1].split(b"\r\n\r\n")[0]) + 4


def test_frames_are_counted_by_payload_and_control_frames_are_not(purses: Purses) -> None:
    purse = purses["plenty"]
    purses.origin.frames.clear()
    client = open_socket(purse)
    client.connection.sendall(frame(b"ab", 1, final=False) + frame(b"ping", 9))
    client.connection.sendall(frame(b"cd", 0))
    assert read_frame(client)[1] in (b"ping", b"ab")
    assert read_frame(client)[1] in (b"ping", b"ab")
    assert read_frame(client)[1] == b"cd"
    client.connection.sendall(frame(b"\x03\xe8bye", 8))
    assert close_of(client) == 1000
    out, came = last_counts(purse)
    head_out = purses.origin.received[-1].index(b"\r\n\r\n") + 4
    head_in = purses.origin.sent[-1].index(b"\r\n\r\n") + 4
    assert (out - head_out, came - head_in) == (4, 4)
    assert b"ping" not in purses.origin.received[-1]
    assert b"bye" not in purses.origin.received[-1]


# --- who hangs up still pays


@pytest.mark.parametrize("way", ["http1", "http2"])
def test_a_client_that_hangs_up_pays_for_what_came(purses: Purses, way: str) -> None:
    purse = purses["gone"]
    before = purse.spent.get("bytes_in", 0)
    client: Any = getattr(purse, way)(ROGUE)
    stream = client.send("/pour?gone", ROGUE)
    if way == "http2":
        client.read_some(stream, 400_000)
    else:
        client.exactly(400_000)
    client.connection.close()
    purses.close_connections()
    outcome = purse.settle()[-1]
    assert outcome["error"] == "client-gone"
    assert outcome["bytes_in"] > 360_000
    assert purse.spent["bytes_in"] == before + outcome["bytes_in"]


def test_a_client_that_hangs_up_in_an_upload_pays_for_what_left(purses: Purses) -> None:
    purse = purses["gone"]
    before = purse.spent["bytes_out"]
    with purse.http1(ROGUE) as client:
        client.connection.sendall(
            format_request("/take?gone", ROGUE, "POST", ["Content-Length: 300000"]) + b"g" * 50_000
        )
        assert wait_until(lambda: len(TAKEN.get("gone", b"")) == 50_000)
    purses.close_connections()
    outcome = purse.settle()[-1]
    head = head_of("POST /take?gone", "content-length: 300000", host=ROGUE)
    assert outcome["bytes_out"] == head + 50_000
    assert purse.spent["bytes_out"] == before + head + 50_000  # and the rest of it is free again


def test_a_client_that_hangs_up_in_a_websocket_pays_for_its_frames(purses: Purses) -> None:
    purse = purses["gone-talk"]
    client = open_socket(purse)
    client.connection.sendall(frame(b"h" * 120) * 10)
    for _ in range(10):
        read_frame(client)
    client.connection.close()
    purses.close_connections()
    (outcome,) = purse.settle()
    assert outcome["bytes_out"] > 1200 < outcome["bytes_in"]
    assert purse.spent == {unit: outcome[unit] for unit in ("bytes_in", "bytes_out")}
