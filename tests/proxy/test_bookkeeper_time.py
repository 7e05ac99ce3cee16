"""Wall time passes without a request, for whoever has an account."""

import asyncio
from datetime import UTC, datetime

from policies.budget import State
from policies.ledger.memory import MemoryLedger
from policies.model import Decision, Principal, Verdict
from policies.policy_set import PolicySet
from proxy.bookkeeper import Bookkeeper
from proxy.metrics import Metrics
from proxy.vocabulary import Reserve
from tests.kit.enforcement import POLICY, Message, compiled
from tests.kit.exchanges import read
from tests.kit.recorder import MemoryRecorder

START_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000
BUDGET = "budgets: {{ sitting: {{ each: session, limits: {{ {} }}, {} }} }}\nrules:\n"


def limit(limits: str, further: str) -> str:
    """A policy whose one agent has a credential, and a budget for each session."""
    text = POLICY.replace("rules:\n", BUDGET.format(limits, further), 1)
    return text.replace('{ identity: { source: ["127.0.0.0/8"] } }', "{}")


def furnish_clock() -> tuple[Bookkeeper, list[int]]:
    now_ms = [START_MS]
    ledger, recorder = MemoryLedger(), MemoryRecorder()
    return Bookkeeper(
        ledger, recorder=recorder, metrics=Metrics(), now_ms=lambda: now_ms[0]
    ), now_ms


async def reserve(bookkeeper: Bookkeeper, policy_set: PolicySet, decision_id: str) -> str:
    decision = Decision(Verdict.ALLOW, "allowed", ("read",), policy_set.digest)
    effect = Reserve(decision, read(Message()), {"requests": 1})
    answer = await bookkeeper.reserve(decision_id, Principal("local", "s-1", "::1"), effect)
    return answer.refusal


def test_a_session_that_began_after_the_reload_is_halted_at_its_deadline() -> None:
    """Nobody has to look at the metrics for it."""

    async def main() -> None:
        bookkeeper, now_ms = furnish_clock()
        policy_set = compiled(limit("wall_time: 1h", "at: [{ reached: 100%, do: halt }]"))
        await bookkeeper.adopt(policy_set)
        assert await reserve(bookkeeper, policy_set, "a") == ""
        now_ms[0] += HOUR_MS
        await bookkeeper.judge_wall_time()
        assert bookkeeper.state("local") is State.HALTED
        await bookkeeper.flush()

    asyncio.run(main())


def test_a_stream_ends_by_the_wall_time_that_holds_now() -> None:
    async def main() -> None:
        bookkeeper, now_ms = furnish_clock()
        long, short = (
            compiled(limit(f"wall_time: {hours}h", "at: [{ reached: 100%, do: warn }]"))
            for hours in (9, 2)
        )
        await bookkeeper.adopt(long)
        assert await reserve(bookkeeper, long, "a") == ""
        now_ms[0] += HOUR_MS
        await bookkeeper.adopt(short)
        assert bookkeeper.find_overdue() == frozenset()
        now_ms[0] += HOUR_MS
        assert bookkeeper.find_overdue() == {"a"}
        await bookkeeper.adopt(long)  # an edit gives nothing back
        assert bookkeeper.find_overdue() == {"a"}
        await bookkeeper.raise_budget("sitting", "cli:me")
        assert bookkeeper.find_overdue() == frozenset()
        now_ms[0] += 7 * HOUR_MS
        assert bookkeeper.find_overdue() == {"a"}

    asyncio.run(main())


def test_a_stream_that_had_no_deadline_gets_one_with_the_reload() -> None:
    async def main() -> None:
        bookkeeper, now_ms = furnish_clock()
        before, after = (
            compiled(limit(f"requests: 9{more}", "at: [{ reached: 100%, do: warn }]"))
            for more in ("", ", wall_time: 1h")
        )
        await bookkeeper.adopt(before)
        assert await reserve(bookkeeper, before, "a") == ""
        now_ms[0] += 2 * HOUR_MS
        assert bookkeeper.find_overdue() == frozenset()
        await bookkeeper.adopt(after)
        assert bookkeeper.find_overdue() == {"a"}
        bookkeeper.settle("a", (), None)
        assert bookkeeper.find_overdue() == frozenset()
        await bookkeeper.flush()

    asyncio.run(main())
