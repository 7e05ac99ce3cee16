"""What may pass once an agent was stopped, or its exchange has ended: nothing."""

import asyncio

import pytest

from policies.budget import State
from proxy.enforcer import Admitted, Enforcer
from proxy.vocabulary import Event, Failed, RequestSent, ResponseHead, ResponseReceived
from tests.kit.enforcement import POLICY, Message, furnish

QUARANTINE = "quarantine: { keep_rules: [read] }\nrules:\n"
BUDGET = """budgets:
  day: { each: agent, limits: { requests: 10 }, at: [{ reached: 10%, do: quarantine }] }
"""
LIMITED = POLICY.replace("rules:\n", BUDGET + QUARANTINE, 1)

PASSING: dict[str, Event] = {
    "the head": RequestSent(80, body=False),
    "a part of the body": RequestSent(50),
    "the answer": ResponseHead(200, 30, None),
    "a part of the answer": ResponseReceived(50),
}


async def admit(enforcer: Enforcer, path: str) -> Admitted:
    call = Message(path).call()
    verdict = await enforcer.judge(enforcer.open(call), call)
    assert isinstance(verdict, Admitted)
    return verdict


@pytest.mark.parametrize("event", PASSING.values(), ids=PASSING)
def test_nothing_passes_once_an_exchange_has_ended(event: Event) -> None:
    async def main() -> None:
        enforcer, recorder = furnish(LIMITED)
        await enforcer.bookkeeper.adopt(enforcer.generation.policy_set)
        exchange = (await admit(enforcer, "/ok/1")).exchange
        assert enforcer.advance(exchange, Failed("halted")) == "halted"
        counted = exchange.bytes_out, exchange.bytes_in
        assert enforcer.advance(exchange, event)
        assert (exchange.bytes_out, exchange.bytes_in) == counted
        assert len(recorder.of("outcome")) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("path", "cut"), [("/small", "quarantined"), ("/ok/2", None)])
def test_a_quarantine_between_the_verdict_and_the_first_byte_stops_what_is_not_kept(
    path: str, cut: str | None
) -> None:
    async def main() -> None:
        enforcer, _recorder = furnish(LIMITED)
        await enforcer.bookkeeper.adopt(enforcer.generation.policy_set)
        first, second = await admit(enforcer, "/ok/1"), await admit(enforcer, path)
        enforcer.advance(first.exchange, RequestSent(80, body=False))
        enforcer.advance(first.exchange, Failed("client-gone"))  # it pays, and that is 10 %
        await enforcer.bookkeeper.flush()
        assert enforcer.bookkeeper.state("local") is State.QUARANTINED
        assert enforcer.advance(second.exchange, RequestSent(80, body=False)) == cut

    asyncio.run(main())
