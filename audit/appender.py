"""One open segment and the disk under it: append, sync, salvage what was not acknowledged.

Rule 1: one `write` and one `fdatasync` per group; nothing counts before the sync returned.
Rule 2: no sync is ever retried. After a failed one the kernel may have marked the pages clean, so a
        second one would lie; only a restart, which reads the file again, recovers.
Rule 3: before each group the path must still lead to the inode and the size last written, with one
        link. Otherwise somebody removed, replaced, cut or linked the log, and nothing is written.
Rule 4: the last `space_floor_bytes` of the volume are not for traffic: they are kept for the
        records that tell of the trouble (`recovery`, `dropped`, `log.close`). Free space is looked
        at once a second and once per 256 KiB, so a flood meets the floor before it meets the end of
        the disk.

Owned by one thread at a time; holds no lock of its own. Why no preallocation and no O_DSYNC: they
gained nothing when measured (spec/audit.md section 2).
"""

import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from audit.segment import torn_name

SPACE_FLOOR_BYTES = 4 << 20
_LOOK_EVERY_BYTES = 256 << 10
_LOOK_EVERY_S = 1.0
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # EFBIG: RLIMIT_FSIZE

type FailureCause = Literal[
    "disk-full", "short-write", "io-error", "sync-failed", "log-changed", "internal"
]
RECOVERABLE: frozenset[FailureCause] = frozenset({"disk-full", "short-write"})


class AppendFailed(Exception):  # noqa: N818  named after the failure
    """A group is not durable. Whether a later attempt may help says `RECOVERABLE`."""

    def __init__(self, cause: FailureCause, detail: str) -> None:
        super().__init__(detail)
        self.cause: FailureCause = cause


@dataclass(frozen=True, slots=True)
class Torn:
    """What a torn file holds: enough for the `recovery` record that names it."""

    name: str
    size: int
    digest: str  # sha256:<64 hex>
    head: str  # first 4096 bytes in hex


def describe(path: Path) -> Torn:
    """Read a torn file for its `recovery` record."""
    digest, size, head = sha256(), 0, b""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            head = head or block[:4096]
            digest.update(block)
            size += len(block)
    return Torn(path.name, size, f"sha256:{digest.hexdigest()}", head.hex())


class Appender:
    """The end of one segment. `size` bytes of it are durable."""

    def __init__(
        self,
        folder: Path,
        path: Path,
        fd: int,
        size: int,
        space_floor_bytes: int = SPACE_FLOOR_BYTES,
    ) -> None:
        state = os.fstat(fd)
        self._folder = folder
        self._path = path
        self._fd = fd
        self._inode = (state.st_dev, state.st_ino)
        self._floor = space_floor_bytes
        self._unlooked_bytes = _LOOK_EVERY_BYTES  # look before the first group
        self._looked_s = 0.0
        self.size = size

    def append(self, data: bytes, *, use_reserve: bool = False) -> None:
        """Make `data` durable behind all that is.

        Raises:
            AppendFailed: it is not; part of it may stand behind `size` in the file.
        """
        self._look_at_file(self.size)
        if not use_reserve:
            self._look_at_space(len(data))
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise _failed("write", error) from error
        if written != len(data):
            raise AppendFailed("short-write", f"{written} of {len(data)} bytes were written")
        _sync(self._fd)
        self.size += written

    def salvage(self, seq: int) -> Torn | None:
        """Move what stands behind `size` into `torn-<seq>.bin`; None where nothing does.

        Whoever asked for those records was told that they are not recorded. A torn file of that
        name is continued: it is left from an earlier attempt that no `recovery` record tells of
        yet.

        Raises:
            AppendFailed: the disk is still full, or something worse.
        """
        end = os.fstat(self._fd).st_size
        self._look_at_file(end)
        if end == self.size:
            return None
        name = torn_name(seq)
        try:
            self._save(name, os.pread(self._fd, end - self.size, self.size))
            os.ftruncate(self._fd, self.size)
            _sync(self._fd)
            return describe(self._folder / name)
        except OSError as error:
            raise _failed("moving a torn tail away", error) from error

    def has_space(self) -> bool:
        """Whether the volume has more free than the floor and a little."""
        return self._free_bytes() >= self._floor + _LOOK_EVERY_BYTES // 4

    def close(self) -> None:
        """Close the descriptor; what is not synced stays unacknowledged."""
        os.close(self._fd)

    def _save(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._folder / name, flags, 0o600)
        try:
            before = os.fstat(fd).st_size
            written = os.write(fd, data)
            if written != len(data):
                os.ftruncate(fd, before)
                raise AppendFailed("short-write", f"{written} of {len(data)} bytes were saved")
            _sync(fd)
        finally:
            os.close(fd)
        sync_folder(self._folder)

    def _look_at_file(self, size: int) -> None:
        try:
            state = self._path.lstat()
        except OSError as error:
            raise AppendFailed("log-changed", f"the log is gone: {error.strerror}") from error
        if (state.st_dev, state.st_ino) != self._inode or not stat.S_ISREG(state.st_mode):
            raise AppendFailed("log-changed", "another file stands where the log was")
        if state.st_size != size:
            text = f"the log has {state.st_size} bytes, {size} were written"
            raise AppendFailed("log-changed", text)
        if state.st_nlink != 1:
            raise AppendFailed("log-changed", "the log has a second name (hard link)")

    def _look_at_space(self, wanted: int) -> None:
        now = time.monotonic()
        self._unlooked_bytes += wanted
        if self._unlooked_bytes < _LOOK_EVERY_BYTES and now - self._looked_s < _LOOK_EVERY_S:
            return
        free = self._free_bytes()
        if free < self._floor + wanted:
            raise AppendFailed("disk-full", f"{free} bytes free, {self._floor} are kept in reserve")
        self._unlooked_bytes, self._looked_s = 0, now

    def _free_bytes(self) -> int:
        volume = os.fstatvfs(self._fd)
        return volume.f_bavail * volume.f_frsize


def _failed(what: str, error: OSError) -> AppendFailed:
    cause: FailureCause = "disk-full" if error.errno in _NO_SPACE else "io-error"
    return AppendFailed(cause, f"{what} failed: {error.strerror}")


def _sync(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise AppendFailed("sync-failed", f"sync failed: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file of `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the exclusive lock of the folder itself; None where another holds it.

    The lock is on the folder, not on a file in it: a file can be removed and made anew.

    Raises:
        OSError: the folder cannot be opened.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd
