"""The obligations of several matching allow rules become one. PURE.

Rule 1: what limits, adds up: every rate applies, the smallest size wins, redactions are united,
        steps and effort are summed, of risk the largest counts.
Rule 2: what can have one value only (`capture`, `path_params`) comes from the most specific rule
        that says anything; two equally specific rules that disagree are a Conflict, a denial.

Policy.md 2.6; finding AP301 is the same question asked of the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from policies.compiled import CompiledRule
from policies.match import host_matches, path_matches
from policies.model import Obligations, Principal, RateUse, Request
from policies.rule import Agent, Capture, PathParams, PathPattern, Rate, Rule
from policies.target import strip_params

_PLAIN_CAPTURE: Capture = "metadata"  # what holds when no rule says anything
_PLAIN_PATH_PARAMS: PathParams = "refuse"
_HOST_RANK = {"exact": 3, "ip": 3, "one_label": 2, "any_depth": 1}


class Specificity(NamedTuple):
    """How narrowly a rule names one request, compared from left to right."""

    host: int  # 3 exact, 2 `*.`, 1 `**.`, 0 any
    port: bool  # names ports
    literal_segments: int  # of the matching path pattern
    methods: bool  # names methods
    who: int  # 2 the agent, 1 a group of it, 0 everyone


@dataclass(frozen=True, slots=True)
class Conflict:
    """Equally specific rules give one thing two values."""

    field: Literal["capture", "path_params"]
    rules: tuple[str, ...]  # ids, sorted


def join_obligations(
    allows: Sequence[CompiledRule],
    request: Request,
    principal: Principal,
    agent: Agent,
    rates: Mapping[str, Rate],
) -> Obligations | Conflict:
    """The obligations of one request that `allows` (at least one) permit."""
    if len(allows) == 1:
        only = allows[0]
        if not only.rule.with_.rates:
            return only.obligations
        return replace(only.obligations, rates=_list_rates(allows, principal, rates))
    withs = [(allow.rule, allow.rule.with_) for allow in allows]
    captures: list[tuple[Rule, Capture | None]] = [(rule, one.capture) for rule, one in withs]
    capture = _pick("capture", captures, _PLAIN_CAPTURE, (request, agent))
    if isinstance(capture, Conflict):
        return capture
    params: list[tuple[Rule, PathParams | None]] = [(rule, one.path_params) for rule, one in withs]
    path_params = _pick("path_params", params, _PLAIN_PATH_PARAMS, (request, agent))
    if isinstance(path_params, Conflict):
        return path_params
    each = [allow.obligations for allow in allows]
    return Obligations(
        _list_rates(allows, principal, rates),
        _smallest(one.max_request_bytes for one in each),
        _smallest(one.max_response_bytes for one in each),
        capture,
        tuple(sorted({segment for one in each for segment in one.redact_path})),
        path_params,
        steps=sum(one.steps for one in each),
        effort=sum(one.effort for one in each),
        risk=max(one.risk for one in each),
        show_budget=any(one.show_budget for one in each),
    )


def rank(rule: Rule, request: Request, agent: Agent) -> Specificity:
    """How specific a rule is about a request that it matches (policy.md 2.6)."""
    match, who = rule.match, rule.who
    hosts = [_HOST_RANK[h.kind] for h in match.hosts or () if host_matches(h, request.host)]
    paths = [_literals(path) for path in match.paths or () if _covers(path, request.path)]
    return Specificity(
        max(hosts, default=0),
        match.ports is not None,
        max(paths, default=0),
        match.methods is not None,
        0 if who is None else 2 if agent.id in who.agents else 1,
    )


def _covers(path: PathPattern, text: str) -> bool:
    return path_matches(path, text) or path_matches(path, strip_params(text))


def _literals(path: PathPattern) -> int:
    return sum(segment.kind == "literal" for segment in path.segments)


def _pick[T](
    field: Literal["capture", "path_params"],
    said: list[tuple[Rule, T | None]],
    default: T,
    ranked_for: tuple[Request, Agent],
) -> T | Conflict:
    """The value of the most specific rule that says one."""
    values = [(rule, value) for rule, value in said if value is not None]
    if len({value for _, value in values}) < 2:
        return values[0][1] if values else default
    ranked = [(rank(rule, *ranked_for), rule, value) for rule, value in values]
    best = max(specificity for specificity, _, _ in ranked)
    tied = [(rule.id, value) for specificity, rule, value in ranked if specificity == best]
    if len({value for _, value in tied}) > 1:
        return Conflict(field, tuple(sorted(rule_id for rule_id, _ in tied)))
    return tied[0][1]


def _list_rates(
    allows: Sequence[CompiledRule], principal: Principal, rates: Mapping[str, Rate]
) -> tuple[RateUse, ...]:
    """Each rate once per key; sorted, so that the order of rules has no meaning."""
    uses = {
        (name, _key_of(rates[name], allow.id, principal))
        for allow in allows
        for name in allow.rule.with_.rates
    }
    return tuple([RateUse(name, key) for name, key in sorted(uses)])


def _key_of(rate: Rate, rule_id: str, principal: Principal) -> str:
    if rate.each == "rule":
        return rule_id
    if rate.each == "session" and principal.session:
        return principal.session
    return principal.agent  # an agent identified by its source has one session: itself


def _smallest(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
