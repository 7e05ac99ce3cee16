"""One compiled rule: what `compile.py` builds from YAML and `policy_set.build` indexes. PURE.

    Rule = verdict + who + match (+ unless + when) + with_

Rule 1: everything here is text, numbers and sets; regular expressions stay text and are compiled
        by the index, so a rule can be compared, hashed and digested.
Rule 2: `None` means "any" and never "default". The YAML defaults (`https`, 443) are filled in by
        compile.py: in an allow, scheme and port that are not named become {"https"} and {443}; in
        a deny and in an `unless` they stay None, so that a deny never fails open on a port nobody
        thought of.
Rule 3: within one `Match` all fields must hold; within one field any entry is enough.

Patterns come from `pattern.parse_host` and `pattern.parse_path`. Keys: policy.md section 1.
"""

from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Literal
from zoneinfo import ZoneInfo

from policies.budget import Threshold
from policies.model import Scheme, Verdict

Network = IPv4Network | IPv6Network
Capture = Literal["metadata", "request", "request_response"]
PathParams = Literal["refuse", "strip", "keep"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BODILESS_METHODS = frozenset(
    {"GET", "HEAD", "DELETE", "OPTIONS"}
)  # `match.body` lets these carry one
ADDRESS_CLASSES = frozenset(
    {"loopback", "private", "link_local", "metadata", "cgnat", "multicast", "reserved"}
)


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`a.com` exact, `*.a.com` one_label, `**.a.com` any_depth, or a canonical IP literal."""

    kind: Literal["exact", "one_label", "any_depth", "ip"]
    name: str  # canonical, without the `*.` or `**.`

    def __str__(self) -> str:
        """The pattern as it is written in YAML."""
        return {"one_label": "*.", "any_depth": "**."}.get(self.kind, "") + self.name


@dataclass(frozen=True, slots=True)
class Segment:
    """One path segment: literal text, `*` (any), `report-*.pdf` (glob), `{x:int}` or `{x:uuid}`."""

    kind: Literal["literal", "any", "glob", "int", "uuid"]
    text: str  # canonical percent-encoded text; for a glob with its `*`; as written for the others

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class PathPattern:
    """Whole segments of a canonical path: "/" is (""), "/a/" is ("a", ""). Only "" matches ""."""

    segments: tuple[Segment, ...]
    rest: bool = False  # a trailing `**`: zero or more further segments

    def __str__(self) -> str:
        parts = [segment.text for segment in self.segments] + (["**"] if self.rest else [])
        return "/" + "/".join(parts)


@dataclass(frozen=True, slots=True)
class Predicate:
    """A test of one query or header value.

    `values` has one entry, except for one_of (any number) and present and absent (none).
    """

    kind: Literal["exact", "one_of", "prefix", "suffix", "re", "present", "absent"]
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DestIp:
    """`dest_ip`: named classes (see ADDRESS_CLASSES) and CIDR ranges."""

    classes: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """`match` or `unless`. Every default means "any"."""

    hosts: tuple[HostPattern, ...] | None = None
    schemes: frozenset[Scheme] | None = None
    ports: frozenset[int] | None = None
    methods: frozenset[str] | None = None
    paths: tuple[PathPattern, ...] | None = None
    path_res: tuple[str, ...] | None = None  # RE2, full match on the canonical (encoded) path
    query: tuple[tuple[str, Predicate], ...] = ()  # decoded key -> test of the decoded value
    headers: tuple[tuple[str, Predicate], ...] = ()  # lower-case name -> test of the value
    query_only: bool = False  # keys that `query` does not list are refused
    websocket: bool = (
        False  # an allow matches an upgrade only with this; in `unless`: only upgrades
    )
    body: bool = False  # an allow of a BODILESS_METHODS method matches a body only with this
    dest_ip: DestIp | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """`when`: the zone's wall clock, half-open. Over midnight it belongs to the day it opens on."""

    timezone: ZoneInfo
    days: frozenset[int] | None = None  # 0 = Monday … 6 = Sunday
    between: tuple[int, int] | None = (
        None  # minutes since midnight, [opens, closes); closes <= 1440
    )
    from_: datetime | None = None  # aware
    until: datetime | None = None  # aware, exclusive


@dataclass(frozen=True, slots=True)
class With:
    """`with`: obligations of an allow. None: this rule says nothing about it."""

    rates: tuple[str, ...] = ()
    max_request_bytes: int | None = None
    max_response_bytes: int | None = None
    capture: Capture | None = None
    redact_path: tuple[int, ...] = ()  # segment numbers from 1
    path_params: PathParams | None = None
    show_budget: bool | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """`cost`: what one request of a rule takes from budgets."""

    steps: int = 1
    effort: int = 1
    risk: int = 0


@dataclass(frozen=True, slots=True)
class Who:
    """`who`: any of these agents or any member of these groups. An empty Who is nobody."""

    agents: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `rules:`."""

    id: str
    verdict: Verdict
    match: Match = field(default_factory=Match)
    description: str = ""
    shadow: bool = False  # `mode: shadow`: counts in `would`, never in the verdict
    who: Who | None = None  # None: every agent of the file
    unless: Match | None = None
    when: Window | None = None
    with_: With = field(default_factory=With)
    cost: Cost = field(default_factory=Cost)
    line: int = 0  # of the rule in its file, from 1


@dataclass(frozen=True, slots=True)
class Agent:
    """One entry of `agents:`. No sources: identified by a proxy credential (user name = id)."""

    id: str
    groups: frozenset[str] = frozenset()
    sources: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Rate:
    """One entry of `rates:`: `allow` requests per `per_ms`, `burst` at rest (GCRA)."""

    id: str
    each: Literal["agent", "session", "rule"]
    allow: int
    per_ms: int
    burst: int


@dataclass(frozen=True, slots=True)
class Budget:
    """One entry of `budgets:`; each agent (or session) of `who` gets an account of its own."""

    id: str
    each: Literal["agent", "session"]
    limits: tuple[tuple[str, int], ...]  # unit of budget.UNITS -> limit, in the order of UNITS
    who: Who | None = None  # None: every agent of the file
    window_ms: int | None = None
    at: tuple[Threshold, ...] = ()


@dataclass(frozen=True, slots=True)
class Defaults:
    """`defaults:`, each with the value it has when the file says nothing."""

    timezone: str = "UTC"
    max_inspect_body_bytes: int = 1_048_576
    explain_denials: bool = True
    mode: Literal["enforce", "observe"] = "enforce"
    on_bad_reload: Literal["hold", "deny"] = "hold"
    stale_limit_ms: int | None = None
    cut_on_tighten: bool = True
