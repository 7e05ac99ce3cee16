"""Does one field of one rule hold for one request? PURE.

    Match --compile_checks--> Checks --judge(Facts)--> true | false | unknown

Rule 1: every field of `match` is one `Check` here and nowhere else; the index only narrows down,
        and `explain` reads the same checks.
Rule 2: a check never asks for the verdict; `outcome.py` says what unknown means for whom.
Rule 3: what two readers could read differently is unknown: a repeated header, a repeated query key
        with different answers, `;` in a query, `A=` beside `a=`, `a[]=` beside `a=`.

Policy.md 2.4, 2.7 and section 3; threats E19, G11.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from policies.address import compile_ranges, is_public
from policies.model import Address, Request
from policies.outcome import FALSE, TRUE, UNKNOWN, Outcome, agree, conjoin, negate
from policies.regex import compile_test
from policies.rule import HostPattern, Match, PathPattern, Predicate, Segment

Test = Callable[[str], bool]

_UUID_HYPHENS = (8, 13, 18, 23)
_HEX = frozenset("0123456789abcdefABCDEF")


class Facts(NamedTuple):
    """Everything a predicate may look at."""

    request: Request
    addresses: tuple[Address, ...]  # vetted answers of the resolver; empty: nothing is known
    now: datetime  # aware


class Check(NamedTuple):
    """One field of a rule: its name as in `Read.field`, and its judgement."""

    field: str
    judge: Callable[[Facts], Outcome]


def host_matches(pattern: HostPattern, host: str) -> bool:
    """Label-wise; a wildcard never covers the apex, a part of a label or an IP literal."""
    if pattern.kind in ("exact", "ip"):
        return host == pattern.name
    if not host.endswith("." + pattern.name):
        return False
    more = host[: -len(pattern.name) - 1]
    return more != "" and (pattern.kind == "any_depth" or "." not in more)


def path_matches(pattern: PathPattern, path: str) -> bool:
    """Segment by segment on a canonical path; `rest` takes zero or more further segments."""
    segments = split_path(path)
    wanted = pattern.segments
    if len(segments) < len(wanted) or (len(segments) > len(wanted) and not pattern.rest):
        return False
    return all(map(segment_matches, wanted, segments))


def split_path(path: str) -> list[str]:
    """ "/a/b/" -> ["a", "b", ""]; "/" -> [""]."""
    return path[1:].split("/")


def segment_matches(wanted: Segment, segment: str) -> bool:
    """One segment against literal, `*`, glob, int or uuid. Only a literal "" matches ""."""
    match wanted.kind:
        case "literal":
            return segment == wanted.text
        case "any":
            return segment != ""
        case "glob":
            return glob_matches(wanted.text, segment)
        case "int":
            return is_int(segment)
        case "uuid":
            return is_uuid(segment)


def glob_matches(glob: str, text: str) -> bool:
    """`*` stands for any characters, also none. Linear: greedy from the left (no backtracking)."""
    first, *middle, last = glob.split("*")
    if text == "" or len(text) < len(first) + len(last):
        return False
    if not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def is_int(segment: str) -> bool:
    """ASCII digits. Leading zeros count: a deny of `{id:int}` must not miss `007`."""
    return segment.isascii() and segment.isdigit()


def is_uuid(segment: str) -> bool:
    """RFC 9562 text form, either case."""
    if len(segment) != 36 or any(segment[at] != "-" for at in _UUID_HYPHENS):
        return False
    digits = segment.replace("-", "")
    return len(digits) == 32 and _HEX.issuperset(digits)


def compile_test_of(predicate: Predicate) -> Test:
    """The test of one value. `present` and `absent` are judged on the number of values instead."""
    values = predicate.values
    match predicate.kind:
        case "exact" | "one_of":
            return frozenset(values).__contains__
        case "prefix":
            return lambda value: value.startswith(values[0])
        case "suffix":
            return lambda value: value.endswith(values[0])
        case "re":
            return compile_test(values[0])
        case "present" | "absent":
            return lambda _: True


def compile_rare_checks(match: Match) -> tuple[Check, ...]:
    """The checks that most rules do not need: `path_re`, `query`, `query_only`, `headers`."""
    checks = []
    if match.path_res is not None:
        checks.append(Check("match.path_re", _check_path_re(match.path_res)))
    for key, predicate in match.query:
        checks.append(Check(f"query.{key}", _check_query(key, predicate)))
    if match.query_only:
        listed = frozenset(key for key, _ in match.query)
        checks.append(Check("match.query_only", lambda facts: _judge_query_only(facts, listed)))
    for name, predicate in match.headers:
        checks.append(Check(f"headers.{name}", _check_header(name, predicate)))
    return tuple(checks)


def compile_checks(match: Match) -> tuple[Check, ...]:
    """Every field that `match` names, cheapest first. `websocket` and `body` are asked literally,
    as `unless` means them; in `match` they depend on the verdict and are the engine's."""
    checks: list[Check] = []
    if match.schemes is not None:
        schemes = match.schemes
        checks.append(Check("match.scheme", lambda facts: _yes(facts.request.scheme in schemes)))
    if match.ports is not None:
        ports = match.ports
        checks.append(Check("match.port", lambda facts: _yes(facts.request.port in ports)))
    if match.methods is not None:
        methods = match.methods
        checks.append(Check("match.methods", lambda facts: _yes(facts.request.method in methods)))
    if match.hosts is not None:
        checks.append(Check("match.host", _check_hosts(match.hosts)))
    if match.paths is not None:
        checks.append(Check("match.path", _check_paths(match.paths)))
    checks.extend(compile_rare_checks(match))
    if match.websocket:
        checks.append(Check("match.websocket", lambda facts: _yes(facts.request.websocket)))
    if match.body:
        checks.append(Check("match.body", lambda facts: _yes(facts.request.body)))
    if match.dest_ip is not None:
        checks.append(Check("match.dest_ip", check_dest_ip(match)))
    return tuple(checks)


