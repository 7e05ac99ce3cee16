"""The hash chain: one line per record, each naming the digest of the line before it. PURE.

    {"chain":{"log":…,"prev":"9f2c…","seq":7,"ts":…,"v":1},"event":{…},"hash":"41d0…"}

Rule 1: this file is pure. It never opens a file, so the writer and the verifier cannot
        disagree about what a link is: both call `link` and `walk`.
Rule 2: the hash covers the exact bytes on disk up to the hash field. We never re-encode
        JSON to verify it; two encoders need not agree.
Rule 3: widths are fixed, so the place of every chain field is known without a JSON parser.

A chain proves order and integrity from its first line to its last, nothing more: dropping
the tail leaves a shorter valid chain, and whoever can rewrite the whole file can chain it
anew. Only a checkpoint kept elsewhere catches that.
Format and test vectors: docs/records.md.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple, Protocol

GENESIS = b"0" * 64  # `prev` of the first record
VERSION = 1
LINE_BYTES_MAX = 65_536  # with LF
TAIL_BYTES = 76  # `,"hash":"` + 64 hex + `"}` + LF
TS_BYTES = 27
_AFTER_TS = b'","v":1},"event":{'
_HEAD = re.compile(
    rb'\{"chain":\{"log":"(?P<log>[0-9a-f]{32})","prev":"(?P<prev>[0-9a-f]{64})",'
    rb'"seq":(?P<seq>0|[1-9][0-9]{0,15}),"ts":"(?P<ts>[0-9TZ:.-]{27})","v":(?P<v>0|[1-9][0-9]{0,8})\},"event":\{'
)


class Head(NamedTuple):
    """Where a chain stands: what the next record must name."""

    log: bytes  # 32 hex; empty until the first record was seen
    seq: int  # number of the next record = how many there are
    prev: bytes  # hash of the last record, 64 hex
    ts: bytes  # its time, or the earliest time there is


def genesis(log: bytes = b"") -> Head:
    """The head of a log that has no record yet."""
    return Head(log, 0, GENESIS, b"0001-01-01T00:00:00.000000Z")


type Cause = Literal["tampered", "unknown-version"]


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where the chain does not hold."""

    line: int  # from 1
    offset: int  # of that line's first byte
    problem: str
    cause: Cause = "tampered"


class Judge(Protocol):
    """What else must hold of a record (audit/laws.py). Called once per linked line, in order."""

    def judge(self, line: bytes, at: int) -> tuple[str, Cause] | None:
        """The problem and its cause, or None where the record stands.

        `at` is where the value of `ts` starts in the line.
        """


@dataclass(frozen=True, slots=True)
class Walked:
    """How far the chain holds: `head` and `offset` are behind the last good record."""

    head: Head
    offset: int
    last: bytes  # the last good line, with LF; empty if there is none
    broken: Break | None = None
    tail: bytes = b""  # bytes behind the last LF

    @property
    def closed(self) -> bool:
        """Whether the last good record is a `log.close`."""
        return b'"v":1},"event":{"kind":"log.close"' in self.last[: len(opening(self.head)) + 80]


def link(head: Head, event: bytes, ts: bytes) -> tuple[bytes, Head]:
    """The next line (with LF) and the head behind it.

    `event` must be canonical, `ts` not before `head.ts`.
    """
    body = opening(head) + b'%s","v":1},"event":%s' % (ts, event)
    digest = sha256(body + b"}").hexdigest().encode()
    return b'%s,"hash":"%s"}\n' % (body, digest), Head(head.log, head.seq + 1, digest, ts)


def opening(head: Head) -> bytes:
    """The constant beginning of the next line, up to the value of `ts`."""
    return b'{"chain":{"log":"%s","prev":"%s","seq":%d,"ts":"' % (head.log, head.prev, head.seq)


def ts_place(seq: int) -> int:
    """Where the value of `ts` starts in the line of record `seq`."""
    return 138 + len(str(seq))


def walk(lines: Iterable[bytes], head: Head, judge: Judge | None = None) -> Walked:
    """Check lines (each with its LF) against the head, until the first break or the end.

    Every line must start as the head demands, end in the SHA-256 of itself and, where a judge is
    given, satisfy it. A last line without LF is returned as `tail`, unjudged (audit/torn.py).
    """
    lines = iter(lines)
    log, seq, prev, _ = head
    last, offset = b"", 0
    if not log:
        first = next(lines, b"")
        log = _log_of(first)
        lines = itertools.chain((first,), lines)
    before = b'{"chain":{"log":"%s","prev":"' % log
    for line in lines:  # a few dozen nanoseconds here are a tenth of the whole
        start = b'%s%s","seq":%d,"ts":"' % (before, prev, seq)
        digest = sha256(line[:-76] + b"}").hexdigest().encode()
        size = len(line)
        at = len(start)
        if not (
            line.startswith(start)
            and line.endswith(b',"hash":"%s"}\n' % digest)
            and line.startswith(_AFTER_TS, at + 27)
            and size <= LINE_BYTES_MAX
        ):
            return _stop(line, Walked(_head(log, seq, prev, last, head), offset, last))
        if judge is not None:
            problem = judge.judge(line, at)
            if problem is not None:
                broken = Break(seq + 1, offset, *problem)
                return Walked(_head(log, seq, prev, last, head), offset, last, broken)
        last = line
        prev = digest
        seq += 1
        offset += size
    return Walked(_head(log, seq, prev, last, head), offset, last)


def _head(log: bytes, seq: int, prev: bytes, last: bytes, was: Head) -> Head:
    at = ts_place(seq - 1)
    return Head(log, seq, prev, last[at : at + TS_BYTES] if last else was.ts)


def _log_of(line: bytes) -> bytes:
    found = _HEAD.match(line)
    return found["log"] if found else b"?"


def _stop(line: bytes, walked: Walked) -> Walked:
    """What a line that does not link is: a torn tail, or a break with its cause."""
    head, offset, last = walked.head, walked.offset, walked.last
    if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
        head = head if head.log != b"?" else genesis()
        return Walked(head, offset, last, None, line)
    problem, cause = _diagnose(line, head)
    return Walked(head, offset, last, Break(head.seq + 1, offset, problem, cause))


def _diagnose(line: bytes, head: Head) -> tuple[str, Cause]:
    if len(line) - line.endswith(b"\n") >= LINE_BYTES_MAX:
        return f"the line is longer than {LINE_BYTES_MAX - 1} bytes", "tampered"
    found = _HEAD.match(line)
    if found is None:
        return "the line is not a record", "tampered"
    digest = sha256(line[:-TAIL_BYTES] + b"}").hexdigest().encode()
    if not line.endswith(b',"hash":"%s"}\n' % digest):
        return "the record does not match its own hash", "tampered"
    if found["log"] != head.log:
        return "the record belongs to another log", "tampered"
    if int(found["seq"]) != head.seq:
        return f"the record has number {int(found['seq'])}, expected {head.seq}", "tampered"
    if found["prev"] != head.prev:
        return "the record does not name the hash of the record before it", "tampered"
    if int(found["v"]) != VERSION:
        return f"record version {int(found['v'])} is not known", "unknown-version"
    return "the line is not in canonical form", "tampered"
