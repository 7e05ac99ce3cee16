"""Bounded reading of bodies: codings undone, text decoded, JSON parsed, or why not. PURE.

    raw --decode--> bytes --read_text--> str --read_json--> value
          \\             \\                \\
           `--------------`----------------`--> Unreadable(why): no rule about the body can allow

Rule 1: one coding of a short list (B1, B2). Whatever the origin may undo in another way than we do
        is unreadable: stacked codings, data behind the end, a stream that stops early.
Rule 2: output is bounded while it is made (B13): by a size, and by a ratio to what was sent.
Rule 3: UTF-8 only, strictly; JSON as every parser reads it (B3, B4): no duplicate keys, no NaN or
        Infinity, no number that others round away, no half surrogate, bounded depth.
Rule 4: nothing here raises for what a peer sent.

Codings: RFC 9110 section 8.4, RFC 9659 for zstd's window. JSON: RFC 8259, read as I-JSON (RFC 7493)
wants it written.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Never

import brotli  # type: ignore[import-untyped]  # publishes no types
import zstandard

DEPTH_MAX = 64
NUMBER_CHARS_MAX = 128  # no sender needs more digits than this; parsing many is quadratic

_STEP_BYTES = 65_536  # output per step; bounds what is held beyond the limit
_ZSTD_STEP_BYTES = 64  # input per step: at most 16 blocks of 128 KiB come out of it
_ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024  # RFC 9659
_RATIO_FLOOR_BYTES = 65_536  # short repetitive bodies compress well; no harm below this
_GZIP, _ZLIB = 31, 15  # window bits of zlib: with a gzip header, with a zlib header

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a body cannot be judged: one lower-case line for the record."""

    why: str


class _Refused(ValueError):  # noqa: N818  named after the failure
    """Carries the reason from a parser's callback to the function that answers with it."""


def decode(
    raw: bytes, content_encoding: str | None, *, bytes_max: int, ratio_max: int
) -> bytes | Unreadable:
    """Undo the content coding. At most `bytes_max` bytes come out, and at most `ratio_max` times
    what went in (small bodies excepted); beyond that the body is unreadable.

    `content_encoding` is the field's value, several joined by a comma; None or "" for none.
    """
    coding = (content_encoding or "identity").strip(" \t").lower()
    if "," in coding:
        return Unreadable("more than one content coding")
    limit = min(bytes_max, max(ratio_max * len(raw), _RATIO_FLOOR_BYTES))
    if coding == "identity":
        return raw if len(raw) <= bytes_max else Unreadable("the body is too large")
    start = _CODINGS.get(coding)
    if start is None:
        return Unreadable("an unknown content coding")
    out = bytearray()
    try:
        for part in start(raw):
            out += part
            if len(out) > limit:
                what = "is too large" if limit == bytes_max else "unpacks too far"
                return Unreadable(f"the body {what}")
    except _Refused as refusal:
        return Unreadable(str(refusal))
    except (zlib.error, brotli.error, zstandard.ZstdError):
        return Unreadable("the body is not what its content coding says")
    return bytes(out)


def read_text(data: bytes, *, charset: str | None = None) -> str | Unreadable:
    """The text of a body. `charset` is the parameter of Content-Type, None where absent."""
    if charset is not None and charset.strip(' "').lower() not in ("utf-8", "utf8", "us-ascii"):
        return Unreadable("a charset other than utf-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Unreadable("not utf-8")
    return Unreadable("a byte order mark") if text.startswith("\ufeff") else text


def read_json(data: bytes, *, charset: str | None = None, depth_max: int = DEPTH_MAX) -> Any:
    """The value of a JSON body, or `Unreadable`. Integers stay exact, other numbers are floats."""
    text = read_text(data, charset=charset)
    if isinstance(text, Unreadable):
        return text
    if _nests_deeper(text, depth_max):
        return Unreadable(f"deeper than {depth_max} levels")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_read_object,
            parse_int=_read_int,
            parse_float=_read_float,
            parse_constant=_refuse_constant,
        )
    except _Refused as refusal:
        return Unreadable(str(refusal))
    except (ValueError, RecursionError):
        return Unreadable("not json")
    if _SURROGATE.search(text) and not _is_unicode(value):
        return Unreadable("half a surrogate pair")
    return value


def _inflate(raw: bytes, window_bits: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(window_bits)
    rest = raw
    while not stream.eof:
        part = stream.decompress(rest, _STEP_BYTES)
        rest = stream.unconsumed_tail
        if not part and not rest and not stream.eof:
            raise _Refused("the body stops early")
        yield part
    if stream.unused_data:
        raise _Refused("data behind the end of the body")


def _gunzip(raw: bytes) -> Iterator[bytes]:
    return _inflate(raw, _GZIP)


def _unzlib(raw: bytes) -> Iterator[bytes]:
    return _inflate(raw, _ZLIB)


def _unbrotli(raw: bytes) -> Iterator[bytes]:
    stream = brotli.Decompressor()
    yield stream.process(raw, output_buffer_limit=_STEP_BYTES)
    while not stream.is_finished():
        part = stream.process(b"", output_buffer_limit=_STEP_BYTES)
        if not part and stream.can_accept_more_data() and not stream.is_finished():
            raise _Refused("the body stops early")
        yield part


def _unzstd(raw: bytes) -> Iterator[bytes]:
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).decompressobj()
    for start in range(0, len(raw), _ZSTD_STEP_BYTES):
        yield stream.decompress(raw[start : start + _ZSTD_STEP_BYTES])
        if stream.eof:
            if stream.unused_data or start + _ZSTD_STEP_BYTES < len(raw):
                raise _Refused("data behind the end of the body")
            return
    raise _Refused("the body stops early")


_CODINGS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,  # RFC 9110 section 8.4.1.3: the same
    "deflate": _unzlib,  # with its zlib header, as the RFC says; the bare stream is ambiguous
    "br": _unbrotli,
    "zstd": _unzstd,
}


def _nests_deeper(text: str, depth_max: int) -> bool:
    """Counts brackets outside strings, so that no parser has to recurse to find out."""
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub('""', text)):
        if bracket[0] in "[{":
            depth += 1
            if depth > depth_max:
                return True
        else:
            depth -= 1
    return False


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("a key twice")  # most parsers keep the last, some the first
    return found


def _read_int(digits: str) -> int:
    if len(digits) > NUMBER_CHARS_MAX:
        raise _Refused("a number too long")
    return int(digits)


def _read_float(digits: str) -> float:
    if len(digits) > NUMBER_CHARS_MAX:
        raise _Refused("a number too long")
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused("a number too large")
    return value


def _refuse_constant(name: str) -> Never:
    raise _Refused(f"{name.lower().lstrip('-')} is no json")


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
