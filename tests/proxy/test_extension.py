"""A stream goes on only with what the ledger holds and the log knows."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from audit.record import EventRefused
from audit.writer import LogUnavailable
from policies.budget import SLICE_BYTES
from policies.ledger import LedgerUnavailable
from policies.ledger.memory import MemoryLedger
from policies.model import ContractBroken
from proxy.enforcer import Admitted, Enforcer
from proxy.exchange import Exchange
from proxy.vocabulary import (
    Event,
    Failed,
    RequestSent,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
)
from tests.kit.enforcement import POLICY, Faulty, Message, compiled, furnish
from tests.kit.recorder import Fault, MemoryRecorder

KIB = 1024
BUDGETED = (
    POLICY + "budgets: { life: { each: agent, limits: { bytes_in: 1MB, bytes_out: 1MB } } }\n"
)
PART = ResponseReceived(100 * KIB)


class Stream:
    """One request under way, by the hand of an adapter."""

    def __init__(self, ledger: Any = None) -> None:
        self.ledger = MemoryLedger()
        self.enforcer: Enforcer
        self.recorder: MemoryRecorder
        self.enforcer, self.recorder = furnish(BUDGETED, ledger=ledger or self.ledger)
        self.exchange: Exchange

    async def begin(self, call: Any = None) -> "Stream":
        await self.enforcer.bookkeeper.adopt(compiled(BUDGETED))
        call = call or Message().call()
        verdict = await self.enforcer.judge(self.enforcer.open(call), call)
        assert isinstance(verdict, Admitted)
        self.exchange = verdict.exchange
        await self.feed(RequestSent(30, body=False), ResponseHead(200, 50, None))
        return self

    async def feed(self, *events: Event) -> str | None:
        """As an adapter: what an event needs is asked for first."""
        cut = None
        for event in events:
            if isinstance(event, RequestSent | ResponseHead | ResponseReceived):
                await self.enforcer.extensions.extend(self.exchange, event)
            cut = self.enforcer.advance(self.exchange, event)
        return cut

    async def end(self) -> None:
        """Nothing is left open."""
        self.enforcer.advance(self.exchange, ResponseEnd())
        running = self.enforcer.extensions._running
        if running:
            await asyncio.wait(running.values())
        await self.enforcer.bookkeeper.flush()
        assert self.enforcer.open_exchanges == 0
        assert self.recorder.open_requests == set()
        assert self.ledger.held == 0

    @property
    def recorded(self) -> int:
        """Bytes of answer that the log says are held."""
        events = [*self.recorder.of("decision"), *self.recorder.of("reserve")]
        held = [one for event in events for one in event["reserve"]]
        return sum(one["amount"] for one in held if one["unit"] == "bytes_in")

    @property
    def settled(self) -> int:
        (outcome,) = self.recorder.of("outcome")
        return sum(one["amount"] for one in outcome["settle"] if one["unit"] == "bytes_in")


async def test_a_stream_is_extended_and_every_slice_is_recorded_before_it_is_used() -> None:
    stream = await Stream().begin()
    passed = 50
    for _ in range(9):
        assert await stream.feed(PART) is None
        passed += PART.count_bytes
        assert passed <= stream.recorded
    await stream.end()
    assert stream.settled == passed == stream.exchange.bytes_in
    assert len(stream.recorder.of("reserve")) >= 3
    book = await stream.ledger.read()
    assert book.accounts["life/local"].spent["bytes_in"] == passed


async def test_a_budget_that_ends_cuts_at_its_byte() -> None:
    stream = await Stream().begin()
    cut = None
    while cut is None:
        cut = await stream.feed(PART)
    assert cut == "budget-exhausted"
    assert stream.exchange.bytes_in == 1_000_000
    await stream.end()
    assert stream.settled == 1_000_000


async def test_the_next_slice_is_on_its_way_before_the_last_is_over() -> None:
    stream = await Stream().begin()
    await stream.feed(PART, ResponseReceived(40 * KIB))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert stream.recorded == 2 * SLICE_BYTES
    await stream.end()


async def test_what_is_in_need_waits_for_what_was_asked_in_advance() -> None:
    gate = asyncio.Event()
    stream = Stream()
    store = stream.recorder.store

    async def store_slowly(event: Any) -> Any:
        if event["kind"] == "reserve":
            await gate.wait()
        return await store(event)

    stream.recorder.store = store_slowly  # type: ignore[method-assign]
    await stream.begin()
    assert await stream.feed(PART, ResponseReceived(40 * KIB)) is None
    needy = asyncio.ensure_future(stream.feed(ResponseReceived(200 * KIB)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not needy.done()
    gate.set()
    assert await needy is None
    assert len(stream.recorder.of("reserve")) == 1
    await stream.end()


async def test_a_whole_answer_is_held_before_its_head_passes() -> None:
    stream = await Stream().begin()
    assert await stream.feed(ResponseHead(200, 50, 600 * KIB)) is None
    assert stream.recorded >= 100 + 600 * KIB
    await stream.end()


async def hang(*_: object) -> Any:
    await asyncio.Event().wait()


LEDGERS: dict[str, tuple[Any, str]] = {
    "is down": (LedgerUnavailable("x"), "ledger-unavailable"),
    "hangs": (hang, "ledger-unavailable"),
    "is late": (TimeoutError(), "ledger-unavailable"),
    "has a bug": (ZeroDivisionError("x"), "budget-exhausted"),
    "breaks a contract": (ContractBroken("x"), "budget-exhausted"),
    "is cancelled": (asyncio.CancelledError(), "budget-exhausted"),
}


@pytest.mark.parametrize(("fault", "reason"), LEDGERS.values(), ids=LEDGERS)
async def test_a_ledger_that_fails_under_way_cuts_at_what_was_held(fault: Any, reason: str) -> None:
    stream = await Stream().begin()
    stream.enforcer.bookkeeper.ledger = Faulty(stream.ledger, reserve=fault)
    assert await stream.feed(ResponseReceived(300 * KIB)) == reason
    assert stream.exchange.bytes_in == stream.recorded == SLICE_BYTES
    await stream.end()
    assert stream.settled == SLICE_BYTES


LOGS: dict[str, tuple[Fault, str]] = {
    "is full": (Fault(LogUnavailable("audit-disk-full", "x")), "audit-unavailable"),
    "hangs": (Fault(hang=True), "audit-unavailable"),
    "is slow, and records": (Fault(hang=True, recorded=True), "audit-unavailable"),
    "refuses the event": (Fault(EventRefused("x")), "budget-exhausted"),
    "has a bug": (Fault(RuntimeError("x")), "budget-exhausted"),
    "is cancelled": (Fault(asyncio.CancelledError()), "budget-exhausted"),
}


@pytest.mark.parametrize(("fault", "reason"), LOGS.values(), ids=LOGS)
async def test_a_log_that_fails_under_way_cuts_at_what_it_knows(fault: Fault, reason: str) -> None:
    stream = await Stream().begin()
    stream.recorder.faults["reserve"] = fault
    assert await stream.feed(ResponseReceived(300 * KIB)) == reason
    assert stream.exchange.bytes_in == SLICE_BYTES
    await stream.end()
    assert stream.settled == SLICE_BYTES


async def test_an_answer_that_comes_when_all_is_over_is_nobodys() -> None:
    """It ended while the ledger was asked: the settlement ends what the slice held."""
    gate = asyncio.Event()
    stream = await Stream().begin()
    real = stream.ledger.reserve

    async def reserve_slowly(order: Any) -> Any:
        answer = await real(order)
        await gate.wait()
        return answer

    stream.enforcer.bookkeeper.ledger = Faulty(stream.ledger, reserve=reserve_slowly)
    asking = asyncio.ensure_future(stream.feed(ResponseReceived(300 * KIB)))
    await asyncio.sleep(0)
    assert stream.enforcer.advance(stream.exchange, Failed("client-gone")) == "client-gone"
    gate.set()
    assert await asking == "client-gone", "nothing passes any more"
    await stream.end()
    assert stream.settled == 50
    assert stream.recorder.of("reserve") == []


MESSAGES: dict[str, Callable[[], Any]] = {
    "a chunked body": Message("/ok/up", "POST", fields=((b"Transfer-Encoding", b"chunked"),)).call,
    "a head that grew": Message().call,
}


@pytest.mark.parametrize("call", MESSAGES.values(), ids=MESSAGES)
async def test_an_upload_is_extended_like_an_answer(call: Callable[[], Any]) -> None:
    stream = await Stream().begin(call())
    assert await stream.feed(RequestSent(400 * KIB)) is None
    (outcome,) = [stream.exchange.bytes_out]
    assert outcome == 30 + 400 * KIB
    await stream.end()


async def test_what_nobody_limits_asks_nobody() -> None:
    enforcer, recorder = furnish()
    call = Message().call()
    exchange = (await enforcer.judge(enforcer.open(call), call)).exchange
    await enforcer.extensions.extend(exchange, ResponseReceived(10**9))
    assert enforcer.advance(exchange, ResponseReceived(10**9)) is None
    assert recorder.of("reserve") == []
