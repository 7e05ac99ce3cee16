"""Segments on disk: their names, how they are opened for reading, what else may lie beside them.

    log/  <32 hex>-<20-digit first seq>.jsonl   torn-<20-digit seq>.bin   lock

Rule 1: reading never follows a symbolic link, never blocks on a FIFO or device, never changes
        anything.
Rule 2: what is read is bounded by the size that was seen first, whatever a running writer appends
        meanwhile.
Rule 3: a file that no rule names is foreign, and a foreign file is a finding.
"""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from audit.chain import LINE_BYTES_MAX, Judge, Walked, genesis, walk

SEGMENT = re.compile(r"([0-9a-f]{32})-([0-9]{20})\.jsonl")
TORN = re.compile(r"torn-([0-9]{20})\.bin")
LOCK_NAME = "lock"
_READ_BYTES = 1 << 20


class LogUnreadable(Exception):  # noqa: N818  named after the failure
    """The log could not be looked at: no statement about its content is made."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file was when it was opened."""

    size: int
    inode: tuple[int, int]
    links: int
    changed_ns: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Listing:
    """A log folder: its segments, its torn tails, and what does not belong there."""

    segments: tuple[Path, ...]
    torn: tuple[Path, ...]
    foreign: tuple[Path, ...]


def segment_name(log: str, seq: int) -> str:
    """The file name of the segment of `log` that starts with record `seq`."""
    return f"{log}-{seq:020d}.jsonl"


def torn_name(seq: int) -> str:
    """The file name for unacknowledged bytes that stood where record `seq` should."""
    return f"torn-{seq:020d}.bin"


def list_folder(folder: Path) -> Listing:
    """Sort the names of a log folder; nothing is opened.

    Raises:
        OSError: the folder cannot be read.
    """
    segments: list[Path] = []
    torn: list[Path] = []
    foreign: list[Path] = []
    for entry in sorted(folder.iterdir()):
        regular = stat.S_ISREG(entry.lstat().st_mode)
        if SEGMENT.fullmatch(entry.name):
            segments.append(entry)  # opened with care: a link or a FIFO of that name is found there
        elif regular and TORN.fullmatch(entry.name):
            torn.append(entry)
        elif not (regular and entry.name == LOCK_NAME):
            foreign.append(entry)
    return Listing(tuple(segments), tuple(torn), tuple(foreign))


def seen(state: os.stat_result) -> Seen:
    """The parts of a stat result that must not change under a reader."""
    return Seen(
        state.st_size,
        (state.st_dev, state.st_ino),
        state.st_nlink,
        (state.st_mtime_ns, state.st_ctime_ns),
    )


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor for reading a regular file.

    Raises:
        LogUnreadable: it is absent, a link, no regular file, or may not be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        what = "is a symbolic link" if path.is_symlink() else (error.strerror or str(error)).lower()
        raise LogUnreadable(f"`{path}`: {what}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LogUnreadable(f"`{path}`: not a regular file")
        yield fd
    finally:
        os.close(fd)


class _Bounded(io.RawIOBase):
    """The first `size` bytes of a descriptor, from its start, and no byte more."""

    def __init__(self, fd: int, size: int, progress: Callable[[int], None] | None) -> None:
        self._fd = fd
        self._at = 0
        self._size = size
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._size - self._at)
        if wanted == 0:
            return 0
        read = os.preadv(self._fd, [buffer[:wanted]], self._at)
        if read == 0:
            raise LogUnreadable("the file became shorter while it was read")
        self._at += read
        if read > LINE_BYTES_MAX and b"\n" not in bytes(buffer[read - LINE_BYTES_MAX : read]):
            self._size = self._at  # a line without an end: no record; nothing behind it is read
        if self._progress:
            self._progress(read)
        return read


def read_lines(
    fd: int, size: int, progress: Callable[[int], None] | None = None
) -> Iterator[bytes]:
    """The lines of the first `size` bytes, each with its LF, in bounded memory.

    A line that is too long comes in pieces without LF, which no caller takes for a record.
    `progress` is told how many bytes were read since it was last called.
    """
    return iter(io.BufferedReader(_Bounded(fd, size, progress), _READ_BYTES))


def walk_segment(
    fd: int, size: int, judge: Judge | None = None, progress: Callable[[int], None] | None = None
) -> Walked:
    """Walk the first `size` bytes of an open segment from the start of its chain.

    Raises:
        LogUnreadable: the file became shorter meanwhile, or the disk failed.
    """
    try:
        return walk(read_lines(fd, size, progress), genesis(), judge)
    except OSError as error:
        raise LogUnreadable(f"reading failed: {(error.strerror or str(error)).lower()}") from error
