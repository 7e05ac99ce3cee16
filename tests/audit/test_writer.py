"""The writer: durable before it answers, one at a time, refusing rather than losing."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from audit import appender
from audit.reader import find_segment, read
from audit.verify import verify
from audit.writer import EventRefused, LogBusy, LogUnavailable, Stored, Writer
from tests.kit.chains import POLICY, at, decision, loaded, outcome

Opening = Callable[..., Writer]


def kinds(log: Path) -> list[str]:
    return [line.record.event["kind"] for line in read(log)]


def events(log: Path, kind: str) -> list[dict[str, Any]]:
    return [line.record.event for line in read(log) if line.record.event["kind"] == kind]


async def test_what_was_stored_is_on_disk_before_store_returns(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    stored = await writer.store(loaded())
    last = list(read(log))[-1].record
    assert (last.seq, last.hash, last.ts) == (stored.seq, stored.hash, stored.ts)
    assert (writer.size, writer.queue_depth, writer.failure) == (stored.seq + 1, 0, None)
    assert writer.log_id == last.log


async def test_a_run_verifies_open_while_it_lasts_and_valid_after_close(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    await writer.store(loaded())
    await writer.store(decision(1))
    writer.submit(outcome(1))
    assert verify(log).exit_code == 3
    assert verify(log, allow_open=True).exit_code == 0
    writer.close()
    writer.close()
    assert verify(log).exit_code == 0
    assert kinds(log)[2:] == ["log.open", "policy.load", "decision", "outcome", "log.close"]


async def test_many_waiters_get_their_own_numbers_in_the_order_they_asked(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    await writer.store(loaded())
    stored = await asyncio.gather(*(writer.store(decision(n)) for n in range(500)))
    assert [s.seq for s in stored] == list(range(stored[0].seq, stored[0].seq + 500))
    ids = {line.record.seq: line.record.event.get("id") for line in read(log)}
    assert [ids[s.seq] for s in stored] == [f"{n:032x}" for n in range(500)]


def test_threads_without_a_loop_store_too(log: Path, open_writer: Opening) -> None:
    writer = open_writer()
    stored: list[Stored] = []
    writer.store_blocking(loaded(), timeout_s=10)

    def work(first: int) -> None:
        numbers = range(first, first + 50)
        stored.extend(writer.store_blocking(decision(n), timeout_s=10) for n in numbers)

    threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({s.seq for s in stored}) == 200
    writer.close()
    assert verify(log).exit_code == 0


async def test_a_cancelled_store_is_recorded_and_hurts_nobody(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    await writer.store(loaded())
    waiting = asyncio.ensure_future(writer.store(decision(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    await writer.store(decision(2))
    assert waiting.cancelled()
    assert kinds(log)[-2:] == ["decision", "decision"]


async def test_after_close_nothing_is_recorded(log: Path, open_writer: Opening) -> None:
    writer = open_writer()
    writer.close()
    with pytest.raises(LogUnavailable) as refused:
        await writer.store(loaded())
    assert refused.value.code == "audit-unavailable"
    assert writer.failure == "closed"


# -- events that no verifier would accept -------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown kind": ({"kind": "heartbeet"}, "`heartbeet` is not a kind of event"),
    "no kind": ({}, "`None` is not a kind of event"),
    "an unknown field": (loaded() | {"x": 1}, "`event` has an unknown field `x`"),
    "a field missing": ({"kind": "policy.load"}, "`event` lacks the field `digest`"),
    "a float": (outcome(1, ms=1.5), "`event.ms` must be an integer from 0 to 9007199254740991"),
    "a boolean": (
        outcome(1, ms=True),
        "`event.ms` must be an integer from 0 to 9007199254740991",
    ),
    "null": (decision(1, trace=None), "`event.trace` must be a string of printable ASCII"),
    "a wrong nested type": (
        decision(1, read=[{"field": "a", "outcome": "maybe"}]),
        "`event.read[0].outcome` must be one of true, false, unknown",
    ),
    "no array": (decision(1, redacted="x"), "`event.redacted` must be an array"),
    "no object": (decision(1, req="x"), "`event.req` must be an object"),
    "what the writer records itself": ({"kind": "log.close"}, "is recorded by the writer itself"),
    "an outcome of nothing": (outcome(7), "which is no open request"),
    "a policy never loaded": (
        decision(1, policy={"digest": "b" * 64, "rules": [], "serial": 1}),
        "which was not loaded before it",
    ),
    "an integer that is too large": (outcome(1, ms=2**53), "must be an integer from 0"),
    "what JSON cannot hold": (outcome(1, ms={1}), "must be an integer from 0"),
}


@pytest.mark.parametrize(("event", "text"), REFUSED.values(), ids=REFUSED)
async def test_an_event_no_verifier_would_accept_is_refused_and_leaves_no_trace(
    event: dict[str, Any], text: str, log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    await writer.store(loaded())
    before = kinds(log)
    with pytest.raises(EventRefused) as refused:
        await writer.store(event)
    assert text in str(refused.value)
    with pytest.raises(EventRefused):
        writer.submit(event)
    assert kinds(log) == before
    await writer.store(decision(1))
    writer.close()
    assert verify(log).exit_code == 0


async def test_a_second_outcome_is_refused(open_writer: Opening) -> None:
    writer = open_writer()
    await writer.store(loaded())
    await writer.store(decision(1))
    writer.submit(outcome(1))
    with pytest.raises(EventRefused, match="no open request"):
        writer.submit(outcome(1))


async def test_odd_bytes_from_the_wire_are_percent_encoded(log: Path, open_writer: Opening) -> None:
    writer = open_writer()
    await writer.store({"kind": "malformed", "client": "é\x00\ud800", "bytes": 1, "why": "a\nb"})
    writer.close()
    assert events(log, "malformed")[0]["client"] == "%C3%A9%00%ED%A0%80"
    assert events(log, "malformed")[0]["why"] == "a%0Ab"
    assert verify(log).exit_code == 0


async def test_a_record_that_would_be_too_long_is_cut_and_names_what_was_cut(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    await writer.store(loaded())
    target = {"path": "/" + "x" * 100_000, "query_keys": [f"k{n}" for n in range(90_000)]}
    read_fields = [{"field": f"match.{n}", "outcome": "true"} for n in range(5_000)]
    await writer.store(decision(1, target=target, read=read_fields))
    await writer.store({"kind": "alert", "cause": "a", "detail": "é" * 60_000})
    writer.close()
    found = events(log, "decision")[0]
    assert " cut:100001 sha256:" in found["target"]["path"]
    assert found["target"]["query_keys"][-1].startswith(" cut:90000 sha256:")
    assert found["read"][-1]["field"].startswith(" cut:5000 sha256:")
    assert verify(log).exit_code == 0


async def test_amounts_are_never_cut(open_writer: Opening) -> None:
    writer = open_writer()
    await writer.store(loaded())
    amounts = [{"account": f"a{n}", "amount": n, "unit": "requests"} for n in range(3_000)]
    with pytest.raises(EventRefused, match="at most 65235 fit"):
        await writer.store(decision(1, reserve=amounts))


# -- one writer ---------------------------------------------------------------------------------


def test_a_second_writer_is_refused_in_this_process_and_in_another(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    with pytest.raises(LogBusy):
        Writer.open(log, software="test/1")
    code = (
        "import sys; from pathlib import Path; from audit.writer import *\n"
        "try: Writer.open(Path(sys.argv[1]), software='t/1')\n"
        "except LogBusy: sys.exit(77)"
    )
    root = Path(appender.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(log)], cwd=root, check=False)
    assert done.returncode == 77
    writer.close()
    open_writer().close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_may_not_write_and_does_not_give_the_lock_away(
    log: Path, open_writer: Opening
) -> None:
    writer = open_writer()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            writer.submit(loaded())
        except LogUnavailable:
            writer.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(LogBusy):
        Writer.open(log, software="test/1")
    writer.submit(loaded())
    writer.close()
    assert kinds(log)[-2:] == ["policy.load", "log.close"]


# -- the disk -----------------------------------------------------------------------------------


class Disk:
    """`os.fdatasync` of the appender, held or failing on demand."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.errors: list[OSError] = []
        self.calls = 0

    def sync(self, fd: int) -> None:
        self.calls += 1
        self.free.wait()
        if self.errors:
            raise self.errors.pop(0)
        os.fsync(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr("audit.appender.os.fdatasync", disk.sync)
    yield disk
    disk.free.set()


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def committed(self, records: int, seconds: float) -> None:
        self.calls.append(("committed", (records, seconds)))
        raise RuntimeError("an observer must not stop the record")

    def failed(self, cause: str) -> None:
        self.calls.append(("failed", cause))

    def recovered(self, dropped: int) -> None:
        self.calls.append(("recovered", dropped))


async def test_59_a_failed_sync_is_never_retried_and_only_a_restart_recovers(
    log: Path, open_writer: Opening, disk: Disk
) -> None:
    seen = Seen()
    writer = open_writer(observer=seen, retry_s=0.01)
    await writer.store(loaded())
    disk.errors = [OSError(5, "Input/output error")]
    with pytest.raises(LogUnavailable) as refused:
        await writer.store(decision(1))
    assert refused.value.code == "audit-unavailable"
    calls = disk.calls
    await asyncio.sleep(0.05)
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            writer.submit(decision(2))
    assert disk.calls == calls
    assert writer.failure is not None
    assert writer.failure.startswith("sync-failed")
    assert seen.calls[-1] == ("failed", "sync-failed")
    writer.close()
    assert verify(log).exit_code == 3
    open_writer().close()
    assert events(log, "log.open")[-1]["after"] == "crash"
    assert verify(log).exit_code == 0


async def test_a_recovery_that_fails_itself_is_tried_again_and_names_its_torn_file(
    log: Path, open_writer: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills in the middle of a group, and once more in the middle of the recovery."""
    writer = open_writer(retry_s=0.01)
    await writer.store(loaded())
    real, script = os.write, [100, None, 50]  # bytes that still fit; None: all of them

    def write(fd: int, data: bytes) -> int:
        room = script.pop(0) if script else None
        return real(fd, data if room is None else data[:room])

    monkeypatch.setattr("audit.appender.os.write", write)
    with pytest.raises(LogUnavailable) as refused:
        await writer.store(decision(1))
    assert refused.value.code == "audit-disk-full"
    while writer.failure is not None:
        await asyncio.sleep(0.005)
    await writer.store(decision(2))
    writer.close()
    found = events(log, "recovery")
    assert len(found) == 1
    assert found[0]["bytes"] == 150
    assert verify(log).exit_code == 0


async def test_a_full_queue_refuses_and_says_later_how_many(
    log: Path, open_writer: Opening, disk: Disk
) -> None:
    writer = open_writer(queue_records_max=3)
    await writer.store(loaded())
    disk.free.clear()
    first = asyncio.ensure_future(writer.store(decision(0)))
    while disk.calls < 3:  # the writer holds the first one
        await asyncio.sleep(0.001)
    waiting = [asyncio.ensure_future(writer.store(decision(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    for n in (4, 5):
        with pytest.raises(LogUnavailable) as refused:
            writer.submit(decision(n))
        assert refused.value.code == "audit-backpressure"
    disk.free.set()
    await asyncio.gather(first, *waiting)
    writer.close()
    assert events(log, "dropped") == [{"kind": "dropped", "n": 2, "reason": "audit-backpressure"}]
    assert verify(log).exit_code == 0


def test_a_disk_that_hangs_is_not_waited_for_longer_than_asked(
    open_writer: Opening, disk: Disk
) -> None:
    writer = open_writer()
    disk.free.clear()
    with pytest.raises(LogUnavailable, match=r"not durable within 0\.01 s"):
        writer.store_blocking(loaded(), timeout_s=0.01)
    disk.free.set()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def link_to(path: Path) -> None:
    path.with_suffix(".second").hardlink_to(path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "replaced": replace,
    "removed": Path.unlink,
    "appended to": append,
    "given a second name": link_to,
    "its folder renamed": lambda path: path.parent.rename(path.parent.with_name("away")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_52_a_log_changed_under_the_writer_alarms_and_denies(
    change: Callable[[Path], Any], log: Path, open_writer: Opening
) -> None:
    seen = Seen()
    writer = open_writer(observer=seen)
    await writer.store(loaded())
    change(find_segment(log))
    for _ in range(2):
        with pytest.raises(LogUnavailable) as refused:
            await writer.store(decision(1))
        assert refused.value.code == "audit-unavailable"
    assert seen.calls.count(("failed", "log-changed")) == 1
    assert writer.failure is not None


# -- the clock ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.wall = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
        self.steady = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def step(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)


@pytest.mark.parametrize("seconds", [-3600, -0.001, 3600, -3600 * 24 * 365 * 30])
async def test_60_a_clock_step_is_recorded_and_time_never_goes_back(
    seconds: float, log: Path, open_writer: Opening
) -> None:
    clock = Clock()
    clock.wall = datetime.now(UTC) + timedelta(hours=1)  # noqa: TID251
    writer = open_writer(now=clock.now, monotonic=clock.monotonic)
    await writer.store(loaded())
    before = clock.wall
    clock.step(seconds)
    await writer.store(decision(1))
    await writer.store(decision(2))
    writer.close()
    step = events(log, "clock.step")
    assert len(step) == 1
    assert step[0]["from"] == before.isoformat(timespec="microseconds")[:26] + "Z"
    assert step[0]["to"] == clock.wall.isoformat(timespec="microseconds")[:26] + "Z"
    times = [line.record.ts for line in read(log)]
    assert times == sorted(times)
    assert verify(log).exit_code == 0


async def test_time_that_passes_is_no_step(log: Path, open_writer: Opening) -> None:
    clock = Clock()
    clock.wall = datetime.now(UTC) + timedelta(hours=1)  # noqa: TID251
    writer = open_writer(now=clock.now, monotonic=clock.monotonic)
    await writer.store(loaded())
    clock.step(50)
    clock.steady += 50
    await writer.store(decision(1))
    writer.close()
    assert events(log, "clock.step") == []


def test_a_clock_that_went_back_while_nobody_wrote_is_recorded(
    log: Path, open_writer: Opening
) -> None:
    clock = Clock()
    clock.wall = datetime.now(UTC) + timedelta(hours=1)  # noqa: TID251
    open_writer(now=clock.now, monotonic=clock.monotonic).close()
    clock.step(-7200)
    open_writer(now=clock.now, monotonic=clock.monotonic).close()
    assert kinds(log)[-3:] == ["log.open", "clock.step", "log.close"]
    assert verify(log).exit_code == 0


async def test_heartbeats_come_without_traffic(log: Path, open_writer: Opening) -> None:
    open_writer(heartbeat_s=0.05)
    while kinds(log).count("heartbeat") < 3:
        await asyncio.sleep(0.01)


def test_the_kit_agrees_with_the_writer_about_times() -> None:
    assert at(3661) == "2026-01-31T01:01:01.000000Z"
    assert len(POLICY) == 64
