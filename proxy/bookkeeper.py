"""Budgets in a running house: holds before a request leaves, settles when it is over.

    enforcer --reserve / extend / settle--> Ledger          (arithmetic: policies/budget.py)
                     |
                     +-- contracts (proxy/contracts.py), agents' states (proxy/agent_states.py)

Rule 1: a ledger that fails or is late refuses (`ledger-unavailable`); what a late one may still
        hold is ended behind the call. One that refused holds nothing and is left alone: an agent
        that keeps asking must not pile up work for a ledger that is down.
Rule 2: a settlement that fails is repeated until it is taken: the log has it already, and
        meanwhile the hold covers it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from audit.writer import LogUnavailable
from policies.budget import (
    BYTE_UNITS,
    WALL_TIME,
    Account,
    Amount,
    Extension,
    Hold,
    Order,
    Shortfall,
    State,
    copy,
    roll,
)
from policies.ledger import Book, Ledger, LedgerUnavailable
from policies.model import ContractBroken, Principal
from policies.policy_set import PolicySet
from proxy.accounting import describe_snapshot
from proxy.agent_states import AgentStates
from proxy.contracts import Contracts
from proxy.deadline import within
from proxy.fault import ANY_FAULT
from proxy.journal import submit_counted
from proxy.metrics import Metrics
from proxy.recording import Recorder
from proxy.vocabulary import LedgerAnswered, Reserve, SliceAnswered, SliceWanted

log = structlog.get_logger()

_RETRY_S = 0.5
_QUIET_S = 1.0
_NEVER_MS = 2**63
_WAITING = "waits for the ledger"  # name of a task that tries again and again


class _Deadline(NamedTuple):
    """When the wall_time of a running decision is over."""

    agent: str
    session: str
    ends_ms: int


class Bookkeeper:
    """One per process; the command line uses it too where no server runs."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        recorder: Recorder,
        metrics: Metrics,
        now_ms: Callable[[], int],
        book: Book | None = None,
        deadline_s: float = 0.2,
    ) -> None:
        book = book or Book()
        self.ledger = ledger
        self.now_ms = now_ms
        self.contracts = Contracts(ledger, book, recorder=recorder, now_ms=now_ms)
        self.states = AgentStates(
            ledger,
            book.standings,
            recorder=recorder,
            metrics=metrics,
            now_ms=now_ms,
            insist=self._insist,
            spawn=self._spawn,
        )
        self._recorder = recorder
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._running: dict[str, _Deadline] = {}  # by decision, where an account limits it
        self._tasks: set[asyncio.Task[None]] = set()
        self.problem = ""  # why requests are refused for now, for /readyz
        self._sealed = ""
        self._quiet_until_s = 0.0  # for tracebacks

    def seal(self, why: str) -> None:
        """An invariant of the books does not hold: nothing passes until a restart folds anew."""
        self._sealed = self.problem = why
        log.critical("sealed", cause=why)

    @property
    def is_idle(self) -> bool:
        """Nothing is on its way to the ledger."""
        return not self._tasks and not self.contracts.is_owing

    # --- what people ask for

    async def adopt(self, policy_set: PolicySet) -> None:
        """See `Contracts.adopt`."""
        await self.contracts.adopt(policy_set)
        self.states.keep_rules = policy_set.keep_rules
        self._move_deadlines(is_raise=False)
        self.states.judge(self.contracts.book.accounts.values())  # as a restart would

    async def halt(self, agent: str, reason: str, by: str) -> State:
        """See `AgentStates.halt`."""
        return await self.states.halt(agent, reason, by)

    async def raise_budget(self, budget: str, by: str, **selection: Any) -> list[dict[str, Any]]:
        """See `Contracts.raise_`."""
        made = await self.contracts.raise_(budget, by, **selection)
        self._move_deadlines(is_raise=True)
        return made

    async def show(self, agent: str | None = None) -> list[dict[str, Any]]:
        """See `Contracts.show`."""
        return await self.contracts.show(self.states.standings, agent)

    def state(self, agent: str) -> State:
        """Where an agent stands."""
        return self.states.find(agent).state

    # --- one exchange

    async def reserve(
        self, decision_id: str, principal: Principal, effect: Reserve
    ) -> LedgerAnswered:
        """Hold what a decision may spend, on all accounts of its principal or on none."""
        if self._sealed:
            raise ContractBroken(self._sealed)
        now_ms = self.now_ms()
        who = principal.agent, principal.session
        shown = effect.decision.obligations.show_budget
        order = Order(decision_id, *who, now_ms, effect.amounts, effect.slices, shown)
        try:
            answer = await within(self._deadline_s, self._reserve(principal, order))
        except BaseException as error:
            if not isinstance(error, LedgerUnavailable | LogUnavailable):  # those hold nothing
                self.settle(decision_id, (), principal)  # nobody knows what it holds
            if isinstance(error, LedgerUnavailable | TimeoutError | LogUnavailable):
                self._count_fault(error)
                if isinstance(error, LogUnavailable):
                    return LedgerAnswered(error.code)
                self.problem = str(error) or "it did not answer in time"
                return LedgerAnswered("ledger-unavailable")
            raise
        self.problem = self._sealed
        self._record_periods(answer, now_ms)
        if isinstance(answer, Shortfall):
            self._exhaust(answer)
            return LedgerAnswered("budget-exhausted", shortfall=answer)
        if not answer.amounts:
            return LedgerAnswered()  # no account limits it
        self._running[decision_id] = _Deadline(*who, answer.ends_ms or _NEVER_MS)
        return LedgerAnswered(hold=answer, now_ms=now_ms)

    async def _reserve(self, principal: Principal, order: Order) -> Hold | Shortfall:
        await self.contracts.open_missing(principal)
        return await self.ledger.reserve(order)

    async def extend(self, decision_id: str, wanted: SliceWanted) -> SliceAnswered:
        """Hold a further slice for a stream. A ledger that cannot answer refuses."""
        now_ms, unit = self.now_ms(), wanted.unit
        if self._sealed:
            return SliceAnswered(unit, refusal="contract-broken")
        extension = Extension(decision_id, unit, wanted.need_bytes, now_ms, wanted.whole)
        try:
            answer = await within(self._deadline_s, self.ledger.reserve(extension))
        except (LedgerUnavailable, TimeoutError) as error:
            self._count_fault(error)
            return SliceAnswered(unit, refusal="ledger-unavailable")
        self._record_periods(answer, now_ms)
        if isinstance(answer, Shortfall):
            self._exhaust(answer)
            return SliceAnswered(unit, refusal="budget-exhausted", shortfall=answer)
        return SliceAnswered(unit, answer, now_ms=now_ms)

    def settle(
        self, decision_id: str, spent: Sequence[Amount], principal: Principal | None
    ) -> None:
        """End a reservation, behind everything that was asked before."""
        self._running.pop(decision_id, None)
        self._spawn(self._settle(decision_id, spent, principal))

    async def _settle(
        self, decision_id: str, spent: Sequence[Amount], principal: Principal | None
    ) -> None:
        accounts: tuple[Account, ...] = ()

        async def run() -> None:
            nonlocal accounts
            accounts = await self.ledger.settle(decision_id, spent)

        await self._insist(run)
        if spent and not accounts:  # booked by an attempt that seemed to fail
            accounts = tuple((await self.refresh()).accounts.values())
        session = principal.session if principal else ""
        self.states.judge(accounts, session=session, ref=decision_id)

    # --- time, and those who look

    def map_limited(self) -> Mapping[tuple[str, str], frozenset[str]]:
        """The byte units that accounts limit now, by (agent, session); session "" is every one."""
        limited: dict[tuple[str, str], frozenset[str]] = {}
        for account in self.contracts.book.accounts.values():
            key = account.agent, account.session
            units = BYTE_UNITS.intersection(account.contract.terms)
            limited[key] = limited.get(key, frozenset()) | units
        return limited

    def find_overdue(self) -> frozenset[str]:
        """Running decisions whose wall_time is over: their streams are to be cut."""
        if not self._running:
            return frozenset()
        now_ms = self.now_ms()
        return frozenset(one for one, known in self._running.items() if now_ms >= known.ends_ms)

    def _move_deadlines(self, *, is_raise: bool) -> None:
        """What is under way follows another wall_time, too; only a raise gives it more."""
        now_ms = self.now_ms()
        ends: dict[tuple[str, str], int] = {}
        for known in self.contracts.book.accounts.values() if self._running else ():
            if WALL_TIME in known.contract.terms:
                account = copy(known)
                roll(account, now_ms)
                ends_ms = now_ms + account.available(WALL_TIME, now_ms)
                key = account.agent, account.session
                ends[key] = min(ends_ms, ends.get(key, ends_ms))
        for decision_id, (agent, session, before_ms) in self._running.items():
            found = [ends.get((agent, one), _NEVER_MS) for one in ("", session)]
            ends_ms = min(found) if is_raise else min(before_ms, *found)
            self._running[decision_id] = _Deadline(agent, session, ends_ms)

    async def judge_wall_time(self) -> None:
        """Thresholds of wall_time, which passes without a settlement."""
        accounts = self.contracts.book.accounts.values()
        if any(WALL_TIME in one.contract.terms and one.contract.at for one in accounts):
            self.states.judge((await self.refresh()).accounts.values())

    async def recover(self) -> None:
        """Whether a ledger that failed answers again: who is not ready gets no request to find
        out."""
        if self.contracts.is_owing:
            with suppress(LedgerUnavailable, TimeoutError):
                await within(self._deadline_s, self.contracts.pay())
        if self.problem and not self._sealed:
            await self.refresh()

    async def refresh(self) -> Book:
        """A fresh copy of the ledger; the old one where it does not answer."""
        try:
            self.contracts.book = await within(self._deadline_s, self.ledger.read())
            self.problem = self._sealed
        except (LedgerUnavailable, TimeoutError) as error:
            self._count_fault(error)
        return self.contracts.book

    async def flush(self) -> None:
        """Until every settlement asked for so far is made, or waits for a ledger that is down."""
        while any(task.get_name() != _WAITING for task in self._tasks):
            await asyncio.wait(self._tasks, timeout=0.05)

    # --- small

    async def _insist(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Again and again, until the ledger takes it."""
        tried = False
        while True:
            try:
                return await run()
            except LedgerUnavailable as error:
                if not tried:
                    self._count_fault(error)
            except ContractBroken:
                if not tried:
                    raise
                return None  # an attempt that seemed to fail was carried out
            tried = True
            task = asyncio.current_task()
            if task is not None:
                task.set_name(_WAITING)
            await asyncio.sleep(_RETRY_S)

    def _record_periods(self, answer: Hold | Shortfall, now_ms: int) -> None:
        """What the log does not take, the fold reads from the names of the accounts."""
        for closed, opened in zip(answer.closed, answer.opened, strict=True):
            ended = replace(copy(opened), name=closed.name, spent=dict(closed.spent))
            submit_counted(
                self._recorder, self._metrics, describe_snapshot(ended, "closed", now_ms)
            )
            submit_counted(
                self._recorder, self._metrics, describe_snapshot(opened, "opened", now_ms)
            )

    def _exhaust(self, short: Shortfall) -> None:
        self._metrics.safely(lambda m: m.count_exhausted(short.account, short.unit))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._count_fault(error)
        if isinstance(error, ContractBroken):  # what is held stays held: less may pass, never more
            alert = {"kind": "alert", "cause": "contract-broken", "detail": str(error)}
            submit_counted(self._recorder, self._metrics, alert)

    def _count_fault(self, error: BaseException) -> None:
        self._metrics.safely(lambda m: m.count_fault("ledger"))
        now_s = time.monotonic()
        if now_s < self._quiet_until_s:  # an outage is one story, however many requests it meets
            return
        self._quiet_until_s = now_s + _QUIET_S
        try:
            log.error("fault", where="ledger", error=type(error).__name__, exc_info=error)
        except ANY_FAULT:  # talk is no evidence
            return
