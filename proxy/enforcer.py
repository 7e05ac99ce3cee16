"""Performs the effects of exchanges: looks up, reserves, records, and hands the verdict to an adapter.

    adapter --open(call)--> Exchange --judge--> Admitted | Refused      (awaited, bounded)
    adapter --advance(exchange, event)--> reason to cut, or None        (never awaits)

Rule 1: whatever goes wrong here becomes `Failed`, which the exchange turns into a denial. There is no path from an
        exception to `Admitted`.
Rule 2: every await has a deadline. Only a DNS look-up may outlast `hook_deadline_s`.
Rule 3: a decision is durable before its verdict leaves this file; an outcome is queued.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import structlog

from audit.record import Event as AuditEvent
from audit.writer import LogUnavailable
from policies.canonical import RawHead, Refusal, canonicalise_authority, canonicalise_request
from policies.ledger import Ledger, LedgerUnavailable
from policies.model import Address, ContractBroken, Principal, Request, Scheme
from policies.policy_set import PolicySet
from policies.rate import RateLimiter
from proxy.denial import Denial, deny
from proxy.destination import DnsFailed, Resolver
from proxy.exchange import (
    Close,
    DecisionRecord,
    Deny,
    Effect,
    Event,
    Exchange,
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
from proxy.identity import CredentialStore, IdentityRefusal, identify
from proxy.metrics import Metrics
from proxy.recording import describe_decision, describe_outcome
from proxy.settings import Settings

log = structlog.get_logger()

SEEN_BYTES_MAX = 4096  # of a refused target that a record may show


class Recorder(Protocol):
    """What is needed of audit.writer.Writer."""

    async def store(self, event: AuditEvent) -> object: ...
    def submit(self, event: AuditEvent) -> None: ...
    @property
    def failure(self) -> str | None: ...


@dataclass(slots=True)
class Generation:
    """The policy in force. Replaced whole by a reload; in-flight exchanges keep theirs."""

    policy_set: PolicySet
    serial: int
    observe: bool = False  # key and flag together (policy.md 2.10)
    refusal: str = ""  # a reason that denies everything: "policy-stale"


@dataclass(slots=True)
class Tunnel:
    """What a CONNECT fixed for everything inside it."""

    host: str
    port: int
    authorization: tuple[bytes, ...]
    refusal: str = ""  # not "": nothing inside may pass; it is only told why


@dataclass(slots=True)
class Call:
    """One message head as it came off the wire, with what the connection knows."""

    stage: Stage
    client: str
    head: RawHead
    scheme: Scheme | None = None  # None: CONNECT, or absolute form outside a tunnel
    tunnel: Tunnel | None = None
    sni: str | None = None
    tls: bool = False
    body: bool = False
    body_length: int | None = None
    standing_peer: Callable[[str, int, Scheme], tuple[Address, int] | None] | None = None
    refusal: tuple[str, str] | None = None  # reason and detail the adapter already knows


@dataclass(frozen=True, slots=True)
class Admitted:
    """Go ahead: with exactly this request and ticket (both None for CONNECT)."""

    exchange: Exchange
    request: Request | None
    ticket: Ticket | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer this; nothing has left. `halting` marks answers that must not be softened by explain_denials."""

    exchange: Exchange
    denial: Denial
    softenable: bool = False


@dataclass(slots=True)
class _Run:
    """Book-keeping of one exchange that is not part of its life."""

    client: str
    started: float
    serial: int
    sni: str = ""
    upstream_started: float = 0.0
    addresses: tuple[Address, ...] = ()
    denial: Denial | None = None
    release: list[str] = field(default_factory=list)


