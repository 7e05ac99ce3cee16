"""Two allow rules of one rank that give an obligation two values (AP301). PURE.

    rule -> one claim per host, path and audience -> buckets that can meet -> pairs

Rule 1: only certain conflicts are reported, because AP301 rejects the file. Where two rules may or
        may not meet (`unless`, expressions, different time windows) the engine denies the request
        if it happens (policy.md 2.6).
Rule 2: nothing is quadratic in the number of rules: claims meet only inside a bucket of equal host
        pattern, rank and audience, there only by the literal segments both name, and of each value
        a few are tried. One rule yields at most one finding per obligation.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal, get_args

from policies.match import glob_matches, is_int, is_uuid
from policies.model import Verdict
from policies.rule import HostPattern, Match, PathPattern, Predicate, Rule, Segment

type Key = Literal["capture", "path_params"]
_KEYS: tuple[Key, ...] = get_args(Key.__value__)
_CLAIMS_PER_RULE_MAX = 4096
_SHAPES_MAX = 64  # beyond, only equal shapes are compared
_TRIES_MAX = 32

_EVERY_PATH = PathPattern((), rest=True)


@dataclass(frozen=True, slots=True)
class Conflict:
    """`rule` and `other` (ids; the later in the alphabet first) disagree about `key`."""

    rule: str
    other: str
    key: Key
    value: str
    other_value: str


@dataclass(frozen=True, slots=True)
class _Claim:
    """One way in which a rule applies: a host and path pattern, and the value it asks for."""

    rule: Rule
    path: PathPattern
    value: str


type _Shape = tuple[tuple[int, ...], int, bool]  # places of literals, segments, open end
type _Bucket = tuple[object, ...]


def find_conflicts(rules: Iterable[Rule]) -> Iterator[Conflict]:
    """Every certain conflict, at most one per rule and obligation, in order of rule ids."""
    enforced = [rule for rule in rules if rule.verdict is Verdict.ALLOW and not rule.shadow]
    for key in _KEYS:
        speaking = [rule for rule in enforced if getattr(rule.with_, key) is not None]
        if len({getattr(rule.with_, key) for rule in speaking}) > 1:
            yield from _find_for(key, sorted(speaking, key=lambda rule: rule.id))


def _find_for(key: Key, rules: list[Rule]) -> Iterator[Conflict]:
    buckets: dict[_Bucket, list[_Claim]] = defaultdict(list)
    for rule in rules:
        claims = product(rule.match.hosts or (), rule.match.paths or (_EVERY_PATH,), _levels(rule))
        for host, path, level in islice(claims, _CLAIMS_PER_RULE_MAX):
            literals = sum(segment.kind == "literal" for segment in path.segments)
            rank = (literals, rule.match.methods is not None, level)
            claim = _Claim(rule, path, getattr(rule.with_, key))
            buckets[host, rank].append(claim)
    told: set[str] = set()
    for bucket, claims_here in buckets.items():
        for left, right in _meet(claims_here, _wider(bucket, buckets)):
            first, second = sorted((left, right), key=lambda claim: claim.rule.id, reverse=True)
            if first.rule.id not in told:
                told.add(first.rule.id)
                yield Conflict(first.rule.id, second.rule.id, key, first.value, second.value)


def _levels(rule: Rule) -> list[tuple[str, str]]:
    """Whom the rule names. Beside agents its groups are left out: a member may be named too."""
    if rule.who is None:
        return [("all", "")]
    if rule.who.agents:
        return [("agent", agent) for agent in sorted(rule.who.agents)]
    return [("group", group) for group in sorted(rule.who.groups)]


def _wider(bucket: _Bucket, buckets: Mapping[_Bucket, list[_Claim]]) -> list[_Claim]:
    """For `**.b.a.com`: what `**.a.com` claims at the same rank."""
    host, rank = bucket
    if not isinstance(host, HostPattern) or host.kind != "any_depth":
        return []
    found: list[_Claim] = []
    name = host.name
    while "." in name:
        name = name.partition(".")[2]
        found += buckets.get((HostPattern("any_depth", name), rank), ())
    return found


def _meet(claims: list[_Claim], wider: list[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs with different values whose requests overlap."""
    mine, others = _by_shape(claims), _by_shape(claims + wider)
    for shape, narrow in mine.items():
        for other_shape in others if len(others) <= _SHAPES_MAX else (shape,):
            if _shapes_meet(shape, other_shape):
                common = sorted(set(shape[0]) & set(other_shape[0]))
                yield from _join(narrow, others[other_shape], common)


