"""A ledger that fails, seen from the bookkeeper: what is refused leaves nothing behind."""

import asyncio

import pytest

from policies.ledger import LedgerUnavailable
from policies.ledger.memory import MemoryLedger
from proxy.enforcer import Admitted, Refused
from proxy.vocabulary import Failed, RequestSent, SliceWanted
from tests.kit.enforcement import POLICY, Faulty, Message, furnish

BUDGET = "budgets: { day: { each: agent, limits: { requests: 9, bytes_in: 1MB } } }\nrules:\n"
LIMITED = POLICY.replace("rules:\n", BUDGET, 1)


async def _fail(*_args: object) -> None:
    raise LedgerUnavailable("it is down")


def test_requests_that_a_dead_ledger_refuses_leave_no_work_behind() -> None:
    async def main() -> None:
        ledger = Faulty(MemoryLedger(), reserve=_fail, settle=_fail)
        enforcer, _recorder = furnish(LIMITED, ledger=ledger)
        await enforcer.bookkeeper.adopt(enforcer.generation.policy_set)
        call = Message().call()
        for _ in range(20):
            verdict = await enforcer.judge(enforcer.open(call), call)
            assert isinstance(verdict, Refused)
            assert verdict.denial.reason == "ledger-unavailable"
        assert enforcer.bookkeeper.is_idle

    asyncio.run(main())


@pytest.mark.parametrize("is_held", [True, False])
def test_a_reservation_that_came_too_late_is_ended_behind_the_call(*, is_held: bool) -> None:
    async def main() -> None:
        ledger = MemoryLedger()

        async def reserve_late(order: object) -> object:
            if is_held:
                await ledger.reserve(order)  # type: ignore[arg-type]
            await asyncio.sleep(10)
            return None

        enforcer, _recorder = furnish(LIMITED, ledger=Faulty(ledger, reserve=reserve_late))
        await enforcer.bookkeeper.adopt(enforcer.generation.policy_set)
        call = Message().call()
        verdict = await enforcer.judge(enforcer.open(call), call)
        assert isinstance(verdict, Refused)
        await enforcer.bookkeeper.flush()
        assert ledger.held == 0

    asyncio.run(main())


def test_sealed_books_deny_requests_and_give_streams_no_more() -> None:
    async def main() -> None:
        enforcer, _recorder = furnish(LIMITED)
        bookkeeper = enforcer.bookkeeper
        await bookkeeper.adopt(enforcer.generation.policy_set)
        call = Message().call()
        running = await enforcer.judge(enforcer.open(call), call)
        assert isinstance(running, Admitted)
        bookkeeper.seal("I6: the ledger and the log differ")
        verdict = await enforcer.judge(enforcer.open(call), call)
        assert isinstance(verdict, Refused)
        assert verdict.denial.reason == "contract-broken"
        answer = await bookkeeper.extend(running.exchange.id, SliceWanted("bytes_in", 1))
        assert answer.refusal == "contract-broken"
        assert enforcer.advance(running.exchange, RequestSent(80, body=False)) is None
        assert enforcer.advance(running.exchange, Failed("client-gone"))
        await bookkeeper.flush()

    asyncio.run(main())
