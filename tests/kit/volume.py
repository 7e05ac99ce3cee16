"""Disks for tests: a small volume that fills up, a folder nobody may write to."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_volume(folder: Path, size_bytes: int) -> Iterator[Path]:
    """`folder` as a tmpfs of this size; skips the test where mounting is not allowed."""
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        unmount(folder)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` mounted over itself, read-only; skips the test where mounting is not allowed."""
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        unmount(folder)


def fill(folder: Path, *, leave_bytes: int = 0) -> Path:
    """Write one file until the volume is full, or so much is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while (free := free_bytes(folder) - leave_bytes) > 0:
            try:
                file.write(b"\0" * min(free, 65_536))
            except OSError:
                break
    return filler


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write."""
    volume = os.statvfs(folder)
    return volume.f_bavail * volume.f_frsize


def mount(*arguments: str) -> None:
    """`mount`, or skip."""
    done = subprocess.run(
        ["mount", *arguments], check=False, capture_output=True, text=True, timeout=20
    )
    if done.returncode:
        pytest.skip(f"mounting needs root and CAP_SYS_ADMIN: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    """`umount`, lazily where a process still sits on it."""
    for option in ((), ("-l",)):
        command = ["umount", *option, str(folder)]
        if not subprocess.run(command, check=False, capture_output=True, timeout=20).returncode:
            return
