"""The end of a segment: what is told durable is, what is not is moved away."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.appender import Appender, AppendFailed, describe, lock_folder


@pytest.fixture
def appender(tmp_path: Path) -> Iterator[Appender]:
    path = tmp_path / "segment"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    appender = Appender(tmp_path, path, fd, 0)
    yield appender
    appender.close()


def test_what_was_appended_is_there_and_counted(appender: Appender, tmp_path: Path) -> None:
    appender.append(b"one\n")
    appender.append(b"two\n")
    assert (tmp_path / "segment").read_bytes() == b"one\ntwo\n"
    assert appender.size == 8


def test_without_unacknowledged_bytes_nothing_is_salvaged(appender: Appender) -> None:
    appender.append(b"one\n")
    assert appender.salvage(1) is None


def test_unacknowledged_bytes_are_moved_and_described(appender: Appender, tmp_path: Path) -> None:
    appender.append(b"one\n")
    with (tmp_path / "segment").open("ab") as file:
        file.write(b"tw")
    torn = appender.salvage(1)
    assert torn is not None
    assert (torn.name, torn.size, torn.head) == (f"torn-{1:020d}.bin", 2, b"tw".hex())
    assert torn == describe(tmp_path / torn.name)
    assert (tmp_path / "segment").read_bytes() == b"one\n"


def test_the_description_holds_the_first_4_kib(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"x" * 10_000)
    torn = describe(tmp_path / "torn")
    assert (torn.size, len(torn.head)) == (10_000, 8_192)


def test_the_reserve_is_for_those_who_may_use_it(appender: Appender, tmp_path: Path) -> None:
    volume = os.statvfs(tmp_path)
    floor = volume.f_bavail * volume.f_frsize * 2
    fd = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    poor = Appender(tmp_path, tmp_path / "b", fd, 0, floor)
    with pytest.raises(AppendFailed) as refused:
        poor.append(b"x")
    assert refused.value.cause == "disk-full"
    assert not poor.has_space()
    poor.append(b"x", use_reserve=True)
    poor.close()


def test_a_folder_has_one_lock(tmp_path: Path) -> None:
    first = lock_folder(tmp_path)
    assert first is not None
    assert lock_folder(tmp_path) is None
    os.close(first)
    second = lock_folder(tmp_path)
    assert second is not None
    os.close(second)
