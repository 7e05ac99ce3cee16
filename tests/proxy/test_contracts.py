"""Contracts fall with the file at once, and rise by hand alone; the log knows first."""

import asyncio
from typing import Any

import pytest

from audit.writer import LogUnavailable
from policies.ledger import LedgerUnavailable
from policies.ledger.memory import MemoryLedger
from proxy.contracts import Contracts, find_budget
from tests.kit.desk import CODER, LOCAL, Desk, policy
from tests.kit.enforcement import Faulty
from tests.kit.ledgers import DAY_MS, MIDNIGHT_MS, account
from tests.kit.recorder import Fault

TEN = policy("daily: { each: agent, limits: { requests: 10 } }")
FIVE = policy("daily: { each: agent, limits: { requests: 5 } }")
TWENTY = policy("daily: { each: agent, limits: { requests: 20 } }")
RENAMED = policy("weekly: { each: agent, limits: { requests: 10 } }")
WINDOWED = policy("daily: { each: agent, window: 1d, limits: { requests: 10 } }")
STEPPED = policy("daily: { each: agent, limits: { requests: 10, steps: 7 } }")
WARNING = policy(
    "daily: { each: agent, limits: { requests: 10 }, at: [{ reached: 50%, do: warn }] }"
)
NONE = policy()
SESSIONS = policy("mine: { each: session, who: { agents: [coder] }, limits: { requests: 3 } }")
BASE = "daily/coder"


class Stopping(MemoryLedger):
    """A ledger whose changes fail while it is down."""

    down = False

    async def change(self, change: Any) -> None:
        if self.down:
            raise LedgerUnavailable("down")
        await super().change(change)


async def test_the_accounts_of_every_agent_are_opened_and_recorded_with_the_first_policy() -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    assert desk.snapshots("opened") == [BASE, "daily/local"]
    assert await desk.limits(BASE) == {"requests": 10}
    await desk.keeper.adopt(TEN)
    assert len(desk.recorder.events) == 2, "the same again changes nothing"
    await desk.reconcile()


@pytest.mark.parametrize(
    ("later", "limits", "pending"),
    [
        (FIVE, {"requests": 5}, []),
        (TWENTY, {"requests": 10}, [("requests", 20)]),
        (NONE, {"requests": 10}, [("requests", None)]),
        (RENAMED, {"requests": 10}, [("requests", None)]),
        (WINDOWED, {"requests": 10}, [("", DAY_MS)]),
        (STEPPED, {"requests": 10, "steps": 7}, []),
        (WARNING, {"requests": 10}, []),
    ],
    ids=["lowered", "higher", "removed", "renamed", "another window", "a further unit", "at"],
)
async def test_a_reload_lowers_at_once_and_raises_nothing(
    later: Any, limits: dict[str, int], pending: list[Any]
) -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    assert await desk.spend("1") == ""
    await desk.keeper.adopt(later)
    account = (await desk.ledger.read()).accounts[BASE]
    assert await desk.limits(BASE) == limits
    waiting = desk.keeper.contracts.find_pending(account)
    assert [(one.unit, one.filed) for one in waiting] == pending
    assert account.spent == {"requests": 1}
    await desk.reconcile()


async def test_a_value_that_fell_and_came_back_waits_to_be_raised() -> None:
    desk = Desk()
    for each in (TEN, FIVE, TEN):
        await desk.keeper.adopt(each)
    assert await desk.limits(BASE) == {"requests": 5}
    raised = await desk.keeper.raise_budget("daily", "uid 0", agent="coder")
    assert raised == [{"account": BASE, "unit": "requests", "from": 5, "to": 10}]
    assert await desk.limits(BASE) == {"requests": 10}
    assert await desk.limits("daily/local") == {"requests": 5}
    await desk.reconcile()


async def test_a_raise_accepts_what_the_file_says_whatever_that_is() -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    await desk.spend("1")
    await desk.keeper.adopt(RENAMED)
    await desk.keeper.raise_budget("daily", "uid 0")
    assert await desk.limits(BASE) == {}
    assert await desk.spent(BASE) == {"requests": 1}
    assert [event.get("to") for event in desk.recorder.of("budget.raise")] == [None, None]
    await desk.spend("2")
    assert await desk.spent("weekly/coder") == {"requests": 1}
    await desk.reconcile()


