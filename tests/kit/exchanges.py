"""Events of an exchange, and a watch that knows the six laws on its own."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address

from policies.budget import Amount, Hold, Shortfall
from policies.canonical import canonicalise_request
from policies.model import ContractBroken, Principal, Refusal, Request, Verdict
from policies.policy_set import PolicySet
from proxy.call import describe_target, place
from proxy.exchange import Exchange, ticket_digest
from proxy.recording import describe_decision
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
)
from tests.kit.enforcement import NOW, Message, compiled, connect

SECRET = "c2VjcmV0LXRva2Vu"
LOCAL = Principal("local", "", "127.0.0.1")
PUBLIC = (ip_address("93.184.216.34"),)
PRIVATE = (ip_address("10.0.0.8"),)
POLICIES = {
    "same": compiled(),
    "closed": compiled(
        'version: 1\nagents: { local: { identity: { source: ["127.0.0.0/8"] } } }\nrules: []\n'
    ),
}


DAY, LIFE = "daily/local@2026-11-20T00:00:00Z", "life/local"
HOLD = Hold(
    (
        Amount(DAY, "bytes_in", 100),
        Amount(DAY, "bytes_out", 120),
        Amount(DAY, "requests", 1),
        Amount(LIFE, "bytes_in", 100),
        Amount(LIFE, "effort", 0),
        Amount(LIFE, "risk", 3),
        Amount(LIFE, "wall_time", 0),
    ),
    {"bytes_in": 100, "bytes_out": 120},
)
SHORT = Shortfall("life/local", "life", "bytes_in", 1, 0, 0)


def slice_of(unit: str, size: int) -> Hold:
    """A further hold on every account of HOLD that limits the unit."""
    accounts = [DAY, LIFE] if unit == "bytes_in" else [DAY]
    return Hold(tuple(Amount(name, unit, size) for name in accounts), {unit: size})


def read(message: Message) -> Request:
    """The canonical request of a good message."""
    call = message.call()
    request = canonicalise_request(call.head, scheme="https", host=message.host, port=443)
    if isinstance(request, Refusal):
        raise TypeError(request.detail)
    return request


def head(message: Message | None = None, *, refusal: str = "", known: bool = True) -> Head:
    """What the enforcer reads from a message; the credential it came with is already gone."""
    field = (b"Proxy-Authorization", f"Basic {SECRET}".encode())
    message = message or Message(fields=(field,))
    call = message.call()
    target = describe_target(call)
    if refusal:
        return Head(target, LOCAL if known else None, None, NOW, refusal, "why")
    request = read(message)
    target = place(target, request.host, request.port, request)
    return Head(target, LOCAL if known else None, request, NOW)


def connect_head(host: str = "api.test", *, refusal: str = "") -> Head:
    """A CONNECT, read."""
    target = place(describe_target(connect(host)), host, 443)
    return Head(target, LOCAL, None, NOW, refusal)


def list_events(stage: Stage) -> dict[str, Event]:
    """One of every kind of event that means something different."""
    same, closed = POLICIES["same"], POLICIES["closed"]
    later = NOW + timedelta(seconds=1)
    heads: dict[str, Event] = {
        "an allowed head": head() if stage is Stage.REQUEST else connect_head(),
        "a host no rule names": (
            head(Message(host="x.test")) if stage is Stage.REQUEST else connect_head("x.test")
        ),
        "an unknown caller": Head(head().target, None, None, NOW, "credential-missing"),
        "a head that was refused": head(refusal="malformed"),
    }
    if stage is Stage.REQUEST:
        heads |= {
            "a path no rule allows": head(Message(path="/nope")),
            "a body too large": head(
                Message("/small", "POST", fields=((b"Content-Length", b"11"),))
            ),
            "a small body": head(Message("/small", "POST", fields=((b"Content-Length", b"9"),))),
        }
    return heads | {
        "a public address": Resolved(PUBLIC, NOW),
        "a private address": Resolved(PRIVATE, NOW),
        "no address": Resolved((), NOW),
        "reserved": LedgerAnswered(),
        "held, on two accounts": LedgerAnswered(hold=HOLD, now_ms=1),
        "not reserved": LedgerAnswered("rate-limited", 500),
        "used up": LedgerAnswered("budget-exhausted", shortfall=SHORT),
        "stored": RecordStored(same, later),
        "stored, other policy": RecordStored(closed, later),
        "stored, halted": RecordStored(same, later, halted=True),
        "a head was sent": RequestSent(100, body=False),
        "a body was sent": RequestSent(20),
        "an answer": ResponseHead(200, 80, None),
        "an answer too large": ResponseHead(200, 80, 5000),
        "a part of the answer": ResponseReceived(6),
        "a large part of the answer": ResponseReceived(70),
        "a part that is whole or nothing": ResponseReceived(70, divisible=False),
        "an answer without a body": ResponseHead(304, 80, None, bodiless=True),
        "an answer of known length": ResponseHead(200, 80, 60),
        "more is wanted": SliceWanted("bytes_in", 70),
        "more is wanted the other way": SliceWanted("bytes_out", 20),
        "more is held": SliceAnswered("bytes_in", slice_of("bytes_in", 64), now_ms=2),
        "more is held the other way": SliceAnswered("bytes_out", slice_of("bytes_out", 40)),
        "no limit any more": SliceAnswered("bytes_in", Hold()),
        "no more is held": SliceAnswered("bytes_in", refusal="budget-exhausted", shortfall=SHORT),
        "a slice is recorded": SliceStored("bytes_in"),
        "a slice is recorded the other way": SliceStored("bytes_out"),
        "a slice is not recorded": SliceStored("bytes_in", "audit-unavailable"),
        "the end": ResponseEnd(),
        "a failure": Failed("internal-error"),
        "a failure with a record under way": Failed("deadline-exceeded", "why", queued=True),
    }


def answer(effects: Sequence[Effect], policy_set: PolicySet) -> Event | None:
    """The event with which a working house answers effects, None where none is due."""
    for effect in effects:
        match effect:
            case Resolve():
                return Resolved(PUBLIC, NOW)
            case Reserve():
                return LedgerAnswered()
            case ReserveMore(wanted):
                return SliceAnswered(wanted.unit, slice_of(wanted.unit, 64))
            case StoreRecord(SliceRecord() as record):
                return SliceStored(record.reserve[0].unit)
            case StoreRecord(DecisionRecord()):
                return RecordStored(policy_set, NOW)
    return None


class LawBroken(AssertionError):  # noqa: N818  named after the failure
    """The watch saw something that no exchange may do."""


class Watch:
    """Looks at events and effects of one exchange, and knows nothing of how it works."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.recorded: DecisionRecord | None = None
        self.is_stored = False
        self.is_held = False
        self.forwarded: Forward | None = None
        self.denied: Deny | None = None
        self.failed_before = False
        self.outcomes = 0
        self.written: list[str] = []
        self.stored: Counter[tuple[str, str]] = Counter()  # held and durable, by account and unit
        self.limited: set[str] = set()  # units that some account limits
        self.granted: Counter[str] = Counter()  # bytes that may pass, by the least account
        self.slices: dict[str, SliceRecord] = {}  # asked to be recorded
        self.released: Release | None = None

    def feed(self, event: Event) -> list[Effect]:
        """One event; ContractBroken passes through, and is then told as a failure."""
        if isinstance(event, Failed) and self.forwarded is None:
            self.failed_before = True
        if isinstance(event, RecordStored) and self.recorded is not None and not self.is_stored:
            self.is_stored = True
            self._take(self.recorded.reserve)
            self.limited = {unit for _, unit, _ in self.recorded.reserve}
        was_over = self.exchange.is_over
        try:
            effects = self.exchange.handle(event)
        except ContractBroken:
            self.failed_before = self.failed_before or self.forwarded is None
            event = Failed("contract-broken")
            effects = self.exchange.handle(event)
        for effect in effects:
            self._look(effect)
        if not was_over:
            self._count(event)
        return effects

    def _take(self, reserve: Sequence[Amount]) -> None:
        """These holds are durable."""
        least: dict[str, int] = {}
        for account, unit, amount in reserve:
            self.stored[account, unit] += amount
            least[unit] = min(least.get(unit, amount), amount)
        self.granted.update(least)

    def _count(self, event: Event) -> None:
        """L4: no byte passes that is not held, and known to the log."""
        if isinstance(event, SliceAnswered) and not event.refusal and not event.hold.granted:
            self.limited.discard(event.unit)  # an operator took the limit away
        if isinstance(event, SliceStored) and event.unit in self.slices:
            record = self.slices.pop(event.unit)
            if not event.refusal:
                self._take(record.reserve)
        counted = {"bytes_out": self.exchange.bytes_out, "bytes_in": self.exchange.bytes_in}
        for unit in self.limited & counted.keys():
            fits = counted[unit] <= self.granted[unit]
            # a head was read before anybody could know its size: charged, and cut off
            charged = isinstance(event, ResponseHead) and self.exchange.is_over
            self._hold(fits or charged, f"L4: {counted[unit]} {unit} of {self.granted[unit]}")
            if isinstance(event, ResponseHead) and not fits:
                self.limited.discard(unit)  # it stays charged

    def _check_release(self, effect: Release) -> None:
        """L4: never more than was held and recorded; nothing only if nothing left."""
        self._hold(self.is_held, "L4: a release of nothing")
        self.is_held, self.released = False, effect
        spent: Counter[tuple[str, str]] = Counter()
        for account, unit, amount in effect.spent:
            spent[account, unit] += amount
        for key, amount in spent.items():
            self._hold(0 < amount <= self.stored[key], f"L4: {amount} of {self.stored[key]} {key}")
        left = self.forwarded is not None and self.exchange.bytes_out > 0
        self._hold(effect.settle or not left, "L4: a void of what left")
        self._hold(effect.settle or not effect.spent, "L4: a void that books")
        if not effect.settle:
            return
        for (account, unit), amount in self.stored.items():
            exact = not unit.startswith("bytes_") and amount
            self._hold(not exact or spent[account, unit] == amount, f"L4: {unit} not in full")

    def finish(self) -> None:
        """Break whatever is still under way off, and look at the end."""
        for _ in range(4):
            effects = self.feed(Failed("draining"))
            while (event := answer(effects, self.exchange.policy_set)) is not None:
                effects = self.feed(event)
        self._hold(not self.is_held, "L4: a reservation without an end")
        ended = self.denied is not None or self.forwarded is not None
        self._hold(ended, "L3: an end without an answer")
        allowed = self.recorded is not None and self.recorded.decision.verdict is Verdict.ALLOW
        request = self.exchange.stage is Stage.REQUEST
        if allowed and request and (self.forwarded or self.is_stored):
            self._hold(self.outcomes == 1, "L5: an allow without an outcome")

    def _look(self, effect: Effect) -> None:
        match effect:
            case StoreRecord(DecisionRecord() as record):
                self._hold(self.recorded is None, "L5: two decisions")
                self.recorded = record
                event = describe_decision("0" * 32, "request", record, client="c", serial=1)
                self.written.append(repr(event))
                self._hold(SECRET not in repr(event), "L6: a credential in a record")
                self._hold("authorization" not in repr(event).lower(), "L6: its name in a record")
            case StoreRecord(SliceRecord() as slice_record):
                self._hold(self.forwarded is not None, "L5: a slice before the forward")
                self._hold(self.outcomes == 0, "L5: a slice behind the outcome")
                self.slices[slice_record.reserve[0].unit] = slice_record
            case StoreRecord(OutcomeRecord() as outcome):
                spent = self.released.spent if self.released else ()
                self._hold(outcome.settle == spent, "L4: the outcome books something else")
                self._hold(self.outcomes == 0, "L5: two outcomes")
                known = self.recorded is not None
                self._hold(known, "L5: an outcome before its decision")
                self.outcomes += 1
            case Reserve():
                self._hold(not self.is_held, "L4: two reservations")
                self.is_held = True
            case Release():
                self._check_release(effect)
            case Forward():
                self._check_forward(effect)
                self.forwarded = effect
            case Deny():
                self._hold(self.forwarded is None, "a denial after the forward")
                self._hold(self.denied is None, "two denials")
                self.denied = effect
            case Close():
                self._hold(self.forwarded is not None, "a cut of nothing")

    def _check_forward(self, effect: Forward) -> None:
        recorded = self.recorded
        self._hold(recorded is not None, "L1: forward without a decision")
        if recorded is not None:
            self._hold(recorded.decision.verdict is Verdict.ALLOW, "L1: forward without an allow")
            self._hold(recorded.decision == effect.decision, "L1: forward of something else")
        self._hold(self.is_stored, "L2: forward before the record is stored")
        self._hold(not self.failed_before, "L3: forward after a failure")
        self._hold(self.denied is None, "L3: forward after a denial")
        self._hold(self.forwarded is None, "two forwards")
        if self.exchange.stage is Stage.REQUEST:
            ticket, request = effect.ticket, effect.request
            self._hold(ticket is not None and request is not None, "L1: no ticket")
            if ticket is not None and request is not None:
                self._hold(ticket.digest == ticket_digest(request), "L1: a ticket for another one")

    def _hold(self, holds: bool, law: str) -> None:
        if not holds:
            raise LawBroken(law)

    def told_refused(self, event: Event) -> None:
        """After `LedgerAnswered` with a refusal nothing is held: the ledger says so."""
        if isinstance(event, LedgerAnswered) and event.refusal:
            self.is_held = False
