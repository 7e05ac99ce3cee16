"""Performs the effects of exchanges: looks up, reserves, records, and hands the verdict to an
adapter.

    adapter --open(call)--> Exchange --judge--> Admitted | Refused      (awaited, bounded)
    adapter --advance(exchange, event)--> reason to cut, or None        (never awaits)

Rule 1: whatever goes wrong here becomes `Failed`, which the exchange turns into a denial. There
        is no path from an exception to `Admitted`.
Rule 2: every await has a deadline. Only a DNS look-up may outlast `hook_deadline_s`.
Rule 3: a decision is durable before its verdict leaves this file; an outcome is queued.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from audit.denials import DenialBudget
from audit.writer import EventRefused, LogUnavailable, Stored, wall_clock
from policies.budget import Amount, State
from policies.model import Address, ContractBroken, Decision, Request, Verdict
from policies.policy_set import PolicySet
from policies.rate import RateLimiter
from proxy.allowance import Passing
from proxy.bookkeeper import Bookkeeper
from proxy.budget_header import format_budget
from proxy.call import Call, describe_target, find_authorization, read_call
from proxy.deadline import within
from proxy.denial import Denial, deny
from proxy.destination import DnsFailed, Resolver
from proxy.exchange import Exchange
from proxy.extension import Extensions
from proxy.fault import ANY_FAULT, NOT_RECORDED, LogSlow, explain_fault
from proxy.identity import CredentialStore, IdentityRefusal, identify
from proxy.journal import submit_counted
from proxy.metrics import Metrics
from proxy.recording import (
    AuditEvent,
    Recorder,
    describe_decision,
    describe_malformed,
    describe_outcome,
)
from proxy.runs import Runs
from proxy.settings import Settings
from proxy.vocabulary import (
    Close,
    DecisionRecord,
    Deny,
    Effect,
    Event,
    Failed,
    Forward,
    Head,
    LedgerAnswered,
    OutcomeRecord,
    RecordStored,
    Release,
    Reserve,
    Resolve,
    Resolved,
    Stage,
    StoreRecord,
    Target,
    Ticket,
)

log = structlog.get_logger()


# what a denied CONNECT may be opened for, only to be told why (SPEC section 3): the policy said no,
# and that is on record
_EXPLAINABLE = frozenset({"host-not-allowed", "denied-by-rule", "no-rule-matched", "quarantined"})


@dataclass(slots=True)
class Generation:
    """The policy in force. Replaced whole by a reload; in-flight exchanges keep theirs."""

    policy_set: PolicySet
    serial: int
    observe: bool = False  # key and flag together (policy.md 2.10)
    refusal: str = ""  # a reason that denies everything: "policy-stale"


@dataclass(frozen=True, slots=True)
class Admitted:
    """Go ahead: with exactly this request and ticket (both None for CONNECT)."""

    exchange: Exchange
    request: Request | None
    ticket: Ticket | None
    budget: str = ""  # value of `Tollkeeper-Budget` for the answer, where the rule shows it


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer this; nothing has left. `softenable`: a CONNECT refused so may be opened for the one
    purpose of telling why (`explain_denials`)."""

    exchange: Exchange
    denial: Denial
    softenable: bool = False


