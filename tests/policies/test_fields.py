"""Header fields: policy.md section 3, threats C9 to C20, E7, G12."""

import pytest

from policies.canonical import RawHead, canonicalise_request, format_head
from policies.model import Refusal, Request


def head(*fields: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/x") -> RawHead:
    return RawHead(method, target, ((b"Host", b"a.com"), *fields))


def judge(raw: RawHead) -> Request | Refusal:
    return canonicalise_request(raw, scheme="https", host="a.com", port=443)


REFUSED_FIELDS = {
    "second host": ((b"Host", b"a.com"), "header-refused"),
    "two content-lengths": ((b"Content-Length", b"1"), (b"content-length", b"1"), "header-refused"),
    "two content-types": ((b"Content-Type", b"a"), (b"Content-Type", b"a"), "header-refused"),
    "two authorizations": ((b"Authorization", b"a"), (b"Authorization", b"b"), "header-refused"),
    "two mcp-methods": ((b"Mcp-Method", b"a"), (b"Mcp-Method", b"a"), "header-refused"),
    "two transfer-encodings": (
        (b"Transfer-Encoding", b"chunked"),
        (b"Transfer-Encoding", b"chunked"),
        "header-refused",
    ),
    "both framings": (
        (b"Content-Length", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        "header-refused",
    ),
    "vertical tab before chunked": ((b"Transfer-Encoding", b"\x0bchunked"), "header-refused"),
    "two codings": ((b"Transfer-Encoding", b"gzip, chunked"), "header-refused"),
    "identity": ((b"Transfer-Encoding", b"identity"), "header-refused"),
    "signed length": ((b"Content-Length", b"+3"), "header-refused"),
    "length with a leading zero": ((b"Content-Length", b"03"), "header-refused"),
    "length list": ((b"Content-Length", b"3,3"), "header-refused"),
    "length with an underscore": ((b"Content-Length", b"3_0"), "header-refused"),
    "underscore framing": ((b"Transfer_Encoding", b"chunked"), "header-refused"),
    "underscore length": ((b"Content_Length", b"3"), "header-refused"),
    "underscore authorization": ((b"Proxy_Authorization", b"x"), "header-refused"),
    "underscore override": ((b"X_HTTP_Method_Override", b"DELETE"), "header-refused"),
    "bare CR in a value": ((b"X", b"a\rEvil: 1"), "header-refused"),
    "fold": ((b"X", b"a\r\n b"), "header-refused"),
    "NUL in a value": ((b"X", b"a\x00"), "header-refused"),
    "non-ASCII value": ((b"X", b"caf\xc3\xa9"), "header-refused"),
    "non-ASCII name": ((b"\xff", b"a"), "header-refused"),
    "space in a name": ((b"X ", b"a"), "header-refused"),
    "empty name": ((b"", b"a"), "header-refused"),
    "nominated authorization": ((b"Connection", b"close, Authorization"), "header-refused"),
    "nominated host": ((b"Connection", b"HOST"), "header-refused"),
    "nominated length": ((b"Proxy-Connection", b"content-length"), "header-refused"),
    "nominated cookie": ((b"Connection", b"cookie"), "header-refused"),
    "trailer": ((b"Trailer", b"X-Sum"), "trailer-refused"),
    "WebSocket of another version": (
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"8"),
        (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        "upgrade-refused",
    ),
}


@pytest.mark.parametrize("case", REFUSED_FIELDS.values(), ids=REFUSED_FIELDS)
def test_fields_that_could_be_read_twice_are_refused(
    case: tuple[tuple[bytes, bytes] | str, ...],
) -> None:
    fields = [field for field in case if not isinstance(field, str)]
    refusal = judge(head(*fields, method=b"GET" if b"Upgrade" in str(case).encode() else b"POST"))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == case[-1]


@pytest.mark.parametrize("spelling", [b"h2c", b"H2C", b"h2c, foo", b"TLS/1.0"])
def test_every_upgrade_but_an_exact_websocket_is_stripped(spelling: bytes) -> None:
    request = judge(head((b"Upgrade", spelling), (b"Connection", b"Upgrade")))
    assert isinstance(request, Request)
    assert request.headers == ()
    assert not request.websocket


def test_the_crumbs_of_an_http2_cookie_become_one_field() -> None:
    fields = ((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"))
    request = canonicalise_request(
        RawHead(b"GET", b"/", fields, "2", b"a.com"), scheme="https", host="a.com", port=443
    )
    assert isinstance(request, Request)
    assert request.headers == (("x", "y"), ("cookie", "a=1; b=2"))


HANDSHAKE = (
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Upgrade", b"WebSocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Extensions", b"permessage-deflate"),
    (b"Sec-WebSocket-Protocol", b"chat"),
)


def test_a_websocket_handshake_loses_its_extensions() -> None:
    request = judge(head(*HANDSHAKE))
    assert isinstance(request, Request)
    assert request.websocket
    assert [name for name, _ in request.headers] == [
        "sec-websocket-version",
        "sec-websocket-key",
        "sec-websocket-protocol",
    ]
    sent = format_head(request).headers
    assert (b"upgrade", b"websocket") in sent
    assert (b"connection", b"Upgrade") in sent


@pytest.mark.parametrize("key", [b"", b"short", b"!" * 24, b"dGhlIHNhbXBsZSBub25jZQ=x"])
def test_a_websocket_needs_a_key_of_sixteen_octets(key: bytes) -> None:
    fields = [(name, key if name == b"Sec-WebSocket-Key" else value) for name, value in HANDSHAKE]
    refusal = judge(head(*fields))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "upgrade-refused"


def test_a_websocket_post_is_refused() -> None:
    assert isinstance(judge(head(*HANDSHAKE, method=b"POST")), Refusal)
