"""Everything a policy says, compiled together, and the index that answers in microseconds. PURE.

    build(rules, agents, …) -> PolicySet --engine.decide--> Decision

Rule 1: immutable and complete. A reload builds another one and swaps one reference.
Rule 2: the digest is given, not computed here: it covers the file's tree (compile.py).
Rule 3: what is asked on every request is looked up, not searched: `budgets_of` was resolved through
        groups when the set was built.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from policies.compiled import CompiledRule, compile_rule
from policies.index import HostIndex, paths_for
from policies.model import Scheme
from policies.rule import Agent, Budget, Defaults, PathPattern, Rate, Rule, Who
from policies.target import loosen_path


@dataclass(frozen=True, slots=True)
class PolicySet:
    """One compiled policy."""

    digest: str  # SHA-256 (hex) of the compiled tree
    name: str
    agents: Mapping[str, Agent]
    rates: Mapping[str, Rate]
    defaults: Defaults
    rules: tuple[Rule, ...]
    index: HostIndex[CompiledRule] = field(compare=False, repr=False)
    budgets: Mapping[str, Budget] = MappingProxyType({})
    keep_rules: frozenset[str] = frozenset()  # ids of what a quarantined agent may still do
    drawn: Mapping[str, tuple[Budget, ...]] = field(  # by agent id; agents without: absent
        default=MappingProxyType({}), compare=False, repr=False
    )

    def budgets_of(self, agent_id: str) -> tuple[Budget, ...]:
        """The budgets whose `who` reaches an agent, by id; none for an agent nobody knows."""
        return self.drawn.get(agent_id, ())


def build(
    rules: Iterable[Rule],
    agents: Iterable[Agent],
    rates: Iterable[Rate],
    defaults: Defaults,
    digest: str,
    name: str,
    *,
    budgets: Iterable[Budget] = (),
    keep_rules: frozenset[str] = frozenset(),
) -> PolicySet:
    """Compile and index validated rules. The order of `rules` has no meaning.

    Raises:
        ValueError: two rules, agents, rates or budgets share an id, a rule names an unknown rate,
            `keep_rules` an unknown rule, or a regular expression is bad. The validator reports
            all of these as findings before.
    """
    pool: dict[Hashable, Any] = {}
    all_rules = tuple([_share(rule, pool) for rule in rules])
    lost = keep_rules - _key_by_id("rule", all_rules).keys()
    if lost:
        raise ValueError(f"quarantine keeps the unknown rule `{min(lost)}`")
    known_rates = _key_by_id("rate", rates)
    known_agents = _key_by_id("agent", agents)
    known_budgets = _key_by_id("budget", budgets)
    for rule in all_rules:
        for rate in rule.with_.rates:
            if rate not in known_rates:
                raise ValueError(f"rule `{rule.id}` names the unknown rate `{rate}`")
    return PolicySet(
        digest,
        name,
        known_agents,
        known_rates,
        defaults,
        all_rules,
        _build_index(all_rules, keep_rules),
        known_budgets,
        keep_rules,
        _resolve_budgets(known_agents.values(), known_budgets.values()),
    )


def reaches(who: Who | None, agent: Agent) -> bool:
    """Whether `who` means an agent, itself or as a member of a group."""
    return who is None or agent.id in who.agents or not who.groups.isdisjoint(agent.groups)


def _resolve_budgets(
    agents: Iterable[Agent], budgets: Iterable[Budget]
) -> Mapping[str, tuple[Budget, ...]]:
    ordered = sorted(budgets, key=lambda budget: budget.id)
    everyone = {budget.id for budget in ordered if budget.who is None}
    by_name: dict[tuple[str, str], set[str]] = {}
    for budget in ordered:
        who = budget.who or Who()
        for key in [("agent", one) for one in who.agents] + [("group", one) for one in who.groups]:
            by_name.setdefault(key, set()).add(budget.id)
    shared: dict[frozenset[str], tuple[Budget, ...]] = {}  # thousands of agents, few combinations
    drawn: dict[str, tuple[Budget, ...]] = {}
    for agent in agents:
        named = [by_name.get(("group", group), ()) for group in agent.groups]
        ids = frozenset(everyone.union(by_name.get(("agent", agent.id), ()), *named))
        if ids not in shared:
            shared[ids] = tuple(budget for budget in ordered if budget.id in ids)
        if ids:
            drawn[agent.id] = shared[ids]
    return MappingProxyType(drawn)


def _key_by_id[T: (Rule, Agent, Rate, Budget)](kind: str, entries: Iterable[T]) -> Mapping[str, T]:
    keyed: dict[str, T] = {}
    for entry in entries:
        if entry.id in keyed:
            raise ValueError(f"duplicate {kind} `{entry.id}`")
        keyed[entry.id] = entry
    return MappingProxyType(keyed)


def _share(rule: Rule, pool: dict[Hashable, Any]) -> Rule:
    """The same rule, with equal parts of equal rules held in memory once."""

    def one[P: Hashable](part: P) -> P:
        found: P = pool.setdefault(part, part)
        return found

    def spread(path: PathPattern) -> PathPattern:
        return one(PathPattern(tuple(map(one, path.segments)), path.rest))

    match = rule.match
    shared = replace(
        match,
        schemes=one(match.schemes),
        ports=one(match.ports),
        methods=one(match.methods),
        paths=match.paths and one(tuple(map(spread, match.paths))),
        path_res=one(match.path_res),
        query=one(match.query),
        headers=one(match.headers),
        dest_ip=one(match.dest_ip),
    )
    return replace(
        rule, match=shared, who=one(rule.who), with_=one(rule.with_), cost=one(rule.cost)
    )


def _build_index(rules: tuple[Rule, ...], keep_rules: frozenset[str]) -> HostIndex[CompiledRule]:
    index: HostIndex[CompiledRule] = HostIndex()
    opened: set[tuple[int, Who | None, frozenset[Scheme] | None, bool]] = set()
    for rule in rules:
        compiled = compile_rule(rule)
        for table in index.tables_for(rule.match):
            for pattern in _list_patterns(compiled):
                table.root.place(pattern).add(rule.who, compiled)
            if compiled.is_wall():
                table.add_wall(rule.who, compiled)
            elif not compiled.is_deny:
                # stage 1 needs one witness, so of ten thousand alike it keeps the first, and all
                # that still count for a quarantined agent
                alike = (id(table), rule.who, rule.match.schemes, rule.shadow)
                special = bool(compiled.gates) or rule.id in keep_rules
                if special or alike not in opened:
                    table.add_opening(rule.who, compiled)
                if not special:
                    opened.add(alike)
    return index


def _list_patterns(compiled: CompiledRule) -> Iterable[PathPattern]:
    """Where the rule is filed; a deny also under what most origins read its patterns as."""
    patterns = paths_for(compiled.rule.match)
    if compiled.is_deny:
        patterns += tuple(map(_loosen, patterns))
    return dict.fromkeys(patterns)


def _loosen(pattern: PathPattern) -> PathPattern:
    segments = [replace(one, text=loosen_path(one.text)) for one in pattern.segments]
    return PathPattern(tuple(segments), pattern.rest)
