r"""The form of every event: one table, from which one regular expression per kind is made. PURE.

    decision  agent{id,session?} · id 32 hex · verdict allow|deny …   ->   rb'\{"agent":\{…'

Rule 1: a record has exactly one spelling (keys sorted, no white space, minimal escapes, no floats,
        no null), so a regular expression over its bytes checks keys, types, order, duplicates and
        escapes at once. No JSON parser decides what is valid; a verifier in any language can do the
        same.
Rule 2: writer and verifier use the same table: what the writer seals, the verifier accepts.
Rule 3: a field that ends in `?` may be absent; no other field may, and no unknown field may be
        present. New kinds and fields come with a new `format` number in `log.open`, which an older
        verifier answers with exit 2. A run holds what its format has: `SINCE` says what came when.

Strings are either WIRE (printable ASCII: anything an agent or an upstream sent) or TEXT (UTF-8:
what the operator wrote). Every quantifier is possessive: matching is linear, whatever the line.
Field tables for readers: docs/records.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

FORMAT = 2  # what this table describes; declared by `log.open`
INTEGER_MAX = 2**53 - 1  # RFC 8785: integers that every JSON reader keeps exact


@dataclass(frozen=True, slots=True)
class Leaf:
    """A string or an integer: what a person calls it, and its exact bytes."""

    name: str
    pattern: bytes
    wire: bool = False  # non-ASCII input is percent-encoded rather than refused
    text: bool = False  # may be cut when a record would grow too long


@dataclass(frozen=True, slots=True)
class Array:
    """Zero or more values of one shape, in the order they were given."""

    of: "Shape"
    cut: bool = False  # may be cut when a record would grow too long; never amounts
    capture: str = ""  # name under which a match gives its bytes


@dataclass(frozen=True, slots=True)
class Object:
    """Named fields, sorted; names that end in `?` may be absent."""

    fields: Mapping[str, "Shape"]


type Shape = Leaf | Array | Object

_PLAIN = rb"[ !#-\[\]-~]*+"
_UTF8 = rb'[^"\\\x00-\x1f]*+'
_ESCAPE = (
    rb'\\(?:["\\bfnrt]|u00(?:0[0-7bef]|1[0-9a-f]))'  # RFC 8785: the shortest form, lower-case hex
)
TIMESTAMP = (
    rb"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    rb"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
)


def _integers(most: int) -> bytes:
    """A pattern for 0 to `most` without a leading zero: no number is parsed to be judged."""
    digits = str(most)
    ways = [rb"0(?![0-9])", rb"[1-9][0-9]{0,%d}(?![0-9])" % (len(digits) - 2)]
    for place, digit in enumerate(digits):
        lowest = 1 if place == 0 else 0
        if int(digit) > lowest:
            rest = len(digits) - place - 1
            ways.append(
                b"%s[%d-%d][0-9]{%d}" % (digits[:place].encode(), lowest, int(digit) - 1, rest)
            )
    ways.append(digits.encode())
    return b"(?:" + b"|".join(ways) + b")"


def _hex(length: int, capture: str = "") -> Leaf:
    group = b"(?P<%s>" % capture.encode() if capture else b"(?:"
    return Leaf(f"{length} lower-case hex digits", b'"%s[0-9a-f]{%d})"' % (group, length))


def _one_of(*words: str, capture: str = "") -> Leaf:
    group = b"(?P<%s>" % capture.encode() if capture else b"(?:"
    ways = b"|".join(re.escape(word.encode()) for word in words)
    return Leaf("one of " + ", ".join(words), b'"%s%s)"' % (group, ways))


def _captured(leaf: Leaf, name: str) -> Leaf:
    return replace(leaf, pattern=b"(?P<%s>%s)" % (name.encode(), leaf.pattern))


WIRE = Leaf(
    "a string of printable ASCII",
    rb'"%s(?:"|(?:\\["\\]%s)++")' % (_PLAIN, _PLAIN),
    wire=True,
    text=True,
)
TEXT = Leaf("a string", rb'"%s(?:"|(?:%s%s)++")' % (_UTF8, _ESCAPE, _UTF8), text=True)
COUNT = Leaf(f"an integer from 0 to {INTEGER_MAX}", _integers(INTEGER_MAX))
TIME = Leaf("a time like 2026-01-31T12:00:00.000000Z", b'"%s"' % TIMESTAMP)
_CODE = Leaf("a code of a-z, 0-9, `-`", rb'"[a-z0-9][a-z0-9-]*+"')
_AMOUNT = Object({"account": WIRE, "amount": COUNT, "unit": WIRE})
_VERDICT = _one_of("allow", "deny")
STATES = ("active", "warned", "quarantined", "halted")  # of an agent; it only moves right

_DECISION: dict[str, Shape] = {
    "agent?": Object({"id": WIRE, "session?": WIRE}),
    "approval?": WIRE,
    "client": WIRE,
    "findings?": Array(WIRE, cut=True),
    "id": _hex(32, "id"),
    "policy": Object(
        {"digest": _hex(64, "digest"), "rules": Array(WIRE, cut=True), "serial": COUNT}
    ),
    "read": Array(
        Object({"field": WIRE, "outcome": _one_of("true", "false", "unknown"), "token?": WIRE}),
        cut=True,
    ),
    "reason": _CODE,
    "redacted": Array(WIRE, cut=True),
    "req": Object({"length?": COUNT, "type?": WIRE}),
    "reserve": Array(_AMOUNT, capture="reserve"),
    "stage": _one_of("connect", "request", "frame", capture="stage"),
    "target": Object(
        {
            "host?": WIRE,
            "ip?": WIRE,
            "method?": WIRE,
            "path?": WIRE,
            "port?": COUNT,
            "query_keys?": Array(WIRE, cut=True),
            "scheme?": WIRE,
            "sni?": WIRE,
        }
    ),
    "trace?": WIRE,
    "verdict": _one_of("allow", "deny", capture="verdict"),
    "would?": Object({"rules": Array(WIRE, cut=True), "verdict": _VERDICT}),
}

_OUTCOME: dict[str, Shape] = {
    "bytes_in": COUNT,
    "bytes_out": COUNT,
    "cut?": WIRE,
    "error?": WIRE,
    "ms": COUNT,
    "ref": _hex(32, "ref"),
    "req_digest?": WIRE,
    "settle": Array(_AMOUNT, capture="settle"),
    "status": COUNT,
    "upstream_cert_sha256?": _hex(64),
}

# every kind also has `kind`, and may have `time` (when the thing it tells of was seen)
KINDS: Mapping[str, Mapping[str, Shape]] = {
    "alert": {"cause": _CODE, "detail?": TEXT},
    "budget.raise": {
        "account": WIRE,
        "by": WIRE,
        "from": _captured(COUNT, "from"),
        "to?": _captured(COUNT, "to"),
        "unit": _captured(WIRE, "unit"),
    },
    "clock.step": {"from": TIME, "to": TIME},
    "config.change": {"by": WIRE, "from?": TEXT, "setting": WIRE, "to?": TEXT},
    "credential.change": {"action": _CODE, "agent": WIRE, "by": WIRE, "session?": WIRE},
    "decision": _DECISION,
    "dropped": {"agent?": WIRE, "n": COUNT, "reason?": _CODE},
    "heartbeat": {},
    "ledger.snapshot": {
        "account": WIRE,
        "at": Array(Object({"do": _one_of("warn", "quarantine", "halt"), "reached": COUNT})),
        "cause": _one_of("opened", "closed", "changed"),
        "limits": Array(Object({"filed?": COUNT, "limit": COUNT, "unit": WIRE}), capture="limits"),
        "spent": Array(Object({"amount": COUNT, "unit": WIRE}), capture="spent"),
        "window_ms": COUNT,
    },
    "log.close": {},
    "log.open": {
        "after": _one_of("clean", "crash", capture="after"),
        "boot_id": WIRE,
        "format": _captured(COUNT, "format"),
        "heartbeat_ms": _captured(COUNT, "heartbeat_ms"),
        "software": WIRE,
    },
    "malformed": {"bytes": COUNT, "client": WIRE, "head?": WIRE, "why": WIRE},
    "outcome": _OUTCOME,
    "policy.load": {
        "digest": _hex(64, "digest"),
        "mode": _one_of("enforce", "observe"),
        "serial": COUNT,
    },
    "policy.reject": {"digest?": _hex(64), "findings": Array(TEXT, cut=True)},
    "recovery": {
        "bytes": COUNT,
        "cause": _one_of("torn-tail", "disk-full"),
        "digest?": Leaf("sha256: and 64 hex digits", b'"sha256:[0-9a-f]{64}"'),
        "file?": Leaf("torn-<20 digits>.bin", rb'"(?P<file>torn-[0-9]{20}\.bin)"'),
        "head?": Leaf("at most 4096 bytes in hex", b'"(?:[0-9a-f]{2}){0,4096}+"'),
    },
    "reserve": {"ref": _hex(32, "ref"), "reserve": Array(_AMOUNT, capture="reserve")},
    "state": {
        "agent": _captured(WIRE, "agent"),
        "by?": WIRE,
        "cause": TEXT,
        "from": _one_of(*STATES, capture="from"),
        "ref?": _hex(32),
        "session?": WIRE,
        "to": _one_of(*STATES, capture="to"),
    },
}

# the format that brought a kind; every other one was there from the first
SINCE: Mapping[str, int] = {"budget.raise": 2, "ledger.snapshot": 2, "reserve": 2, "state": 2}


def event_shape(kind: str) -> Object:
    """The whole form of one kind, `kind` and `time` included.

    Raises:
        KeyError: the kind is not known.
    """
    word = Leaf(f"`{kind}`", b'"%s"' % re.escape(kind.encode()))
    return Object({**KINDS[kind], "kind": word, "time?": TIME})


def pattern(shape: Shape) -> bytes:
    """The exact bytes of a shape, as a regular expression."""
    match shape:
        case Leaf():
            return shape.pattern
        case Array():
            array = rb"\[(?:%s(?:,(?!\])|(?=\])))*+\]" % pattern(shape.of)
            return b"(?P<%s>%s)" % (shape.capture.encode(), array) if shape.capture else array
        case Object():
            return _object(shape.fields)


def _object(fields: Mapping[str, Shape]) -> bytes:
    """Fields in order. Around one that must be there, each other brings its own comma."""
    names = sorted(fields, key=lambda name: name.rstrip("?"))
    parts = {
        name: b'"%s":%s' % (name.rstrip("?").encode(), pattern(fields[name])) for name in names
    }
    fixed = [name for name in names if not name.endswith("?")]
    if not fixed:  # any of them may be the last one present
        ends = [b"(?:%s(?:,(?!\\})|(?=\\})))?+" % parts[name] for name in names]
        return rb"\{%s\}" % b"".join(ends)
    first = names.index(fixed[0])
    before = [b"(?:%s,)?+" % parts[name] for name in names[:first]]
    after = [
        b"(?:,%s)?+" % parts[name] if name.endswith("?") else b",%s" % parts[name]
        for name in names[first + 1 :]
    ]
    return rb"\{%s%s%s\}" % (b"".join(before), parts[fixed[0]], b"".join(after))


def _form(kind: str) -> re.Pattern[bytes]:
    return re.compile(TIMESTAMP + rb'","v":1\},"event":' + pattern(event_shape(kind)))


# what must stand between `"ts":"` and `,"hash":"` of a record, by kind
FORMS: Mapping[bytes, re.Pattern[bytes]] = {kind.encode(): _form(kind) for kind in KINDS}
