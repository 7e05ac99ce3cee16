"""What of an upstream's answer reaches the agent. PURE.

Hop-by-hop fields end here (RFC 9110 section 7.6.1); so do fields that would send the agent round
us (Alt-Svc) or make it hand its proxy credential to an origin (Proxy-*, 407: threats.md H7), and
those by which we speak ourselves (Tollkeeper-*): what is said of a budget is the proxy's word.
Framing is rebuilt, never copied.
"""

from dataclasses import dataclass
from typing import Literal

Fields = tuple[tuple[bytes, bytes], ...]
Framing = Literal["none", "length", "chunked", "close"]

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"alt-svc"}
)
_OURS = (b"proxy-", b"tollkeeper-")
_FRAMING = frozenset({b"content-length", b"content-encoding", b"content-type", b"set-cookie"})
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Answer:
    """The head for the agent."""

    status: int
    headers: Fields
    bodiless: bool


def prepare_answer(
    status: int,
    headers: Fields,
    *,
    method: str,
    client: Literal["1.0", "1.1", "2"],
    websocket: bool,
) -> Answer | str:
    """The answer as the agent may see it, or the reason code for which it may not see it.

    `websocket`: an allowed RFC 6455 handshake; without it a 101 is a tunnel nobody approved (D3).
    """
    if status == 407 or not 100 <= status <= 599 or not _is_sound(headers):
        return "upstream-protocol"
    if status == 101:
        if not websocket:
            return "upgrade-unapproved"
        kept = _strip(headers)
        return Answer(
            101, (*kept, (b"connection", b"Upgrade"), (b"upgrade", b"websocket")), bodiless=True
        )
    if status < 200:
        return "upstream-protocol"
    kept = _strip(headers)
    bodiless = method == "HEAD" or status in _BODILESS
    has_length = any(name.lower() == b"content-length" for name, _ in kept)
    if client == "1.1" and not bodiless and not has_length:
        kept = (*kept, (b"transfer-encoding", b"chunked"))
    elif client == "1.0" and not has_length and not bodiless:
        kept = (*kept, (b"connection", b"close"))
    return Answer(status, kept, bodiless)


def prepare_trailers(fields: Fields) -> Fields:
    """The fields behind a body as the agent may see them: what could not stand in a head, and what
    would frame or route, is left out (RFC 9110 section 6.5.1)."""
    return tuple(
        field
        for field in _strip(fields)
        if _is_sound((field,))
        and not field[0].startswith(b":")
        and field[0].lower() not in _FRAMING
    )


def _is_sound(headers: Fields) -> bool:
    """No field can break out of its line, and at most one length frames the body.

    HTTP/1 heads were read strictly (proxy/head.py); those of HTTP/2 come as the library gives them.
    """
    if any(mark in value for _, value in headers for mark in (b"\r", b"\n", b"\0")):
        return False
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    return len(lengths) <= 1 and all(length.isdigit() for length in lengths)


def _strip(headers: Fields) -> Fields:
    nominated = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    dropped = _HOP_BY_HOP | nominated
    return tuple(
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped and not lower.startswith(_OURS)
    )


def count_head_bytes(headers: Fields, first_line_bytes: int) -> int:
    """Size of a head in its HTTP/1.1 form: the figure every adapter counts."""
    return first_line_bytes + 4 + count_field_bytes(headers)


def count_field_bytes(fields: Fields) -> int:
    """Size of field lines in their HTTP/1.1 form: trailers are counted so, without framing."""
    return sum(len(name) + len(value) + 4 for name, value in fields)