async def test_a_raised_window_keeps_what_was_spent() -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    await desk.spend("1")
    answer = await desk.reserve("2")
    await desk.keeper.adopt(WINDOWED)
    await desk.keeper.raise_budget("daily", "uid 0")
    assert await desk.spent(BASE) == {"requests": 2}, "what was held counts in full"
    await desk.settle("2", answer)
    assert await desk.spent(BASE) == {"requests": 2}
    await desk.reconcile()
    desk.now_ms = MIDNIGHT_MS
    assert await desk.spend("3") == ""
    assert await desk.spent(BASE) == {"requests": 1}
    await desk.reconcile()


async def test_a_raise_by_value_lasts_until_the_file_says_something_else() -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    await desk.keeper.raise_budget("daily", "uid 7", unit="requests", to=40)
    (event, *_) = desk.recorder.of("budget.raise")
    assert (event["from"], event["to"], event["by"]) == (10, 40, "uid 7")
    await desk.keeper.adopt(TEN)
    assert await desk.limits(BASE) == {"requests": 40}
    await desk.keeper.adopt(TWENTY)
    assert await desk.limits(BASE) == {"requests": 20}
    await desk.reconcile()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such budget": ({"budget": "nope"}, "no account of `nope`; there are: daily"),
    "no such agent": ({"budget": "daily", "agent": "x"}, "no account of"),
    "no such session": ({"budget": "daily", "session": "x"}, "no account of"),
    "nothing waits": ({"budget": "daily"}, "nothing of `daily` waits"),
    "a value that is not higher": ({"budget": "daily", "unit": "requests", "to": 10}, "not higher"),
    "a unit without a limit": ({"budget": "daily", "unit": "risk", "to": 1}, "not limited here"),
}


@pytest.mark.parametrize(("wish", "why"), REFUSED.values(), ids=REFUSED)
async def test_a_raise_that_raises_nothing_is_refused(wish: dict[str, Any], why: str) -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    before = len(desk.recorder.events)
    with pytest.raises(ValueError, match=why):
        await desk.keeper.raise_budget(by="uid 0", **wish)
    assert len(desk.recorder.events) == before


async def test_a_raise_of_many_is_refused_whole() -> None:
    """Had the first been raised, the refusal of the second would have been a lie."""
    desk = Desk()
    await desk.keeper.adopt(TEN)
    await desk.keeper.raise_budget("daily", "uid 0", agent="local", unit="requests", to=40)
    with pytest.raises(ValueError, match="not higher"):
        await desk.keeper.raise_budget("daily", "uid 0", unit="requests", to=20)
    assert await desk.limits(BASE) == {"requests": 10}
    await desk.reconcile()


async def test_a_session_has_its_account_with_its_first_request() -> None:
    desk = Desk()
    await desk.keeper.adopt(SESSIONS)
    assert desk.recorder.events == []
    await asyncio.gather(*(desk.reserve(str(number)) for number in range(3)))
    assert desk.snapshots("opened") == ["mine/coder/s-1"]
    assert (await desk.reserve("9")).refusal == "budget-exhausted"
    assert await desk.spend("10", who=LOCAL) == "", "who it is not for has none"
    await desk.reconcile()


async def test_a_session_opens_under_the_newest_policy() -> None:
    desk = Desk()
    await desk.keeper.adopt(SESSIONS)
    await desk.keeper.adopt(
        policy("mine: { each: session, who: { agents: [coder] }, limits: { requests: 1 } }")
    )
    await desk.reserve("1")
    assert await desk.limits("mine/coder/s-1") == {"requests": 1}


async def test_without_a_log_no_account_opens_and_the_request_is_refused() -> None:
    desk = Desk()
    await desk.keeper.adopt(SESSIONS)
    desk.recorder.faults["ledger.snapshot"] = Fault(LogUnavailable("audit-disk-full", "x"))
    assert (await desk.reserve("1")).refusal == "audit-disk-full"
    assert (await desk.ledger.read()).accounts == {}
    desk.recorder.faults.clear()
    assert (await desk.reserve("2")).refusal == ""
    await desk.reconcile()


