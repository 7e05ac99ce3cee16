"""A log folder for the writer: made once by `init`, opened by one writer at a time.

    init    folder 0700, first segment with `log.open` and `log.close`: it verifies from the start
    open    lock -> find the segment -> read every byte of it strictly -> move a torn tail away

Rule 1: opening never creates a log. A missing log may be a deleted log, and deleting must not heal.
Rule 2: opening changes nothing before every line was verified; a broken log is left as it was
        found.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from audit.appender import Appender, AppendFailed, Torn, describe, lock_folder, sync_folder
from audit.chain import Head, Walked, genesis, link
from audit.fields import FORMAT
from audit.laws import Laws
from audit.record import encode
from audit.segment import TORN, LogUnreadable, list_folder, segment_name, walk_segment
from audit.torn import is_torn


class LogMissing(RuntimeError):  # noqa: N818  named after the failure
    """There is no log where one should be."""


class LogExists(RuntimeError):  # noqa: N818  named after the failure
    """`init` found something and overwrites nothing."""


class LogBusy(RuntimeError):  # noqa: N818  named after the failure
    """Another writer holds the lock."""


class LogBroken(RuntimeError):  # noqa: N818  named after the failure
    """The log does not verify. It was left untouched; `line` and `offset` name the first break."""

    def __init__(self, path: Path, line: int, offset: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem} (byte {offset})")
        self.path = path
        self.line = line
        self.offset = offset
        self.problem = problem


class LogUnavailable(RuntimeError):  # noqa: N818  named after the failure
    """Nothing can be recorded now. `code` is the reason code an agent is answered with."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(slots=True)
class Opened:
    """A verified segment, locked, its torn tail already moved away; what the writer starts from."""

    appender: Appender
    lock_fd: int
    head: Head
    laws: Laws
    torn: tuple[Torn, ...]  # files that no `recovery` record names yet

    def release(self) -> None:
        """Close both descriptors, which gives the lock back."""
        self.appender.close()
        os.close(self.lock_fd)


def format_ts(now: datetime) -> bytes:
    """An aware UTC time as the chain writes it: 2026-01-31T12:00:00.000000Z."""
    return now.isoformat(timespec="microseconds")[:26].encode() + b"Z"


def open_event(software: str, heartbeat_s: float, *, after: str) -> Mapping[str, object]:
    """The promises a run starts with; verify holds the log to them."""
    return {
        "kind": "log.open",
        "after": after,
        "boot_id": _boot_id(),
        "format": FORMAT,
        "heartbeat_ms": round(heartbeat_s * 1000),
        "software": software,
    }


def recovery_event(cause: str, torn: Torn | None) -> Mapping[str, object]:
    """What stood behind the last good record and where it was put; bytes 0 for nothing."""
    event: dict[str, object] = {"kind": "recovery", "cause": cause, "bytes": 0}
    if torn is None:
        return event
    moved = {"bytes": torn.size, "digest": torn.digest, "file": torn.name, "head": torn.head}
    return {**event, **moved}


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def create_log(directory: Path, *, software: str, now: datetime, heartbeat_s: float = 60.0) -> str:
    """Make the folder (0700) and its first segment; returns the log id, 32 hex digits.

    The segment appears whole or not at all, so a crash leaves nothing that looks like a broken log.

    Raises:
        LogExists: the folder holds something already.
        OSError: the disk refuses.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in directory.glob("*.jsonl.new"):  # of an `init` that was killed
        left.unlink()
    if any(directory.iterdir()):
        raise LogExists(f"`{directory}` is not empty")
    directory.chmod(0o700)
    log = secrets.token_hex(16)
    ts = format_ts(now)
    first, head = link(
        genesis(log.encode()), encode(open_event(software, heartbeat_s, after="clean")), ts
    )
    last, _ = link(head, encode({"kind": "log.close"}), ts)
    path = directory / segment_name(log, 0)
    draft = path.with_suffix(".jsonl.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(first + last)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(directory)
    sync_folder(directory.absolute().parent)
    return log


def open_log(directory: Path, space_floor_bytes: int) -> Opened:
    """Lock the folder, verify its segment whole and strictly, move a torn tail away.

    Raises:
        LogMissing: no folder or no segment; `init` makes one.
        LogBusy: another writer holds the lock.
        LogBroken: a line does not verify, or files lie there that make the log ambiguous.
        LogUnavailable: the disk refuses to be read or written.
    """
    try:
        lock_fd = lock_folder(directory)
    except FileNotFoundError as error:
        raise LogMissing(f"`{directory}` does not exist") from error
    except OSError as error:
        raise _unavailable(directory, error) from error
    if lock_fd is None:
        raise LogBusy(f"`{directory}` is in use by another writer")
    with ExitStack() as undo:
        undo.callback(os.close, lock_fd)
        try:
            path = _find_segment(directory)
            fd = os.open(
                path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            undo.callback(os.close, fd)
            opened = _verify(directory, path, fd, lock_fd, space_floor_bytes)
        except OSError as error:
            raise _unavailable(directory, error) from error
        except (LogUnreadable, AppendFailed) as error:
            raise LogUnavailable("audit-unavailable", f"`{directory}`: {error}") from error
        undo.pop_all()
        return opened


def _unavailable(directory: Path, error: OSError) -> LogUnavailable:
    return LogUnavailable(
        "audit-unavailable", f"`{directory}`: {(error.strerror or str(error)).lower()}"
    )


def _find_segment(directory: Path) -> Path:
    if directory.stat().st_mode & stat.S_IWOTH:
        raise LogUnavailable("audit-unavailable", f"`{directory}` may be written by anybody")
    listing = list_folder(directory)
    if not listing.segments:
        raise LogMissing(f"`{directory}` holds no log")
    if len(listing.segments) > 1:
        raise LogBroken(listing.segments[1], 1, 0, "a second segment lies beside the first")
    return listing.segments[0]


def _verify(directory: Path, path: Path, fd: int, lock_fd: int, floor: int) -> Opened:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
        raise LogBroken(path, 1, 0, "the segment is no regular file with one name")
    laws = Laws()
    walked = walk_segment(fd, state.st_size, laws)
    problem = find_break(path, walked)
    if problem:
        raise problem
    appender = Appender(directory, path, fd, walked.offset, floor)
    if walked.tail:
        appender.salvage(walked.head.seq)
    return Opened(appender, lock_fd, walked.head, laws, unrecorded(directory, laws))


def find_break(path: Path, walked: Walked) -> LogBroken | None:
    """What keeps a segment from being continued: a break, a forged tail, a wrong name."""
    broken = walked.broken
    if broken:
        return LogBroken(path, broken.line, broken.offset, broken.problem)
    line = walked.head.seq + 1
    if walked.tail and not is_torn(walked.tail, walked.head):
        return LogBroken(path, line, walked.offset, "bytes behind the last record are no record")
    if walked.head.seq == 0:
        return LogBroken(path, 1, 0, "the log holds no record")
    if path.name != segment_name(walked.head.log.decode(), 0):
        return LogBroken(path, 1, 0, "the file name does not name this log")
    return None


def unrecorded(directory: Path, laws: Laws) -> tuple[Torn, ...]:
    """Torn files of the newest run that a crash left before their `recovery` record was durable."""
    found = []
    for path in list_folder(directory).torn:
        named = TORN.fullmatch(path.name)
        if named and int(named[1]) >= laws.run_seq and path.name.encode() not in laws.recoveries:
            with suppress(FileNotFoundError):
                found.append(describe(path))
    return tuple(found)
