"""What two-phase spending costs: goal G7 of policy.md 8, as multiples of a calibration.

An order of two units on one account and on four, reserved and settled, in both ledgers, without
the list of what is left (`Order.wants_left`), which adds about 70 %. The goals of one account are
G7; those of four leave room above what was measured first. The
calibration is that of tests/bench/decision.py, run beside each measurement. SQLite is measured
twice: inside the ledger's thread, and as a caller sees it that awaits the answer on an event loop
with nothing else to do; between the two are the queue and the two switches of thread.
"""

import asyncio
import gc
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter_ns

from policies.budget import LIMIT_MAX, Hold, Order, allocate
from policies.ledger import Book, Ledger
from policies.ledger.memory import MemoryLedger
from policies.ledger.sqlite import SqliteLedger, open_ledger
from tests.bench import Row
from tests.bench.decision import GOAL_UNIT_US, calibrate_us
from tests.kit.ledgers import DAY_MS, NOON_MS, account, book

_ROUNDS = 4_000
_COUNTED = {"bytes_out": 250}
type _Times = tuple[list[float], list[float]]  # microseconds of every reserve and settle


class _Timed(SqliteLedger):
    """Notes how long each call takes in the ledger's thread."""

    def __init__(self, path: Path) -> None:
        self.times: _Times = [], []
        super().__init__(path, deadline_s=60)

    def _serve(self, call: object) -> object:
        started = perf_counter_ns()
        result = super()._serve(call)  # type: ignore[arg-type]  # its own kind of call
        self.times[not isinstance(result, Hold)].append((perf_counter_ns() - started) / 1_000)
        return result


def run() -> list[Row]:
    """Every row; takes a few seconds."""
    rows = []
    for accounts, goals_us in ((1, (5, 5)), (4, (12, 12))):
        times, unit_us = _measure(MemoryLedger(_write_book(accounts)))
        rows += _list_rows(f"memory, {_name(accounts)}", times, goals_us, unit_us)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        open_ledger(path, _write_book(4), deadline_s=60)[0].close()
        ledger = _Timed(path)
        try:
            seen, unit_us = _measure(ledger)
        finally:
            ledger.close()
    rows += _list_rows(f"SQLite, {_name(4)}, in its thread", ledger.times, (100, 100), unit_us)
    rows += _list_rows(f"SQLite, {_name(4)}, awaited", seen, (150, 150), unit_us)
    return rows


def _name(accounts: int) -> str:
    return "1 account" if accounts == 1 else f"{accounts} accounts"


def _write_book(accounts: int) -> Book:
    """Half of them with a window, half of them of the session."""
    return book(
        *(
            account(
                f"budget-{number}",
                session="s-1" if number % 2 else "",
                window_ms=DAY_MS if number < 2 else 0,
                requests=LIMIT_MAX,
                bytes_out=LIMIT_MAX,
            )
            for number in range(accounts)
        )
    )


def _measure(ledger: Ledger) -> tuple[_Times, float]:
    """Microseconds of every call, and of the calibration around them."""
    gc.collect()
    gc.disable()
    try:
        unit_us = calibrate_us()
        times = asyncio.run(_spend(ledger))
        return times, (unit_us + calibrate_us()) / 2
    finally:
        gc.enable()


async def _spend(ledger: Ledger) -> _Times:
    times: _Times = [], []
    for number in range(_ROUNDS):
        wanted = {"requests": 1, "bytes_out": 300}
        order = Order(f"d-{number}", "coder", "s-1", NOON_MS, wanted, wants_left=False)
        started = perf_counter_ns()
        hold = await ledger.reserve(order)
        times[0].append((perf_counter_ns() - started) / 1_000)
        spent = allocate(hold.amounts, _COUNTED) if isinstance(hold, Hold) else ()
        started = perf_counter_ns()
        await ledger.settle(order.decision_id, spent)
        times[1].append((perf_counter_ns() - started) / 1_000)
    return times


def _list_rows(
    name: str, times: _Times, goals_us: tuple[float, float], unit_us: float
) -> list[Row]:
    rows = []
    for verb, samples, goal_us in zip(("reserve", "settle"), times, goals_us, strict=True):
        value = median(samples)
        goal = goal_us / GOAL_UNIT_US
        rows.append(
            Row(
                f"G7 {verb} p50, {name}",
                f"<= {goal:.0f}x ({goal_us:g} us)",
                f"{value / unit_us:.0f}x ({value:.1f} us)",
                value / unit_us <= goal,
            )
        )
    return rows