class Enforcer:
    """One per process: joins the decision room and the evidence room."""

    def __init__(
        self,
        settings: Settings,
        generation: Generation,
        *,
        recorder: Recorder,
        ledger: Ledger,
        resolver: Resolver,
        credentials: CredentialStore,
        metrics: Metrics,
        own_ports: Callable[[Address, int], bool] = lambda _address, _port: False,
    ) -> None:
        self.settings = settings
        self.generation = generation
        self.recorder = recorder
        self.ledger = ledger
        self.resolver = resolver
        self.credentials = credentials
        self.metrics = metrics
        self.own_ports = own_ports
        self.draining = False
        self._rates = RateLimiter()
        self._runs: dict[str, _Run] = {}

    # --- the adapter's side

    def open(self, call: Call) -> Exchange:
        """Begin the exchange of `call`; it must end through judge and advance, or abandon."""
        generation = self.generation
        exchange = Exchange(
            secrets.token_hex(16), call.stage, generation.policy_set, observe=generation.observe
        )
        self._runs[exchange.id] = _Run(call.client, time.monotonic(), generation.serial, call.sni or "")
        return exchange

    async def judge(self, exchange: Exchange, call: Call) -> Admitted | Refused:
        """The verdict, recorded. Ends within `hook_deadline_s`, not counting a DNS look-up.

        Raises:
            CancelledError, KeyboardInterrupt, SystemExit: only where this task itself is being ended;
                the exchange was abandoned first.
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
        reason = _reason_of(error)
        queued = exchange.state.value.startswith("recording")
        if not isinstance(error, LogUnavailable):
            self.count_fault("exchange", error)
        try:
            effects = exchange.handle(Failed(reason, queued=queued and reason != "audit-unavailable"))
            for _ in range(8):
                answer = None
                for effect in effects:
                    answer = self._queue(exchange, effect) or answer
                if not isinstance(answer, Event):
                    break
                effects = exchange.handle(answer)
        except Exception as second:  # noqa: BLE001  the last net: counted, and the answer below still denies
            self.count_fault("abandon", second)
        run = self._runs.pop(exchange.id, None)
        denial = run.denial if run is not None else None
        return Refused(exchange, denial or deny(reason, decision_id=exchange.id))

    def advance(self, exchange: Exchange, event: Event) -> str | None:
        """Feed an event of the running stream. Returns a reason to cut it, or None; never raises an Exception."""
        try:
            cut = None
            for effect in exchange.handle(event):
                if isinstance(effect, Close):
                    cut = effect.reason
                else:
                    self._queue(exchange, effect)
            return cut
        except Exception as error:  # noqa: BLE001  counted; the caller cuts
            self.count_fault("advance", error)
            return "contract-broken" if isinstance(error, ContractBroken) else "internal-error"

    def record_malformed(self, client: str, why: str, seen: bytes) -> None:
        """Record a message that could not be parsed (no exchange exists for those)."""
        self.metrics.safely(lambda m: m.count_request("", "deny", "malformed"))
        log.info("malformed", client=client, why=why)
        event = {"kind": "malformed", "client": client, "why": why, "bytes": seen[:SEEN_BYTES_MAX]}
        try:
            self.recorder.submit(event)
        except LogUnavailable as error:
            self.metrics.safely(lambda m: m.failed(error.code))

    @property
    def open_exchanges(self) -> int:
        """Exchanges that have not ended: 0 when idle."""
        return len(self._runs)

    # --- performing effects

    async def _judge(
        self, exchange: Exchange, call: Call, deadline: asyncio.Timeout
    ) -> Admitted | Refused:
        began = time.perf_counter()
        effects = exchange.handle(self._read_head(call))
        while True:
            answer: Event | Admitted | Refused | None = None
            for effect in effects:
                answer = await self._perform(exchange, call, effect, deadline) or answer
            if isinstance(answer, Admitted | Refused):
                elapsed = time.perf_counter() - began
                self.metrics.safely(lambda m: m.observe_decision(elapsed))
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
                return RecordStored(generation.policy_set, datetime.now(UTC))
            case Forward(decision, request, ticket):
                self._count(exchange, "allow", decision.reason)
                if exchange.stage is Stage.CONNECT:
                    self._finish(exchange, 200, "allow", decision.reason)
                else:
                    self._runs[exchange.id].upstream_started = time.monotonic()
                return Admitted(exchange, request, ticket)
            case Deny():
                return self._deny(exchange, effect)
            case _:
                self._queue(exchange, effect)
                return None

    def _queue(self, exchange: Exchange, effect: Effect) -> Event | None:
        """Perform an effect that needs no waiting."""
        match effect:
            case Release(settle):
                end = self.ledger.settle if settle else self.ledger.void
                end(exchange.id)
            case StoreRecord(OutcomeRecord() as record):
                self._submit(describe_outcome(exchange.id, record, self._elapsed_ms(exchange)))
                self._finish(exchange, record.status, "allow", record.error or record.cut or "allowed")
            case StoreRecord(DecisionRecord() as record):
                self._submit(self._describe(exchange, record))
                return RecordStored(self.generation.policy_set, datetime.now(UTC))
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
            return Resolved((standing[0],), datetime.now(UTC), standing[1])
        loop = asyncio.get_running_loop()
        left = max(0.05, (deadline.when() or 0.0) - loop.time())
        deadline.reschedule(loop.time() + self.settings.dns_timeout_s + 0.5)
        answer = await self.resolver.resolve(host, port)
        deadline.reschedule(loop.time() + left)
        if isinstance(answer, DnsFailed):
            return Failed("dns-failed", answer.why)
        own = [a for a in answer.addresses if self.own_ports(a, answer.dial_port)]
        if own:
            return Failed("address-not-public", "the destination is this proxy itself")
        return Resolved(answer.addresses, datetime.now(UTC), answer.dial_port)

    async def _reserve(self, exchange: Exchange, effect: Reserve) -> Event:
        rates = self.generation.policy_set.rates
        uses = effect.decision.obligations.rates
        if uses:
            wait_ms = self._rates.admit(uses, rates, int(time.monotonic() * 1000))
            if wait_ms is not None:
                return LedgerAnswered("rate-limited", wait_ms)
        async with asyncio.timeout(self.settings.ledger_deadline_s):
            try:
                await self.ledger.reserve(exchange.id)
            except TimeoutError:
                raise LedgerUnavailable("the ledger did not answer in time") from None
        return LedgerAnswered()

    async def _store(self, exchange: Exchange, record: DecisionRecord) -> None:
        await self.recorder.store(self._describe(exchange, record))

    def _describe(self, exchange: Exchange, record: DecisionRecord) -> AuditEvent:
        run = self._runs[exchange.id]
        return describe_decision(
            exchange.id,
            exchange.stage.value,
            record,
            client=run.client,
            serial=run.serial,
            observe=self.generation.observe,
        )

    def _submit(self, event: AuditEvent) -> None:
        try:
            self.recorder.submit(event)
        except LogUnavailable as error:
            code = error.code
            self.metrics.safely(lambda m: m.failed(code))

    def _deny(self, exchange: Exchange, effect: Deny) -> Refused:
        rules = effect.decision.rules
        denial = deny(
            effect.reason,
            decision_id=exchange.id,
            agent=exchange.principal.agent if exchange.principal else None,
            rule=rules[0] if len(rules) == 1 else None,
            retry_after_ms=effect.retry_after_ms,
        )
        run = self._runs.get(exchange.id)
        if run is not None:
            run.denial = denial
        self._count(exchange, "deny", effect.reason)
        self._finish(exchange, denial.status, "deny", effect.reason)
        softenable = exchange.principal is not None and effect.reason != "halted"
        return Refused(exchange, denial, softenable)

    # --- reading a head

    def _read_head(self, call: Call) -> Head:
        now = datetime.now(UTC)
        generation = self.generation
        target = _target_of(call)
        authorization = call.tunnel.authorization if call.tunnel else _authorization(call.head)
        caller = identify(authorization, call.client, generation.policy_set, self.credentials, now)
        if isinstance(caller, IdentityRefusal):
            return Head(target, None, None, now, caller.reason)
        if self.draining:
            return Head(target, caller, None, now, "draining")
        if generation.refusal:
            return Head(target, caller, None, now, generation.refusal)
        if call.refusal is not None:
            return Head(target, caller, None, now, *call.refusal)
        return self._read_request(call, caller, target, now)

    def _read_request(self, call: Call, caller: Principal, target: Target, now: datetime) -> Head:
        if call.stage is Stage.CONNECT:
            named = canonicalise_authority(call.head.target, None)
            if isinstance(named, Refusal):
                return Head(target, caller, None, now, named.reason, named.detail)
            return Head(_named(target, *named), caller, None, now)
        request = canonicalise_request(
            call.head,
            scheme=call.scheme,
            host=call.tunnel.host if call.tunnel else None,
            port=call.tunnel.port if call.tunnel else None,
            body=call.body,
            body_length=call.body_length,
        )
        if isinstance(request, Refusal):
            return Head(target, caller, None, now, request.reason, request.detail)
        target = _named(target, request.host, request.port, request)
        if call.tunnel is not None and call.tunnel.refusal:
            return Head(target, caller, request, now, call.tunnel.refusal)
        if call.tls and call.tunnel is not None and not _sni_matches(call.sni, call.tunnel.host):
            return Head(target, caller, request, now, "host-mismatch", "SNI is not the tunnel's host")
        return Head(target, caller, request, now)

    # --- counting; never changes a verdict

    def _elapsed_ms(self, exchange: Exchange) -> int:
        run = self._runs.get(exchange.id)
        return 0 if run is None else int((time.monotonic() - run.started) * 1000)

    def _count(self, exchange: Exchange, verdict: str, reason: str) -> None:
        agent = exchange.principal.agent if exchange.principal else ""
        rules = exchange.decision.rules if exchange.decision else ()
        self.metrics.safely(lambda m: m.count_request(agent, verdict, reason))
        self.metrics.safely(lambda m: m.count_rules(rules))

    def _finish(self, exchange: Exchange, status: int | None, verdict: str, reason: str) -> None:
        run = self._runs.pop(exchange.id, None)
        if run is None:
            return
        seconds = time.monotonic() - run.started
        agent = exchange.principal.agent if exchange.principal else ""
        self.metrics.safely(lambda m: m.observe_request(agent, verdict, seconds))
        if run.upstream_started:
            upstream_s = time.monotonic() - run.upstream_started
            self.metrics.safely(lambda m: m.observe_upstream(upstream_s))
        log.info(
            "exchange",
            decision=exchange.id,
            agent=agent or None,
            verdict=verdict,
            reason=reason,
            method=exchange.target.method,
            host=exchange.target.host,
            port=exchange.target.port,
            stage=exchange.stage.value,
            status=status,
            ms=int(seconds * 1000),
            bytes_out=exchange.bytes_out,
            bytes_in=exchange.bytes_in,
        )

    def count_fault(self, where: str, error: BaseException) -> None:
        self.metrics.safely(lambda m: m.count_fault(where))
        log.error("fault", where=where, error=type(error).__name__, exc_info=error)


def _is_ending() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _reason_of(error: BaseException) -> str:
    match error:
        case LogUnavailable():
            return error.code
        case LedgerUnavailable():
            return "ledger-unavailable"
        case TimeoutError():
            return "deadline-exceeded"
        case ContractBroken():
            return "contract-broken"
        case _:
            return "internal-error"


def _authorization(head: RawHead) -> tuple[bytes, ...]:
    return tuple(value for name, value in head.headers if name.lower() == b"proxy-authorization")


def _sni_matches(sni: str | None, host: str) -> bool:
    """RFC 6066 forbids SNI for IP literals; everywhere else it must be there and equal."""
    if sni is None:
        return ":" in host or host.replace(".", "").isdigit()
    return sni.lower().rstrip(".") == host


def _target_of(call: Call) -> Target:
    """What the record shows of a head that may still be refused: raw, bounded, made printable by the log."""
    seen = call.head.target[:SEEN_BYTES_MAX].decode("latin-1")
    method = call.head.method[:32].decode("latin-1")
    scheme = call.scheme or ""
    if call.tunnel is not None:
        return Target(method, call.tunnel.host, call.tunnel.port, scheme, seen.partition("?")[0], (), call.sni or "")
    if call.stage is Stage.CONNECT:
        return Target(method, host=seen[:255])
    return Target(method, path=seen.partition("?")[0])


def _named(target: Target, host: str, port: int, request: Request | None = None) -> Target:
    if request is None:
        return Target(target.method, host, port, sni=target.sni)
    keys = tuple(dict.fromkeys(key for key, _ in request.query_pairs))
    types = [value for name, value in request.headers if name == "content-type"]
    return Target(
        request.method, host, port, request.scheme, request.path, keys, target.sni, types[0] if types else ""
    )


def describe_call(call: Call) -> Mapping[str, object]:
    """For log lines about a call that has no exchange yet."""
    return {"client": call.client, "stage": call.stage.value}
