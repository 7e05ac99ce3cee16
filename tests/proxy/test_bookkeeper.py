"""Holds before a request leaves, settlements when it is over, whatever the ledger does."""

import asyncio
from typing import Any

import pytest

from audit.writer import LogUnavailable
from policies.budget import SLICE_BYTES, Amount, State
from policies.ledger import LedgerUnavailable
from policies.ledger.memory import MemoryLedger
from policies.model import ContractBroken
from proxy.vocabulary import LedgerAnswered, SliceWanted
from tests.kit.desk import CODER, LOCAL, Desk, policy, wish
from tests.kit.enforcement import Faulty
from tests.kit.ledgers import DAY_MS, MIDNIGHT_MS, NOON_MS
from tests.kit.recorder import Fault

LIFE = policy("life: { each: agent, limits: { requests: 3, bytes_in: 300kB } }")
DAILY = policy("daily: { each: agent, window: 1d, limits: { requests: 2 } }")
TIMED = policy(
    "life: { each: agent, limits: { wall_time: 10s }, at: [{ reached: 100%, do: halt }] }"
)
STOPPING = policy(
    "life: { each: agent, limits: { requests: 1 }, at: [{ reached: 100%, do: halt }] }"
)
NAME = "1".rjust(32, "0")


@pytest.fixture(autouse=True)
def try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.bookkeeper._RETRY_S", 0.01)


async def hang(*_: object) -> Any:
    await asyncio.Event().wait()


class Trying(MemoryLedger):
    """Fails so many settlements: before it carries them out, or behind that."""

    failures = 0
    is_late = False

    async def settle(self, *args: Any) -> Any:
        self.failures -= 1
        if self.failures >= 0 and not self.is_late:
            raise LedgerUnavailable("down")
        accounts = await super().settle(*args)
        if self.failures >= 0:
            raise LedgerUnavailable("it is unknown whether it ended")
        return accounts


async def rest(desk: Desk) -> None:
    """Until everything owed is settled."""
    async with asyncio.timeout(2):
        while not desk.keeper.is_idle:
            await asyncio.sleep(0.005)


# --- reserving


async def test_what_is_held_is_told_with_the_ledgers_time() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    answer = await desk.reserve("1", "bytes_in", requests=1)
    assert answer.hold.amounts == (
        Amount("life/coder", "bytes_in", SLICE_BYTES),
        Amount("life/coder", "requests", 1),
    )
    assert answer.now_ms == NOON_MS
    assert answer.hold.granted == {"bytes_in": SLICE_BYTES}
    await desk.reconcile()


async def test_who_has_no_account_is_held_to_nothing() -> None:
    desk = Desk()
    assert await desk.reserve("1") == LedgerAnswered()


async def test_a_budget_that_is_used_up_refuses_says_what_is_left_and_is_counted() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    for number in range(3):
        assert await desk.spend(str(number)) == ""
    answer = await desk.reserve("9")
    assert answer.refusal == "budget-exhausted"
    assert answer.shortfall is not None
    assert (answer.shortfall.account, answer.shortfall.unit) == ("life/coder", "requests")
    assert await desk.spend("10", who=LOCAL) == "", "accounts are each agent's own"
    assert b"exhausted" in desk.metrics.exposition()
    await desk.reconcile()


FAULTS: dict[str, tuple[Any, str]] = {
    "down": (LedgerUnavailable("the ledger is down"), "the ledger is down"),
    "hangs": (hang, "it did not answer in time"),
    "late": (TimeoutError(), "it did not answer in time"),
}


@pytest.mark.parametrize(("fault", "problem"), FAULTS.values(), ids=FAULTS)
async def test_a_ledger_that_does_not_answer_refuses_and_holds_nothing(
    fault: Any, problem: str
) -> None:
    real = MemoryLedger()
    desk = Desk(real)
    await desk.keeper.adopt(LIFE)
    desk.keeper.ledger = Faulty(real, reserve=fault)
    assert (await desk.reserve("1")).refusal == "ledger-unavailable"
    assert desk.keeper.problem == problem
    await rest(desk)
    assert real.held == 0
    desk.keeper.ledger = real
    await desk.keeper.recover()
    assert desk.keeper.problem == ""


