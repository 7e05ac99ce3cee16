"""Why a request is decided so: matching rules, and the rules that missed by least. PURE.

    explain(request, …) -> Explanation(decision, matched(), nearest()) -> render() | to_dict()

Rule 1: the decision is the engine's own, from the same call; nothing is judged a second way.
Rule 2: a trace names every field of a rule: what it wants, what it got, true, false or unknown.
Rule 3: budgets are named, not read: what is left of them is the ledger's to say (`budget show`).
Rule 4: traces are made when they are asked for. Asking costs microseconds for the rules that
        matched and a walk over all rules for those that did not.

Text is for operators: it holds hosts, paths and rule ids that an agent must never see (SPEC 3).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from policies.canonical import strip_request_params
from policies.compiled import compile_window
from policies.describe import describe_budget, describe_cost, describe_field
from policies.engine import decide_with_tally
from policies.host import format_authority
from policies.match import Facts, check_dest_ip, compile_checks, compile_unless
from policies.model import Address, Decision, Principal, Request, Verdict
from policies.outcome import FALSE, TRUE, UNKNOWN, Outcome
from policies.policy_set import PolicySet
from policies.reasons import REASONS
from policies.rule import BODILESS_METHODS, Agent, Budget, Rule
from policies.tally import Tally

NEAREST_MAX = 3
_VERDICT_FIELDS = frozenset({"match.websocket", "match.body", "match.dest_ip"})
_SOME_PUBLIC_ADDRESS = (IPv4Address("1.1.1.1"),)  # stands for "resolved, and public"


class FieldTrace(NamedTuple):
    """One field of one rule against one request."""

    field: str
    outcome: Outcome
    expected: str
    got: str


class RuleTrace(NamedTuple):
    """One rule against one request."""

    rule: Rule
    fields: tuple[FieldTrace, ...]

    @property
    def misses(self) -> tuple[FieldTrace, ...]:
        """The fields that kept the rule from matching (unknown is a match for a deny)."""
        is_deny = self.rule.verdict is Verdict.DENY
        return tuple(
            trace
            for trace in self.fields
            if trace.outcome == FALSE or (trace.outcome == UNKNOWN and not is_deny)
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with everything needed to say why."""

    decision: Decision
    request: Request
    principal: Principal
    policy_set: PolicySet
    facts: Facts
    tally: Tally | None  # None: the caller is unknown, no rule was asked

    def matched(self) -> tuple[RuleTrace, ...]:
        """The rules that match, shadow rules included, by id."""
        if self.tally is None:
            return ()
        tally = self.tally
        found = [*tally.denies, *tally.allows, *tally.shadow_denies, *tally.shadow_allows]
        rules = sorted((compiled.rule for compiled in found), key=lambda rule: rule.id)
        return tuple([self.trace(rule) for rule in rules])

    def nearest(self, limit: int = NEAREST_MAX) -> tuple[RuleTrace, ...]:
        """The allow rules that missed by the fewest fields (at most one more than the nearest).

        Empty when an allow matched. One host short of a match is farther than one method short.
        """
        if self.tally is None or self.tally.allows:
            return ()
        allows = [rule for rule in self.policy_set.rules if rule.verdict is Verdict.ALLOW]
        traces = [trace for trace in map(self.trace, allows) if trace.misses]
        ranked = sorted(traces, key=_distance)[:limit]
        near = len(ranked[0].misses) + 1 if ranked else 0
        return tuple(trace for trace in ranked if len(trace.misses) <= near)

    def suspended(self) -> tuple[Rule, ...]:
        """The allow rules that match and do not count, as the agent is quarantined, by id."""
        found = self.tally.suspended if self.tally else []
        return tuple(sorted((compiled.rule for compiled in found), key=lambda rule: rule.id))

    def budgets(self) -> tuple[Budget, ...]:
        """The budgets an allowed request draws from; a denied one draws from none."""
        if self.decision.verdict is Verdict.DENY:
            return ()
        return self.policy_set.budgets_of(self.principal.agent)

    def trace(self, rule: Rule) -> RuleTrace:
        """Every field of one rule of this policy set against this request."""
        facts = self.facts
        if rule.with_.path_params == "strip" and self.request.path_params:
            facts = facts._replace(request=strip_request_params(self.request))
        agent = self.policy_set.agents[self.principal.agent]
        return RuleTrace(rule, tuple(_trace_fields(rule, facts, agent)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the form of `policy explain --json`."""
        decision = self.decision
        would = decision.would
        return {
            "verdict": str(decision.verdict),
            "reason": decision.reason,
            "rules": list(decision.rules),
            "would": would and {"verdict": str(would.verdict), "rules": list(would.rules)},
            "policy_digest": decision.policy_digest,
            "agent": self.principal.agent,
            "request": _format_request(self.request),
            "addresses": [str(address) for address in self.facts.addresses],
            "cost": _cost_to_dict(decision),
            "budgets": [_budget_to_dict(budget) for budget in self.budgets()],
            "suspended": [rule.id for rule in self.suspended()],
            "matched": [_trace_to_dict(trace) for trace in self.matched()],
            "nearest": [_trace_to_dict(trace) for trace in self.nearest()],
        }

    def render(self) -> str:
        """Plain text for a terminal, without a final newline."""
        decision = self.decision
        reason = REASONS[decision.reason]
        lines = [
            f"{decision.verdict}: {decision.reason} ({reason.title})",
            f"  request  {_format_request(self.request)}",
            f"  agent    {self.principal.agent}",
            f"  policy   {decision.policy_digest}",
        ]
        if decision.would is not None:
            lines.append(f"  would    {decision.would.verdict} {', '.join(decision.would.rules)}")
        if decision.verdict is not Verdict.DENY:
            lines.append(f"  cost     {describe_cost(decision.obligations)}, and bytes and time")
        lines += [f"  budget   {one.id}, {describe_budget(one)}" for one in self.budgets()]
        for rule in self.suspended():
            lines += ["", f"suspended: {_format_rule(rule)}, quarantine does not keep it"]
        for trace in self.matched():
            lines += ["", f"matched: {_format_rule(trace.rule)}", *_format_fields(trace)]
        for trace in self.nearest():
            missed = f"missed by {len(trace.misses)} of {len(trace.fields)} fields"
            lines += ["", f"nearest: {_format_rule(trace.rule)}, {missed}", *_format_fields(trace)]
        if decision.verdict is Verdict.DENY:
            lines += ["", f"what to do: {reason.remedy}"]
        return "\n".join(lines)


def explain(
    request: Request,
    principal: Principal,
    policy_set: PolicySet,
    *,
    addresses: tuple[Address, ...] | None,
    now: datetime,
    observe: bool = False,
    keep_rules: frozenset[str] | None = None,
) -> Explanation:
    """Decide, and keep what is needed to say why.

    `addresses` None means "not resolved": the destination is taken to be public, unless it is an
    IP literal, which is judged as what it is. `keep_rules` as for `engine.decide`: those of the
    policy set where the agent is quarantined.
    """
    known = _SOME_PUBLIC_ADDRESS if addresses is None else addresses
    decision, tally, facts = decide_with_tally(
        request,
        principal,
        policy_set,
        addresses=known,
        now=now,
        observe=observe,
        keep_rules=keep_rules,
    )
    return Explanation(decision, request, principal, policy_set, facts, tally)


_Row = tuple[str, Callable[[Facts, Agent], Outcome]]


def _trace_fields(rule: Rule, facts: Facts, agent: Agent) -> Iterator[FieldTrace]:
    for field, judge in _list_rows(rule):
        outcome = _judge_safely(judge, facts, agent)
        expected = describe_field(rule, field)
        yield FieldTrace(field, outcome, expected, _read_field(field, facts, agent))


def _judge_safely(judge: Callable[[Facts, Agent], Outcome], facts: Facts, agent: Agent) -> Outcome:
    try:
        return judge(facts, agent)
    except Exception:  # noqa: BLE001  a predicate that fails is unknown here as in the engine
        return UNKNOWN


def _list_rows(rule: Rule) -> list[_Row]:
    """Every field of a rule with its judgement."""
    is_allow = rule.verdict is Verdict.ALLOW
    rows: list[_Row] = []
    if rule.who is not None:
        rows.append(("who", lambda _, agent: _judge_who(rule, agent)))
    checks = [*compile_checks(rule.match), *compile_window(rule.when)]
    if rule.unless is not None:
        checks.append(compile_unless(rule.unless))
    for field, judge in checks:
        if field not in _VERDICT_FIELDS:
            rows.append((field, _ignoring_agent(judge)))
    if is_allow or rule.match.dest_ip is not None:
        rows.append(("match.dest_ip", _ignoring_agent(check_dest_ip(rule.match))))
    return rows + _allow_rows(rule) if is_allow else rows


def _allow_rows(rule: Rule) -> list[_Row]:
    """What an allow must say before an upgrade, an odd body or path parameters match."""
    may_upgrade, may_carry = rule.match.websocket, rule.match.body
    params = rule.with_.path_params in ("strip", "keep")
    return [
        (
            "match.websocket",
            lambda facts, _: _holds(may_upgrade or not facts.request.websocket),
        ),
        ("match.body", lambda facts, _: _holds(may_carry or not _has_odd_body(facts.request))),
        ("with.path_params", lambda facts, _: _holds(params or not facts.request.path_params)),
    ]


def _ignoring_agent(judge: Callable[[Facts], Outcome]) -> Callable[[Facts, Agent], Outcome]:
    return lambda facts, _: judge(facts)


def _judge_who(rule: Rule, agent: Agent) -> Outcome:
    who = rule.who
    return _holds(who is None or agent.id in who.agents or not who.groups.isdisjoint(agent.groups))


def _has_odd_body(request: Request) -> bool:
    return request.body and request.method in BODILESS_METHODS


def _holds(yes: bool) -> Outcome:
    return TRUE if yes else FALSE


def _distance(trace: RuleTrace) -> tuple[int, int, str]:
    """Fewest misses first; of these, a wrong host is farthest, then a wrong caller, then a path."""
    missed = {miss.field for miss in trace.misses}
    weights = {"match.host": 8, "who": 4, "match.path": 2, "match.path_re": 2}
    return len(missed), sum(weights.get(field, 0) for field in missed), trace.rule.id


def _read_field(field: str, facts: Facts, agent: Agent) -> str:
    """What the request has where a rule's field looks."""
    request = facts.request
    head, _, name = field.partition(".")
    if head in ("query", "headers"):
        pairs = request.query_pairs if head == "query" else request.headers
        return ", ".join(f"`{value}`" for found, value in pairs if found == name) or "absent"
    if head == "when":
        return facts.now.isoformat(timespec="seconds")
    return _READERS[field](facts, agent)


_READERS: dict[str, Callable[[Facts, Agent], str]] = {
    "who": lambda _, agent: agent.id,
    "match.host": lambda facts, _: facts.request.host,
    "match.scheme": lambda facts, _: facts.request.scheme,
    "match.port": lambda facts, _: str(facts.request.port),
    "match.methods": lambda facts, _: facts.request.method,
    "match.path": lambda facts, _: facts.request.path,
    "match.path_re": lambda facts, _: facts.request.path,
    "match.query_only": lambda facts, _: facts.request.query or "no query",
    "match.websocket": lambda facts, _: "an upgrade" if facts.request.websocket else "no upgrade",
    "match.body": lambda facts, _: "a body" if facts.request.body else "no body",
    "match.dest_ip": lambda facts, _: ", ".join(map(str, facts.addresses)) or "no address",
    "with.path_params": lambda facts, _: "some" if facts.request.path_params else "none",
    "unless": lambda facts, _: _format_request(facts.request),
}


def _format_request(request: Request) -> str:
    query = "" if request.query is None else f"?{request.query}"
    authority = format_authority(request.host, request.port, request.scheme)
    return f"{request.method} {request.scheme}://{authority}{request.path}{query}"


def _format_rule(rule: Rule) -> str:
    shadow = ", shadow" if rule.shadow else ""
    return f"rule `{rule.id}` ({rule.verdict}{shadow}, line {rule.line})"


def _format_fields(trace: RuleTrace) -> list[str]:
    missed = set(trace.misses)
    width = max((len(one.field) for one in trace.fields), default=0)
    return [
        f"  {'MISS' if one in missed else 'ok  '} {one.field:<{width}}  "
        f"{one.expected}; got {one.got}" + (" (unknown)" if one.outcome == UNKNOWN else "")
        for one in trace.fields
    ]


def _cost_to_dict(decision: Decision) -> dict[str, int] | None:
    """What an allowed request takes; None of a denied one."""
    owed = decision.obligations
    if decision.verdict is Verdict.DENY:
        return None
    return {"requests": 1, "steps": owed.steps, "effort": owed.effort, "risk": owed.risk}


def _budget_to_dict(budget: Budget) -> dict[str, Any]:
    return {
        "budget": budget.id,
        "each": budget.each,
        "limits": dict(budget.limits),
        "window_ms": budget.window_ms,
        "at": [{"reached_percent": one.reached_percent, "do": one.do} for one in budget.at],
    }


def _trace_to_dict(trace: RuleTrace) -> dict[str, Any]:
    rule = trace.rule
    return {
        "rule": rule.id,
        "verdict": str(rule.verdict),
        "shadow": rule.shadow,
        "line": rule.line,
        "misses": [miss.field for miss in trace.misses],
        "fields": [one._asdict() for one in trace.fields],
    }
