"""States move right only, are in force at once, and reach the log whatever happens to it."""

import asyncio
from typing import Any

import pytest

from audit.writer import LogUnavailable
from policies.budget import State
from policies.ledger import Book, LedgerUnavailable, Standing
from policies.ledger.memory import MemoryLedger
from policies.model import ContractBroken
from tests.kit.desk import Desk, policy
from tests.kit.enforcement import Faulty
from tests.kit.ledgers import account, book
from tests.kit.recorder import Fault

STEPS = (
    "life: { each: agent, limits: { requests: 4 }, at: [{ reached: 25%, do: warn },"
    " { reached: 50%, do: quarantine }, { reached: 100%, do: halt }] }"
)
KEEPING = policy(STEPS, more="quarantine: { keep_rules: [r] }\n")
FULL = Fault(LogUnavailable("audit-disk-full", "x"))
WARNED, QUARANTINED, HALTED = State.WARNED, State.QUARANTINED, State.HALTED


def watch_cuts(desk: Desk) -> list[tuple[str, frozenset[str], str]]:
    """What was cut, in order."""
    cuts: list[tuple[str, frozenset[str], str]] = []

    def cut(agent: str, spared: frozenset[str], reason: str) -> int:
        cuts.append((agent, spared, reason))
        return 1

    desk.keeper.states.cut = cut
    return cuts


def moves(desk: Desk) -> list[tuple[str, str]]:
    return [(event["from"], event["to"]) for event in desk.recorder.of("state")]


async def test_spending_moves_an_agent_from_one_threshold_to_the_next() -> None:
    desk = Desk()
    cuts = watch_cuts(desk)
    await desk.keeper.adopt(KEEPING)
    found = []
    for number in range(4):
        await desk.spend(str(number))
        found.append(desk.keeper.state("coder"))
    assert found == [WARNED, QUARANTINED, QUARANTINED, HALTED]
    assert moves(desk) == [
        ("active", "warned"),
        ("warned", "quarantined"),
        ("quarantined", "halted"),
    ]
    (_, _, last) = desk.recorder.of("state")
    assert last["cause"] == "budget life/coder requests 100%"
    assert (last["session"], last["ref"]) == ("s-1", "3".rjust(32, "0"))
    assert cuts == [
        ("coder", frozenset({"r"}), "quarantined"), ("coder", frozenset(), "halted")
    ]  # fmt: skip
    assert desk.keeper.state("local") is State.ACTIVE
    assert b'tollkeeper_halts_total{reason="budget"} 1.0' in desk.metrics.exposition()
    await desk.reconcile()


async def test_of_all_that_was_reached_the_farthest_counts() -> None:
    desk = Desk()
    await desk.keeper.adopt(KEEPING)
    await desk.spend("1", requests=4)
    assert moves(desk) == [("active", "halted")]
    await desk.reconcile()


async def test_a_halt_by_hand_is_recorded_with_its_reason_and_who() -> None:
    desk = Desk()
    cuts = watch_cuts(desk)
    assert await desk.keeper.halt("coder", "went astray", "uid 1000") is State.ACTIVE
    (event,) = desk.recorder.of("state")
    assert (event["to"], event["cause"], event["by"]) == ("halted", "went astray", "uid 1000")
    assert cuts == [("coder", frozenset(), "halted")]
    assert await desk.keeper.halt("coder", "again", "uid 0") is HALTED
    assert len(desk.recorder.events) == 1, "who is halted stays halted, for the first reason"
    await desk.keeper.flush()
    await desk.reconcile()


async def test_a_halt_holds_before_the_log_has_it_and_reaches_it_later() -> None:
    desk = Desk()
    desk.recorder.faults["state"] = FULL
    with pytest.raises(LogUnavailable):
        await desk.keeper.halt("coder", "went astray", "uid 1000")
    assert desk.keeper.state("coder") is HALTED
    desk.keeper.states.record_missing()
    await desk.keeper.flush()
    assert desk.recorder.events == []
    desk.recorder.faults.clear()
    for _ in range(3):
        desk.keeper.states.record_missing()
        await desk.keeper.flush()
    (event,) = desk.recorder.of("state")
    assert (event["from"], event["by"]) == ("active", "uid 1000"), "who did it is not forgotten"
    await desk.reconcile()


