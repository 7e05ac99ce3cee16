"""Goals of the audit room (spec/audit.md section 10): write path and verification at L0.

Every value is a ratio to a limit that this run measures itself, interleaved with the thing
measured, so a slow or busy disk slows both. `python -m tests.bench.audit [DIR]`: DIR is on the disk
to measure.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from statistics import median, quantiles

import orjson

from audit.chain import genesis, link, ts_place
from audit.laws import Laws
from audit.record import encode
from audit.verify import verify
from audit.writer import Writer, create_log, wall_clock
from tests.bench import Row
from tests.kit.chains import LOG, at, decision, loaded, opened

_ROUNDS = 5
_SORTED = orjson.OPT_SORT_KEYS


def run(folder: Path | None = None) -> list[Row]:
    """Measure everything; takes about half a minute. `folder`: on the disk to measure."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        return [
            *_measure_latency(place, 1, p50=1.6, p99=2.0),
            *_measure_latency(place, 64, p50=3.0, p99=4.0),
            _measure_throughput(place),
            *_measure_seal(),
            *_measure_verify(place),
        ]


def _event(number: int) -> Mapping[str, object]:
    return decision(number)


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1]


@contextmanager
def _writer(place: Path) -> Iterator[Writer]:
    folder = Path(tempfile.mkdtemp(dir=place)) / "log"
    create_log(folder, software="bench/1", now=wall_clock())
    writer = Writer.open(folder, software="bench/1")
    writer.store_blocking(loaded(), timeout_s=60)
    yield writer
    writer.close()


