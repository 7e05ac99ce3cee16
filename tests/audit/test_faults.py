"""Real faults: a full volume, a file size limit, SIGKILL at any moment, verify while it runs.

Rows 53, 57 (sample) and 59 of spec/audit.md section 9. What was acknowledged must be in the log,
and no crash may ever look like tampering.
"""

import asyncio
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audit.reader import read
from audit.verify import verify
from audit.writer import LogUnavailable, Stored, Writer, create_log, wall_clock
from tests.kit.chains import decision, loaded

Opening = Callable[..., Writer]
ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A real tmpfs of 2 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def fill(writer: Writer) -> tuple[dict[int, str], LogUnavailable]:
    """Store until the writer refuses; what was acknowledged, by seq, and the refusal."""
    acked: dict[int, str] = {}
    for round_number in range(1_000):
        group = [
            writer.store(decision(100 * round_number + n, client="c" * 1500)) for n in range(20)
        ]
        refused = None
        for answer in await asyncio.gather(*group, return_exceptions=True):
            if isinstance(answer, Stored):
                acked[answer.seq] = answer.hash
            elif isinstance(answer, LogUnavailable):
                refused = answer
            else:
                raise answer
        if refused:
            return acked, refused
    raise AssertionError("the volume never filled")


async def until_healthy(writer: Writer) -> None:
    while writer.failure is not None:
        await asyncio.sleep(0.005)


def check_acked(log: Path, acked: dict[int, str]) -> None:
    hashes = {line.record.seq: line.record.hash for line in read(log)}
    assert {seq: hashes.get(seq) for seq in acked} == acked


@pytest.mark.parametrize("floor", [-MIB, 256 << 10], ids=["without a reserve", "with one"])
async def test_59_a_full_disk_denies_and_is_recovered_from_when_freed(
    floor: int, small_volume: Path, open_writer: Opening
) -> None:
    log = small_volume / "log"
    create_log(log, software="test/1", now=wall_clock())
    ballast = small_volume / "ballast"
    ballast.write_bytes(b"x" * MIB)
    writer = open_writer(log, space_floor_bytes=floor, retry_s=0.02)
    await writer.store(loaded())
    acked, refused = await fill(writer)
    assert refused.code == "audit-disk-full"
    for n in range(3):
        with pytest.raises(LogUnavailable) as again:
            writer.submit(decision(10**6 + n))
        assert again.value.code == "audit-disk-full"
    assert verify(log).exit_code == 3
    ballast.unlink()
    await until_healthy(writer)
    stored = await writer.store(decision(10**7))
    acked[stored.seq] = stored.hash
    check_acked(log, acked)
    writer.close()
    assert verify(log).exit_code == 0
    events = [line.record.event for line in read(log)]
    recovery = next(e for e in events if e["kind"] == "recovery")
    assert recovery["cause"] == "disk-full"
    assert ("file" in recovery) == (floor < 0)
    dropped = next(e for e in events if e["kind"] == "dropped")
    assert dropped["reason"] == "audit-disk-full"
    assert dropped["n"] >= 4


async def test_a_full_disk_at_the_end_still_gets_its_close_from_the_reserve(
    small_volume: Path, open_writer: Opening
) -> None:
    log = small_volume / "log"
    create_log(log, software="test/1", now=wall_clock())
    writer = open_writer(log, space_floor_bytes=256 << 10)
    await writer.store(loaded())
    await fill(writer)
    writer.close()
    assert verify(log).exit_code == 0
    kinds = [line.record.event["kind"] for line in read(log)]
    assert kinds[-3:] == ["recovery", "dropped", "log.close"]


def test_a_full_disk_at_the_start_refuses_to_start(small_volume: Path) -> None:
    log = small_volume / "log"
    create_log(log, software="test/1", now=wall_clock())
    with pytest.raises(LogUnavailable) as refused:
        Writer.open(log, software="test/1", space_floor_bytes=3 * MIB)
    assert refused.value.code == "audit-disk-full"
    Writer.open(log, software="test/1", space_floor_bytes=0).close()


