"""The life of one exchange. PURE: events in, effects out; no I/O, no clock, no mitmproxy.

    Head -> screen -> Resolve -> decide -> Reserve -> StoreRecord(allow) -> Forward -> … -> outcome
               |                    |         |             |
               +----- refused ------+---------+-- Failed ---+--> StoreRecord(deny) -> Deny

Rules of this file (each is a `ContractBroken` check here and a property in
tests/properties/test_exchange_laws.py):

L1  Forward only after an allow.
L2  Forward only after the record of that allow is stored.
L3  Any Failed before Forward ends in Deny.
L4  Each reservation ends in exactly one settlement or void, and no byte passes that is not held.
L5  The log only grows: one decision per exchange, at most one outcome, the decision first.
L6  No credential enters: the head arrives without Proxy-* fields, records take names, never values.

Whoever performs the effects (proxy/enforcer.py) answers each with exactly one event. An adapter
(proxy/mitm) only ever acts on Forward, Deny and Close.
"""

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Any

from policies.budget import Amount
from policies.canonical import RawHead, format_head, strip_request_params
from policies.engine import decide, screen
from policies.model import (
    Address,
    ContractBroken,
    Decision,
    Obligations,
    Principal,
    Request,
    Verdict,
)
from policies.policy_set import PolicySet
from proxy.allowance import IN, OUT, Allowance, Passing, order
from proxy.response import count_head_bytes
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
    RequestSent,
    Reserve,
    ReserveMore,
    Resolve,
    Resolved,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
    SliceAnswered,
    SliceRecord,
    SliceStored,
    SliceWanted,
    Stage,
    StoreRecord,
    Target,
    Ticket,
)


class State(Enum):
    """Where the exchange stands. The only ways on are the ones `Exchange.handle` names."""

    NEW = "new"
    RESOLVING = "resolving"
    RESERVING = "reserving"
    RECORDING_ALLOW = "recording-allow"
    RECORDING_DENY = "recording-deny"
    FORWARDED = "forwarded"
    DONE = "done"


def digest_head(scheme: str, host: str, port: int, head: RawHead) -> bytes:
    """SHA-256 over everything that decides what the upstream will do with the head.

    Lengths are not needed: no field may hold NUL or LF (policies/canonical.py), which separate
    them here.
    """
    digest = hashlib.sha256(f"{scheme}\n{host}\n{port}\n".encode())
    digest.update(head.method + b"\n" + head.target)
    for name, value in head.headers:
        digest.update(b"\n" + name + b"\0" + value)
    return digest.digest()


