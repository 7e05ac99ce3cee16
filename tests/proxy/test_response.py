"""What of an upstream's answer reaches the agent."""

from typing import Any

import pytest

from proxy.response import Answer, Fields, count_head_bytes, prepare_answer, prepare_trailers


def prepare(status: int = 200, *fields: tuple[bytes, bytes], **changes: Any) -> Answer | str:
    known: dict[str, Any] = {"method": "GET", "client": "1.1", "websocket": False}
    return prepare_answer(status, fields, **(known | changes))


def kept(answer: Answer | str) -> Fields:
    assert isinstance(answer, Answer)
    return answer.headers


REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "H7 a request for proxy credentials": (407, {}, "upstream-protocol"),
    "C24 status 0": (0, {}, "upstream-protocol"),
    "C24 status 999": (999, {}, "upstream-protocol"),
    "C24 status 600": (600, {}, "upstream-protocol"),
    "D3 a switch nobody asked for": (101, {}, "upgrade-unapproved"),
    "C22 an interim answer": (103, {}, "upstream-protocol"),
    "a continue that reached us": (100, {}, "upstream-protocol"),
}


@pytest.mark.parametrize(
    "fields",
    [
        ((b"X", b"a\rb"),),
        ((b"X", b"a\nb"),),
        ((b"X", b"a\0b"),),
        ((b"Content-Length", b"3"), (b"content-length", b"3")),
        ((b"Content-Length", b"+3"),),
        ((b"Content-Length", b""),),
    ],
    ids=["CR", "LF", "NUL", "two lengths", "a length with a sign", "an empty length"],
)
def test_fields_that_could_break_out_do_not_reach_the_agent(fields: Fields) -> None:
    """HTTP/2 hands them over as they are; towards an HTTP/1 agent they would be another answer."""
    assert prepare(200, *fields) == "upstream-protocol"


@pytest.mark.parametrize(("status", "changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_some_answers_do_not_reach_the_agent(
    status: int, changes: dict[str, Any], reason: str
) -> None:
    assert prepare(status, **changes) == reason


def test_an_approved_websocket_switches() -> None:
    answer = prepare(101, (b"Upgrade", b"raw"), (b"Sec-WebSocket-Accept", b"x"), websocket=True)
    assert kept(answer) == (
        (b"Sec-WebSocket-Accept", b"x"),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
    )


@pytest.mark.parametrize(
    "name",
    [
        b"Connection", b"Keep-Alive", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade",
        b"Alt-Svc", b"Proxy-Authenticate", b"Proxy-Authentication-Info", b"proxy-status",
        b"Tollkeeper-Budget",
    ],
)  # fmt: skip
def test_fields_of_the_hop_end_here(name: bytes) -> None:
    answer = prepare(200, (name, b"x"), (b"Content-Length", b"1"))
    assert kept(answer) == ((b"Content-Length", b"1"),)


def test_fields_that_connection_nominates_end_here() -> None:
    answer = prepare(
        200, (b"Connection", b"X-Hop , close"), (b"x-hop", b"1"), (b"Content-Length", b"1")
    )
    assert kept(answer) == ((b"Content-Length", b"1"),)


LENGTH = (b"Content-Length", b"3")
FRAMING: dict[str, tuple[Answer | str, tuple[bytes, bytes] | None]] = {
    "HTTP/1.1 without a length is chunked": (prepare(), (b"transfer-encoding", b"chunked")),
    "HTTP/1.1 with a length keeps it": (prepare(200, LENGTH), LENGTH),
    "HTTP/1.0 without a length closes": (prepare(client="1.0"), (b"connection", b"close")),
    "HTTP/1.0 with a length keeps it": (prepare(200, LENGTH, client="1.0"), LENGTH),
    "HTTP/2 frames itself": (prepare(client="2"), None),
    "an answer to HEAD has no body": (prepare(200, LENGTH, method="HEAD"), LENGTH),
    "HEAD without a length": (prepare(method="HEAD"), None),
    "204": (prepare(204), None),
    "304": (prepare(304), None),
    "a failed handshake": (prepare(200, LENGTH, websocket=True), LENGTH),
}


@pytest.mark.parametrize(("answer", "field"), FRAMING.values(), ids=FRAMING)
def test_framing_is_built_anew(answer: Answer | str, field: tuple[bytes, bytes] | None) -> None:
    assert kept(answer) == ((field,) if field else ())


def test_bodiless_answers_are_known() -> None:
    answers = [prepare(204), prepare(304), prepare(200, method="HEAD"), prepare(200)]
    flags = [answer.bodiless for answer in answers if isinstance(answer, Answer)]
    assert flags == [True, True, True, False]


def test_every_other_field_is_untouched_and_in_order() -> None:
    fields = ((b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"ETag", b'"x"'), LENGTH)
    assert kept(prepare(200, *fields)) == fields


def test_trailers_tell_nothing_that_a_head_could_not() -> None:
    passed = ((b"grpc-status", b"0"), (b"grpc-message", b"fine"))
    stopped = (
        (b"tollkeeper-budget", b'"a"'),
        (b"alt-svc", b'h3=":443"'), (b"proxy-authenticate", b"Basic"), (b"connection", b"x-hop"),
        (b"x-hop", b"1"), (b"x", b"a\r\nb: c"), (b":status", b"200"), (b"content-length", b"9"),
        (b"transfer-encoding", b"chunked"),
    )  # fmt: skip
    assert prepare_trailers((*stopped[:4], *passed, *stopped[4:])) == passed


def test_a_head_is_counted_in_its_http_1_form() -> None:
    line, fields = b"HTTP/1.1 200 OK", ((b"A", b"1"), (b"Bc", b"de"))
    raw = line + b"\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    assert count_head_bytes(fields, len(line)) == len(raw)
