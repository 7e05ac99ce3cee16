"""Header fields: policy.md section 3, threats C9 to C20, E7, G12."""

import pytest

from policies.canonical import RawHead, canonicalise_request, format_head
from policies.fields import Fields, canonicalise_fields
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


def detail(*fields: tuple[bytes, bytes], method: bytes = b"POST") -> str:
    """Why these fields are refused."""
    refusal = judge(head(*fields, method=method))
    assert isinstance(refusal, Refusal)
    return refusal.detail


SINGLE = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "authorization",
    "transfer-encoding",
    "expect",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "mcp-session-id",
]


@pytest.mark.parametrize("name", SINGLE)
def test_a_field_with_one_meaning_stands_once(name: str) -> None:
    twice = (name.encode(), b"1")
    assert detail(twice, twice) == f"duplicate {name}"


def test_a_refusal_quotes_at_most_64_characters_of_a_name() -> None:
    long = b"mcp-" + b"x" * 100
    shown = long.decode()[:64]
    assert detail((long, b"1"), (long, b"1")) == f"duplicate {shown}"
    assert detail((long, b"\x01")) == f"control character in the value of {shown}"
    assert detail((b"connection", long)) == f"connection nominates {shown}"
    odd = b"mcp_" + b"x" * 100
    assert detail((odd, b"1")) == f"{odd.decode()[:64]} looks like another field"


def test_a_field_that_is_a_list_may_stand_twice() -> None:
    request = judge(head((b"Accept", b"a"), (b"accept", b"b"), (b"X-Mcp", b"1"), (b"x-mcp", b"2")))
    assert isinstance(request, Request)
    pairs = (("accept", "a"), ("accept", "b"), ("x-mcp", "1"), ("x-mcp", "2"))
    assert request.headers == pairs


NEEDED = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "authorization",
    "cookie",
    "accept",
    "date",
    "origin",
    "referer",
    "range",
    "if-match",
    "if-none-match",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "mcp-session-id",
]


@pytest.mark.parametrize("option", NEEDED)
@pytest.mark.parametrize("field", [b"Connection", b"Proxy-Connection"])
def test_no_connection_option_takes_away_what_an_origin_needs(option: str, field: bytes) -> None:
    spelled = b"close, \t" + option.upper().encode()
    assert detail((field, spelled)) == f"connection nominates {option}"


def test_connection_options_are_tokens_and_may_be_empty() -> None:
    assert detail((b"Connection", b"clo se")) == "a connection option is not a token"
    request = judge(head((b"Connection", b"close,, x-drop,"), (b"X-Drop", b"1"), (b"X-Keep", b"2")))
    assert isinstance(request, Request)
    assert request.headers == (("x-keep", "2"),)


LOOK_ALIKES = [
    "keep_alive",
    "transfer_encoding",
    "http2_settings",
    "content_length",
    "content_type",
    "content_encoding",
    "sec_websocket_key",
    "sec_websocket_version",
    "x_http_method_override",
    "x_http_method",
    "x_method_override",
    "x-http_method",
    "proxy_connection",
    "proxy_x",
    "mcp_x",
    "sec_x",
]


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_an_underscore_is_no_way_to_spell_another_field(name: str) -> None:
    assert detail((name.encode(), b"1")) == f"{name} looks like another field"


def test_an_underscore_in_a_name_of_its_own_passes() -> None:
    assert isinstance(judge(head((b"x_request_id", b"1"), (b"mcp", b"1"))), Request)


HOPS = [
    "connection",
    "keep-alive",
    "te",
    "upgrade",
    "http2-settings",
    "expect",
    "sec-websocket-extensions",
]


@pytest.mark.parametrize("name", [*HOPS, "proxy-authorization", "proxy-x"])
def test_what_is_meant_for_the_next_hop_goes_no_further(name: str) -> None:
    request = judge(head((name.encode(), b"a"), (b"X-Keep", b"1")))
    assert isinstance(request, Request)
    assert request.headers == (("x-keep", "1"),)


