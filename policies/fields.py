"""Header fields in canonical form, and the framing they declare. PURE and total over any bytes.

    raw fields -> Fields(kept, host, content_length, chunked, websocket) or a Refusal

Rule 1: names are lower-case tokens; values are visible ASCII, SP and HTAB. RFC 9110 tolerates
        obs-text in values; we refuse it: clients of APIs do not need it, and two readers of the
        same bytes would see two texts.
Rule 2: hop-by-hop, `Proxy-*` and connection-nominated fields never pass. Nominating a field that
        an origin's security may hang on is refused, not honoured.
Rule 3: a field that would be read twice, or under another spelling (`content_length`), is refused.

Sources: policy.md section 3; threats C9 to C20, G12; RFC 9110 sections 5.5 and 7.6.1, RFC 6455.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from policies.model import Refusal

OVERRIDE_HEADERS = frozenset({"x-http-method-override", "x-http-method", "x-method-override"})
OVERRIDE_QUERY_KEY = "_method"

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "te", "transfer-encoding", "upgrade", "http2-settings", "expect"}
)  # `expect`: the proxy answers 100 itself
_NEVER_KEPT = _HOP_BY_HOP | {"host", "sec-websocket-extensions"}
_SINGLE = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "authorization"}
    | {"transfer-encoding", "expect", "upgrade", "sec-websocket-key", "sec-websocket-version"}
)
_NOT_TO_NOMINATE = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "authorization", "cookie"}
    | {"accept", "date", "origin", "referer", "range", "if-match", "if-none-match"}
    | {"sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol"}
)
_LOOK_ALIKES = _HOP_BY_HOP | _SINGLE | OVERRIDE_HEADERS

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class Fields:
    """What may pass on (`kept`, without Host), and what the rest declared."""

    kept: tuple[tuple[str, str], ...]
    host: str | None
    content_length: int | None  # bytes
    chunked: bool
    websocket: bool  # the fields of an RFC 6455 handshake; the method is not looked at


def canonicalise_fields(raw: Iterable[tuple[bytes, bytes]], version: str) -> Fields | Refusal:
    """Judge the header fields of a request as received. `version` is "1.0", "1.1" or "2"."""
    named = _read_fields(raw)
    if isinstance(named, Refusal):
        return named
    refusal = _find_ambiguity(named)
    if refusal is not None:
        return refusal
    single = dict(named)  # the fields asked for below are known to be there once
    framing = _read_framing(single, version)
    if isinstance(framing, Refusal):
        return framing
    nominated = _read_connection(named)
    if isinstance(nominated, Refusal):
        return nominated
    websocket = version == "1.1" and _is_websocket(single, nominated)
    if not websocket and "websocket" in single.get("upgrade", "").lower():
        return Refusal("upgrade-refused", "not an exact WebSocket version 13 handshake")
    dropped = nominated | _NEVER_KEPT
    kept = [one for one in named if one[0] not in dropped and not one[0].startswith("proxy-")]
    if version == "2":
        kept = _join_cookies(kept)
    return Fields(tuple(kept), single.get("host"), framing[0], framing[1], websocket)


def _read_fields(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]] | Refusal:
    named = []
    for raw_name, raw_value in raw:
        try:
            name, value = raw_name.decode("ascii").lower(), raw_value.decode("ascii")
        except UnicodeDecodeError:
            return _refuse("a field holds bytes that are not ASCII")
        if _TOKEN.fullmatch(name) is None:
            return _refuse("a field name is not a token")
        if not value.isprintable() and _VALUE.fullmatch(value) is None:
            return _refuse(f"control character in the value of {name[:64]}")
        named.append((name, value.strip(" \t")))
    return named


def _find_ambiguity(named: list[tuple[str, str]]) -> Refusal | None:
    """Fields that two readers would take for two different things."""
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        for name, times in Counter(names).items():
            if times > 1 and (name in _SINGLE or name.startswith("mcp-")):
                return _refuse(f"duplicate {name[:64]}")
    for name in names:
        if "_" in name and _is_look_alike(name.replace("_", "-")):
            return _refuse(f"{name[:64]} looks like another field")
    if "trailer" in names:
        return Refusal("trailer-refused", "a trailer is announced")
    return None


def _is_look_alike(name: str) -> bool:
    return name in _LOOK_ALIKES or name.startswith(("proxy-", "mcp-", "sec-"))


def _join_cookies(named: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """HTTP/2 may split one Cookie field into several; HTTP/1.1 knows one (RFC 9113 8.2.3).

    Empty ones say nothing, and would leave a value that ends in a space, which no reader keeps.
    """
    crumbs = [value for name, value in named if name == "cookie"]
    if len(crumbs) < 2:
        return named
    return [one for one in named if one[0] != "cookie"] + [
        ("cookie", "; ".join(filter(None, crumbs)))
    ]


def _read_framing(single: dict[str, str], version: str) -> tuple[int | None, bool] | Refusal:
    """(Content-Length, chunked). RFC 9112 section 6.3, and stricter: both at once are refused."""
    coding, length = single.get("transfer-encoding"), single.get("content-length")
    if coding is not None:
        if length is not None:
            return _refuse("both content-length and transfer-encoding")
        if coding.lower() != "chunked" or version != "1.1":
            return _refuse("transfer-encoding is not exactly chunked on HTTP/1.1")
    if length is None:
        return None, coding is not None
    if _LENGTH.fullmatch(length) is None:
        return _refuse("content-length is not a plain number")
    return int(length), False


def _read_connection(named: list[tuple[str, str]]) -> frozenset[str] | Refusal:
    """The lower-case options of every Connection field (RFC 9110 section 7.6.1)."""
    values = [value for name, value in named if name in ("connection", "proxy-connection")]
    options = {option.strip(" \t").lower() for value in values for option in value.split(",")}
    for option in options:
        if option and _TOKEN.fullmatch(option) is None:
            return _refuse("a connection option is not a token")
        if option in _NOT_TO_NOMINATE or option in OVERRIDE_HEADERS or option.startswith("mcp-"):
            return _refuse(f"connection nominates {option[:64]}")
    return frozenset(options)


def _is_websocket(single: dict[str, str], options: frozenset[str]) -> bool:
    """The client's half of an RFC 6455 section 4.1 handshake, word for word."""
    return (
        "upgrade" in options
        and single.get("upgrade", "").lower() == "websocket"
        and single.get("sec-websocket-version") == "13"
        and _is_websocket_key(single.get("sec-websocket-key", ""))
    )


def _is_websocket_key(key: str) -> bool:
    if len(key) != 24:
        return False
    try:
        return len(a2b_base64(key, strict_mode=True)) == 16
    except Base64Error:
        return False


def _refuse(detail: str) -> Refusal:
    return Refusal("header-refused", detail)
