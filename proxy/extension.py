"""Further slices for streams that are under way: held, recorded durably, then granted.

    stream --needs more--> extend ----+--> Ledger --> record `reserve` --> goes on
           --will soon---> anticipate +

Rule 1: what fails grants nothing; the exchange then cuts at the bytes that were held.
Rule 2: one extension per stream and unit at a time. A stream that is in need waits for the one
        that was anticipated.
"""

import asyncio
from collections.abc import Callable

from audit.writer import LogUnavailable
from policies.model import ContractBroken
from proxy.accounting import describe_reserve
from proxy.allowance import IN, OUT, Passing
from proxy.bookkeeper import Bookkeeper
from proxy.deadline import within
from proxy.exchange import Exchange
from proxy.fault import ANY_FAULT
from proxy.metrics import Metrics
from proxy.recording import Recorder
from proxy.vocabulary import (
    Effect,
    Event,
    RequestSent,
    ReserveMore,
    ResponseReceived,
    SliceRecord,
    SliceStored,
    SliceWanted,
    StoreRecord,
)


class Extensions:
    """Those of one process."""

    def __init__(
        self,
        bookkeeper: Bookkeeper,
        recorder: Recorder,
        metrics: Metrics,
        deadline_s: float,
        count_fault: Callable[[str, BaseException], None],
    ) -> None:
        self._bookkeeper = bookkeeper
        self._recorder = recorder
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._count_fault = count_fault
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def extend(self, exchange: Exchange, event: Passing) -> None:
        """Hold, and record durably, what a stream needs before `event` may pass.

        Where that fails nothing is granted, and the exchange cuts. Bounded by the deadlines of
        ledger and log; never raises an Exception.
        """
        wanted = exchange.find_shortage(event)
        if wanted is None:
            return
        running = self._running.get((exchange.id, wanted.unit))
        if running is not None:
            await asyncio.wait({running})
            wanted = exchange.find_shortage(event)
        if wanted is not None:
            await self._extend(exchange, wanted)

    def anticipate(self, exchange: Exchange, event: Event) -> None:
        """Ask for the next slice while this one still runs."""
        if not isinstance(event, RequestSent | ResponseReceived):
            return
        unit = OUT if isinstance(event, RequestSent) else IN
        wanted = exchange.anticipate(unit)
        key = exchange.id, unit
        if wanted is None or key in self._running:
            return
        task = asyncio.get_running_loop().create_task(self._extend(exchange, wanted))
        self._running[key] = task
        task.add_done_callback(lambda _task: self._running.pop(key, None))

    async def _extend(self, exchange: Exchange, wanted: SliceWanted) -> None:
        try:
            for effect in exchange.handle(wanted):
                if not isinstance(effect, ReserveMore):
                    raise ContractBroken("a slice that is not asked of the ledger")
                answer = await self._bookkeeper.extend(exchange.id, effect.wanted)
                for store in exchange.handle(answer):
                    refusal = await self._store(exchange, store)
                    exchange.handle(SliceStored(wanted.unit, refusal))
        except ANY_FAULT as error:  # counted; nothing was granted
            if exchange.is_over:
                return  # it ended while we asked: its settlement ends what it held
            self._count_fault("extend", error)

    async def _store(self, exchange: Exchange, effect: Effect) -> str:
        """Make a slice's record durable; returns the reason why it is not, or ""."""
        if not isinstance(effect, StoreRecord) or not isinstance(effect.record, SliceRecord):
            raise ContractBroken("a slice without its record")
        record = effect.record
        try:
            event = describe_reserve(exchange.id, record.reserve, record.reserved_ms)
            await within(self._deadline_s, self._recorder.store(event))
        except (LogUnavailable, TimeoutError) as error:
            self._count_fault("record", error)
            return "audit-unavailable"
        self._metrics.safely(lambda m: m.count_record("reserve"))
        return ""