async def test_what_the_log_has_and_the_ledger_has_not_is_carried_out_before_the_next_request() -> (
    None
):
    """A limit that fell while the ledger was down, and a file that was put back meanwhile."""
    ledger = Stopping()
    desk = Desk(ledger)
    await desk.keeper.adopt(TEN)
    ledger.down = True
    with pytest.raises(LedgerUnavailable):
        await desk.keeper.adopt(FIVE)
    owing = [desk.keeper.contracts.is_owing]
    assert (await desk.reserve("1")).refusal == "ledger-unavailable"
    ledger.down = False
    assert await desk.spend("2") == ""
    assert await desk.limits(BASE) == {"requests": 5}
    assert [*owing, desk.keeper.contracts.is_owing] == [True, False]
    await desk.keeper.adopt(TEN)
    assert await desk.limits(BASE) == {"requests": 5}
    await desk.reconcile()


async def test_a_policy_that_was_not_adopted_is_not_what_waits() -> None:
    ledger = Stopping()
    desk = Desk(ledger)
    await desk.keeper.adopt(TEN)
    desk.recorder.faults["ledger.snapshot"] = Fault(LogUnavailable("audit-disk-full", "x"))
    with pytest.raises(LogUnavailable):
        await desk.keeper.adopt(FIVE)
    assert await desk.limits(BASE) == {"requests": 10}
    with pytest.raises(ValueError, match="nothing of"):
        await desk.keeper.raise_budget("daily", "uid 0")
    await desk.reconcile()


async def test_a_raise_that_is_not_recorded_raises_nothing() -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    desk.recorder.faults["budget.raise"] = Fault(LogUnavailable("audit-disk-full", "x"))
    with pytest.raises(LogUnavailable):
        await desk.keeper.raise_budget("daily", "uid 0", unit="requests", to=20)
    assert await desk.limits(BASE) == {"requests": 10}
    await desk.reconcile()


async def test_what_is_shown_is_what_is_left_what_waits_and_where_the_agent_stands() -> None:
    desk = Desk()
    await desk.keeper.adopt(TEN)
    await desk.spend("1")
    await desk.reserve("2")
    await desk.keeper.adopt(TWENTY)
    await desk.keeper.halt("ghost", "gone", "uid 0")
    coder, local, ghost = await desk.keeper.show()
    assert (coder["account"], coder["budget"], coder["agent"]) == (BASE, "daily", "coder")
    assert coder["units"] == [
        {
            "unit": "requests", "limit": 10, "spent": 1, "held": 1, "available": 8,
            "pending": True, "filed": 20,
        }
    ]  # fmt: skip
    assert (local["agent"], local["state"]) == ("local", "active")
    assert (ghost["account"], ghost["agent"], ghost["state"]) == ("", "ghost", "halted")
    assert [entry["agent"] for entry in await desk.keeper.show("local")] == ["local"]


async def test_many_new_accounts_wait_for_the_disk_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.contracts._BATCH", 1)
    monkeypatch.setattr("proxy.journal._RECORD_S", 0.01)
    desk = Desk()
    desk.recorder.faults["ledger.snapshot"] = Fault(hang=True)
    with pytest.raises(LogUnavailable, match="not durable"):
        await desk.keeper.adopt(TEN)


async def test_a_ledger_that_cannot_be_read_is_told() -> None:
    desk = Desk(Faulty(MemoryLedger(), read=LedgerUnavailable("down")))
    for work in (desk.keeper.adopt(TEN), desk.keeper.show(), desk.keeper.raise_budget("b", "x")):
        with pytest.raises(LedgerUnavailable):
            await work


def test_an_account_belongs_to_the_budget_of_its_id_and_kind() -> None:
    assert find_budget(TEN, account("daily", "coder")) is TEN.budgets["daily"]
    assert find_budget(TEN, account("daily", "coder", "s-1")) is None
    assert find_budget(TEN, account("daily", "stranger")) is None
    assert find_budget(SESSIONS, account("mine", "coder", "s-1")) is SESSIONS.budgets["mine"]
    assert find_budget(SESSIONS, account("mine", "coder")) is None


async def test_before_any_policy_nothing_opens_and_nothing_waits() -> None:
    desk = Desk()
    contracts: Contracts = desk.keeper.contracts
    await contracts.open_missing(CODER)
    assert contracts.find_pending(account(requests=1)) == ()
    assert desk.recorder.events == []
