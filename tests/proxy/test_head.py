"""Request and response heads: what has one reading passes, everything else is refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.head import (
    LENGTH_MAX,
    Framing,
    HeadError,
    RequestHead,
    ResponseHead,
    framing,
    read_request_head,
    read_response_head,
)


def head_of(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*fields: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return head_of(b"POST /x " + version, b"Host: a.example", *fields)


READ = {
    "origin-form": (
        head_of(b"GET /x?y=1 HTTP/1.1", b"Host: a.example"),
        RequestHead(b"GET", b"/x?y=1", b"HTTP/1.1", ((b"Host", b"a.example"),)),
    ),
    "absolute-form": (
        head_of(b"GET http://a.example/ HTTP/1.0"),
        RequestHead(b"GET", b"http://a.example/", b"HTTP/1.0", ()),
    ),
    "authority-form": (
        head_of(b"CONNECT a.example:443 HTTP/1.1"),
        RequestHead(b"CONNECT", b"a.example:443", b"HTTP/1.1", ()),
    ),
    "white space around a value": (
        head_of(b"GET / HTTP/1.1", b"A: \t b c \t "),
        RequestHead(b"GET", b"/", b"HTTP/1.1", ((b"A", b"b c"),)),
    ),
    "no white space, no value, and a tab inside": (
        head_of(b"GET / HTTP/1.1", b"A:b", b"C:", b"D:  ", b"E: f\tg"),
        RequestHead(
            b"GET", b"/", b"HTTP/1.1", ((b"A", b"b"), (b"C", b""), (b"D", b""), (b"E", b"f\tg"))
        ),
    ),
    "a method nobody knows": (
        head_of(b"DeLeTe / HTTP/1.1"),
        RequestHead(b"DeLeTe", b"/", b"HTTP/1.1", ()),
    ),
    "b5 bytes above 0x7f are for the canonical form to refuse": (
        head_of(b"GET /\xff HTTP/1.1", b"A: \xff"),
        RequestHead(b"GET", b"/\xff", b"HTTP/1.1", ((b"A", b"\xff"),)),
    ),
}


@pytest.mark.parametrize(("data", "expected"), READ.values(), ids=READ)
def test_a_request_head_is_read(data: bytes, expected: RequestHead) -> None:
    assert read_request_head(data) == expected


REFUSED = {
    "c13 a bare CR in a value": post(b"X: a\rEvil: 1"),
    "c13 NUL in a value": post(b"X: a\0b"),
    "c13 DEL in a value": post(b"X: a\x7fb"),
    "c13 ESC in a value": post(b"X: a\x1b[2J"),
    "c14 a folded field": post(b"X: a", b" b"),
    "c14 a folded Host": head_of(b"GET / HTTP/1.1", b"Host: a.example", b"\tb.example"),
    "c14 a fold as first field": head_of(b"GET / HTTP/1.1", b" X: a"),
    "c14 folded framing": post(b"Transfer-Encoding:", b" chunked"),
    "c15 a bare LF": b"GET / HTTP/1.1\nHost: a.example\r\n\r\n",
    "c15 a bare LF in a value": post(b"X: a\nEvil: 1"),
    "c15 a tab as separator": head_of(b"GET\t/ HTTP/1.1"),
    "c15 VT as separator": head_of(b"GET\x0b/ HTTP/1.1"),
    "c15 FF as separator": head_of(b"GET /\x0cHTTP/1.1"),
    "c15 two spaces": head_of(b"GET  / HTTP/1.1"),
    "c15 a space behind": head_of(b"GET / HTTP/1.1 "),
    "c15 a space before": head_of(b" GET / HTTP/1.1"),
    "c4 a space in the target": head_of(b"GET /admin HTTP/1.1 x HTTP/1.1"),
    "c16 HTTP/2.0": head_of(b"GET / HTTP/2.0"),
    "c16 HTTP/3.0": head_of(b"GET / HTTP/3.0"),
    "c16 HTTP/1.9": head_of(b"GET / HTTP/1.9"),
    "c16 HTTP/1.10": head_of(b"GET / HTTP/1.10"),
    "c16 lower case": head_of(b"GET / http/1.1"),
    "c16 ICAP": head_of(b"GET / ICAP/1.0"),
    "c16 none": head_of(b"GET /"),
    "c19 prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "c25 a method that is no token": head_of(b"G\xffT / HTTP/1.1"),
    "a method with a bracket": head_of(b"G(T / HTTP/1.1"),
    "no method": head_of(b" / HTTP/1.1"),
    "no target": head_of(b"GET  HTTP/1.1"),
    "g9 a control in the target": head_of(b"GET /\x01 HTTP/1.1"),
    "g9 NUL in the target": head_of(b"GET /\0 HTTP/1.1"),
    "g9 DEL in the target": head_of(b"GET /\x7f HTTP/1.1"),
    "a space before the colon": post(b"X : a"),
    "a tab before the colon": post(b"X\t: a"),
    "a name with a space": post(b"X Y: a"),
    "a name with a byte above 0x7f": post(b"X\xff: a"),
    "no name": post(b": a"),
    "no colon": post(b"X"),
    "an empty line inside": b"GET / HTTP/1.1\r\n\r\nHost: a.example\r\n\r\n",
    "an empty line before": b"\r\n" + head_of(b"GET / HTTP/1.1"),
    "no end": b"GET / HTTP/1.1\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\r\n\r\n",
    "only the end": b"\r\n\r\n",
    "nothing": b"",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_request_head_is_refused(data: bytes) -> None:
    answer = read_request_head(data)
    assert isinstance(answer, HeadError)
    assert answer.why.isascii()
    assert answer.why[0].islower()


FRAMED = {
    "neither": (post(), Framing("none")),
    "a length": (post(b"Content-Length: 3"), Framing("length", 3)),
    "no white space": (post(b"Content-Length:3"), Framing("length", 3)),
    "zero": (post(b"content-length: 0"), Framing("length", 0)),
    "the largest": (post(b"Content-Length: %d" % LENGTH_MAX), Framing("length", LENGTH_MAX)),
    "chunked": (post(b"Transfer-Encoding: chunked"), Framing("chunked")),
    "chunked in any case": (post(b"TRANSFER-ENCODING: Chunked"), Framing("chunked")),
    "a length on HTTP/1.0": (post(b"Content-Length: 3", version=b"HTTP/1.0"), Framing("length", 3)),
}


@pytest.mark.parametrize(("data", "expected"), FRAMED.values(), ids=FRAMED)
def test_a_body_has_one_end(data: bytes, expected: Framing) -> None:
    head = read_request_head(data)
    assert isinstance(head, RequestHead)
    assert framing(head) == expected


UNFRAMED = {
    "c9 both": [b"Content-Length: 3", b"Transfer-Encoding: chunked"],
    "c9 both, the other way round": [b"Transfer-Encoding: chunked", b"Content-Length: 3"],
    "c9 chunked twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "c9 chunked and identity": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
    "c9 xchunked": [b"Transfer-Encoding: xchunked"],
    "c9 chunked, identity": [b"Transfer-Encoding: chunked, identity"],
    "c9 chunked, chunked": [b"Transfer-Encoding: chunked, chunked"],
    "c9 two equal lengths": [b"Content-Length: 3", b"Content-Length: 3"],
    "c9 two lengths": [b"Content-Length: 3", b"content-length: 30"],
    "c9 a plus": [b"Content-Length: +3"],
    "c9 a minus": [b"Content-Length: -3"],
    "c9 a leading zero": [b"Content-Length: 03"],
    "c9 a list": [b"Content-Length: 3,3"],
    "c9 a list with a space": [b"Content-Length: 3, 3"],
    "c9 an underscore": [b"Content-Length: 3_0"],
    "c9 hexadecimal": [b"Content-Length: 0x3"],
    "c9 empty": [b"Content-Length: "],
    "c9 a folded length": [b"Content-Length:", b" 3"],
    "c9 superscript digits": [b"Content-Length: \xb2"],
    "c9 above every integer": [b"Content-Length: 99999999999999999999"],
    "c9 above 2^53-1": [b"Content-Length: %d" % (LENGTH_MAX + 1)],
    "c9 a quoted length": [b'Content-Length: "3"'],
    "c10 VT before": [b"Transfer-Encoding: \x0bchunked"],
    "c10 gzip first": [b"Transfer-Encoding: gzip, chunked"],
    "c10 a tab before": [b"Transfer-Encoding:\tchunked"],
    "c10 a tab behind": [b"Transfer-Encoding: chunked\t"],
    "c10 two spaces before": [b"Transfer-Encoding:  chunked"],
    "c10 a space behind": [b"Transfer-Encoding: chunked "],
    "c10 a parameter": [b"Transfer-Encoding: chunked;x=1"],
    "c10 a comma": [b"Transfer-Encoding: chunked,"],
    "c10 quoted": [b'Transfer-Encoding: "chunked"'],
    "c10 identity": [b"Transfer-Encoding: identity"],
    "c10 empty": [b"Transfer-Encoding: "],
    "c10 a space before the colon": [b"Transfer-Encoding : chunked"],
    "a length with a tab": [b"Content-Length: 3\t"],
}


def judge_request(data: bytes) -> object:
    head = read_request_head(data)
    return framing(head) if isinstance(head, RequestHead) else head


@pytest.mark.parametrize("fields", UNFRAMED.values(), ids=UNFRAMED)
def test_two_opinions_about_the_end_are_refused_in_requests(fields: list[bytes]) -> None:
    assert isinstance(judge_request(post(*fields)), HeadError)


@pytest.mark.parametrize("fields", UNFRAMED.values(), ids=UNFRAMED)
def test_c23_two_opinions_about_the_end_are_refused_in_responses(fields: list[bytes]) -> None:
    for method in (b"GET", b"HEAD"):
        data = head_of(b"HTTP/1.1 200 OK", *fields)
        assert isinstance(read_response_head(data, method=method), HeadError)


def test_c9_chunked_on_http_1_0_is_refused() -> None:
    data = post(b"Transfer-Encoding: chunked", version=b"HTTP/1.0")
    assert judge_request(data) == HeadError("transfer-encoding on http/1.0")
    answer = head_of(b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked")
    assert isinstance(read_response_head(answer, method=b"GET"), HeadError)


def test_the_number_of_fields_is_bounded() -> None:
    fields = [b"X-%d: y" % number for number in range(99)]
    assert isinstance(read_request_head(post(*fields)), RequestHead)
    assert isinstance(read_request_head(post(*fields, b"Z: y")), HeadError)
    assert isinstance(read_request_head(post(*fields), count_max=10), HeadError)


def ok(*fields: bytes) -> bytes:
    return head_of(b"HTTP/1.1 200 OK", *fields)


RESPONSES: dict[str, tuple[bytes, bytes, tuple[Any, ...]]] = {
    "a length": (b"GET", ok(b"Content-Length: 3"), (200, b"OK", "length", 3)),
    "chunked": (b"GET", ok(b"Transfer-Encoding: chunked"), (200, b"OK", "chunked", 0)),
    "neither ends with the connection": (b"GET", ok(), (200, b"OK", "close", 0)),
    "HTTP/1.0": (b"GET", head_of(b"HTTP/1.0 404 Not Found"), (404, b"Not Found", "close", 0)),
    "no reason": (b"GET", head_of(b"HTTP/1.1 200 ", b"Content-Length: 0"), (200, b"", "length", 0)),
    "no reason and no space": (
        b"GET",
        head_of(b"HTTP/1.1 200", b"Content-Length: 0"),
        (200, b"", "length", 0),
    ),
    "a reason in Latin-1": (
        b"GET",
        head_of(b"HTTP/1.1 200 \xe9", b"Content-Length: 0"),
        (200, b"\xe9", "length", 0),
    ),
    "HEAD has a length and no body": (b"HEAD", ok(b"Content-Length: 3"), (200, b"OK", "none", 0)),
    "HEAD, chunked": (b"HEAD", ok(b"Transfer-Encoding: chunked"), (200, b"OK", "none", 0)),
    "304 has a length and no body": (
        b"GET",
        head_of(b"HTTP/1.1 304 x", b"Content-Length: 3"),
        (304, b"x", "none", 0),
    ),
    "204": (b"DELETE", head_of(b"HTTP/1.1 204 No Content"), (204, b"No Content", "none", 0)),
    "204 with a zero": (
        b"DELETE",
        head_of(b"HTTP/1.1 204 x", b"Content-Length: 0"),
        (204, b"x", "none", 0),
    ),
    "101": (b"GET", head_of(b"HTTP/1.1 101 x", b"Upgrade: websocket"), (101, b"x", "none", 0)),
    "103": (
        b"GET",
        head_of(b"HTTP/1.1 103 Early Hints", b"Link: </a>"),
        (103, b"Early Hints", "none", 0),
    ),
    "599": (b"GET", head_of(b"HTTP/1.1 599 x"), (599, b"x", "close", 0)),
}


@pytest.mark.parametrize(("method", "data", "expected"), RESPONSES.values(), ids=RESPONSES)
def test_a_response_head_is_read(method: bytes, data: bytes, expected: tuple[Any, ...]) -> None:
    head = read_response_head(data, method=method)
    assert isinstance(head, ResponseHead)
    assert (head.status, head.reason, head.framing, head.length) == expected


REFUSED_RESPONSES = {
    "c24 status 0": head_of(b"HTTP/1.1 0 x"),
    "c24 status 000": head_of(b"HTTP/1.1 000 x"),
    "c24 status 099": head_of(b"HTTP/1.1 099 x"),
    "c24 status 600": head_of(b"HTTP/1.1 600 x"),
    "c24 status 999": head_of(b"HTTP/1.1 999 x"),
    "c24 status 2000": head_of(b"HTTP/1.1 2000 x"),
    "c24 a sign": head_of(b"HTTP/1.1 +20 x"),
    "c24 a fold": head_of(b"HTTP/1.1 200 OK", b"A: b", b" c"),
    "HTTP/2": head_of(b"HTTP/2 200"),
    "ICY": head_of(b"ICY 200 OK"),
    "two spaces": head_of(b"HTTP/1.1  200 OK"),
    "a control in the reason": head_of(b"HTTP/1.1 200 \x1b"),
    "a bare LF": b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
    "a bare CR": head_of(b"HTTP/1.1 200 OK", b"A: b\rC: d"),
    "a request": head_of(b"GET / HTTP/1.1"),
    "a body in 204": head_of(b"HTTP/1.1 204 x", b"Content-Length: 3"),
    "chunks in 204": head_of(b"HTTP/1.1 204 x", b"Transfer-Encoding: chunked"),
    "a body in 101": head_of(b"HTTP/1.1 101 x", b"Content-Length: 3"),
    "a space before the colon": head_of(b"HTTP/1.1 200 OK", b"Content-Length : 3"),
    "not complete": b"HTTP/1.1 200 OK\r\n",
}


@pytest.mark.parametrize("data", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES)
def test_a_response_head_is_refused(data: bytes) -> None:
    assert isinstance(read_response_head(data, method=b"GET"), HeadError)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_come_nothing_raises(data: bytes) -> None:
    for tail in (b"", b"\r\n\r\n"):
        judge_request(data + tail)
        judge_request(b"GET / HTTP/1.1\r\n" + data + tail)
        read_response_head(data + tail, method=b"GET")
        read_response_head(b"HTTP/1.1 200 OK\r\n" + data + tail, method=b"GET")


TOKEN = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode)
VISIBLE = st.binary(min_size=1, max_size=12).filter(
    lambda text: all(byte > 0x20 and byte != 0x7F for byte in text)
)
VALUE = st.lists(VISIBLE, max_size=3).map(b" ".join)


@given(
    TOKEN, VISIBLE, st.sampled_from([b"HTTP/1.0", b"HTTP/1.1"]), st.lists(st.tuples(TOKEN, VALUE))
)
@settings(max_examples=200, deadline=None)
def test_what_was_read_reads_the_same_when_written_again(
    method: bytes, target: bytes, version: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    expected = RequestHead(method, target, version, tuple(fields[:100]))
    first = b" ".join([method, target, version])
    data = head_of(first, *(b"%b: %b" % field for field in expected.headers))
    assert read_request_head(data) == expected


@given(st.sampled_from(sorted(REFUSED)), st.data())
@settings(max_examples=200, deadline=None)
def test_a_line_break_never_survives_a_reading(name: str, data: st.DataObject) -> None:
    seed = bytearray(REFUSED[name] or b"x")
    seed[data.draw(st.integers(0, len(seed) - 1))] = data.draw(st.integers(0, 255))
    head = read_request_head(bytes(seed))
    if isinstance(head, RequestHead):
        parts = [head.method, head.target, *(part for field in head.headers for part in field)]
        assert not any({0x0A, 0x0D, 0x00} & set(part) for part in parts)