async def test_an_answer_that_came_too_late_is_ended_behind_the_call() -> None:
    """The ledger held, and nobody waited any more."""
    real = MemoryLedger()

    async def hold_and_dawdle(order: Any) -> Any:
        await real.reserve(order)
        await asyncio.sleep(1)

    desk = Desk(real)
    await desk.keeper.adopt(LIFE)
    desk.keeper.ledger = Faulty(real, reserve=hold_and_dawdle)
    assert (await desk.reserve("1")).refusal == "ledger-unavailable"
    await rest(desk)
    assert real.held == 0
    assert await desk.spent("life/coder") == {}


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("x"), ContractBroken("x"), asyncio.CancelledError()], ids=repr
)
async def test_a_bug_of_the_ledger_is_passed_on_and_what_it_holds_is_ended(
    error: BaseException,
) -> None:
    real = MemoryLedger()

    async def hold_and_fail(order: Any) -> Any:
        await real.reserve(order)
        raise error

    desk = Desk(real)
    await desk.keeper.adopt(LIFE)
    desk.keeper.ledger = Faulty(real, reserve=hold_and_fail)
    with pytest.raises(type(error)):
        await desk.keeper.reserve(NAME, CODER, wish(requests=1))
    await rest(desk)
    assert real.held == 0


async def test_sealed_books_refuse_everything_until_a_restart() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    answer = await desk.reserve("1", "bytes_in", requests=1)
    desk.keeper.seal("I6: x")
    with pytest.raises(ContractBroken, match="I6: x"):
        await desk.reserve("2")
    more = await desk.keeper.extend(NAME, SliceWanted("bytes_in", 1))
    assert (more.refusal, more.hold.amounts) == ("contract-broken", ())
    await desk.settle("1", answer)
    assert await desk.spent("life/coder") == {"requests": 1}, "what is under way still ends"
    await desk.keeper.recover()
    await desk.keeper.refresh()
    assert desk.keeper.problem == "I6: x"


async def test_a_new_period_is_recorded_with_what_the_last_one_spent() -> None:
    desk = Desk()
    await desk.keeper.adopt(DAILY)
    for number in range(2):
        assert await desk.spend(str(number)) == ""
    assert (await desk.reserve("3")).refusal == "budget-exhausted"
    desk.now_ms = MIDNIGHT_MS
    assert await desk.spend("4") == ""
    closed, opened = desk.recorder.of("ledger.snapshot")[-2:]
    assert (closed["cause"], closed["spent"]) == ("closed", [{"amount": 2, "unit": "requests"}])
    assert (opened["cause"], opened["spent"]) == ("opened", [])
    assert closed["account"] < opened["account"]
    await desk.reconcile()


async def test_a_period_that_the_log_does_not_take_begins_all_the_same() -> None:
    desk = Desk()
    await desk.keeper.adopt(DAILY)
    desk.recorder.faults["ledger.snapshot"] = Fault(LogUnavailable("audit-disk-full", "x"))
    desk.now_ms = MIDNIGHT_MS + DAY_MS
    assert await desk.spend("1") == ""
    await desk.reconcile()  # the names of the accounts say so


# --- extending


async def test_a_stream_is_extended_until_the_budget_ends() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    await desk.reserve("1", "bytes_in", requests=1)
    more = await desk.keeper.extend(NAME, SliceWanted("bytes_in", 10))
    assert more.hold.granted == {"bytes_in": 300_000 - SLICE_BYTES}
    none = await desk.keeper.extend(NAME, SliceWanted("bytes_in", 1))
    assert (none.refusal, none.hold.amounts) == ("budget-exhausted", ())
    assert none.shortfall is not None


@pytest.mark.parametrize("fault", [LedgerUnavailable("down"), TimeoutError(), hang], ids=repr)
async def test_a_ledger_that_does_not_answer_extends_nothing(fault: Any) -> None:
    real = MemoryLedger()
    desk = Desk(real)
    await desk.keeper.adopt(LIFE)
    await desk.reserve("1", "bytes_in", requests=1)
    desk.keeper.ledger = Faulty(real, reserve=fault)
    answer = await desk.keeper.extend(NAME, SliceWanted("bytes_in", 10))
    assert (answer.refusal, answer.hold.amounts) == ("ledger-unavailable", ())


async def test_an_extension_of_what_was_settled_is_a_broken_contract() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    await desk.settle("1", await desk.reserve("1", "bytes_in", requests=1))
    with pytest.raises(ContractBroken, match="I3"):
        await desk.keeper.extend(NAME, SliceWanted("bytes_in", 10))


# --- settling


@pytest.mark.parametrize("is_late", [False, True], ids=["before it is booked", "behind that"])
async def test_a_settlement_that_fails_is_tried_until_it_is_taken_and_booked_once(
    is_late: bool,
) -> None:
    ledger = Trying()
    desk = Desk(ledger)
    await desk.keeper.adopt(STOPPING)
    answer = await desk.reserve("1", requests=1)
    ledger.failures, ledger.is_late = 3, is_late
    await desk.settle("1", answer)
    await rest(desk)
    assert ledger.failures < 3
    assert ledger.held == 0
    assert await desk.spent("life/coder") == {"requests": 1}
    assert desk.keeper.state("coder") is State.HALTED, "what was reached is noticed all the same"
    await desk.reconcile()