class Exchange:
    """One exchange. `handle` is total: an event that does not fit the state is a broken
    contract."""

    def __init__(
        self, decision_id: str, stage: Stage, policy_set: PolicySet, *, observe: bool = False
    ) -> None:
        self.id = decision_id
        self.stage = stage
        self.state = State.NEW
        self.policy_set = policy_set
        self.decision: Decision | None = None
        self.principal: Principal | None = None
        self.request: Request | None = None
        self.target = Target("")
        self._observe = observe
        self._detail = ""
        self._addresses: tuple[Address, ...] = ()
        self._dial_port = 0
        self._reserved = False
        self._held = 0  # as the effects say, for L4
        self._allow_stored = False
        self._decisions = 0
        self._outcomes = 0
        self.status: int | None = None
        self.head_bytes = 0  # of the request, in its HTTP/1.1 form
        self.allowance = Allowance()
        self._quarantined = False
        self._reserved_ms = 0
        self._body_out = 0
        self._body_in = 0
        self._cut = ""

    @property
    def bytes_out(self) -> int:
        """What was handed to the upstream: canonical HTTP/1.1 head and body, before TLS."""
        return self.allowance.counted[OUT]

    @property
    def bytes_in(self) -> int:
        """What came back, counted alike."""
        return self.allowance.counted[IN]

    @property
    def is_over(self) -> bool:
        """Nothing that still comes changes anything."""
        return self.state is State.DONE

    def find_shortage(self, event: Passing) -> SliceWanted | None:
        """What must be held before `event` may be handled; None: nothing, or it will be cut."""
        return self.allowance.find_shortage(event) if self.state is State.FORWARDED else None

    def anticipate(self, unit: str) -> SliceWanted | None:
        """A slice to ask for in time; None: there is enough, or one is on its way."""
        return self.allowance.anticipate(unit) if self.state is State.FORWARDED else None

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event.

        Returns the effects in the order in which they must be performed.

        Raises:
            ContractBroken: the event does not fit the state; the caller must deny or cut.
        """
        if self.state is State.DONE:
            return []  # a late failure or chunk of something already ended changes nothing
        before = self.state
        if isinstance(event, Failed):
            effects = self._fail(event)
            if before is not State.FORWARDED and not any(map(_refuses, effects)):
                raise ContractBroken("L3: a failure that does not end in a denial")
        else:
            step = _STEPS.get((before, type(event)))
            if step is None:
                raise ContractBroken(f"{type(event).__name__} while {before.value}")
            effects = step(self, event)
        self._check_reservation(effects)
        return effects

    def _check_reservation(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._held += isinstance(effect, Reserve) - isinstance(effect, Release)
            if self._held not in (0, 1):
                raise ContractBroken("L4: a reservation ends exactly once")
        if self._held and self.state is State.DONE:
            raise ContractBroken("L4: an end with an open reservation")

    # --- before the request leaves

    def _on_head(self, event: Head) -> list[Effect]:
        self.target, self.principal, self.request = event.target, event.principal, event.request
        self._detail = event.detail
        self._quarantined = event.quarantined
        if event.refusal or event.principal is None:
            return self._deny(event.refusal or "credential-missing")
        target = event.target
        screened = screen(
            event.principal,
            self.policy_set,
            host=target.host,
            port=target.port,
            scheme=event.request.scheme if event.request else None,
            now=event.now,
            observe=self._observe,
            keep_rules=self._kept(self.policy_set),
        )
        if screened.verdict is Verdict.DENY:
            return self._deny_as(screened)
        if self.stage is Stage.CONNECT:
            self.decision = screened
            return self._store_allow()
        if event.request is None:
            raise ContractBroken("a request head without a canonical request or a refusal")
        if any(name.startswith("proxy-") for name, _ in event.request.headers):
            raise ContractBroken("L6: a credential for us in the request")
        self.state = State.RESOLVING
        return [Resolve(event.request.host, event.request.port)]

    def _on_resolved(self, event: Resolved) -> list[Effect]:
        request, principal = self._judged()
        self._addresses = event.addresses
        self._dial_port = event.dial_port or request.port
        if not event.addresses:
            return self._deny("dns-failed")
        decision = decide(
            request,
            principal,
            self.policy_set,
            addresses=event.addresses,
            now=event.now,
            observe=self._observe,
            keep_rules=self._kept(self.policy_set),
        )
        if decision.verdict is Verdict.DENY:
            return self._deny_as(decision)
        limit = decision.obligations.max_request_bytes
        if limit is not None and (request.body_length or 0) > limit:
            return self._deny("request-too-large", decision)
        if request.path_params and decision.obligations.path_params == "strip":
            request = self.request = strip_request_params(request)
        self.decision = decision
        self.state = State.RESERVING
        self._reserved = True
        head = format_head(request)
        line = len(head.method) + len(head.target) + len(" HTTP/1.1 ")
        self.head_bytes = count_head_bytes(head.headers, line)
        reserve = order(decision, request, self.head_bytes)
        if OUT in reserve.slices:
            self.allowance.stream_out()
        return [reserve]

    def _kept(self, policy_set: PolicySet) -> frozenset[str] | None:
        return policy_set.keep_rules if self._quarantined else None

    def _on_ledger(self, event: LedgerAnswered) -> list[Effect]:
        self._reserved_ms = event.now_ms
        if not event.refusal:
            self.allowance.begin(event.hold)
            return self._store_allow()
        self._reserved = False
        self._held = 0  # nothing was held
        self.allowance.shortfall = short = event.shortfall
        if short is not None:
            self._detail = f"{short.account} {short.unit}: {short.needed} > {short.available}"
        return self._deny(event.refusal, self._decided(), event.retry_after_ms)

    def _on_allow_stored(self, event: RecordStored) -> list[Effect]:
        self._allow_stored = True
        changed = self._recheck(event)
        if changed:
            self.state = State.DONE
            return [*self._end(403, changed, settle=False), self._refuse(changed)]
        ticket = None
        if self.request is not None:
            ticket = Ticket(self.id, ticket_digest(self.request), self._addresses, self._dial_port)
        return [self._forward(ticket)]

    def _on_deny_stored(self, _event: RecordStored) -> list[Effect]:
        self.state = State.DONE
        decision = self._decided()
        shortfall = self.allowance.shortfall
        return [Deny(decision.reason, decision, decision.retry_after_ms, shortfall)]

    def _recheck(self, event: RecordStored) -> str:
        """Halt and policy generation, after the record and before the first byte (policy.md
        2.1)."""
        if event.halted:
            return "halted"
        was, self._quarantined = self._quarantined, event.quarantined
        same = event.policy_set is self.policy_set and was == event.quarantined
        if same or self.principal is None:
            return ""
        if self.request is None:
            again = screen(
                self.principal,
                event.policy_set,
                host=self.target.host,
                port=self.target.port,
                scheme=None,
                now=event.now,
                observe=self._observe,
                keep_rules=self._kept(event.policy_set),
            )
        else:
            again = decide(
                self.request,
                self.principal,
                event.policy_set,
                addresses=self._addresses,
                now=event.now,
                observe=self._observe,
                keep_rules=self._kept(event.policy_set),
            )
        if again.verdict is Verdict.ALLOW:
            return ""
        return "quarantined" if again.reason == "quarantined" else "policy-changed"

    # --- while it is under way

    def _on_sent(self, event: RequestSent) -> list[Effect]:
        body = self._body_out + (event.count_bytes if event.body else 0)
        limit = self._decided().obligations.max_request_bytes
        if limit is not None and body > limit:
            return self._cut_off("request-too-large")  # what is cut here does not leave
        self._body_out = body
        return self._pass(event)

    def _on_response_head(self, event: ResponseHead) -> list[Effect]:
        self.status = event.status
        limit = self._decided().obligations.max_response_bytes
        cut = self._pass(event)
        if not cut and limit is not None and (event.length_bytes or 0) > limit:
            return self._cut_off("response-too-large")
        return cut

    def _on_received(self, event: ResponseReceived) -> list[Effect]:
        self._body_in += event.count_bytes
        limit = self._decided().obligations.max_response_bytes
        cut = self._pass(event)
        if not cut and limit is not None and self._body_in > limit:
            return self._cut_off("response-too-large")
        return cut

    def _pass(self, event: Passing) -> list[Effect]:
        """Count what passes; cut where it is not held."""
        reason = self.allowance.count(event)
        return self._cut_off(reason) if reason else []

    def _on_slice_wanted(self, event: SliceWanted) -> list[Effect]:
        return [ReserveMore(event)]

    def _on_slice(self, event: SliceAnswered) -> list[Effect]:
        if not self.allowance.answer(event):
            return []
        return [StoreRecord(SliceRecord(event.hold.amounts, event.now_ms))]

    def _on_slice_stored(self, event: SliceStored) -> list[Effect]:
        self.allowance.store(event)
        return []

    def _on_end(self, _event: ResponseEnd) -> list[Effect]:
        self.state = State.DONE
        return self._end(self.status, "", settle=True)

    def _cut_off(self, reason: str) -> list[Effect]:
        self.state = State.DONE
        self._cut = reason
        return [*self._end(self.status, "", settle=True), Close(reason)]

    # --- ends

    def _fail(self, event: Failed) -> list[Effect]:
        """L3: before Forward every failure is a Deny; after it, the outcome tells."""
        self._detail = event.detail or self._detail
        if self.state is State.FORWARDED:
            self.state = State.DONE
            ended = self._end(self.status, event.reason, settle=self.bytes_out > 0)
            return [*ended, Close(event.reason)]
        if self.state is State.RECORDING_ALLOW:
            self.state = State.DONE
            void = self._release(())
            outcome = self._outcome(403, event.reason, ()) if event.queued else []
            return [*void, *outcome, self._refuse(event.reason)]
        if self.state is State.RECORDING_DENY:
            self.state = State.DONE
            reason = self._decided().reason if event.queued else event.reason
            return [self._refuse(reason)]
        return [*self._release(()), *self._deny(event.reason, self.decision)]

    def _end(self, status: int | None, error: str, *, settle: bool) -> list[Effect]:
        """The reservation and the outcome; nothing is settled of what never left."""
        spent = self.allowance.settle() if settle else ()
        return [*self._release(spent, settle=settle), *self._outcome(status, error, spent)]

    def _deny(
        self, reason: str, allowed: Decision | None = None, retry_after_ms: int | None = None
    ) -> list[Effect]:
        """A denial of what the rules had `allowed`: those rules still say what the record hides."""
        hidden = allowed.obligations.redact_path if allowed else ()
        return self._deny_as(
            Decision(
                Verdict.DENY,
                reason,
                allowed.rules if allowed else (),
                self.policy_set.digest,
                obligations=Obligations(redact_path=hidden),
                retry_after_ms=retry_after_ms,
            )
        )

    def _deny_as(self, decision: Decision) -> list[Effect]:
        self.decision = decision
        self.state = State.RECORDING_DENY
        return [self._store_decision()]

    def _store_allow(self) -> list[Effect]:
        self.state = State.RECORDING_ALLOW
        return [self._store_decision()]

    def _store_decision(self) -> StoreRecord:
        self._decisions += 1
        if self._decisions > 1:
            raise ContractBroken("L5: a second decision in one exchange")
        return StoreRecord(
            DecisionRecord(
                self.target,
                self.principal,
                self.request,
                self._decided(),
                self._addresses,
                self._detail,
                tuple(self.allowance.held),
                self._reserved_ms,
            )
        )

    def _outcome(self, status: int | None, error: str, spent: tuple[Amount, ...]) -> list[Effect]:
        if self.stage is Stage.CONNECT:
            return []
        self._outcomes += 1
        if self._outcomes > 1:
            raise ContractBroken("L5: a second outcome in one exchange")
        record = OutcomeRecord(status, self.bytes_out, self.bytes_in, self._cut, error, spent)
        return [StoreRecord(record)]

    def _release(self, spent: tuple[Amount, ...], *, settle: bool = False) -> list[Effect]:
        if not self._reserved:
            return []
        self._reserved = False
        return [Release(settle, spent)]

    def _refuse(self, reason: str) -> Deny:
        decision = Decision(Verdict.DENY, reason, (), self.policy_set.digest)
        return Deny(reason, decision)

    def _forward(self, ticket: Ticket | None) -> Forward:
        decision = self._decided()
        if decision.verdict is not Verdict.ALLOW:
            raise ContractBroken("L1: forward without an allow")
        if not self._allow_stored:
            raise ContractBroken("L2: forward before its record is stored")
        if self.stage is Stage.REQUEST and ticket is None:
            raise ContractBroken("L1: a request without a ticket")
        self.state = State.DONE if self.stage is Stage.CONNECT else State.FORWARDED
        return Forward(decision, self.request, ticket)

    def _decided(self) -> Decision:
        if self.decision is None:
            raise ContractBroken("no decision yet")
        return self.decision

    def _judged(self) -> tuple[Request, Principal]:
        if self.request is None or self.principal is None:
            raise ContractBroken("no request to judge")
        return self.request, self.principal


def _refuses(effect: Effect) -> bool:
    if isinstance(effect, StoreRecord) and isinstance(effect.record, DecisionRecord):
        return effect.record.decision.verdict is Verdict.DENY  # its Deny follows
    return isinstance(effect, Deny)


def ticket_digest(request: Request) -> bytes:
    """The digest a ticket for `request` carries; the adapter recomputes it from what it is about to
    send."""
    return digest_head(request.scheme, request.host, request.port, format_head(request))


_STEPS: dict[tuple[State, type[Event]], Callable[[Exchange, Any], list[Effect]]] = {
    (State.NEW, Head): Exchange._on_head,
    (State.RESOLVING, Resolved): Exchange._on_resolved,
    (State.RESERVING, LedgerAnswered): Exchange._on_ledger,
    (State.RECORDING_ALLOW, RecordStored): Exchange._on_allow_stored,
    (State.RECORDING_DENY, RecordStored): Exchange._on_deny_stored,
    (State.FORWARDED, RequestSent): Exchange._on_sent,
    (State.FORWARDED, ResponseHead): Exchange._on_response_head,
    (State.FORWARDED, ResponseReceived): Exchange._on_received,
    (State.FORWARDED, SliceWanted): Exchange._on_slice_wanted,
    (State.FORWARDED, SliceAnswered): Exchange._on_slice,
    (State.FORWARDED, SliceStored): Exchange._on_slice_stored,
    (State.FORWARDED, ResponseEnd): Exchange._on_end,
}
