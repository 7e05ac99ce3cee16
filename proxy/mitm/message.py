"""mitmproxy's message objects, made in one place: its layers want a dozen fields, and we say four.

Bodies never stand in them (they stream), nor trailers or times.
"""

import contextlib
from http import HTTPStatus
from typing import Any

from mitmproxy import http

from policies.canonical import RawHead
from proxy.response import Fields

_UNUSED: dict[str, Any] = {
    "content": None,
    "trailers": None,
    "timestamp_start": 0.0,
    "timestamp_end": None,
}


def build_request(
    head: RawHead, version: bytes, *, scheme: bytes = b"", host: str = "", port: int = 0
) -> http.Request:
    """A request head. `scheme`, `host` and `port` only where it is on its way upstream."""
    return http.Request(
        host=host,
        port=port,
        method=head.method,
        scheme=scheme,
        authority=b"",
        path=head.target,
        http_version=version,
        headers=http.Headers(head.headers),
        **_UNUSED,
    )


def build_response(
    status: int, reason: bytes, headers: Fields = (), version: bytes = b"HTTP/1.1"
) -> http.Response:
    """A response head."""
    return http.Response(
        http_version=version,
        status_code=status,
        reason=reason,
        headers=http.Headers(headers),
        **_UNUSED,
    )


def find_phrase(status: int) -> bytes:
    """HTTP/2 has no reason phrase; some HTTP/1 agents print it."""
    with contextlib.suppress(ValueError):
        return HTTPStatus(status).phrase.encode("ascii")
    return b""
