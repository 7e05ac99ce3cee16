"""A rule in the form the engine asks: plain slots first, rare predicates as checks. PURE.

    Rule --compile_rule--> CompiledRule.judge(Facts) -> true | false | unknown

Rule 1: host, path and who are the index's work; everything else is judged here, cheapest first.
Rule 2: the address guard of an allow is asked last and apart (`opens`), because "allowed but for
        its address" is a reason of its own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from policies.match import (
    Check,
    Facts,
    are_public,
    check_dest_ip,
    compile_rare_checks,
    compile_unless,
)
from policies.model import Obligations, Read, Scheme, Verdict
from policies.outcome import FALSE, TRUE, UNKNOWN, Outcome, negate
from policies.rule import BODILESS_METHODS, Cost, Match, PathParams, Rule, Window
from policies.window import judge_window

_DESTINATION_FIELDS = frozenset({"hosts", "schemes", "ports"})  # what stage 1 knows


class CompiledRule:
    """One rule of a PolicySet. Compared by identity; never changed after `__init__`."""

    __slots__ = (
        "body",
        "checks",
        "dest_ip",
        "gates",
        "is_deny",
        "is_shadow",
        "methods",
        "obligations",
        "path_params",
        "ports",
        "reads",
        "rule",
        "schemes",
        "websocket",
    )

    def __init__(self, rule: Rule) -> None:
        match = rule.match
        self.rule = rule
        self.is_deny: bool = rule.verdict is not Verdict.ALLOW  # anything but an allow denies
        self.is_shadow: bool = rule.shadow
        self.schemes: frozenset[Scheme] | None = match.schemes
        self.ports: frozenset[int] | None = match.ports
        self.methods: frozenset[str] | None = match.methods
        self.websocket: bool = match.websocket or self.is_deny
        self.body: bool = match.body or self.is_deny
        when = compile_window(rule.when)
        self.gates: tuple[Check, ...] = when + _compile_stage_1_unless(rule.unless)
        self.checks: tuple[Check, ...] = _compile_checks(rule, when)
        self.dest_ip: Callable[[Facts], Outcome] | None = (
            check_dest_ip(match) if match.dest_ip is not None and not self.is_deny else None
        )
        checked = [check.field for check in self.checks]
        plain = [field for field in _plain_fields(rule) if field not in checked]
        self.reads: tuple[Read, ...] = _list_reads(tuple(plain + checked))
        self.obligations: Obligations = _join_alone(rule)
        self.path_params: PathParams | Literal[""] = rule.with_.path_params or ""

    @property
    def id(self) -> str:
        """The rule's id in the policy file."""
        return self.rule.id

    def judge(self, facts: Facts) -> Outcome:
        """Whether the rule matches, host, path, who and an allow's addresses excepted."""
        request = facts.request
        if self.methods is not None and request.method not in self.methods:
            return FALSE
        if self.schemes is not None and request.scheme not in self.schemes:
            return FALSE
        if self.ports is not None and request.port not in self.ports:
            return FALSE
        if request.websocket and not self.websocket:
            return FALSE
        if request.body and not self.body and request.method in BODILESS_METHODS:
            return FALSE
        if not self.checks:
            return TRUE
        return judge_all(self.checks, facts)

    def opens(self, facts: Facts) -> bool:
        """For an allow: every address is public, or inside the rule's `dest_ip`."""
        if self.dest_ip is None:
            return are_public(facts.addresses)
        return self.dest_ip(facts) == TRUE

    def could_match(self, facts: Facts) -> Outcome:
        """Stage 1: only host, port, scheme and time of `facts` are real."""
        if self.schemes is not None and facts.request.scheme not in self.schemes:
            return FALSE
        if self.ports is not None and facts.request.port not in self.ports:
            return FALSE
        return judge_all(self.gates, facts)

    def is_wall(self) -> bool:
        """Whether it is a deny that destination, caller and time alone decide."""
        match, unless = self.rule.match, self.rule.unless
        return (
            self.is_deny
            and _names_only_destination(match)
            and (unless is None or _names_only_destination(unless))
        )

    def trace(self, facts: Facts) -> tuple[Read, ...]:
        """What was read on a match that is not wholly certain."""
        plain = len(self.reads) - len(self.checks)
        judged = [read_of(check.field, check.judge(facts)) for check in self.checks]
        return self.reads[:plain] + tuple(judged)


