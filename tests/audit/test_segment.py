"""Files of a log: names, bounded reading, no following of links."""

import os
from pathlib import Path

import pytest

from audit.chain import LINE_BYTES_MAX
from audit.segment import LogUnreadable, list_folder, open_regular, read_lines
from tests.kit.chains import LOG


def test_a_folder_is_sorted_into_segments_torn_tails_and_foreign_files(tmp_path: Path) -> None:
    names = [
        f"{LOG}-{0:020d}.jsonl",
        f"torn-{3:020d}.bin",
        "lock",
        "torn-3.bin",
        f"{LOG.upper()}-{0:020d}.jsonl",
        "x",
    ]
    for name in names:
        (tmp_path / name).touch()
    listing = list_folder(tmp_path)
    assert [path.name for path in listing.segments] == [names[0]]
    assert [path.name for path in listing.torn] == [names[1]]
    assert {path.name for path in listing.foreign} == set(names[3:])


def test_a_torn_tail_or_lock_that_is_no_file_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / f"torn-{3:020d}.bin").symlink_to("/etc/passwd")
    assert len(list_folder(tmp_path).foreign) == 2


def test_reading_stops_at_the_size_that_was_seen_first(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\nb\nc\n")
    with open_regular(path) as fd:
        assert list(read_lines(fd, 3)) == [b"a\n", b"b"]


def test_progress_adds_up_to_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789\n" * 300_000)
    told: list[int] = []
    with open_regular(path) as fd:
        count = sum(1 for _ in read_lines(fd, path.stat().st_size, told.append))
    assert (count, sum(told)) == (300_000, path.stat().st_size)
    assert len(told) > 2


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"ok\n")
    os.truncate(path, 1 << 34)  # 16 GiB of nothing
    with open_regular(path) as fd:
        lines = list(read_lines(fd, path.stat().st_size))
    assert lines[0] == b"ok\n"
    assert LINE_BYTES_MAX < sum(map(len, lines)) < 4 << 20


def test_a_file_that_became_shorter_is_an_error_not_an_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\n")
    with open_regular(path) as fd, pytest.raises(LogUnreadable, match="shorter"):
        list(read_lines(fd, 100))


def test_a_link_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    with pytest.raises(LogUnreadable, match="symbolic link"), open_regular(tmp_path / "a"):
        pass
