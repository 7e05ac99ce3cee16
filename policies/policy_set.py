"""Everything a policy says, compiled together, and the index that answers in microseconds. PURE.

    build(rules, agents, …) -> PolicySet --engine.decide--> Decision

Rule 1: immutable and complete. A reload builds another one and swaps one reference.
Rule 2: the digest is given, not computed here: it covers the file's tree (compile.py).
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from policies.compiled import CompiledRule, compile_rule
from policies.index import HostIndex, paths_for
from policies.model import Scheme
from policies.rule import Agent, Defaults, PathPattern, Rate, Rule, Who
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


def build(
    rules: Iterable[Rule],
    agents: Iterable[Agent],
    rates: Iterable[Rate],
    defaults: Defaults,
    digest: str,
    name: str,
) -> PolicySet:
    """Compile and index validated rules. The order of `rules` has no meaning.

    Raises:
        ValueError: two rules, agents or rates share an id, a rule names an unknown rate, or a
            regular expression is bad. The validator reports all of these as findings before.
    """
    pool: dict[Hashable, Any] = {}
    all_rules = tuple([_share(rule, pool) for rule in rules])
    _key_by_id("rule", all_rules)
    known_rates = _key_by_id("rate", rates)
    for rule in all_rules:
        for rate in rule.with_.rates:
            if rate not in known_rates:
                raise ValueError(f"rule `{rule.id}` names the unknown rate `{rate}`")
    return PolicySet(
        digest,
        name,
        _key_by_id("agent", agents),
        known_rates,
        defaults,
        all_rules,
        _build_index(all_rules),
    )


def _key_by_id[T: (Rule, Agent, Rate)](kind: str, entries: Iterable[T]) -> Mapping[str, T]:
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
    return replace(rule, match=shared, who=one(rule.who), with_=one(rule.with_))


def _build_index(rules: tuple[Rule, ...]) -> HostIndex[CompiledRule]:
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
                # stage 1 needs one witness, so of ten thousand alike it keeps the first
                alike = (id(table), rule.who, rule.match.schemes, rule.shadow)
                if compiled.gates or alike not in opened:
                    table.add_opening(rule.who, compiled)
                if not compiled.gates:
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