class Enforcer:
    """One per process: joins the decision room and the evidence room."""

    def __init__(
        self,
        settings: Settings,
        generation: Generation,
        *,
        recorder: Recorder,
        bookkeeper: Bookkeeper,
        resolver: Resolver,
        credentials: CredentialStore,
        metrics: Metrics,
        denials: DenialBudget,
        quiet: bool = False,
        now: Callable[[], datetime] = wall_clock,
        owns: Callable[[Address, int], bool] = lambda _address, _port: False,
    ) -> None:
        self.settings = settings
        self.generation = generation
        self.recorder = recorder
        self.bookkeeper = bookkeeper
        self.resolver = resolver
        self.credentials = credentials
        self.metrics = metrics
        self.owns = owns
        self._denials = denials
        self._now = now
        self._quiet = quiet  # the self-test's exchanges are not news
        self.draining = False
        self._rates = RateLimiter()
        self.extensions = Extensions(
            bookkeeper, recorder, metrics, settings.audit_deadline_s, self.count_fault
        )
        self.runs = Runs(metrics, quiet=quiet)

    # --- the adapter's side

    def open(self, call: Call) -> Exchange:
        """Begin the exchange of `call`; it must end through judge and advance, or abandon."""
        generation = self.generation
        exchange = Exchange(
            secrets.token_hex(16), call.stage, generation.policy_set, observe=generation.observe
        )
        exchange.target = describe_target(call)  # so that the record of a fault can name it
        self.runs.open(exchange, call.client, generation.serial)
        return exchange

    async def judge(self, exchange: Exchange, call: Call) -> Admitted | Refused:
        """The verdict, recorded. Ends within `hook_deadline_s`, not counting a DNS look-up.

        Raises:
            CancelledError, KeyboardInterrupt, SystemExit: only where this task itself is being
                ended; the exchange was abandoned first.
        """
        try:
            async with asyncio.timeout(self.settings.hook_deadline_s) as deadline:
                return await self._judge(exchange, call, deadline)
        except BaseException as error:
            refused = self.abandon(exchange, error)
            if isinstance(error, KeyboardInterrupt | SystemExit) or _is_ending():
                raise
            return refused

    def abandon(self, exchange: Exchange, error: BaseException) -> Refused:
        """Turn an exception into a recorded denial, without awaiting; never raises an Exception."""
        reason = explain_fault(error)
        run = self.runs.find(exchange)
        queued = run is not None and run.asked and not isinstance(error, NOT_RECORDED)
        if not isinstance(error, LogUnavailable):
            self.count_fault("exchange", error)
        try:
            effects = exchange.handle(Failed(reason, queued=queued))
            for _ in range(8):
                answer = None
                for effect in effects:
                    answer = self._queue(exchange, effect) or answer
                if not isinstance(answer, Event):
                    break
                effects = exchange.handle(answer)
        except ANY_FAULT as second:  # the last net; the answer denies
            self.count_fault("abandon", second)
        self.runs.drop(exchange)
        denial = None
        if run is not None:
            denial = run.denial
            if not run.asked or isinstance(error, EventRefused):
                # the decision could not be written down: better this than no record
                self._submit(describe_malformed(run.client, reason, b""))
        return Refused(exchange, denial or deny(reason, decision_id=exchange.id))

    def advance(self, exchange: Exchange, event: Event) -> str | None:
        """Feed an event of the running stream. Returns a reason to cut it, or None; never raises an
        Exception."""
        try:
            if exchange.is_over and isinstance(event, Passing):
                return "client-gone"  # it was cut, and its connections are just being closed
            cut = None
            stop = self._find_stop(exchange)
            if stop and not isinstance(event, Failed):
                event = Failed(stop)
            for effect in exchange.handle(event):
                if isinstance(effect, Close):
                    cut = effect.reason
                else:
                    self._queue(exchange, effect)
            if not cut:
                self.extensions.anticipate(exchange, event)
            return cut
        except ANY_FAULT as error:  # counted; the caller cuts
            self.count_fault("advance", error)
            return "contract-broken" if isinstance(error, ContractBroken) else "internal-error"

    def record_malformed(self, client: str, why: str, seen: bytes) -> None:
        """Record a message that no exchange exists for; a flood of them is counted like one of
        denials (I8)."""
        self.metrics.safely(lambda m: m.count_request("", "deny", "malformed"))
        if not self._denials.admit("", "malformed", time.monotonic()):
            return
        if not self._quiet:
            log.info("malformed", client=client, why=why)
        self._submit(describe_malformed(client, why, seen))

    def is_resolving(self, exchange: Exchange | None) -> bool:
        """Whether the exchange waits for DNS, the one thing that may outlast `hook_deadline_s`."""
        run = self.runs.find(exchange) if exchange is not None else None
        return run is not None and run.resolving

    @property
    def open_exchanges(self) -> int:
        """Exchanges that have not ended: 0 when idle."""
        return len(self.runs)

    # --- performing effects

    async def _judge(
        self, exchange: Exchange, call: Call, deadline: asyncio.Timeout
    ) -> Admitted | Refused:
        began = time.perf_counter()
        effects = exchange.handle(self._read_head(exchange.target, call))
        while True:
            answer: Event | Admitted | Refused | None = None
            for effect in effects:
                answer = await self._perform(exchange, call, effect, deadline) or answer
            if isinstance(answer, Admitted | Refused):
                self._observe_decision(time.perf_counter() - began)
                return answer
            if answer is None:
                raise ContractBroken("an effect without an answer")
            effects = exchange.handle(answer)

    async def _perform(
        self, exchange: Exchange, call: Call, effect: Effect, deadline: asyncio.Timeout
    ) -> Event | Admitted | Refused | None:
        match effect:
            case Resolve(host, port):
                return await self._resolve(exchange, call, host, port, deadline)
            case Reserve():
                return await self._reserve(exchange, effect)
            case StoreRecord(DecisionRecord() as record):
                await self._store(exchange, record)
                generation = self.generation
                return self._stored(exchange, generation.policy_set)
            case Forward(decision, request, ticket):
                self.runs.count(exchange, "allow", decision.reason)
                if exchange.stage is Stage.CONNECT:
                    self.runs.finish(exchange, 200, "allow", decision.reason)
                else:
                    self.runs.of(exchange).upstream_started = time.monotonic()
                    self._count_steps(exchange, decision)
                shown = decision.obligations.show_budget
                left = exchange.allowance.left if shown else ()
                return Admitted(
                    exchange, request, ticket, format_budget(left, self.bookkeeper.now_ms())
                )
            case Deny():
                return self._deny(exchange, effect)
            case _:
                self._queue(exchange, effect)
                return None

    def _queue(self, exchange: Exchange, effect: Effect) -> Event | None:
        """Perform an effect that needs no waiting."""
        match effect:
            case Release(_, spent):
                self._release(exchange, spent)
            case StoreRecord(OutcomeRecord() as record):
                self._submit(describe_outcome(exchange.id, record, self.runs.elapsed_ms(exchange)))
                run = self.runs.find(exchange)
                if run is not None and run.upstream_started:  # else the Deny behind it ends the run
                    reason = record.error or record.cut or "allowed"
                    self.runs.finish(exchange, record.status, "allow", reason)
            case StoreRecord(DecisionRecord() as record):
                asking = self.runs.of(exchange)
                if self._is_recorded_singly(record):
                    asking.asked = self._submit(self._describe(exchange, record))
                else:
                    asking.asked = True  # counted in a `dropped` record
                return self._stored(exchange, self.generation.policy_set)
            case Deny():
                self._deny(exchange, effect)
            case Close():
                pass
            case _:
                raise ContractBroken(f"{type(effect).__name__} cannot be queued")
        return None

    async def _resolve(
        self, exchange: Exchange, call: Call, host: str, port: int, deadline: asyncio.Timeout
    ) -> Event:
        scheme = exchange.request.scheme if exchange.request else "https"
        standing = call.standing_peer(host, port, scheme) if call.standing_peer else None
        if standing is not None:
            return Resolved((standing[0],), self._now(), standing[1])
        loop = asyncio.get_running_loop()
        left = max(0.05, (deadline.when() or 0.0) - loop.time())
        deadline.reschedule(loop.time() + self.settings.dns_timeout_s + 0.5)
        run = self.runs.of(exchange)
        run.resolving = True
        answer = await self.resolver.resolve(host, port)
        run.resolving = False
        deadline.reschedule(loop.time() + left)
        if isinstance(answer, DnsFailed):
            return Failed("dns-failed", answer.why)
        own = [a for a in answer.addresses if self.owns(a, answer.dial_port)]
        if own:
            return Failed("address-not-public", "the destination is this proxy itself")
        return Resolved(answer.addresses, self._now(), answer.dial_port)

    async def _reserve(self, exchange: Exchange, effect: Reserve) -> Event:
        rates = exchange.policy_set.rates
        uses = effect.decision.obligations.rates
        if uses:
            wait_ms = self._rates.admit(uses, rates, int(time.monotonic() * 1000))
            if wait_ms is not None:
                return LedgerAnswered("rate-limited", wait_ms)
        principal = exchange.principal
        if principal is None:
            raise ContractBroken("a reservation for nobody")
        return await self.bookkeeper.reserve(exchange.id, principal, effect)

    def _release(self, exchange: Exchange, spent: tuple[Amount, ...]) -> None:
        """A ledger that fails here must not cost the record that comes next."""
        try:
            self.bookkeeper.settle(exchange.id, spent, exchange.principal)
        except ANY_FAULT as error:  # counted; the request itself has its verdict
            self.count_fault("ledger", error)

    def _find_stop(self, exchange: Exchange) -> str:
        """Why nothing of a running exchange may pass any more: a cut does not find the one whose
        verdict is on its way to the adapter. "" where it may."""
        principal, decision = exchange.principal, exchange.decision
        state = self.bookkeeper.state(principal.agent) if principal else State.ACTIVE
        if state is State.HALTED:
            return "halted"
        if state is State.QUARANTINED and decision is not None:
            kept = self.bookkeeper.states.keep_rules
            return "" if kept.intersection(decision.rules) else "quarantined"
        return ""

    def _stored(self, exchange: Exchange, policy_set: PolicySet) -> RecordStored:
        """What the re-check needs: halt and policy as they are now."""
        principal = exchange.principal
        state = self.bookkeeper.state(principal.agent) if principal else State.ACTIVE
        halted, quarantined = state is State.HALTED, state is State.QUARANTINED
        return RecordStored(policy_set, self._now(), halted, quarantined)

    async def _store(self, exchange: Exchange, record: DecisionRecord) -> None:
        run = self.runs.of(exchange)
        if not self._is_recorded_singly(record):
            run.asked = True  # counted in a `dropped` record
            return
        event = self._describe(exchange, record)
        run.asked = True  # from here on only the log itself can say that there is no record
        try:
            stored = await within(self.settings.audit_deadline_s, self.recorder.store(event))
        except TimeoutError:
            raise LogSlow("the log was not durable in time") from None
        if not isinstance(stored, Stored):
            raise ContractBroken("L2: the log gave no receipt")
        self.metrics.safely(lambda m: m.count_record("decision"))

    def _is_recorded_singly(self, record: DecisionRecord) -> bool:
        """Whether this record is written, or only counted: a flood of denials must not fill the
        disk."""
        if record.decision.verdict is Verdict.ALLOW:
            return True
        agent = record.principal.agent if record.principal else ""
        return self._denials.admit(agent, record.decision.reason, time.monotonic())

    def _describe(self, exchange: Exchange, record: DecisionRecord) -> AuditEvent:
        run = self.runs.of(exchange)
        return describe_decision(
            exchange.id,
            exchange.stage.value,
            record,
            client=run.client,
            serial=run.serial,
        )

    def _submit(self, event: AuditEvent) -> bool:
        """Queue a record; False: it is one that no log takes. Never raises an Exception."""
        try:
            submit_counted(self.recorder, self.metrics, event)
        except ANY_FAULT as error:  # a refused event is a bug of ours; it is counted
            self.count_fault("record", error)
            return False
        return True

    def _deny(self, exchange: Exchange, effect: Deny) -> Refused:
        rules = effect.decision.rules
        denial = deny(
            effect.reason,
            decision_id=exchange.id,
            agent=exchange.principal.agent if exchange.principal else None,
            rule=rules[0] if len(rules) == 1 else None,
            retry_after_ms=effect.retry_after_ms,
            remaining=effect.shortfall.left if effect.shortfall else (),
            reopens_ms=effect.shortfall.until_ms if effect.shortfall else None,
        )
        run = self.runs.find(exchange)
        if run is not None:
            run.denial = denial
        self.runs.count(exchange, "deny", effect.reason)
        self.runs.finish(exchange, denial.status, "deny", effect.reason)
        softenable = exchange.principal is not None and effect.reason in _EXPLAINABLE
        return Refused(exchange, denial, softenable)

    # --- reading a head

    def _read_head(self, target: Target, call: Call) -> Head:
        now = self._now()
        generation = self.generation
        authorization = call.tunnel.authorization if call.tunnel else find_authorization(call.head)
        caller = identify(authorization, call.client, generation.policy_set, self.credentials, now)
        if isinstance(caller, IdentityRefusal):
            return Head(target, None, None, now, caller.reason, caller.detail)
        head = read_call(call, caller, target, now)
        state = self.bookkeeper.state(caller.agent)
        if state is State.QUARANTINED:
            head = replace(head, quarantined=True)
        refusal = "draining" if self.draining else generation.refusal
        if state is State.HALTED:
            refusal = "halted"
        return replace(head, refusal=refusal, detail="") if refusal else head

    # --- counting; never changes a verdict

    def _count_steps(self, exchange: Exchange, decision: Decision) -> None:
        agent = exchange.principal.agent if exchange.principal else ""
        self.metrics.safely(lambda m: m.count_steps(agent, decision.obligations.steps))

    def _observe_decision(self, seconds: float) -> None:
        self.metrics.safely(lambda m: m.observe_decision(seconds))

    def count_fault(self, where: str, error: BaseException) -> None:
        self.metrics.safely(lambda m: m.count_fault(where))
        with contextlib.suppress(*ANY_FAULT):  # talk is no evidence
            log.error("fault", where=where, error=type(error).__name__, exc_info=error)


def _is_ending() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