def _sync_raw(place: Path, group: int, times: int) -> list[float]:
    """Seconds for one write and one fdatasync of `group` records, as bare as Python can."""
    data = link(genesis(LOG.encode()), encode(_event(1)), at(1).encode())[0] * group
    fd = os.open(place / f"raw-{group}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        os.write(fd, data)
        os.fdatasync(fd)
        seconds.append(time.perf_counter() - started)
    os.close(fd)
    return seconds


def _events(count: int, first: int) -> list[Mapping[str, object]]:
    return [_event(first + n) for n in range(count)]


def _store(writer: Writer, concurrency: int, events: list[Mapping[str, object]]) -> list[float]:
    """Seconds of every single `store`, with so many agents that each wait for their own."""
    seconds: list[float] = []

    async def agent(mine: list[Mapping[str, object]]) -> None:
        for event in mine:
            started = time.perf_counter()
            await writer.store(event)
            seconds.append(time.perf_counter() - started)

    async def all_agents() -> None:
        await asyncio.gather(*(agent(events[n::concurrency]) for n in range(concurrency)))

    asyncio.run(all_agents())
    return seconds


def _measure_latency(place: Path, concurrency: int, p50: float, p99: float) -> list[Row]:
    raw: list[float] = []
    ours: list[float] = []
    each = 150 if concurrency == 1 else 40
    with _writer(place) as writer:
        _store(writer, concurrency, _events(5 * concurrency, 10**9))
        for n in range(_ROUNDS):
            raw += _sync_raw(place, concurrency, 150)
            ours += _store(writer, concurrency, _events(each * concurrency, n * 10**6))
    limit = "raw fdatasync" if concurrency == 1 else f"raw group of {concurrency}"
    rows = []
    for percent, goal in ((50, p50), (99, p99)):
        base, value = _percentile(raw, percent), _percentile(ours, percent)
        rows.append(
            Row(
                f"write-ahead p{percent}, concurrency {concurrency}",
                f"<= {goal}x {limit} p{percent}",
                f"{value / base:.2f}x ({value * 1e6:.0f} / {base * 1e6:.0f} us)",
                value <= goal * base,
            )
        )
    return rows


def _bound_per_s(place: Path, records: int) -> float:
    """Records per second of two threads that only seal (encode, link) and write durably."""
    queue: SimpleQueue[bytes | None] = SimpleQueue()
    event = _event(1)
    fd = os.open(place / "bound", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write() -> None:
        over = False
        while not over:
            lines = [queue.get()]
            while not queue.empty():
                lines.append(queue.get())
            over = lines[-1] is None
            os.write(fd, b"".join(line for line in lines if line))
            os.fdatasync(fd)

    thread = threading.Thread(target=write)
    started = time.perf_counter()
    thread.start()
    head, ts = genesis(LOG.encode()), at(1).encode()
    for _ in range(records):
        line, head = link(head, encode(event), ts)
        queue.put(line)
    queue.put(None)
    thread.join()
    os.close(fd)
    return records / (time.perf_counter() - started)


def _measure_throughput(place: Path) -> Row:
    bounds, ours = [], []
    each, concurrency = 60, 256
    with _writer(place) as writer:
        _store(writer, concurrency, _events(5 * concurrency, 10**9))
        for n in range(_ROUNDS):
            bounds.append(_bound_per_s(place, 30_000))
            events = _events(each * concurrency, n * 10**6)
            started = time.perf_counter()
            _store(writer, concurrency, events)
            ours.append(concurrency * each / (time.perf_counter() - started))
    bound, value = median(bounds), median(ours)
    return Row(
        "durable throughput, concurrency 256",
        ">= 50 % of the two-thread bound",
        f"{value / bound:.0%} ({value:,.0f} / {bound:,.0f} records/s)",
        value >= 0.5 * bound,
    )


def _best_s(work: Callable[[], object], rounds: int = _ROUNDS) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _measure_seal() -> list[Row]:
    events = [_event(n) for n in range(5_000)]
    ts = at(1).encode()

    def seal(laws: Laws | None) -> None:
        head = genesis(LOG.encode())
        for event in (opened(), loaded(), *events):
            at_ts = ts_place(head.seq)
            line, head = link(head, encode(event), ts)
            if laws is not None and laws.judge(line, at_ts):
                raise ValueError("the bench made a record that is not valid")

    def bare() -> None:
        for event in events:
            data = orjson.dumps(event, option=_SORTED)
            sha256(data).hexdigest()
            sha256(data).hexdigest()

    base, us = _best_s(bare), 1e6 / len(events)
    rows = []
    for name, value in (
        ("seal: encode and link", _best_s(lambda: seal(None))),
        ("seal, and judge by all laws", _best_s(lambda: seal(Laws()))),
    ):
        text = f"{value / base:.2f}x ({value * us:.1f} / {base * us:.1f} us)"
        rows.append(Row(name, "<= 1.5x (sorted dumps + 2 hashes)", text, value <= 1.5 * base))
    return rows


def _make_log(path: Path, records: int) -> None:
    head, ts = genesis(LOG.encode()), at(1).encode()
    with path.open("wb") as file:
        for event in (opened(), loaded()):
            line, head = link(head, encode(event), ts)
            file.write(line)
        data = encode(_event(7)).split(b"%032x" % 7)
        for n in range(records):
            line, head = link(head, (b"%032x" % n).join(data), ts)
            file.write(line)
        file.write(link(head, encode({"kind": "log.close"}), ts)[0])


def _bare_chain(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            if line[-67:-3] != sha256(line[:-76] + b"}").hexdigest().encode():
                raise ValueError("the bench made a broken log")


def _bare_strict(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            if line[-67:-3] != sha256(line[:-76] + b"}").hexdigest().encode():
                raise ValueError("the bench made a broken log")
            orjson.loads(line)


def _measure_verify(place: Path) -> list[Row]:
    small, large = place / "small.jsonl", place / "large.jsonl"
    records = 30_000
    _make_log(small, records)
    rows = []
    for name, fast, bare in (("fast", True, _bare_chain), ("strict", False, _bare_strict)):
        base, value = [], []
        for _ in range(_ROUNDS):
            base.append(_best_s(lambda bare=bare: bare(small), 1))  # type: ignore[misc]
            value.append(_best_s(lambda fast=fast: verify(small, fast=fast), 1))  # type: ignore[misc]
        rate = min(base) / min(value)
        rows.append(
            Row(
                f"verify {name}",
                f">= 0.8x of the bare loop ({'hash' if fast else 'hash and JSON parse'})",
                f"{rate:.2f}x ({records / min(value):,.0f} / {records / min(base):,.0f} records/s)",
                rate >= 0.8,
            )
        )
    _make_log(large, 10 * records)
    code = (  # not ru_maxrss, which a child inherits from whoever started it
        "import sys, pathlib; from audit.verify import verify\n"
        "found = verify(pathlib.Path(sys.argv[1]))\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(found.exit_code, status.split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(large)], capture_output=True, text=True, check=True
    )
    code_found, kib = map(int, done.stdout.split())
    size = large.stat().st_size / 1e6
    rows.append(
        Row(
            "verify strict, memory",
            "RSS < 64 MB for any size",
            f"{kib / 1024:.0f} MiB for a log of {size:.0f} MB",
            code_found == 0 and kib * 1024 < 64e6,
        )
    )
    return rows


def main() -> None:
    """Print the rows as a table."""
    for row in run(Path(sys.argv[1]) if len(sys.argv) > 1 else None):
        print(f"{'ok  ' if row.met else 'MISS'}  {row.name:<36} {row.goal:<46} {row.value}")


if __name__ == "__main__":
    main()
