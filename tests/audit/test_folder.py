"""Making and opening a log folder: nothing appears silently, nothing broken is continued."""

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.reader import find_segment, read
from audit.verify import verify
from audit.writer import (
    LogBroken,
    LogExists,
    LogMissing,
    LogUnavailable,
    Writer,
    create_log,
    wall_clock,
)
from tests.kit.chains import CLOSED, HEARTBEAT, chain, everyday, loaded, opened, put

Opening = Callable[..., Writer]


def test_init_makes_a_private_log_that_verifies(tmp_path: Path) -> None:
    log = create_log(tmp_path / "a" / "log", software="test/1", now=wall_clock())
    assert stat.S_IMODE((tmp_path / "a" / "log").stat().st_mode) == 0o700
    segment = find_segment(tmp_path / "a" / "log")
    assert segment.name == f"{log}-{0:020d}.jsonl"
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600
    assert verify(tmp_path / "a" / "log").exit_code == 0


def test_init_never_overwrites(log: Path) -> None:
    before = find_segment(log).read_bytes()
    with pytest.raises(LogExists):
        create_log(log, software="test/1", now=wall_clock())
    assert find_segment(log).read_bytes() == before


def test_init_continues_after_one_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.new").write_bytes(b"{")
    create_log(tmp_path, software="test/1", now=wall_clock())
    assert verify(tmp_path).exit_code == 0


def test_a_missing_log_is_not_made_anew(tmp_path: Path, log: Path) -> None:
    with pytest.raises(LogMissing):
        Writer.open(tmp_path / "nothing", software="test/1")
    find_segment(log).unlink()
    with pytest.raises(LogMissing):
        Writer.open(log, software="test/1")
    assert list(log.iterdir()) == []


def test_a_folder_that_anybody_may_write_is_refused(log: Path) -> None:
    log.chmod(0o777)
    with pytest.raises(LogUnavailable, match="may be written by anybody"):
        Writer.open(log, software="test/1")


def test_a_flipped_bit_in_line_5_of_10000_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    lines = chain([opened(), *[HEARTBEAT] * 9_998, CLOSED])
    broken = bytearray(b"".join(lines))
    place = len(b"".join(lines[:4])) + 50
    broken[place] ^= 1
    path = put(tmp_path / "log", bytes(broken))
    with pytest.raises(LogBroken) as refused:
        Writer.open(tmp_path / "log", software="test/1")
    assert (refused.value.line, refused.value.offset) == (5, len(b"".join(lines[:4])))
    assert f"{path}:5: " in str(refused.value)
    assert path.read_bytes() == broken
    assert list((tmp_path / "log").iterdir()) == [path]


BROKEN: dict[str, bytes] = {
    "an empty file": b"",
    "a whole record and more": b"".join(everyday())[:-1] + b" ",
    "a tail that no record begins with": b"".join(everyday()) + b"{}",
    "zeros at the end": b"".join(everyday()) + b"\0" * 4096,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_end_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path / "log", content)
    with pytest.raises(LogBroken):
        Writer.open(tmp_path / "log", software="test/1")
    assert path.read_bytes() == content


def test_two_segments_are_ambiguous(log: Path) -> None:
    (log / f"{'f' * 32}-{0:020d}.jsonl").write_bytes(b"")
    with pytest.raises(LogBroken):
        Writer.open(log, software="test/1")


def test_a_hard_linked_segment_is_refused(log: Path, tmp_path: Path) -> None:
    (tmp_path / "second").hardlink_to(find_segment(log))
    with pytest.raises(LogBroken, match="one name"):
        Writer.open(log, software="test/1")


def test_a_symbolic_link_as_segment_is_refused(log: Path, tmp_path: Path) -> None:
    segment = find_segment(log)
    shutil.move(segment, tmp_path / "real")
    segment.symlink_to(tmp_path / "real")
    with pytest.raises(LogUnavailable):
        Writer.open(log, software="test/1")


TORN: dict[str, Callable[[bytes], bytes]] = {
    "cut in the hash": lambda whole: whole[:-20],
    "cut in the event": lambda whole: whole[:-80],
    "cut in the chain": lambda whole: whole[: whole.rfind(b"\n", 0, -1) + 30],
    "one byte": lambda whole: whole[: whole.rfind(b"\n", 0, -1) + 2],
    "only the LF missing": lambda whole: whole[:-1],
}


@pytest.mark.parametrize("cut", TORN.values(), ids=TORN)
def test_a_torn_tail_is_moved_away_and_recorded(
    cut: Callable[[bytes], bytes], tmp_path: Path, open_writer: Opening
) -> None:
    whole = b"".join(everyday())
    log = put(tmp_path / "torn", cut(whole)).parent
    tail = cut(whole)[whole.rfind(b"\n", 0, -1) + 1 :]
    writer = open_writer(log)
    writer.store_blocking(loaded(), timeout_s=10)
    writer.close()
    recovery = list(read(log))[7].record.event
    assert (recovery["kind"], recovery["bytes"]) == ("recovery", len(tail))
    assert bytes.fromhex(recovery["head"]) == tail
    assert (log / recovery["file"]).read_bytes() == tail
    assert list(read(log))[6].record.event["after"] == "crash"
    assert verify(log).exit_code == 0


def test_a_crash_between_moving_and_recording_is_made_good(
    tmp_path: Path, open_writer: Opening
) -> None:
    """The segment is cut, `recovery` not yet written: verify says open, never broken."""
    log = put(tmp_path / "torn", everyday()[:-1]).parent
    torn = log / f"torn-{6:020d}.bin"
    torn.write_bytes(b'{"chain')
    assert verify(log).exit_code == 3
    open_writer(log).close()
    assert [line.record.event["kind"] for line in read(log)][-3:] == [
        "log.open",
        "recovery",
        "log.close",
    ]
    assert verify(log).exit_code == 0


def test_a_crash_while_moving_continues_the_torn_file(tmp_path: Path, open_writer: Opening) -> None:
    log = put(tmp_path / "torn", b"".join(everyday())[:-20]).parent
    torn = log / f"torn-{6:020d}.bin"
    torn.write_bytes(b'{"ch')
    assert verify(log).exit_code == 3
    open_writer(log).close()
    assert torn.read_bytes().startswith(b'{"ch{"chain":')
    assert verify(log).exit_code == 0
