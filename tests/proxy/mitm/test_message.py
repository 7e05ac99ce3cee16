"""mitmproxy's message objects carry what they were given, and no body."""

from mitmproxy.net.http import http1

from policies.canonical import RawHead
from proxy.mitm.message import build_request, build_response, find_phrase

FIELDS = ((b"Host", b"api.example.com"), (b"X-A", b"1"), (b"X-A", b"2"))


def test_a_request_is_the_head_it_was_built_from() -> None:
    head = RawHead(b"POST", b"/a?b=c", FIELDS)
    request = build_request(head, b"HTTP/1.1", scheme=b"https", host="api.example.com", port=443)
    sent = http1.assemble_request_head(request)  # type: ignore[no-untyped-call]  # mitmproxy's
    assert sent == (b"POST /a?b=c HTTP/1.1\r\nHost: api.example.com\r\nX-A: 1\r\nX-A: 2\r\n\r\n")
    assert (request.scheme, request.host, request.port) == ("https", "api.example.com", 443)
    assert request.raw_content is None


def test_a_response_is_the_head_it_was_built_from() -> None:
    response = build_response(404, b"Gone away", FIELDS, b"HTTP/1.0")
    sent = http1.assemble_response_head(response)  # type: ignore[no-untyped-call]  # mitmproxy's
    assert sent == (b"HTTP/1.0 404 Gone away\r\nHost: api.example.com\r\nX-A: 1\r\nX-A: 2\r\n\r\n")
    assert response.raw_content is None


def test_a_status_has_its_phrase_or_none() -> None:
    assert [find_phrase(status) for status in (200, 418, 599)] == [b"OK", b"I'm a Teapot", b""]