async def test_a_ledger_that_is_down_holds_up_no_halt() -> None:
    desk = Desk(Faulty(MemoryLedger(), change=LedgerUnavailable("down")))
    async with asyncio.timeout(1):
        await desk.keeper.halt("coder", "went astray", "uid 0")
    assert moves(desk) == [("active", "halted")]
    await end(desk)


async def test_the_ledger_is_told_as_soon_as_it_works_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.bookkeeper._RETRY_S", 0.01)
    real = MemoryLedger()
    calls = []

    async def change(given: Any) -> None:
        calls.append(given)
        if len(calls) < 3:
            raise LedgerUnavailable("down")
        await real.change(given)

    desk = Desk(Faulty(real, change=change))
    await desk.keeper.halt("coder", "went astray", "uid 0")
    async with asyncio.timeout(2):
        while not desk.keeper.is_idle:
            await asyncio.sleep(0.005)
    assert (await real.read()).standings == {"coder": Standing(HALTED, "went astray")}


async def test_a_state_that_is_overtaken_on_its_way_to_the_log_is_not_recorded_behind_it() -> None:
    """The log only moves right: what comes late would look like tampering."""
    desk = Desk()
    await desk.keeper.adopt(KEEPING)
    one = account("life", requests=4, at=[(25, "warn")])
    one.spent = {"requests": 1}
    desk.keeper.states.judge([one])  # its record waits for its turn
    await desk.keeper.halt("coder", "went astray", "uid 0")
    await desk.keeper.flush()
    assert moves(desk) == [("active", "halted")]
    await desk.reconcile()


async def test_a_farther_state_that_was_not_recorded_is_missing_although_a_nearer_one_was() -> None:
    desk = Desk()
    await desk.keeper.adopt(KEEPING)
    await desk.spend("1")
    desk.recorder.faults["state"] = FULL
    await desk.spend("2")
    desk.recorder.faults.clear()
    assert (moves(desk), desk.keeper.state("coder")) == ([("active", "warned")], QUARANTINED)
    desk.keeper.states.record_missing()
    await desk.keeper.flush()
    assert moves(desk)[1:] == [("warned", "quarantined")]


async def test_what_is_on_its_way_to_the_log_is_not_written_twice() -> None:
    desk = Desk()
    gate = asyncio.Event()
    store = desk.recorder.store

    async def store_slowly(event: Any) -> Any:
        await gate.wait()
        return await store(event)

    desk.recorder.store = store_slowly  # type: ignore[method-assign]
    halting = asyncio.ensure_future(desk.keeper.halt("coder", "went astray", "uid 0"))
    await asyncio.sleep(0)
    desk.keeper.states.record_missing()
    gate.set()
    await halting
    await desk.keeper.flush()
    assert moves(desk) == [("active", "halted")]


async def test_a_start_judges_what_was_spent_before_it() -> None:
    """A run may have ended before it wrote down what its spending had reached."""
    one = account("life", requests=4, at=[(50, "halt")])
    one.spent = {"requests": 2}
    given = book(one)
    desk = Desk(MemoryLedger(given), book=given)
    desk.keeper.states.judge(given.accounts.values())
    await desk.keeper.flush()
    assert moves(desk) == [("active", "halted")]
    assert (await desk.ledger.read()).standings["coder"].state is HALTED


async def test_who_was_halted_before_a_restart_is_halted_and_not_recorded_again() -> None:
    given = Book({}, {"coder": Standing(HALTED, "went astray")})
    desk = Desk(MemoryLedger(given), book=given)
    assert desk.keeper.state("coder") is HALTED
    desk.keeper.states.record_missing()
    await desk.keeper.flush()
    assert desk.recorder.events == []
    assert desk.keeper.states.standings == given.standings


async def test_a_state_never_moves_left() -> None:
    desk = Desk()
    await desk.keeper.halt("coder", "went astray", "uid 0")
    with pytest.raises(ContractBroken, match="I4"):
        desk.keeper.states._move("coder", WARNED, "x")
    one = account("life", requests=4, at=[(25, "warn")])
    one.spent = {"requests": 4}
    desk.keeper.states.judge([one])
    assert desk.keeper.states.find("coder") == Standing(HALTED, "went astray")
    await desk.keeper.flush()


async def end(desk: Desk) -> None:
    """Let nothing wait for a ledger that never comes back."""
    for task in list(desk.keeper._tasks):
        task.cancel()
    await asyncio.gather(*desk.keeper._tasks, return_exceptions=True)