def compile_unless(match: Match) -> Check:
    """`unless` as one check of the rule: true when the exception does not hold."""
    judges = [check.judge for check in compile_checks(match)]
    return Check("unless", lambda facts: negate(conjoin(judge(facts) for judge in judges)))


def check_dest_ip(match: Match) -> Callable[[Facts], Outcome]:
    """True: the ranges cover every address; false: they touch none; else unknown."""
    if match.dest_ip is None:
        return lambda facts: _yes(are_public(facts.addresses))
    ranges = compile_ranges(match.dest_ip)

    def judge(facts: Facts) -> Outcome:
        if facts.addresses and all(map(ranges.cover, facts.addresses)):
            return TRUE
        return UNKNOWN if not facts.addresses or any(map(ranges.touch, facts.addresses)) else FALSE

    return judge


def are_public(addresses: tuple[Address, ...]) -> bool:
    """Whether there is an address and every one is globally routable."""
    return bool(addresses) and all(map(is_public, addresses))


def _check_hosts(hosts: tuple[HostPattern, ...]) -> Callable[[Facts], Outcome]:
    return lambda facts: _yes(any(host_matches(host, facts.request.host) for host in hosts))


def _check_paths(paths: tuple[PathPattern, ...]) -> Callable[[Facts], Outcome]:
    return lambda facts: _yes(any(path_matches(path, facts.request.path) for path in paths))


def _check_path_re(expressions: tuple[str, ...]) -> Callable[[Facts], Outcome]:
    tests = [compile_test(expression) for expression in expressions]
    return lambda facts: _yes(any(test(facts.request.path) for test in tests))


def _check_header(name: str, predicate: Predicate) -> Callable[[Facts], Outcome]:
    kind, test = predicate.kind, compile_test_of(predicate)

    def judge(facts: Facts) -> Outcome:
        values = [value for found, value in facts.request.headers if found == name]
        if kind in ("present", "absent"):
            return _yes(bool(values) is (kind == "present"))
        if len(values) > 1:
            return UNKNOWN
        return _yes(bool(values) and test(values[0]))

    return judge


def _check_query(key: str, predicate: Predicate) -> Callable[[Facts], Outcome]:
    kind, test, folded = predicate.kind, compile_test_of(predicate), key.lower()

    def judge(facts: Facts) -> Outcome:
        if ";" in (facts.request.query or ""):
            return UNKNOWN
        pairs = facts.request.query_pairs
        values = [value for found, value in pairs if found == key]
        twins = any(found != key and _reads_as(found, folded) for found, _ in pairs)
        if twins:
            return UNKNOWN
        if kind in ("present", "absent"):
            return _yes(bool(values) is (kind == "present"))
        return agree(sum(map(test, values)), len(values))

    return judge


def _reads_as(found: str, folded: str) -> bool:
    """Whether some origin reads the key `found` as `folded`: other case, or array syntax."""
    lowered = found.lower()
    return lowered == folded or lowered.startswith(folded + "[")


def _judge_query_only(facts: Facts, listed: frozenset[str]) -> Outcome:
    if ";" in (facts.request.query or ""):
        return UNKNOWN
    return TRUE if all(key in listed for key, _ in facts.request.query_pairs) else UNKNOWN


def _yes(holds: bool) -> Outcome:
    return TRUE if holds else FALSE
