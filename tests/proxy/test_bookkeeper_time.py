"""Wall time passes without a request, for whoever has an account."""

import asyncio
from datetime import UTC, datetime

from policies.budget import State
from policies.ledger.memory import MemoryLedger
from policies.model import Decision, Principal, Verdict
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


def test_a_session_that_began_after_the_reload_is_halted_at_its_deadline() -> None:
    """Nobody has to look at the metrics for it."""

    async def main() -> None:
        now_ms = [START_MS]
        policy_set = compiled(limit("wall_time: 1h", "at: [{ reached: 100%, do: halt }]"))
        bookkeeper = Bookkeeper(
            MemoryLedger(),
            recorder=MemoryRecorder(),
            metrics=Metrics(),
            now_ms=lambda: now_ms[0],
        )
        await bookkeeper.adopt(policy_set)
        principal = Principal("local", "s-1", "127.0.0.1")
        decision = Decision(Verdict.ALLOW, "allowed", ("read",), policy_set.digest)
        effect = Reserve(decision, read(Message()), {"requests": 1})
        answer = await bookkeeper.reserve("0" * 32, principal, effect)
        assert not answer.refusal
        now_ms[0] += HOUR_MS
        await bookkeeper.judge_wall_time()
        assert bookkeeper.state("local") is State.HALTED
        await bookkeeper.flush()

    asyncio.run(main())
