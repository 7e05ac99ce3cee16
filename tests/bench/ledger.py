"""What two-phase spending costs: goal G7 of policy.md 8, as multiples of a calibration.

An order of two units, reserved and settled: on four accounts within 5 us in memory and within
0.1 ms in SQLite, both beside a calibration loop; without the list of what is left
(`Order.wants_left`), which only `show_budget` asks for. Rows without a goal are its halves, and one
account.

The calibration is that of tests/bench/decision.py, run beside each measurement. SQLite is measured
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
_MEMORY_US, _SQLITE_US = 5, 100  # the goals, where the calibration takes GOAL_UNIT_US
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
    for accounts in (1, 4):
        times, unit_us = _measure(MemoryLedger(_write_book(accounts)))
        goal_us = _MEMORY_US if accounts == 4 else None
        rows += _list_rows(f"memory, {_name(accounts)}", times, unit_us, goal_us)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        open_ledger(path, _write_book(4), deadline_s=60)[0].close()
        ledger = _Timed(path)
        try:
            seen, unit_us = _measure(ledger)
        finally:
            ledger.close()
    rows += _list_rows(f"SQLite, {_name(4)}, in its thread", ledger.times, unit_us, _SQLITE_US)
    rows += _list_rows(f"SQLite, {_name(4)}, awaited", seen, unit_us, _SQLITE_US)
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


def _list_rows(name: str, times: _Times, unit_us: float, goal_us: float | None) -> list[Row]:
    """The pair with its goal, and both halves of it without one."""
    pairs = [reserve + settle for reserve, settle in zip(*times, strict=True)]
    rows = [_write_row("reserve + settle", name, pairs, unit_us, goal_us)]
    for verb, samples in zip(("reserve", "settle"), times, strict=True):
        rows.append(_write_row(verb, name, samples, unit_us, None))
    return rows


def _write_row(
    verb: str, name: str, samples: list[float], unit_us: float, goal_us: float | None
) -> Row:
    value = median(samples)
    times = value / unit_us
    goal = goal_us / GOAL_UNIT_US if goal_us else None
    return Row(
        f"G7 {verb} p50, {name}",
        f"<= {goal:.0f}x ({goal_us:g} us)" if goal else "",
        f"{times:.0f}x ({value:.1f} us)",
        not goal or times <= goal,
    )
