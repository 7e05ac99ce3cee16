"""The two vocabularies of an exchange: what happens to it, and what it wants done. PURE.

Events go in, effects come out (proxy/exchange.py); whoever performs an effect answers with one
event. A counterpart of mitmproxy's own events and commands, but for a whole exchange.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from policies.budget import Amount, Hold, Shortfall
from policies.model import Address, Decision, Principal, Request
from policies.policy_set import PolicySet

_NOTHING_HELD = Hold()


class Stage(Enum):
    """Which message is judged (audit.md section 1, `stage`)."""

    CONNECT = "connect"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Target:
    """What was asked for, as the record tells it: present even where the request was refused
    unparsed."""

    method: str
    host: str = ""
    port: int = 0
    scheme: str = ""
    path: str = ""
    query_keys: tuple[str, ...] = ()
    sni: str = ""
    content_type: str = ""


# --- events ---------------------------------------------------------------------------------------
# ----------------


@dataclass(frozen=True, slots=True)
class Head:
    """A message head arrived: who asks (or why nobody), and the canonical request (or why there is
    none).

    `refusal` is a code of policies/reasons.py; `detail` goes to the record only.
    """

    target: Target
    principal: Principal | None
    request: Request | None  # None for CONNECT, and where `refusal` is set
    now: datetime
    refusal: str = ""
    detail: str = ""
    quarantined: bool = False  # only what the policy keeps for such agents may pass


@dataclass(frozen=True, slots=True)
class Resolved:
    """Every address the one look-up gave (or the peer of the connection that will be reused).

    `dial_port` differs from the requested port only where the operator pinned one (`--resolve`);
    rules judge the requested port.
    """

    addresses: tuple[Address, ...]
    now: datetime
    dial_port: int = 0


@dataclass(frozen=True, slots=True)
class LedgerAnswered:
    """The reservation was made whole (`refusal` empty), or nothing was held."""

    refusal: str = ""
    retry_after_ms: int | None = None
    hold: Hold = _NOTHING_HELD
    shortfall: Shortfall | None = None  # with `budget-exhausted`
    now_ms: int = 0  # of the ledger's clock; 0: no budget is concerned


@dataclass(frozen=True, slots=True)
class RecordStored:
    """The record asked for is durable. `policy_set` is the one in force *now*, for the re-check."""

    policy_set: PolicySet
    now: datetime
    halted: bool = False
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class RequestSent:
    """`count_bytes` of the request are about to be handed to the upstream connection: of its
    `body`, or of its head."""

    count_bytes: int
    body: bool = True
    divisible: bool = True  # where a budget ends, a part of it may still leave


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The upstream answered. `length_bytes` is its Content-Length, None where unknown."""

    status: int
    count_bytes: int
    length_bytes: int | None
    bodiless: bool = False


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """`count_bytes` of the response body, or of WebSocket payload towards the client, arrived."""

    count_bytes: int
    divisible: bool = True


@dataclass(frozen=True, slots=True)
class SliceWanted:
    """The stream needs `need_bytes` more of a byte budget than it holds; `whole`: or none."""

    unit: str
    need_bytes: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class SliceAnswered:
    """The ledger holds more for the stream, or refused."""

    unit: str
    hold: Hold = _NOTHING_HELD
    refusal: str = ""
    shortfall: Shortfall | None = None
    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class SliceStored:
    """The slice's record is durable (`refusal` empty), or nobody knows."""

    unit: str
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class ResponseEnd:
    """Both messages are complete, or the WebSocket was closed in order."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Anything that went wrong, in whatever step. `queued`: the record asked for may still become
    durable."""

    reason: str
    detail: str = ""
    queued: bool = False


Event = (
    Head
    | Resolved
    | LedgerAnswered
    | RecordStored
    | RequestSent
    | ResponseHead
    | ResponseReceived
    | SliceWanted
    | SliceAnswered
    | SliceStored
    | ResponseEnd
    | Failed
)


# --- effects --------------------------------------------------------------------------------------
# ----------------


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look the destination up once and vet nothing yet."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold what the request may spend: rates and accounts; all or none.

    `amounts` and `slices` as in `policies.budget.Order`.
    """

    decision: Decision
    request: Request
    amounts: Mapping[str, int] = field(default_factory=dict)
    slices: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ReserveMore:
    """Hold a further slice for a stream that is under way."""

    wanted: SliceWanted


@dataclass(frozen=True, slots=True)
class Release:
    """End the reservation: book what was spent, or (`settle` False) nothing, as nothing left."""

    settle: bool
    spent: tuple[Amount, ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """The write-ahead record: what recording.py turns into an audit event."""

    target: Target
    principal: Principal | None
    request: Request | None
    decision: Decision
    addresses: tuple[Address, ...]
    detail: str
    reserve: tuple[Amount, ...] = ()
    reserved_ms: int = 0  # of the ledger's clock


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """A further slice of a running stream."""

    reserve: tuple[Amount, ...]
    reserved_ms: int


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    """How an allowed request ended."""

    status: int | None
    bytes_out: int
    bytes_in: int
    cut: str
    error: str
    settle: tuple[Amount, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """Append a record. A decision and a slice are awaited until durable; an outcome is only
    queued."""

    record: DecisionRecord | SliceRecord | OutcomeRecord


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission to send exactly one request, to exactly these addresses. Only the exchange issues
    it."""

    decision_id: str
    digest: bytes
    addresses: tuple[Address, ...]
    dial_port: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request (or open the tunnel, for CONNECT: then there is no ticket)."""

    decision: Decision
    request: Request | None
    ticket: Ticket | None


@dataclass(frozen=True, slots=True)
class Deny:
    """Refuse the request; nothing of it has left."""

    reason: str
    decision: Decision
    retry_after_ms: int | None = None
    shortfall: Shortfall | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Cut a stream that is under way."""

    reason: str


Effect = Resolve | Reserve | ReserveMore | Release | StoreRecord | Forward | Deny | Close
