"""The read-only auditor: is every byte of a log what its writer recorded? Grade L0, the chain.

    0 valid and closed    1 tampered    2 could not check    3 valid so far: open, torn or silent

Rule 1: detection never shares a code with an I/O failure; no records is never 0.
Rule 2: the first break is named by line and byte; nothing behind it is believed, so reading stops
        there.
Rule 3: memory is bounded whatever the log holds.
Rule 4: a file that changes under us below the length first seen proves nothing: exit 2. What a
        running writer appends meanwhile is left for the next time.

L0 needs no key and proves order and integrity from the first record to the last. It does not detect
a complete rewrite, nor that records were cut off the end. Strict reads every event against its form
and the laws between records; fast checks framing, numbers, links and hashes only, without a JSON
parser.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from audit.chain import Break, Walked
from audit.laws import Laws
from audit.segment import (
    TORN,
    Listing,
    LogUnreadable,
    list_folder,
    open_regular,
    seen,
    segment_name,
    walk_segment,
)
from audit.torn import is_torn

VALID, TAMPERED, UNCHECKED, PREFIX = 0, 1, 2, 3
GRADE = "L0"
NOT_PROVEN = (
    "a complete rewrite of the log",
    "records cut off behind the last one",
)
_NOT_STRICT = ("the content of torn files",)
_NOT_FAST = (
    "the form of events",
    "times and heartbeats",
    "policies and outcomes that events refer to",
    "foreign files",
)

type Progress = Callable[[int], None] | None  # told the bytes read since its last call


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, what it means (`exit_code`), and what was not checked."""

    path: str
    exit_code: int
    verdict: Literal["valid", "tampered", "unchecked", "open", "torn", "silent"]
    mode: Literal["strict", "fast"]
    grade: str | None = None  # reached grade; None where the chain does not hold or was not checked
    log: str = ""
    records: int = 0  # that hold, from the first on
    bytes: int = 0  # of them
    head: str = ""  # hash of the last of them
    last_ts: str = ""
    closed: bool = False
    torn_bytes: int = 0
    runs: int = 0
    outcomes_open: int = 0  # allowed requests of the last run without an outcome yet
    outcomes_unknown: int = 0  # of earlier runs: they never came
    heartbeat_gaps: int = 0
    problem: str = ""
    line: int = 0  # of the first break, from 1; 0 where the problem is not in a line
    offset: int = 0  # of that line's first byte
    not_checked: tuple[str, ...] = field(default=NOT_PROVEN)

    def as_dict(self) -> dict[str, Any]:
        """The report for `--json`."""
        return asdict(self)


def verify(
    log: Path, *, fast: bool = False, allow_open: bool = False, progress: Progress = None
) -> Report:
    """Check a log file, or the segment of a log folder. Never writes, never raises for a finding.

    `allow_open` makes a log whose last run goes on (or crashed between two records) valid.
    """
    mode: Literal["strict", "fast"] = "fast" if fast else "strict"
    blank = Report(
        str(log),
        UNCHECKED,
        "unchecked",
        mode,
        not_checked=NOT_PROVEN + (_NOT_FAST if fast else _NOT_STRICT),
    )
    try:
        if not log.is_dir():
            return _verify_file(blank, log, allow_open, progress)
        return _verify_folder(blank, log, allow_open, progress)
    except LogUnreadable as error:
        return replace(blank, problem=str(error), not_checked=("anything",))
    except OSError as error:
        text = f"`{error.filename or log}`: {(error.strerror or str(error)).lower()}"
        return replace(blank, problem=text, not_checked=("anything",))


def _verify_file(blank: Report, path: Path, allow_open: bool, progress: Progress) -> Report:
    with open_regular(path) as fd:
        if os.fstat(fd).st_nlink > 1:
            raise LogUnreadable(f"`{path}`: another name leads to this file (hard link)")
    walked, laws = _read(path, blank.mode == "fast", progress)
    return _conclude(blank, walked, laws, allow_open)


def _verify_folder(blank: Report, folder: Path, allow_open: bool, progress: Progress) -> Report:
    listing = list_folder(folder)
    problem = _find_misplaced(listing, blank.mode == "strict")
    if problem:
        return _tampered(blank, problem)
    path = listing.segments[0]
    blank = replace(blank, path=str(path))
    walked, laws = _read(path, blank.mode == "fast", progress)
    report = _conclude(blank, walked, laws, allow_open)
    if report.exit_code == TAMPERED or not report.log:
        return report
    if path.name != segment_name(report.log, 0):
        return _tampered(report, f"the file name does not name log `{report.log}` from record 0")
    for torn in listing.torn if laws else ():
        if not _is_explained(torn.name, report, laws):
            return _tampered(report, f"foreign file `{torn.name}`: no `recovery` record names it")
    return report


