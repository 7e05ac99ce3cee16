"""What the bytes behind the last LF are: the beginning of a record, or something else. PURE.

    …"}\n{"chain":{"log":"9f…","prev":"41…","seq":7,"ts":"202   -> torn: the writer died here
    …"}\n{"chain":…,"hash":"41d0…"}x                            -> forged: nobody writes that

Rule 1: a tail is torn only if some record could begin with it: the chain head to the byte, then
        canonical JSON, then the true hash. A whole record that lacks only its LF counts as torn.
Rule 2: anything else behind the last LF is tampering, however short.
"""

import re
from hashlib import sha256

from audit.chain import LINE_BYTES_MAX, TS_BYTES, Head, genesis, opening

_AFTER_TS = b'","v":1},"event":'
_DEPTH_MAX = 8
_STRING = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\["\\bfnrtu][^"\\\x00-\x1f]*+)*+(?:"|\\?\Z)')
_KEY = re.compile(rb'"[a-z0-9_]*+(?:"(?::|\Z)|\Z)')
_INTEGER = re.compile(rb"-?[0-9]*+")
_TS_FORM = b"0000-00-00T00:00:00.000000Z"


def is_torn(tail: bytes, head: Head) -> bool:
    """Whether `tail` (no LF in it) is the beginning of the record that `head` expects."""
    if len(tail) >= LINE_BYTES_MAX or b"\n" in tail:
        return False
    if not head.log:
        head = genesis(tail[17:49].ljust(32, b"0"))
    start = opening(head)
    if len(tail) <= len(start):
        return start.startswith(tail)
    ts, rest = tail[len(start) : len(start) + TS_BYTES], tail[len(start) + TS_BYTES :]
    if not tail.startswith(start) or not _is_ts(ts):
        return False
    if len(rest) <= len(_AFTER_TS):
        return _AFTER_TS.startswith(rest)
    return rest.startswith(_AFTER_TS) and _is_event(tail, len(start) + TS_BYTES + len(_AFTER_TS))


def _is_ts(ts: bytes) -> bool:
    return all((48 <= a <= 57) if b == 48 else a == b for a, b in zip(ts, _TS_FORM, strict=False))


def _is_event(tail: bytes, at: int) -> bool:
    if tail[at : at + 1] != b"{":
        return False
    end = _scan(tail, at)
    if end is None or end == len(tail):
        return end is not None
    digest = sha256(tail[:end] + b"}").hexdigest().encode()
    return (b',"hash":"%s"}' % digest).startswith(tail[end:])


def _scan(data: bytes, at: int) -> int | None:
    """The end of the object at `at`, or of the data if it goes on; None where it is no JSON."""
    stack: list[int] = []
    expects_value = True
    while at < len(data):
        byte = data[at]
        if expects_value:
            if byte in b"{[":
                stack.append(byte)
                if len(stack) > _DEPTH_MAX:
                    return None
                at += 1
                found = _enter(data, at, byte)
            else:
                found = _leaf(data, at)
        elif byte in b"}]" and byte == stack[-1] + 2:  # `}` and `]` stand two behind `{` and `[`
            stack.pop()
            at += 1
            if not stack:
                return at
            continue
        elif byte == 44:
            found = _key(data, at + 1) if stack[-1] == 123 else (at + 1, True)
        else:
            return None
        if found is None:
            return None
        at, expects_value = found
    return at


def _enter(data: bytes, at: int, opened: int) -> tuple[int, bool] | None:
    """Behind an opening bracket: a key, a value, or the closing bracket."""
    if at < len(data) and data[at] == opened + 2:
        return at, False
    return _key(data, at) if opened == 123 else (at, True)


def _key(data: bytes, at: int) -> tuple[int, bool] | None:
    if at == len(data):
        return at, True
    found = _KEY.match(data, at)
    return (found.end(), True) if found else None


def _leaf(data: bytes, at: int) -> tuple[int, bool] | None:
    found = _STRING.match(data, at) if data[at] == 34 else _INTEGER.match(data, at)
    return (found.end(), False) if found and found.end() > at else None
