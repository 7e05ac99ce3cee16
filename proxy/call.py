"""One message head as an adapter hands it over, and how it is read. PURE.

The connection knows things a head cannot be trusted to say: the tunnel it is in, the name TLS was
asked for, who may be at the other end already. CONNECT host, SNI and Host / :authority must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from policies.canonical import RawHead, canonicalise_authority, canonicalise_request
from policies.model import Address, Principal, Refusal, Request, Scheme
from proxy.vocabulary import Head, Stage, Target

SEEN_BYTES_MAX = 4096  # of a refused target that a record may show


@dataclass(slots=True)
class Tunnel:
    """What a CONNECT fixed for everything inside it."""

    host: str
    port: int
    authorization: bytes | None
    refusal: str = ""  # not "": nothing inside may pass; it is only told why


@dataclass(slots=True)
class Call:
    """One message head as it came off the wire, with what the connection knows."""

    stage: Stage
    client: str
    head: RawHead
    scheme: Scheme | None = None  # None: CONNECT, or absolute form outside a tunnel
    tunnel: "Tunnel | None" = None
    sni: str | None = None
    tls: bool = False
    standing_peer: Callable[[str, int, Scheme], tuple[Address, int] | None] | None = None


def read_call(call: Call, caller: Principal, target: Target, now: datetime) -> Head:
    """The head of an identified caller: a canonical request, or why there is none."""
    if call.stage is Stage.CONNECT:
        named = canonicalise_authority(call.head.target, None)
        if isinstance(named, Refusal):
            return Head(target, caller, None, now, named.reason, named.detail)
        return Head(place(target, *named), caller, None, now)
    request = canonicalise_request(
        call.head,
        scheme=call.scheme or "http",
        host=call.tunnel.host if call.tunnel else None,
        port=call.tunnel.port if call.tunnel else None,
    )
    if isinstance(request, Refusal):
        return Head(target, caller, None, now, request.reason, request.detail)
    target = place(target, request.host, request.port, request)
    if call.tunnel is not None and call.tunnel.refusal:
        return Head(target, caller, request, now, call.tunnel.refusal)
    if call.tls and call.tunnel is not None and not sni_matches(call.sni, call.tunnel.host):
        return Head(target, caller, request, now, "host-mismatch", "SNI is not the tunnel's host")
    return Head(target, caller, request, now)


def find_authorization(head: RawHead) -> bytes | None:
    """The credential that was presented; several are joined, which makes them wrong (RFC 9110
    section 5.3)."""
    values = [value for name, value in head.headers if name.lower() == b"proxy-authorization"]
    return b", ".join(values) if values else None


def sni_matches(sni: str | None, host: str) -> bool:
    """RFC 6066 forbids SNI for IP literals; everywhere else it must be there and equal."""
    if sni is None:
        return ":" in host or host.replace(".", "").isdigit()
    return sni.lower().removesuffix(".") == host


def describe_target(call: Call) -> Target:
    """What the record shows of a head that may still be refused: raw, bounded, made printable by
    the log."""
    seen = hide_userinfo(call.head.target[:SEEN_BYTES_MAX].decode("latin-1"))
    method = call.head.method[:32].decode("latin-1")
    scheme = call.scheme or ""
    if call.tunnel is not None:
        return Target(
            method,
            call.tunnel.host,
            call.tunnel.port,
            scheme,
            seen.partition("?")[0],
            (),
            call.sni or "",
        )
    if call.stage is Stage.CONNECT:
        return Target(method, host=seen[:255])
    return Target(method, path=seen.partition("?")[0])


def hide_userinfo(text: str) -> str:
    """A target, or a line `METHOD target …`, without the user information: it may be a password
    (L6). An `@` in a path stays."""
    before, at, behind = text.rpartition("@")
    word, space, rest = before.partition(" ")
    if not at or (rest if space else word).startswith("/"):
        return text
    return f"{word} ~@{behind}" if space else f"~@{behind}"


def place(target: Target, host: str, port: int, request: Request | None = None) -> Target:
    """The target as judged: in canonical form where there is one, with the query's keys only."""
    if request is None:
        return Target(target.method, host, port, sni=target.sni)
    keys = tuple(dict.fromkeys(key for key, _ in request.query_pairs))
    types = [value for name, value in request.headers if name == "content-type"]
    return Target(
        request.method,
        host,
        port,
        request.scheme,
        request.path,
        keys,
        target.sni,
        types[0] if types else "",
    )
