"""The nouns of a decision. PURE: no clock, no I/O, nothing here acts.

    Principal + Request + addresses + time  --engine.decide(PolicySet)-->  Decision (+ Obligations)

Rule 1: a deny is a `Decision`, never an exception; that is a bug or an outage, and denies too.
Rule 2: everything is immutable, so what was judged is what is recorded and what is sent.
Rule 3: text in a `Request` is canonical (policies/canonical.py) and ASCII.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

Address = IPv4Address | IPv6Address
Scheme = Literal["http", "https"]


class Verdict(StrEnum):
    """What is enforced. `ask` arrives with the operators' issue and will sit between these."""

    ALLOW = "allow"
    DENY = "deny"


class ContractBroken(RuntimeError):  # noqa: N818  an invariant of ours, not a caller's error
    """An invariant does not hold. Always ends in a denial, is counted and recorded."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The identified agent a request is charged to."""

    agent: str  # id as in policies.yaml `agents:`
    session: str  # one `agent add` (survives rotation); "" for an agent identified by its source
    client: str  # address of the caller, "203.0.113.9"; recorded, never judged


@dataclass(frozen=True, slots=True)
class Request:
    """One canonical request: exactly what is judged, recorded and sent.

    `path` starts with "/" and is percent-encoded canonically; `query` is the raw canonical text
    without "?" or None when the target had no "?". `query_pairs` are the decoded pairs in order.
    `headers` are (lower-case name, value) in order, without hop-by-hop and Proxy-* fields, without
    Host (it is `host`/`port`).
    """

    scheme: Scheme
    host: str  # lower-case A-label, or canonical IP literal without brackets
    port: int
    method: str
    path: str
    query: str | None = None
    query_pairs: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    websocket: bool = False  # an RFC 6455 handshake
    body: bool = False  # Content-Length > 0, chunked, or HTTP/2 without END_STREAM
    body_length: int | None = None  # bytes, where Content-Length says so
    path_params: bool = False  # some segment carries ";params": refused unless the rule takes it


@dataclass(frozen=True, slots=True)
class Read:
    """One predicate that was read on the way to a decision, for replay (policy.md section 6)."""

    field: str  # e.g. "match.path", "query.tag", "when.between"
    outcome: Literal["true", "false", "unknown"]


@dataclass(frozen=True, slots=True)
class RateUse:
    """One rate the request must pass (GCRA), named as in `rates:`."""

    rate: str
    key: str  # agent, session or rule id, as the rate's `each` says


@dataclass(frozen=True, slots=True)
class Obligations:
    """What must be done when the verdict is allow: the join of all matching allow rules."""

    rates: tuple[RateUse, ...] = ()
    max_request_bytes: int | None = None  # smallest of the matching rules; None: no limit
    max_response_bytes: int | None = None
    capture: Literal["metadata", "request", "request_response"] = "metadata"
    redact_path: tuple[int, ...] = ()  # segment numbers from 1, whose text the record replaces
    path_params: Literal["refuse", "strip", "keep"] = "refuse"
    steps: int = 1  # `cost`: steps and effort of all matching rules add up, risk is the largest
    effort: int = 1
    risk: int = 0
    show_budget: bool = False  # `Tollkeeper-Budget` on the answer


@dataclass(frozen=True, slots=True)
class Would:
    """What the verdict would have been with shadow rules enforced, or without observe mode."""

    verdict: Verdict
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What the engine answered, and why: the unit that is enforced and recorded.

    A deny is a Decision, never an exception.
    """

    verdict: Verdict
    reason: str  # a code from reasons.py, e.g. "no-rule-matched"
    rules: tuple[str, ...] = ()  # ids of the rules that determined the verdict, sorted
    policy_digest: str = ""  # SHA-256 (hex) of the compiled policy set that was asked
    would: Would | None = None  # only where it differs from the verdict
    obligations: Obligations = field(default_factory=Obligations)
    read: tuple[Read, ...] = ()
    retry_after_ms: int | None = None  # only with reason "rate-limited"

    def __post_init__(self) -> None:
        if self.verdict is Verdict.ALLOW and not self.rules and self.reason != "observed":
            raise ValueError("an allow must name the rule that permitted it")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something is not in canonical form, so it cannot be judged and is denied."""

    reason: str  # a code from reasons.py
    detail: str  # for the record and the operator, never for the agent; ASCII, bounded


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A problem in a file, as a value. Sorted by place; policies/findings.py lists the codes."""

    file: str
    line: int  # from 1
    column: int  # from 1
    code: str  # AP…
    severity: Literal["error", "warning", "info"] = field(compare=False)
    message: str = field(compare=False)  # lower case, no full stop, user input in backticks
    hint: str = field(compare=False, default="")
    rule: str = field(compare=False, default="")  # rule id where there is one


class PolicyRejected(ValueError):  # noqa: N818  named after the failure (house.md section 4)
    """A candidate policy was refused whole; carries every finding at once."""

    def __init__(
        self, findings: tuple[Finding, ...], sources: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{len(findings)} findings")
        self.findings = findings
        self.sources = sources or {}  # path as in the findings -> text of the file