def _by_shape(claims: list[_Claim]) -> dict[_Shape, list[_Claim]]:
    shapes: dict[_Shape, list[_Claim]] = defaultdict(list)
    for claim in claims:
        segments = claim.path.segments
        literal = tuple(at for at, segment in enumerate(segments) if segment.kind == "literal")
        shapes[literal, len(segments), claim.path.rest].append(claim)
    return shapes


def _shapes_meet(one: _Shape, other: _Shape) -> bool:
    """Whether some number of segments fits both."""
    if one[2] and other[2]:
        return True
    if one[2]:
        return other[1] >= one[1]
    return one[1] >= other[1] if other[2] else one[1] == other[1]


def _join(
    left: list[_Claim], right: list[_Claim], common: list[int]
) -> Iterator[tuple[_Claim, _Claim]]:
    """Claims with the same literals at the `common` places; of each other value a few are tried."""
    table: dict[tuple[str, ...], dict[str, list[_Claim]]] = {}
    for claim in right:
        literals = tuple(claim.path.segments[at].text for at in common)
        table.setdefault(literals, {}).setdefault(claim.value, []).append(claim)
    for claim in left:
        literals = tuple(claim.path.segments[at].text for at in common)
        for value, candidates in table.get(literals, {}).items():
            if value == claim.value:
                continue
            for other in islice(candidates, _TRIES_MAX):
                if _paths_meet(claim.path, other.path) and _rules_meet(claim.rule, other.rule):
                    yield claim, other
                    break


def _paths_meet(one: PathPattern, other: PathPattern) -> bool:
    return all(map(_segments_meet, one.segments, other.segments))


def _segments_meet(one: Segment, other: Segment) -> bool:
    """Certainly some text fits both; two different globs are not certain."""
    if other.kind == "literal":
        one, other = other, one
    if one.kind == "literal":
        return _segment_fits(other, one.text)
    if "any" in (one.kind, other.kind):
        return True
    return one.kind == other.kind and (one.kind != "glob" or one.text == other.text)


def _segment_fits(segment: Segment, text: str) -> bool:
    match segment.kind:
        case "literal":
            return segment.text == text
        case "any":
            return text != ""
        case "glob":
            return glob_matches(segment.text, text)
        case "int":
            return is_int(text)
        case "uuid":
            return is_uuid(text)


def _rules_meet(one: Rule, other: Rule) -> bool:
    """Whether the other fields certainly leave a request that fits both."""
    if one.unless or other.unless or one.match.path_res or other.match.path_res:
        return False
    if one.when and other.when and one.when != other.when:
        return False
    return _matches_meet(one.match, other.match)


def _matches_meet(one: Match, other: Match) -> bool:
    if one.dest_ip and other.dest_ip and one.dest_ip != other.dest_ip:
        return False
    for mine, theirs in (
        (one.ports, other.ports),
        (one.schemes, other.schemes),
        (one.methods, other.methods),
    ):
        if mine is not None and theirs is not None and not mine & theirs:
            return False
    for match, against in ((one, other), (other, one)):
        known = {key for key, _ in match.query}
        if match.query_only and any(key not in known for key, _ in against.query):
            return False
    return _tests_meet(one.query, other.query) and _tests_meet(one.headers, other.headers)


def _tests_meet(
    one: tuple[tuple[str, Predicate], ...], other: tuple[tuple[str, Predicate], ...]
) -> bool:
    theirs = dict(other)
    return all(_predicates_meet(test, theirs.get(key, test)) for key, test in one)


def _predicates_meet(one: Predicate, other: Predicate) -> bool:
    listed = ("exact", "one_of")
    if one.kind in listed and other.kind in listed:
        return bool(set(one.values) & set(other.values))
    return one == other
