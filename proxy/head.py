"""HTTP/1 heads, read strictly: one reading or none (RFC 9112). PURE.

    bytes up to CRLF CRLF --read_request_head--> RequestHead --framing--> Framing
                          --read_response_head-> ResponseHead, framing included

Rule 1: lines end in CRLF; CR and LF occur nowhere else (C13, C15). Exactly one SP separates the
        parts of the first line.
Rule 2: names are tokens right before their colon; a field is one line (C14). Values hold no control
        character but HTAB.
Rule 3: the body's length has one source, written one way (C9, C10): one Content-Length of plain
        digits, or one Transfer-Encoding that is exactly `chunked`, never both, never on HTTP/1.0.
Rule 4: versions are HTTP/1.0 and HTTP/1.1 (C16).

Whatever two parsers might read differently is refused, also where the RFC lets a recipient repair
it. Bytes above 0x7F in a target or a value are framing-neutral and pass: policies/canonical.py
refuses them with a better answer than 400. Nothing here raises.
"""

import re
from dataclasses import dataclass
from typing import Literal

Fields = tuple[tuple[bytes, bytes], ...]

COUNT_MAX = 100
LENGTH_MAX = 2**53 - 1  # what every JSON reader holds exactly: lengths are recorded

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]+) (HTTP/1\.[01])" % _NAME)
_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?)" % _NAME)
_FRAMING_FIELD = re.compile(rb"[^:]+: ?[^ \t](?:.*[^ \t])?")  # no white space that some would keep
_FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class HeadError:
    """Why these bytes are no head, for the record; the peer learns nothing of it."""

    why: str


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What was on the wire: names and values as sent, white space around values removed."""

    method: bytes
    target: bytes
    version: bytes  # b"HTTP/1.0" or b"HTTP/1.1"
    headers: Fields


@dataclass(frozen=True, slots=True)
class Framing:
    """Where the body of a request ends. `length` is 0 unless kind is "length"."""

    kind: Literal["none", "length", "chunked"]
    length: int = 0


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A status line, its fields, and where the body ends: "close" is with the connection."""

    version: bytes
    status: int  # 100 to 599
    reason: bytes
    headers: Fields
    framing: Literal["none", "length", "chunked", "close"]
    length: int = 0  # bytes; 0 unless framing is "length"


def read_request_head(data: bytes, *, count_max: int = COUNT_MAX) -> RequestHead | HeadError:
    """Read one whole request head, its final CRLF CRLF included (RFC 9112 sections 2 to 5).

    Method and target are not judged beyond their syntax; a target in any form passes.
    """
    lines = _split(data)
    if isinstance(lines, HeadError):
        return lines
    first = _REQUEST_LINE.fullmatch(lines[0])
    if first is None:
        return HeadError("not a request line")
    fields = _read_fields(lines[1:], count_max)
    if isinstance(fields, HeadError):
        return fields
    return RequestHead(first[1], first[2], first[3], fields)


def framing(head: RequestHead) -> Framing | HeadError:
    """Where the body ends (RFC 9112 section 6.3), or why there are two opinions about it."""
    found = _read_framing(head.headers, head.version)
    if found is None:
        return Framing("none")
    return found


def read_response_head(
    data: bytes, *, method: bytes, count_max: int = 2 * COUNT_MAX
) -> ResponseHead | HeadError:
    """Read one whole response head. `method` is the request's: HEAD is answered without a body."""
    lines = _split(data)
    if isinstance(lines, HeadError):
        return lines
    first = _STATUS_LINE.fullmatch(lines[0])
    if first is None:
        return HeadError("not a status line")
    fields = _read_fields(lines[1:], count_max)
    if isinstance(fields, HeadError):
        return fields
    version, status, reason = first[1], int(first[2]), first[3] or b""
    frame = _read_framing(fields, version)
    if isinstance(frame, HeadError):
        return frame
    if status < 200 or status == 204:
        if frame is not None and frame != Framing("length", 0):
            return HeadError(f"a body in a {status}")  # RFC 9110 sections 8.6 and 15.2
        return ResponseHead(version, status, reason, fields, "none")
    if status == 304 or method == b"HEAD":
        return ResponseHead(version, status, reason, fields, "none")
    if frame is None:
        return ResponseHead(version, status, reason, fields, "close")
    return ResponseHead(version, status, reason, fields, frame.kind, frame.length)


def _split(data: bytes) -> list[bytes] | HeadError:
    """The lines of a head, without the empty one that ends it."""
    if not data.endswith(b"\r\n\r\n"):
        return HeadError("the head is not complete")
    ends = data.count(b"\r\n")
    if data.count(b"\n") != ends:
        return HeadError("bare line feed")
    if data.count(b"\r") != ends:
        return HeadError("bare carriage return")
    lines = data[:-4].split(b"\r\n")
    return lines if all(lines) else HeadError("an empty line inside the head")


def _read_fields(lines: list[bytes], count_max: int) -> Fields | HeadError:
    if len(lines) > count_max:
        return HeadError(f"more than {count_max} header fields")
    fields = []
    for line in lines:
        parts = _FIELD.fullmatch(line)
        if parts is None:
            return HeadError(_explain(line))
        name, value = parts.groups()
        if name.lower() in _FRAMING_NAMES and not _FRAMING_FIELD.fullmatch(line):
            return HeadError("white space around a framing field's value")
        fields.append((name, value.rstrip(b" \t")))
    return tuple(fields)


def _explain(line: bytes) -> str:
    """Why a line is no field. The line itself is in the record, as bytes."""
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return "a folded header field"
    if not colon:
        return "a header field without a colon"
    if re.fullmatch(_NAME, name):
        return "a control character in a header value" if value else "not a header field"
    return "not a header name"


def _read_framing(fields: Fields, version: bytes) -> Framing | HeadError | None:
    """What Content-Length and Transfer-Encoding say together; None if there is neither."""
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if not lengths and not codings:
        return None
    if lengths and codings:
        return HeadError("both content-length and transfer-encoding")
    if len(lengths) > 1 or len(codings) > 1:
        return HeadError("a framing field twice")
    if codings:
        if version == b"HTTP/1.0":
            return HeadError("transfer-encoding on http/1.0")
        if codings[0].lower() != b"chunked":
            return HeadError("a transfer-encoding that is not chunked")
        return Framing("chunked")
    if not _LENGTH.fullmatch(lengths[0]) or int(lengths[0]) > LENGTH_MAX:
        return HeadError("a content-length that is not plain digits")
    return Framing("length", int(lengths[0]))
