"""Requests as a whole: policy.md section 3, threats C4, C6, C25, E1 to E7, B5, B6."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.canonical import (
    RawHead,
    canonicalise_request,
    format_head,
    format_target,
    is_public_suffix,
    strip_request_params,
)
from policies.model import Refusal, Request
from policies.reasons import REASONS


def head(*fields: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/x") -> RawHead:
    return RawHead(method, target, ((b"Host", b"a.com"), *fields))


def judge(raw: RawHead) -> Request | Refusal:
    return canonicalise_request(raw, scheme="https", host="a.com", port=443)


def test_a_request_keeps_what_an_origin_may_read() -> None:
    raw = head(
        (b"Accept", b"  */*\t"),
        (b"AUTHORIZATION", b"Bearer x"),
        (b"Connection", b"keep-alive, X-Drop"),
        (b"X-Drop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"TE", b"trailers"),
        (b"Upgrade", b"H2C"),
        (b"HTTP2-Settings", b"AAM"),
        (b"Expect", b"100-continue"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Content-Length", b"12"),
        method=b"POST",
        target=b"/a/../b?q=1",
    )
    request = judge(raw)
    assert request == Request(
        "https",
        "a.com",
        443,
        "POST",
        "/b",
        "q=1",
        (("q", "1"),),
        (("accept", "*/*"), ("authorization", "Bearer x"), ("content-length", "12")),
        body=True,
        body_length=12,
    )
    assert format_target(request) == "/b?q=1"


@pytest.mark.parametrize(
    "method", [b"TRACE", b"CONNECT", b"DeLeTe", b"get", b"GET /admin HTTP/1.1", b"", b"G\xff"]
)
def test_methods_are_compared_as_bytes_with_the_known_list(method: bytes) -> None:
    refusal = judge(head(method=method))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "method-not-allowed"


DESTINATIONS = {
    "host differs": (RawHead(b"GET", b"/", ((b"host", b"b.com"),)), "host-mismatch"),
    "port differs": (RawHead(b"GET", b"/", ((b"host", b"a.com:444"),)), "host-mismatch"),
    "host is missing": (RawHead(b"GET", b"/", ()), "header-refused"),
    "host is not canonical": (RawHead(b"GET", b"/", ((b"host", b"a b"),)), "host-not-canonical"),
    "absolute form in a tunnel": (
        RawHead(b"GET", b"https://a.com/", ((b"host", b"a.com"),)),
        "host-mismatch",
    ),
    "target without a slash": (RawHead(b"GET", b"x", ((b"host", b"a.com"),)), "path-not-canonical"),
    "star": (RawHead(b"OPTIONS", b"*", ((b"host", b"a.com"),)), "path-not-canonical"),
    "authority differs": (RawHead(b"GET", b"/", (), "2", b"b.com"), "host-mismatch"),
    "authority and host differ": (
        RawHead(b"GET", b"/", ((b"host", b"b.com"),), "2", b"a.com"),
        "host-mismatch",
    ),
    "neither authority nor host": (RawHead(b"GET", b"/", (), "2"), "header-refused"),
    "authority on HTTP/1": (
        RawHead(b"GET", b"/", ((b"host", b"a.com"),), "1.1", b"a.com"),
        "header-refused",
    ),
    "transfer-encoding on HTTP/2": (
        RawHead(b"POST", b"/", ((b"transfer-encoding", b"chunked"),), "2", b"a.com", False),
        "header-refused",
    ),
    "transfer-encoding on HTTP/1.0": (
        RawHead(b"POST", b"/", ((b"host", b"a.com"), (b"transfer-encoding", b"chunked")), "1.0"),
        "header-refused",
    ),
    "length without a body on HTTP/2": (
        RawHead(b"POST", b"/", ((b"content-length", b"3"),), "2", b"a.com"),
        "header-refused",
    ),
}


@pytest.mark.parametrize(("raw", "reason"), DESTINATIONS.values(), ids=DESTINATIONS)
def test_the_destination_is_named_once(raw: RawHead, reason: str) -> None:
    refusal = judge(raw)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason


def test_host_may_name_the_default_port_and_any_case() -> None:
    request = judge(RawHead(b"GET", b"/", ((b"host", b"A.com.:443"),)))
    assert isinstance(request, Request)
    assert request.host == "a.com"


ABSOLUTE = {
    "plain": (b"http://a.com/x", b"a.com", ("a.com", 80, "/x", None)),
    "port": (b"http://a.com:8080/x?y", b"a.com:8080", ("a.com", 8080, "/x", "y")),
    "no path": (b"http://a.com", b"a.com", ("a.com", 80, "/", None)),
    "no path but a query": (b"HTTP://a.com?y", b"a.com", ("a.com", 80, "/", "y")),
    "a query that ends in a slash": (b"http://a.com?y/", b"a.com", ("a.com", 80, "/", "y/")),
    "numeric host": (b"http://127.1/", b"127.0.0.1", ("127.0.0.1", 80, "/", None)),
    "host differs": (b"http://a.com/", b"b.com", None),
    "user": (b"http://u@a.com/", b"a.com", None),
    "https on the plain port": (b"https://a.com/", b"a.com", None),
    "origin form on the plain port": (b"/x", b"a.com", None),
    "no authority": (b"http:///x", b"a.com", None),
    "fragment": (b"http://a.com#x", b"a.com", None),
}


@pytest.mark.parametrize(("target", "host", "expected"), ABSOLUTE.values(), ids=ABSOLUTE)
def test_the_plain_port_takes_absolute_form_that_equals_host(
    target: bytes, host: bytes, expected: tuple[str, int, str, str | None] | None
) -> None:
    request = canonicalise_request(RawHead(b"GET", target, ((b"Host", host),)), scheme="http")
    if expected is None:
        assert isinstance(request, Refusal)
        another = host == b"b.com" or target.startswith(b"https")
        fragment = b"#" in target
        expected_reason = "host-mismatch" if another else "host-not-canonical"
        assert request.reason == ("path-not-canonical" if fragment else expected_reason)
    else:
        assert isinstance(request, Request)
        assert (request.host, request.port, request.path, request.query) == expected


NAMES = st.sampled_from(
    b"host connection content-length transfer-encoding upgrade x te".split()
    + b"mcp-method sec-websocket-key expect cookie content_type".split()
)
VALUES = st.sampled_from([b"a.com", b"0", b"3", b"chunked", b"close", b"upgrade", b"websocket"])
FIELDS = st.lists(
    st.tuples(NAMES | st.binary(max_size=8), VALUES | st.binary(max_size=12)), max_size=6
)


@given(
    st.sampled_from([b"GET", b"POST", b"TRACE"]) | st.binary(max_size=6),
    st.sampled_from([b"/", b"/a;b?c", b"http://a.com/"]) | st.binary(max_size=20),
    FIELDS.map(tuple),
    st.sampled_from(["1.0", "1.1", "2"]),
    st.none() | st.sampled_from([b"a.com"]) | st.binary(max_size=6),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_requests_are_total_and_idempotent(
    method: bytes, target: bytes, fields: tuple[tuple[bytes, bytes], ...], version: str,
    authority: bytes | None, ends: bool, tunnel: bool,
) -> None:  # fmt: skip
    raw = RawHead(method, target, fields, version, authority, ends)  # type: ignore[arg-type]
    place = {"host": "a.com", "port": 443} if tunnel else {}
    for one in (raw, replace(raw, headers=((b"host", b"a.com"), *fields), authority=None)):
        request = canonicalise_request(one, scheme="https" if tunnel else "http", **place)  # type: ignore[arg-type]
        if isinstance(request, Refusal):
            assert request.reason in REASONS
            assert request.detail.isascii()
            assert len(request.detail) < 200
            continue
        again = canonicalise_request(
            format_head(request), scheme=request.scheme, host=request.host, port=request.port
        )
        assert again == request


BODIES = {
    "HTTP/1 without": ((), "1.1", True, (False, None)),
    "HTTP/1 with a length": (((b"content-length", b"3"),), "1.1", True, (True, 3)),
    "HTTP/1 with a length of nothing": (((b"content-length", b"0"),), "1.1", True, (False, 0)),
    "HTTP/1 in chunks": (((b"transfer-encoding", b"chunked"),), "1.1", True, (True, None)),
    "HTTP/2 without": ((), "2", True, (False, None)),
    "HTTP/2 of unknown length": ((), "2", False, (True, None)),
    "HTTP/2 with a length": (((b"content-length", b"3"),), "2", False, (True, 3)),
    "HTTP/2 with a length of nothing": (((b"content-length", b"0"),), "2", False, (False, 0)),
    "HTTP/2 that ends with a length of nothing": (
        ((b"content-length", b"0"),),
        "2",
        True,
        (False, 0),
    ),
}


@pytest.mark.parametrize(("fields", "version", "ends", "expected"), BODIES.values(), ids=BODIES)
def test_a_body_is_what_the_framing_says(
    fields: tuple[tuple[bytes, bytes], ...],
    version: str,
    ends: bool,
    expected: tuple[bool, int | None],
) -> None:
    raw = RawHead(b"POST", b"/", ((b"host", b"a.com"), *fields), version, None, ends)  # type: ignore[arg-type]
    request = judge(raw)
    assert isinstance(request, Request)
    assert (request.body, request.body_length) == expected


SENT: dict[str, tuple[Request, RawHead]] = {
    "a plain one": (
        Request("https", "a.com", 443, "GET", "/x", "q", headers=(("b", "1"), ("a", "2"))),
        RawHead(b"GET", b"/x?q", ((b"host", b"a.com"), (b"b", b"1"), (b"a", b"2"))),
    ),
    "an empty query and another port": (
        Request("http", "::1", 8080, "DELETE", "/", ""),
        RawHead(b"DELETE", b"/?", ((b"host", b"[::1]:8080"),)),
    ),
    "a body of unknown length": (
        Request("https", "a.com", 443, "POST", "/", body=True),
        RawHead(b"POST", b"/", ((b"host", b"a.com"), (b"transfer-encoding", b"chunked"))),
    ),
    "a body of known length": (
        Request(
            "https", "a.com", 443, "POST", "/", None, (), (("content-length", "3"),), False, True, 3
        ),
        RawHead(b"POST", b"/", ((b"host", b"a.com"), (b"content-length", b"3"))),
    ),
    "a WebSocket": (
        Request("https", "a.com", 443, "GET", "/", websocket=True),
        RawHead(
            b"GET",
            b"/",
            ((b"host", b"a.com"), (b"connection", b"Upgrade"), (b"upgrade", b"websocket")),
        ),
    ),
}


@pytest.mark.parametrize(("request_", "expected"), SENT.values(), ids=SENT)
def test_a_request_is_sent_in_one_spelling(request_: Request, expected: RawHead) -> None:
    assert format_head(request_) == expected


def test_half_a_place_is_none() -> None:
    """The tunnel is known whole, or the target must name the destination."""
    raw = head(target=b"https://a.com/x")
    for place in ({"host": "a.com"}, {"port": 443}):
        request = canonicalise_request(raw, scheme="https", **place)
        assert isinstance(request, Request)
        assert isinstance(canonicalise_request(head(), scheme="https", **place), Refusal)


def test_on_http_2_the_host_field_alone_is_enough_and_both_may_agree() -> None:
    for authority in (None, b"a.com"):
        request = judge(RawHead(b"GET", b"/", ((b"host", b"a.com"),), "2", authority))
        assert isinstance(request, Request)
    broken = judge(RawHead(b"GET", b"/", (), "2", b"a b"))
    assert isinstance(broken, Refusal)
    assert broken.reason == "host-not-canonical"


def test_a_websocket_handshake_has_no_body() -> None:
    handshake = (
        (b"connection", b"upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    )
    assert isinstance(judge(head(*handshake)), Request)
    refusal = judge(head(*handshake, (b"content-length", b"3")))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "upgrade-refused"


def test_stripping_parameters_leaves_a_canonical_request() -> None:
    request = judge(head(target=b"/a;x=1/b;y?q"))
    assert isinstance(request, Request)
    assert request.path_params
    stripped = strip_request_params(request)
    assert (stripped.path, stripped.path_params, stripped.query) == ("/a/b", False, "q")


def test_public_suffixes_are_known() -> None:
    assert is_public_suffix("com")
    assert is_public_suffix("github.io")
    assert is_public_suffix("co.uk")
    assert not is_public_suffix("github.com")