def test_a_value_keeps_its_inner_blanks_and_loses_its_outer_ones() -> None:
    request = judge(head((b"X", b" \t a\tb  c \t"), (b"Y", b"")))
    assert isinstance(request, Request)
    assert request.headers == (("x", "a\tb  c"), ("y", ""))


LENGTHS = {b"0": 0, b"7": 7, b"9999999999999999": 9999999999999999, b"10000000000000000": None}


@pytest.mark.parametrize(("spelled", "expected"), LENGTHS.items())
def test_a_length_has_at_most_sixteen_digits(spelled: bytes, expected: int | None) -> None:
    request = judge(head((b"Content-Length", spelled), method=b"POST"))
    found = request.body_length if isinstance(request, Request) else None
    assert found == expected


def test_a_length_of_nothing_is_no_body_and_chunks_are_one_without_a_length() -> None:
    empty = judge(head((b"Content-Length", b"0"), method=b"POST"))
    chunked = judge(head((b"Transfer-Encoding", b"Chunked"), method=b"POST"))
    assert isinstance(empty, Request)
    assert isinstance(chunked, Request)
    assert (empty.body, empty.body_length) == (False, 0)
    assert (chunked.body, chunked.body_length) == (True, None)


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


@pytest.mark.parametrize("absent", range(4))
def test_a_websocket_handshake_lacks_nothing(absent: int) -> None:
    fields = [field for place, field in enumerate(HANDSHAKE) if place != absent]
    judged = judge(head(*fields))
    if HANDSHAKE[absent][0] == b"Upgrade":  # then it asks for nothing
        assert isinstance(judged, Request)
        assert not judged.websocket
    else:
        assert isinstance(judged, Refusal)
        assert judged.reason == "upgrade-refused"


def test_websockets_are_shaken_hands_for_on_http_1_1_only() -> None:
    raw = RawHead(b"GET", b"/", ((b"host", b"a.com"), *HANDSHAKE), "1.0")
    judged = canonicalise_request(raw, scheme="https", host="a.com", port=443)
    assert isinstance(judged, Refusal)
    assert judged.reason == "upgrade-refused"
    listed = [(n, b"h2c, websocket" if n == b"Upgrade" else v) for n, v in HANDSHAKE]
    assert isinstance(judge(head(*listed)), Refusal)


def test_an_empty_crumb_of_an_http2_cookie_leaves_nothing_behind() -> None:
    for crumbs in (("a=1", ""), ("", "a=1"), ("", "a=1", "")):
        fields = tuple((b"cookie", crumb.encode()) for crumb in crumbs)
        joined = canonicalise_fields(fields, "2")
        assert isinstance(joined, Fields)
        assert joined.kept == (("cookie", "a=1"),), crumbs


def test_one_cookie_stays_where_it_stood() -> None:
    fields = ((b"cookie", b"a=1"), (b"x", b"y"))
    raw = RawHead(b"GET", b"/", fields, "2", b"a.com")
    request = canonicalise_request(raw, scheme="https", host="a.com", port=443)
    assert isinstance(request, Request)
    assert request.headers == (("cookie", "a=1"), ("x", "y"))
    two = judge(head((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")))
    assert isinstance(two, Request)
    assert [name for name, _ in two.headers] == ["cookie", "x", "cookie"], "only HTTP/2 joins them"


@pytest.mark.parametrize("key", [b"", b"short", b"!" * 24, b"dGhlIHNhbXBsZSBub25jZQ=x"])
def test_a_websocket_needs_a_key_of_sixteen_octets(key: bytes) -> None:
    fields = [(name, key if name == b"Sec-WebSocket-Key" else value) for name, value in HANDSHAKE]
    refusal = judge(head(*fields))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "upgrade-refused"


def test_a_websocket_post_is_refused() -> None:
    assert isinstance(judge(head(*HANDSHAKE, method=b"POST")), Refusal)
