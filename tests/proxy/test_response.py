"""What of an upstream's answer reaches the agent."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.response import Answer, Fields, count_head_bytes, prepare_answer

LENGTH: Fields = ((b"Content-Length", b"5"),)


def prepare(status: int, headers: Fields = (), **changes: Any) -> Answer | str:
    return prepare_answer(
        status,
        headers,
        method=changes.get("method", "GET"),
        client=changes.get("client", "1.1"),
        websocket=changes.get("websocket", False),
    )


def kept(headers: Fields, **changes: Any) -> dict[bytes, bytes]:
    answer = prepare(200, headers, **changes)
    assert isinstance(answer, Answer)
    return dict(answer.headers)


REFUSED: dict[str, tuple[int, Fields, str]] = {
    "h7 a challenge that would draw the proxy's credential": (407, (), "upstream-protocol"),
    "c22 an interim answer as the final one": (103, (), "upstream-protocol"),
    "d3 a switch of protocols nobody allowed": (101, (), "upgrade-unapproved"),
    "a status that is none": (600, (), "upstream-protocol"),
    "a field that breaks out of its line": (200, ((b"A", b"x\r\nB: y"),), "upstream-protocol"),
    "a NUL in a field": (200, ((b"A", b"\0"),), "upstream-protocol"),
    "two lengths": (200, LENGTH * 2, "upstream-protocol"),
    "a length that is no number": (200, ((b"content-length", b"+5"),), "upstream-protocol"),
}


@pytest.mark.parametrize(("status", "headers", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_answer_is_refused(status: int, headers: Fields, reason: str) -> None:
    assert prepare(status, headers) == reason


DROPPED = (b"Connection", b"Keep-Alive", b"Upgrade", b"Alt-Svc", b"Proxy-Authenticate", b"TE")


@pytest.mark.parametrize("name", DROPPED)
def test_a_field_of_the_next_hop_ends_here(name: bytes) -> None:
    assert kept(((name, b"x"), (b"Server", b"s"), *LENGTH)) == dict(((b"Server", b"s"), *LENGTH))


def test_a_field_that_connection_names_ends_here() -> None:
    fields: Fields = ((b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"X-End", b"2"), *LENGTH)
    assert kept(fields) == dict(((b"X-End", b"2"), *LENGTH))


def test_an_answer_without_length_is_framed_for_its_client() -> None:
    assert kept(())[b"transfer-encoding"] == b"chunked"
    assert kept((), client="1.0") == {b"connection": b"close"}
    assert kept((), client="2") == {}


def test_the_upstreams_own_chunking_is_not_copied() -> None:
    fields: Fields = ((b"Transfer-Encoding", b"gzip, chunked"),)
    assert kept(fields) == {b"transfer-encoding": b"chunked"}


@pytest.mark.parametrize(("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD")])
def test_an_answer_that_has_no_body_promises_none(status: int, method: str) -> None:
    answer = prepare(status, (), method=method)
    assert isinstance(answer, Answer)
    assert (answer.bodiless, answer.headers) == (True, ())


def test_an_allowed_websocket_is_switched() -> None:
    answer = prepare(101, ((b"Sec-WebSocket-Accept", b"k"),), websocket=True)
    assert isinstance(answer, Answer)
    assert dict(answer.headers)[b"upgrade"] == b"websocket"


@given(st.integers(0, 999), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))))
def test_nothing_that_an_origin_says_raises(status: int, headers: list[Any]) -> None:
    answer = prepare(status, tuple(headers))
    if isinstance(answer, Answer):
        assert not any(mark in value for _, value in answer.headers for mark in (b"\r", b"\n"))


def test_a_head_is_counted_as_http1_writes_it() -> None:
    written = b"HTTP/1.1 200 OK\r\nA: 1\r\nBc: 23\r\n\r\n"
    headers = ((b"A", b"1"), (b"Bc", b"23"))
    assert count_head_bytes(headers, len(b"HTTP/1.1 200 OK")) == len(written)
