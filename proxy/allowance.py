"""What one exchange may still spend, and what it owes at its end. PURE.

    Hold (of the ledger) -> Allowance -> may so many bytes pass?  a part of them?  a further slice?
                                      -> the settlement

Rule 1: a slice counts only once its record is durable (`store`), so no byte passes unrecorded.
Rule 2: a unit without an entry in `granted` is not limited by any account.
Rule 3: exact units are settled in full, bytes as counted, never more than was held (I2), nor more
        than the log knows was held: a settlement beyond that could not be folded.
"""

from dataclasses import dataclass, field

from policies.budget import SLICE_BYTES, Amount, Hold, Left, Shortfall, allocate, join
from policies.model import ContractBroken, Decision, Request
from proxy.vocabulary import (
    RequestSent,
    Reserve,
    ResponseHead,
    ResponseReceived,
    SliceAnswered,
    SliceStored,
    SliceWanted,
)

OUT, IN = "bytes_out", "bytes_in"
_EXHAUSTED = "budget-exhausted"
_HELD_MAX = 256  # entries: a stream that pays in more periods than a record can hold is cut

Passing = RequestSent | ResponseHead | ResponseReceived


def order(decision: Decision, request: Request, head_bytes: int) -> Reserve:
    """What must be held before this request may leave (policy.md section 4, *Reserve*)."""
    owed = decision.obligations
    amounts = {
        "requests": 1,
        "steps": owed.steps,
        "effort": owed.effort,
        "risk": owed.risk,
        OUT: head_bytes + (request.body_length or 0),
    }
    slices = {IN}
    if request.websocket or (request.body and request.body_length is None):
        slices.add(OUT)
    return Reserve(decision, request, amounts, frozenset(slices))


@dataclass(slots=True)
class Allowance:
    """One per exchange."""

    held: list[Amount] = field(default_factory=list)  # and recorded, in the order of the holds
    granted: dict[str, int] = field(default_factory=dict)  # byte unit -> bytes that may pass
    counted: dict[str, int] = field(default_factory=lambda: {OUT: 0, IN: 0})
    left: tuple[Left, ...] = ()  # on all accounts, behind the first hold
    shortfall: Shortfall | None = None
    fit_bytes: int = 0  # of the part that did not fit whole, so many bytes may still pass
    _slices: dict[str, Hold] = field(default_factory=dict)  # held, their record not yet durable
    _refusals: dict[str, str] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)  # length known: no slice behind it

    def begin(self, hold: Hold) -> None:
        """The reservation of the decision itself; its record is the decision's."""
        self.held = list(hold.amounts)
        self.granted = dict(hold.granted)
        self.left = hold.left

    def find_shortage(self, event: Passing) -> SliceWanted | None:
        """What must be held before the event may be handled; None: nothing."""
        unit, count, whole = _measure(event)
        limit = self.granted.get(unit)
        if limit is None:
            return None
        if isinstance(event, ResponseHead) and event.length_bytes is not None:
            self._ends[unit] = self.counted[unit] + count
        need = self.counted[unit] + count - limit
        return SliceWanted(unit, need, whole) if need > 0 else None

    def anticipate(self, unit: str) -> SliceWanted | None:
        """A further slice while the last one still runs, so that the stream need not wait."""
        limit = self.granted.get(unit)
        if limit is None or unit in self._slices or unit in self._refusals or unit in self._ends:
            return None
        if unit == OUT and not self._is_streamed_out:
            return None
        left = limit - self.counted[unit]
        return SliceWanted(unit, SLICE_BYTES) if left < SLICE_BYTES // 2 else None

    _is_streamed_out: bool = False

    def stream_out(self) -> None:
        """The request body has no known length."""
        self._is_streamed_out = True

    def answer(self, event: SliceAnswered) -> bool:
        """Take what the ledger said; True: it has to be recorded."""
        if event.refusal:
            self._refusals[event.unit] = event.refusal
            self.shortfall = event.shortfall or self.shortfall
            return False
        if event.unit in self._slices:
            raise ContractBroken("a second slice before the first is stored")
        self._refusals.pop(event.unit, None)
        if event.unit not in event.hold.granted:
            self.granted.pop(event.unit, None)  # no account limits it any more
            return False
        if len(self.held) > _HELD_MAX:
            self._refusals[event.unit] = _EXHAUSTED
            return False
        self._slices[event.unit] = event.hold
        return True

    def store(self, event: SliceStored) -> None:
        """The slice may be used from now on, or (its record failed) never."""
        hold = self._slices.pop(event.unit, None)
        if hold is None:
            raise ContractBroken("a slice that nobody asked for")
        if event.refusal:
            self._refusals[event.unit] = event.refusal
            return
        self.held = list(join(self.held, hold.amounts))
        if event.unit in self.granted:
            self.granted[event.unit] += hold.granted[event.unit]

    def count(self, event: Passing) -> str:
        """Count what passes; returns the reason to cut where it does not fit, else ""."""
        unit, need, _ = _measure(event)
        size = event.count_bytes
        limit = self.granted.get(unit)
        if limit is not None and self.counted[unit] + need > limit:
            fit = max(0, limit - self.counted[unit])
            if isinstance(event, ResponseHead):
                self.counted[unit] += size  # it was read, so it is charged
                self.fit_bytes = 0
            else:
                self.fit_bytes = min(fit, size) if event.divisible else 0
                self.counted[unit] += self.fit_bytes
            return self._refusals.get(unit) or _EXHAUSTED
        self.counted[unit] += size
        return ""

    def settle(self) -> tuple[Amount, ...]:
        """What is booked when something was sent."""
        return allocate(self.held, self.counted)


def _measure(event: Passing) -> tuple[str, int, bool]:
    """Unit, the bytes that must be covered, and whether all of them must be."""
    match event:
        case RequestSent():
            return OUT, event.count_bytes, False
        case ResponseReceived():
            return IN, event.count_bytes, False
        case ResponseHead(length_bytes=None):
            return IN, event.count_bytes + (not event.bodiless), True
        case ResponseHead():
            return IN, event.count_bytes + (event.length_bytes or 0), True
