"""Canonical form: what is judged is what is sent. PURE; the front door of host, target and fields.

    RawHead (bytes as received) --canonicalise_request--> Request or Refusal
    Request --format_head--> RawHead (bytes to send)

Rule 1: total. Any bytes give a Request or a Refusal; nothing here raises on what an agent sends.
Rule 2: idempotent: `canonicalise_request(format_head(request)) == request`.
Rule 3: the destination is named once. Tunnel, absolute-form target, Host and :authority that name
        different ones are refused, never reconciled.

Threats C4, C6, C25, E1, E2, E5, E7, B5, B6; policy.md section 3; RFC 9110, 9112, 9113.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from publicsuffixlist import PublicSuffixList

from policies.fields import Fields, canonicalise_fields
from policies.host import (
    canonicalise_authority,
    canonicalise_host,
    default_port_of,
    format_authority,
)
from policies.model import Refusal, Request, Scheme
from policies.rule import METHODS
from policies.target import Target, canonicalise_path, canonicalise_target, strip_params

__all__ = [
    "RawHead",
    "canonicalise_authority",
    "canonicalise_host",
    "canonicalise_path",
    "canonicalise_request",
    "canonicalise_target",
    "format_authority",
    "format_head",
    "format_target",
    "is_public_suffix",
    "strip_params",
    "strip_request_params",
]

_METHODS = {method.encode("ascii"): method for method in METHODS}
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([\x00-\xff]*)")


@dataclass(frozen=True, slots=True)
class RawHead:
    """A request head as it came off the wire, after framing and before any judgement."""

    method: bytes
    target: bytes  # origin-form or absolute-form; `:path` on HTTP/2
    headers: tuple[tuple[bytes, bytes], ...]
    version: Literal["1.0", "1.1", "2"] = "1.1"
    authority: bytes | None = None  # `:authority`, HTTP/2 only
    ends_stream: bool = True  # HTTP/2 only: no body follows


@dataclass(frozen=True, slots=True)
class _Destination:
    scheme: Scheme
    host: str
    port: int


def canonicalise_request(
    head: RawHead, *, scheme: Scheme, host: str | None = None, port: int | None = None
) -> Request | Refusal:
    """The one Request these bytes mean.

    Inside a tunnel `host` (canonical) and `port` say where it leads, and only origin-form targets
    are taken. On the plain proxy port both are None, and the target must be absolute-form with
    `scheme`. Refuses with the codes of `policies/reasons.py`.
    """
    method = _METHODS.get(head.method)
    if method is None:
        return Refusal("method-not-allowed", "method is not a known one in upper case")
    fields = canonicalise_fields(head.headers, head.version)
    if isinstance(fields, Refusal):
        return fields
    if host is None or port is None:
        placed = _read_absolute_form(head.target, scheme)
    else:
        placed = _read_origin_form(head.target, _Destination(scheme, host, port))
    if isinstance(placed, Refusal):
        return placed
    destination, raw_target = placed
    mismatch = _check_names(head, fields, destination)
    if mismatch is not None:
        return mismatch
    target = canonicalise_target(raw_target)
    if isinstance(target, Refusal):
        return target
    return _assemble(head, method, destination, target, fields)


def format_target(request: Request) -> str:
    """The origin-form target to send: path, and the query where there was a `?`."""
    return request.path if request.query is None else f"{request.path}?{request.query}"


def format_head(request: Request) -> RawHead:
    """The HTTP/1.1 head to send: Host first, then the fields, then the framing of the body."""
    authority = format_authority(request.host, request.port, request.scheme)
    fields = [("host", authority), *request.headers]
    if request.websocket:
        fields += [("connection", "Upgrade"), ("upgrade", "websocket")]
    elif request.body and request.body_length is None:
        fields.append(("transfer-encoding", "chunked"))
    return RawHead(
        request.method.encode("ascii"),
        format_target(request).encode("ascii"),
        tuple([(name.encode("ascii"), value.encode("ascii")) for name, value in fields]),
    )


def strip_request_params(request: Request) -> Request:
    """The request to send under `path_params: strip`."""
    return replace(request, path=strip_params(request.path), path_params=False)


def is_public_suffix(name: str) -> bool:
    """Whether strangers register names under `name` (canonical): `com`, `co.uk`, `github.io`.

    A name of one label that the list does not know (`internal`) counts as one too.
    """
    return bool(_public_suffixes().publicsuffix(name) == name)


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # the list that ships with the package; no network


def _read_absolute_form(raw: bytes, scheme: Scheme) -> tuple[_Destination, bytes] | Refusal:
    found = _ABSOLUTE.fullmatch(raw)
    if found is None:
        return Refusal("host-not-canonical", "target is not in absolute form")
    if found[1].lower() != scheme.encode("ascii"):
        return Refusal("host-mismatch", "target has another scheme than the connection")
    named = canonicalise_authority(found[2], default_port_of(scheme))
    if isinstance(named, Refusal):
        return named
    rest = found[3] if found[3].startswith(b"/") else b"/" + found[3]
    return _Destination(scheme, *named), rest


def _read_origin_form(
    raw: bytes, destination: _Destination
) -> tuple[_Destination, bytes] | Refusal:
    if _ABSOLUTE.fullmatch(raw):
        return Refusal("host-mismatch", "absolute-form target inside a tunnel")
    return destination, raw


def _check_names(head: RawHead, fields: Fields, destination: _Destination) -> Refusal | None:
    """Host and :authority must be there (one is enough on HTTP/2) and equal the destination."""
    names: list[str | bytes] = [] if fields.host is None else [fields.host]
    if head.version == "2" and head.authority is not None:
        names.append(head.authority)
    elif head.authority is not None or fields.host is None:
        return Refusal("header-refused", "no host field, or :authority outside HTTP/2")
    for name in names:
        named = canonicalise_authority(name, default_port_of(destination.scheme))
        if isinstance(named, Refusal):
            return named
        if named != (destination.host, destination.port):
            return Refusal("host-mismatch", "host field or :authority names another destination")
    return None


def _assemble(
    head: RawHead, method: str, destination: _Destination, target: Target, fields: Fields
) -> Request | Refusal:
    length = fields.content_length
    body = fields.chunked or bool(length)
    if head.version == "2":
        body = not head.ends_stream and length != 0
        if head.ends_stream and length:
            return Refusal("header-refused", "content-length without a body")
    if fields.websocket and (method != "GET" or body):
        return Refusal("upgrade-refused", "a WebSocket handshake is a GET without a body")
    return Request(
        destination.scheme,
        destination.host,
        destination.port,
        method,
        target.path,
        target.query,
        target.query_pairs,
        fields.kept,
        fields.websocket,
        body,
        length,
        target.path_params,
    )
