"""Reading records for people: one, the last few, or those that match. Never writes.

Rule 1: each line that is shown matches its own hash; whether the chain holds, `verify` says.
Rule 2: one pass, one record in memory; `read_tail` looks at the end of the file only.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from audit.chain import LINE_BYTES_MAX, TAIL_BYTES
from audit.record import Record, parse
from audit.segment import LogUnreadable, list_folder, open_regular, read_lines

_BLOCK_BYTES = 1 << 18
_POLL_S = 0.2


class LineBroken(ValueError):  # noqa: N818  named after the failure
    """A line is no record or does not match its own hash."""

    def __init__(self, path: Path, line: int) -> None:
        super().__init__(f"{path}:{line}: the line is not a valid record")


@dataclass(frozen=True, slots=True)
class Line:
    """A record and its exact bytes, LF included."""

    record: Record
    raw: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; what is not given does not matter. All given must hold."""

    kinds: frozenset[str] = frozenset()
    seq: int | None = None
    agent: str = ""
    verdict: str = ""
    reason: str = ""
    rule: str = ""
    host: str = ""
    decision: str = ""  # id of a decision: it and all that refers to it
    since: str = ""  # RFC 3339 UTC with microseconds, as records have it; inclusive
    until: str = ""  # exclusive

    def admits(self, record: Record) -> bool:
        """Whether `record` is wanted."""
        event = record.event
        agent = event.get("agent", "")
        pairs = (
            (self.agent, agent.get("id") if isinstance(agent, dict) else agent),
            (self.verdict, event.get("verdict")),
            (self.reason, event.get("reason")),
            (self.host, event.get("target", {}).get("host")),
            (self.decision, event.get("id", event.get("ref"))),
        )
        return (
            self.seq in (None, record.seq)
            and all(found == wanted for wanted, found in pairs if wanted)
            and (not self.kinds or event.get("kind") in self.kinds)
            and (not self.rule or self.rule in event.get("policy", {}).get("rules", ()))
            and (not self.since or record.ts >= self.since)
            and (not self.until or record.ts < self.until)
        )

    def needles(self) -> tuple[bytes, ...]:
        """Byte strings every wanted line contains: a cheap look before a line is parsed."""
        values = (self.agent, self.verdict, self.reason, self.rule, self.host, self.decision)
        texts = [json.dumps(value, ensure_ascii=False).encode() for value in values if value]
        return (*texts, *(() if self.seq is None else (b'"seq":%d,"ts":"' % self.seq,)))


def find_segment(log: Path) -> Path:
    """The log file of a path that may be its folder.

    Raises:
        LogUnreadable: there is none, or more than one.
    """
    if not log.is_dir():
        return log
    segments = list_folder(log).segments
    if len(segments) != 1:
        raise LogUnreadable(f"`{log}`: the folder holds {len(segments)} logs, expected one")
    return segments[0]


def read(
    log: Path, wanted: Filter | None = None, *, needs: Callable[[bytes], bool] | None = None
) -> Iterator[Line]:
    """The records of a log in order, without a torn tail.

    `needs` is asked for each line as it stands; one that is not needed is neither parsed nor
    checked.

    Raises:
        LogUnreadable: the file cannot be read.
        LineBroken: a wanted line is not a valid record.
    """
    path = find_segment(log)
    needles = wanted.needles() if wanted else ()
    with open_regular(path) as fd:
        for number, raw in enumerate(read_lines(fd, os.fstat(fd).st_size), start=1):
            if any(needle not in raw for needle in needles) or (needs and not needs(raw)):
                continue
            line = _parse(path, number, raw)
            if line and (wanted is None or wanted.admits(line.record)):
                yield line


def _parse(path: Path, number: int, raw: bytes) -> Line | None:
    if not raw.endswith(b"\n") and len(raw) < LINE_BYTES_MAX:
        return None  # the writer has not finished it
    digest = sha256(raw[:-TAIL_BYTES] + b"}").hexdigest().encode()
    if not raw.endswith(b',"hash":"%s"}\n' % digest):
        raise LineBroken(path, number)
    try:
        return Line(parse(raw[:-1]), raw)
    except ValueError as error:
        raise LineBroken(path, number) from error


def read_tail(log: Path, count: int) -> tuple[list[Line], int]:
    """The last `count` records and the offset behind them, for `follow`.

    Raises:
        LogUnreadable, LineBroken: as `read`.
    """
    path = find_segment(log)
    with open_regular(path) as fd:
        start = size = os.fstat(fd).st_size
        data = b""
        while start and data.count(b"\n") <= count:
            block = min(_BLOCK_BYTES, start)
            start -= block
            data = os.pread(fd, block, start) + data
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    if start:
        lines = lines[1:]  # its beginning was not read
    end = size - len(data) + data.rfind(b"\n") + 1
    return [line for raw in lines[-count:] if count and (line := _parse(path, 0, raw))], end


def follow(log: Path, offset: int, is_over: Callable[[], bool]) -> Iterator[Line]:
    """Records as they are appended behind `offset`, until `is_over` says so.

    Raises:
        LogUnreadable, LineBroken: as `read`; the file became shorter or was replaced.
    """
    path = find_segment(log)
    with open_regular(path) as fd:
        opened, rest = os.fstat(fd), b""
        while not is_over():
            block = os.pread(fd, _BLOCK_BYTES, offset)
            offset += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for raw in lines:
                line = _parse(path, 0, raw + b"\n")
                if line:
                    yield line
            if not block:
                if path.lstat().st_ino != opened.st_ino or os.fstat(fd).st_size < offset:
                    raise LogUnreadable(f"`{path}`: the file was cut or replaced")
                time.sleep(_POLL_S)