async def test_a_file_size_limit_denies_like_a_full_disk(log: Path, open_writer: Opening) -> None:
    writer = open_writer(retry_s=0.02)
    await writer.store(loaded())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_001, before[1]))
    try:
        acked, refused = await fill(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.code == "audit-disk-full"
    await until_healthy(writer)
    writer.close()
    check_acked(log, acked)
    assert verify(log).exit_code == 0


CHILD = """
import asyncio, sys
from pathlib import Path
from audit.writer import Writer
from tests.kit.chains import decision, loaded
async def main():
    writer = Writer.open(Path(sys.argv[1]), software="test/1", heartbeat_s=0.003)
    async def agent(first):
        for n in range(first, first + 10**6):
            stored = await writer.store(decision(n, client="c" * (n * 37 % 3000)))
            sys.stdout.write(f"{stored.seq} {stored.hash}\\n")
    await writer.store(loaded())
    print("ready", flush=True)
    await asyncio.gather(*(agent(n * 10**6) for n in range(8)))
asyncio.run(main())
"""


def start_child(log: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD, str(log)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


@pytest.mark.parametrize("seed", range(10))
def test_57_sigkill_loses_nothing_acknowledged_and_never_looks_like_tampering(
    seed: int, log: Path
) -> None:
    moments = random.Random(seed)
    acked: dict[int, str] = {}
    for _ in range(2):  # the second run starts from what the first one left
        child = start_child(log)
        assert child.stdout is not None
        until = time.monotonic() + moments.uniform(0.0, 0.15)
        output = b""
        while time.monotonic() < until:
            if select.select([child.stdout], [], [], 0.001)[0]:
                output += os.read(child.stdout.fileno(), 1 << 16)
        child.send_signal(signal.SIGKILL)
        output += child.stdout.read()
        child.wait()
        child.stdout.close()
        lines = output.decode().split("\n")[:-1]
        acked.update((int(seq), digest) for seq, digest in map(str.split, lines))
        assert verify(log).exit_code == 3
        check_acked(log, acked)
    Writer.open(log, software="test/1").close()
    check_acked(log, acked)
    assert verify(log).exit_code in (0, 3)  # 3: a heartbeat of 3 ms may well be late
    assert verify(log, fast=True).exit_code == 0


def test_53_verify_during_live_appends_never_says_tampered(log: Path) -> None:
    """1,000 runs; the writer is a process of its own: half-written groups are seen too."""
    child = start_child(log)
    try:
        found = set()
        for number in range(1_000):
            found.add(verify(log, fast=bool(number % 2)).exit_code)
            if number % 100 == 99:
                child = restart(child, log)
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    assert found <= {0, 3}


def restart(child: subprocess.Popen[bytes], log: Path) -> subprocess.Popen[bytes]:
    """A fresh short log, or verifying would take longer every time."""
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()
    for path in log.iterdir():
        path.unlink()
    create_log(log, software="test/1", now=wall_clock())
    return start_child(log)


CLOCK_CHILD = """
import sys, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from audit.writer import Writer
from tests.kit.chains import decision, loaded
offset = timedelta(0)
writer = Writer.open(Path(sys.argv[1]), software="test/1", now=lambda: datetime.now(UTC) + offset)
writer.store_blocking(loaded(), timeout_s=10)
for n, hours in enumerate((-1, 1, 0, (datetime(1970, 1, 1, tzinfo=UTC) - datetime.now(UTC))
                           / timedelta(hours=1), 0)):
    offset = timedelta(hours=hours)
    writer.store_blocking(decision(n), timeout_s=10)
writer.close()
"""


def test_60_a_process_whose_clock_is_set_about_leaves_a_valid_chain(log: Path) -> None:
    """One hour back and forth and to 1970, while the process runs."""
    subprocess.run([sys.executable, "-c", CLOCK_CHILD, str(log)], cwd=ROOT, check=True)
    assert verify(log).exit_code == 0
    steps = [line.record.event for line in read(log) if line.record.event["kind"] == "clock.step"]
    assert len(steps) == 5
    assert steps[3]["to"].startswith("1970-01-01T00:")