async def test_until_it_is_settled_the_hold_covers_it() -> None:
    ledger = Trying()
    desk = Desk(ledger)
    await desk.keeper.adopt(policy("life: { each: agent, limits: { requests: 1 } }"))
    answer = await desk.reserve("1", requests=1)
    ledger.failures = 1_000
    await desk.settle("1", answer)
    assert (await desk.reserve("2")).refusal == "budget-exhausted"
    ledger.failures = 0
    await rest(desk)


async def test_settling_twice_is_a_bug_that_is_counted() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    answer = await desk.reserve("1", requests=1)
    for _ in range(2):
        desk.keeper.settle(NAME, answer.hold.amounts, CODER)
    await desk.keeper.flush()
    assert await desk.spent("life/coder") == {"requests": 1}
    assert b'faults_total{where="ledger"} 1.0' in desk.metrics.exposition()


async def test_flushing_waits_for_what_moves_and_not_for_a_ledger_that_is_down() -> None:
    ledger = Trying()
    ledger.failures = 1_000
    desk = Desk(ledger)
    await desk.keeper.adopt(LIFE)
    await desk.reserve("1", requests=1)
    desk.keeper.settle(NAME, (), CODER)
    async with asyncio.timeout(1):
        await desk.keeper.flush()
    ledger.failures = 0
    await rest(desk)


# --- time


async def test_a_request_whose_time_is_over_is_found_until_it_is_settled() -> None:
    desk = Desk()
    await desk.keeper.adopt(TIMED)
    answer = await desk.reserve("1")
    assert desk.keeper.find_overdue() == frozenset()
    desk.now_ms += 9_999
    assert desk.keeper.find_overdue() == frozenset()
    desk.now_ms += 1
    assert desk.keeper.find_overdue() == frozenset({NAME})
    await desk.settle("1", answer)
    assert desk.keeper.find_overdue() == frozenset()


async def test_time_that_runs_out_moves_a_state_without_any_request() -> None:
    desk = Desk()
    await desk.keeper.adopt(TIMED)
    await desk.reserve("1")
    await desk.keeper.judge_wall_time()
    assert desk.keeper.state("coder") is State.ACTIVE
    desk.now_ms += 10_000
    await desk.keeper.judge_wall_time()
    assert desk.keeper.state("coder") is State.HALTED
    assert desk.keeper.state("local") is State.ACTIVE, "whose time did not begin"
    await desk.keeper.flush()
    await desk.reconcile()


async def test_whoever_looks_gets_the_last_known_book_while_the_ledger_is_down() -> None:
    real = MemoryLedger()
    desk = Desk(real)
    await desk.keeper.adopt(LIFE)
    await desk.spend("1")
    known = await desk.keeper.refresh()
    assert known.accounts["life/coder"].spent == {"requests": 1}
    desk.keeper.ledger = Faulty(real, read=LedgerUnavailable("down"))
    assert await desk.keeper.refresh() is known


async def test_what_the_ledger_owes_is_paid_once_it_is_back() -> None:
    real = MemoryLedger()
    desk = Desk(real)
    desk.keeper.contracts._ledger = Faulty(real, change=LedgerUnavailable("down"))
    with pytest.raises(LedgerUnavailable):
        await desk.keeper.adopt(LIFE)
    await desk.keeper.recover()
    idle = [desk.keeper.is_idle]
    desk.keeper.contracts._ledger = real
    await desk.keeper.recover()
    assert [*idle, desk.keeper.is_idle] == [False, True]
    await desk.reconcile()


async def test_a_reload_below_what_was_spent_reaches_the_threshold_as_a_restart_would() -> None:
    desk = Desk()
    await desk.keeper.adopt(
        policy("life: { each: agent, limits: { requests: 5 }, at: [{ reached: 100%, do: halt }] }")
    )
    assert await desk.spend("1") == await desk.spend("2") == ""
    await rest(desk)
    assert desk.keeper.state("coder") is State.ACTIVE
    await desk.keeper.adopt(
        policy("life: { each: agent, limits: { requests: 2 }, at: [{ reached: 100%, do: halt }] }")
    )
    assert desk.keeper.state("coder") is State.HALTED
    await rest(desk)
    assert [event["to"] for event in desk.recorder.of("state")] == ["halted"]


async def test_a_broken_settlement_is_recorded_and_keeps_what_is_held() -> None:
    desk = Desk()
    await desk.keeper.adopt(LIFE)
    await desk.reserve("1", requests=1)
    desk.keeper.settle(NAME, (Amount("life/coder", "requests", 2),), CODER)
    await rest(desk)
    (alert,) = desk.recorder.of("alert")
    assert (alert["cause"], "I2" in alert["detail"]) == ("contract-broken", True)
    assert (await desk.ledger.read()).accounts["life/coder"].held == {"requests": 1}