def _find_misplaced(listing: Listing, strict: bool) -> str:
    if not listing.segments:
        return "the folder holds no log"
    if len(listing.segments) > 1:
        return f"a second segment `{listing.segments[1].name}` lies beside the first"
    state = listing.segments[0].lstat()
    if not stat.S_ISREG(state.st_mode):
        return f"the segment `{listing.segments[0].name}` is no regular file"
    if state.st_nlink > 1:
        return f"another name leads to `{listing.segments[0].name}` (hard link)"
    if strict and listing.foreign:
        return f"foreign file `{listing.foreign[0].name}`"
    return ""


def _is_explained(name: str, report: Report, laws: Laws | None) -> bool:
    """A `recovery` names the torn file, or a crash in the newest run came before it could."""
    if laws is None or name.encode() in laws.recoveries:
        return True
    found = TORN.fullmatch(name)
    return found is not None and not report.closed and int(found[1]) >= laws.run_seq


def _read(path: Path, fast: bool, progress: Progress) -> tuple[Walked, Laws | None]:
    """Walk the file as it was when it was opened, and again where it was touched meanwhile."""
    with open_regular(path) as fd:
        first = seen(os.fstat(fd))
        laws = None if fast else Laws()
        walked = walk_segment(fd, first.size, laws, progress)
        after, named = seen(os.fstat(fd)), seen(path.lstat())
        if after.size < first.size or named.inode != first.inode:
            raise LogUnreadable(f"`{path}`: the file was cut or replaced while it was verified")
        if after.changed_ns != first.changed_ns:
            # the chain covers every byte, so the same head means the same bytes
            again = walk_segment(fd, first.size, Laws() if walked.broken and laws else None)
            if again != walked:
                raise LogUnreadable(f"`{path}`: the file was changed while it was verified")
        return walked, laws


def _conclude(blank: Report, walked: Walked, laws: Laws | None, allow_open: bool) -> Report:
    head = walked.head
    report = replace(
        blank,
        log=head.log.decode("ascii", "replace") if head.seq else "",
        records=head.seq,
        bytes=walked.offset,
        head=head.prev.decode("ascii") if head.seq else "",
        last_ts=head.ts.decode("ascii", "replace") if head.seq else "",
        closed=walked.closed and not walked.tail and not walked.broken,
        torn_bytes=len(walked.tail),
        runs=laws.runs if laws else 0,
        outcomes_open=len(laws.decisions) if laws else 0,
        outcomes_unknown=laws.outcomes_unknown if laws else 0,
        heartbeat_gaps=laws.heartbeat_gaps if laws else 0,
    )
    if walked.broken:
        return _broken(report, walked.broken)
    line = head.seq + 1
    if walked.tail and not is_torn(walked.tail, head):
        return _broken(
            report, Break(line, walked.offset, "the bytes behind the last record are no record")
        )
    if head.seq == 0:
        return _tampered(report, "the log holds no record")
    if walked.tail:
        text = f"{len(walked.tail)} bytes of an unfinished record behind the last one"
        return replace(
            report,
            exit_code=PREFIX,
            verdict="torn",
            grade=GRADE,
            problem=text,
            line=line,
            offset=walked.offset,
        )
    if laws and laws.heartbeat_gaps:
        text = f"{laws.heartbeat_gaps} times no heartbeat came for more than two intervals"
        return replace(report, exit_code=PREFIX, verdict="silent", grade=GRADE, problem=text)
    if not report.closed and not allow_open:
        text = "the last run was not closed: it is running, or it crashed"
        return replace(report, exit_code=PREFIX, verdict="open", grade=GRADE, problem=text)
    return replace(report, exit_code=VALID, verdict="valid", grade=GRADE)


def _broken(report: Report, broken: Break) -> Report:
    place = replace(report, problem=broken.problem, line=broken.line, offset=broken.offset)
    if broken.cause == "unknown-version":
        return replace(place, exit_code=UNCHECKED, verdict="unchecked")
    return replace(place, exit_code=TAMPERED, verdict="tampered")


def _tampered(report: Report, problem: str) -> Report:
    return replace(report, exit_code=TAMPERED, verdict="tampered", grade=None, problem=problem)