def judge_all(checks: tuple[Check, ...], facts: Facts) -> Outcome:
    """All of them: the first false ends it, one unknown makes the rest unknown."""
    joined: Outcome = TRUE
    for _, judge in checks:
        outcome = judge(facts)
        if outcome == FALSE:
            return FALSE
        if outcome == UNKNOWN:
            joined = UNKNOWN
    return joined


def compile_window(window: Window | None) -> tuple[Check, ...]:
    """`when` as up to three checks, so that a record says which bound was read."""
    if window is None:
        return ()
    bare = Window(window.timezone)
    parts = []
    if window.from_ is not None:
        parts.append(("when.from", replace(bare, from_=window.from_)))
    if window.until is not None:
        parts.append(("when.until", replace(bare, until=window.until)))
    if window.days is not None or window.between is not None:
        name = "when.days" if window.between is None else "when.between"
        parts.append((name, replace(bare, days=window.days, between=window.between)))
    return tuple([_check_window(field, part) for field, part in parts])


@lru_cache(maxsize=4096)
def read_of(field: str, outcome: Outcome) -> Read:
    """A shared Read. The check `unless` holds when the exception does not; the Read says which."""
    return Read(field, negate(outcome) if field == "unless" else outcome)


@lru_cache(maxsize=4096)
def _list_reads(fields: tuple[str, ...]) -> tuple[Read, ...]:
    return tuple([read_of(field, TRUE) for field in fields])


def _compile_checks(rule: Rule, when: tuple[Check, ...]) -> tuple[Check, ...]:
    checks = when + compile_rare_checks(rule.match)
    if rule.verdict is not Verdict.ALLOW and rule.match.dest_ip is not None:
        checks += (Check("match.dest_ip", check_dest_ip(rule.match)),)
    if rule.unless is not None:
        checks += (compile_unless(rule.unless),)
    return checks


def _compile_stage_1_unless(unless: Match | None) -> tuple[Check, ...]:
    """`unless`, where stage 1 can judge it; else nothing, as the exception may or may not hold."""
    if unless is None or not _names_only_destination(unless):
        return ()
    return (compile_unless(unless),)


def _names_only_destination(match: Match) -> bool:
    blank = Match(hosts=match.hosts, schemes=match.schemes, ports=match.ports)
    return match == blank


def _check_window(field: str, window: Window) -> Check:
    return Check(field, lambda facts: judge_window(window, facts.now))


def _plain_fields(rule: Rule) -> list[str]:
    match = rule.match
    named = {
        "who": rule.who,
        "match.host": match.hosts,
        "match.scheme": match.schemes,
        "match.port": match.ports,
        "match.methods": match.methods,
        "match.path": match.paths,
        "match.websocket": match.websocket or None,
        "match.body": match.body or None,
        "match.dest_ip": match.dest_ip,
    }
    return [field for field, value in named.items() if value is not None]


def _join_alone(rule: Rule) -> Obligations:
    """The obligations of this rule alone, rates excepted: their keys depend on the caller."""
    with_, cost = rule.with_, rule.cost
    return _shared_obligations(
        with_.max_request_bytes,
        with_.max_response_bytes,
        with_.capture or "metadata",
        tuple(sorted(set(with_.redact_path))),
        with_.path_params or "refuse",
        cost=cost,
        show_budget=bool(with_.show_budget),
    )


@lru_cache(maxsize=4096)
def _shared_obligations(
    max_request_bytes: int | None,
    max_response_bytes: int | None,
    capture: Literal["metadata", "request", "request_response"],
    redact_path: tuple[int, ...],
    path_params: PathParams,
    *,
    cost: Cost,
    show_budget: bool,
) -> Obligations:
    return Obligations(
        (),
        max_request_bytes,
        max_response_bytes,
        capture,
        redact_path,
        path_params,
        cost.steps,
        cost.effort,
        cost.risk,
        show_budget,
    )


def compile_rule(rule: Rule) -> CompiledRule:
    """Compile one rule.

    Raises:
        ValueError: a regular expression is not valid.
    """
    return CompiledRule(rule)
