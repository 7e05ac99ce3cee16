"""Which rules match one request: candidates from the index, judged one by one. PURE.

    index.find -> candidates --judge--> Tally(denies, allows, shadows, blocked)

Rule 1: a deny counts when it matches or when it cannot be judged; an allow only when it matches.
Rule 2: a path that origins read in several ways (`;params`, encoded `,` or `@`) is judged in every
        reading by the denies, and in the reading that would be sent by the allows.
"""

from dataclasses import replace
from typing import NamedTuple

from policies.compiled import CompiledRule
from policies.match import Facts
from policies.model import Request
from policies.outcome import FALSE, TRUE, Outcome
from policies.policy_set import PolicySet
from policies.rule import Agent
from policies.target import loosen_path, strip_params


class Tally:
    """Which rules of a policy set match one request."""

    __slots__ = (
        "allows",
        "blocked",
        "denies",
        "shadow_allows",
        "shadow_denies",
        "suspended",
        "unsure",
    )

    def __init__(self) -> None:
        self.denies: list[CompiledRule] = []
        self.allows: list[CompiledRule] = []
        self.shadow_denies: list[CompiledRule] = []
        self.shadow_allows: list[CompiledRule] = []
        self.blocked: list[CompiledRule] = []  # allows that only the addresses keep from matching
        self.suspended: list[CompiledRule] = []  # allows that quarantine keeps from counting
        self.unsure: dict[CompiledRule, Facts] = {}  # denies that match on an unknown

    def count(self, rule: CompiledRule, facts: Facts) -> None:
        """Judge one candidate and file it."""
        if rule.is_deny:
            self._count_deny(rule, facts)
        elif rule.judge(facts) == TRUE:
            if not rule.opens(facts):
                if not rule.is_shadow:
                    self.blocked.append(rule)
            elif rule.is_shadow:
                self.shadow_allows.append(rule)
            else:
                self.allows.append(rule)

    def keep(self, rules: frozenset[str]) -> None:
        """Quarantine: of the allows only those with these ids count."""
        self.suspended = [allow for allow in self.allows if allow.rule.id not in rules]
        self.allows = [allow for allow in self.allows if allow.rule.id in rules]

    def _count_deny(self, rule: CompiledRule, facts: Facts) -> None:
        outcome: Outcome
        try:
            outcome = rule.judge(facts)
        except Exception:  # noqa: BLE001  an error in a deny rule denies (policy.md 2.4)
            outcome = "unknown"
        if outcome == FALSE:
            return
        if outcome != TRUE:
            self.unsure[rule] = facts
        (self.shadow_denies if rule.is_shadow else self.denies).append(rule)


class _Variant(NamedTuple):
    """Another reading of the path, and which rules are asked about it."""

    path: str
    asks_allows: bool
    skipped: str  # allows with this `path_params` are about another reading


def gather(request: Request, agent: Agent, policy_set: PolicySet, facts: Facts) -> Tally:
    """Every rule that matches, found through the index."""
    tally = Tally()
    index = policy_set.index
    if not request.path_params and "%" not in request.path:
        for rule in index.find(request.host, request.port, request.path, agent.id, agent.groups):
            tally.count(rule, facts)
        return tally
    for variant in _read_path(request):
        read = facts._replace(request=_with_path(request, variant.path))
        for rule in index.find(request.host, request.port, variant.path, agent.id, agent.groups):
            if rule.is_deny or (variant.asks_allows and rule.path_params != variant.skipped):
                tally.count(rule, read)
    return _without_repetition(tally)


def _read_path(request: Request) -> list[_Variant]:
    """Every way an origin may read a path that carries parameters or escapes.

    Allows are judged on what their own `path_params` would send. Denies are judged on all.
    """
    path = request.path
    variants = [_Variant(path, asks_allows=True, skipped="strip" if request.path_params else "-")]
    stripped = strip_params(path)
    if request.path_params:
        variants.append(_Variant(stripped, asks_allows=True, skipped="keep"))
    loose = loosen_path(path)
    others = dict.fromkeys((loose, loosen_path(stripped), strip_params(loose)))
    known = {variant.path for variant in variants}
    return variants + [_Variant(other, False, "-") for other in others if other not in known]


def _with_path(request: Request, path: str) -> Request:
    return request if path == request.path else replace(request, path=path)


def _without_repetition(tally: Tally) -> Tally:
    for name in ("denies", "allows", "shadow_denies", "shadow_allows", "blocked"):
        setattr(tally, name, list(dict.fromkeys(getattr(tally, name))))
    return tally
