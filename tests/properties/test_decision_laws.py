"""Laws of the decision (policy.md section 2), each over random policies and requests.

The oracle below reads every rule in turn and knows nothing of the index: patterns become regular
expressions, predicates are written out again. It is slow, plain, and must never disagree.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from operator import itemgetter
from typing import Any

import cedarpy
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.engine import decide, screen
from policies.explain import explain
from policies.model import Address, Decision, Principal, Request, Verdict
from policies.policy_set import PolicySet, build
from policies.reasons import REASONS
from policies.rule import (
    BODILESS_METHODS,
    Agent,
    Defaults,
    DestIp,
    HostPattern,
    Match,
    PathPattern,
    Predicate,
    Rule,
    Segment,
    Who,
)
from tests.kit.policy_sets import parsed_host, parsed_path

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
AGENTS = (Agent("a", frozenset({"g", "h"})), Agent("b", frozenset({"h"})), Agent("c"))
ADDRESSES: dict[str, tuple[bool, bool]] = {  # address -> (public, in 10.0.0.0/8)
    "8.8.8.8": (True, False),
    "2606:4700::1": (True, False),
    "10.0.0.1": (False, True),
    "::ffff:10.1.2.3": (False, True),
    "127.0.0.1": (False, False),
}

hosts = st.sampled_from(["a.com", "x.a.com", "y.x.a.com", "xa.com", "b.com", "8.8.8.8"])
host_patterns = st.sampled_from(
    ["a.com", "x.a.com", "*.a.com", "**.a.com", "*.x.a.com", "b.com", "8.8.8.8"]
).map(parsed_host)
paths = st.sampled_from(
    ["/", "/p", "/p/", "/p/q", "/p/7", "/p/q/r", "/pq", "/p-1.pdf", "/7", "/p%20q", "/p%2Cq"]
)
PATTERNS = "/ /** /p /p/** /p/* /* /*/q /p/{n:int} /p-*.pdf /*/** /p/ /{n:int} /p* /p/q/* /p%20q"
path_patterns = st.sampled_from(PATTERNS.split()).map(parsed_path)
path_res = st.sampled_from(["/p/[a-z]+", "/p.*", "/.*", "/p/q", "/[0-9]+", "/p/(q|7)"])
methods = st.sampled_from(["GET", "POST", "DELETE"])
values = st.sampled_from(["1", "2", "12"])
predicates = st.one_of(
    values.map(lambda value: Predicate("exact", (value,))),
    st.lists(values, max_size=2).map(lambda some: Predicate("one_of", tuple(some))),
    values.map(lambda value: Predicate("prefix", (value,))),
    values.map(lambda value: Predicate("suffix", (value,))),
    st.just(Predicate("re", ("[12]",))),
    st.sampled_from([Predicate("present"), Predicate("absent")]),
)
first = itemgetter(0)
keyed = st.lists(
    st.tuples(st.sampled_from(["k", "m"]), predicates), max_size=2, unique_by=lambda p: p[0]
)


def maybe(some: Any, absent: Any = None) -> Any:
    """Mostly absent: a rule that names every field matches nothing, and proves nothing."""
    return st.integers(0, 4).flatmap(lambda roll: st.just(absent) if roll else some)


matches = st.builds(
    Match,
    hosts=maybe(st.lists(host_patterns, min_size=1, max_size=2).map(tuple)),
    schemes=maybe(st.sampled_from([frozenset({"https"}), frozenset({"http", "https"})])),
    ports=maybe(st.sampled_from([frozenset({443}), frozenset({443, 8443})])),
    methods=maybe(st.frozensets(methods, min_size=1)),
    paths=maybe(st.lists(path_patterns, min_size=1, max_size=2).map(tuple)),
    path_res=maybe(st.lists(path_res, min_size=1, max_size=2).map(tuple)),
    query=maybe(keyed.map(tuple), ()),
    headers=maybe(keyed.map(tuple), ()),
    query_only=maybe(st.just(True), False),
    websocket=st.booleans(),
    body=st.booleans(),
    dest_ip=maybe(st.just(DestIp(networks=(ip_network("10.0.0.0/8"),)))),
)
whos = st.sampled_from(
    [
        None,
        None,
        Who(frozenset({"a"})),
        Who(groups=frozenset({"h"})),
        Who(frozenset({"c"}), frozenset({"g"})),
    ]
)


@st.composite
def rules(draw: st.DrawFn, verdicts: tuple[Verdict, ...] = tuple(Verdict)) -> Rule:
    return Rule(
        f"r{draw(st.integers(0, 10**9))}",
        draw(st.sampled_from(verdicts)),
        draw(matches),
        shadow=draw(st.sampled_from([False, False, False, True])),
        who=draw(whos),
        unless=draw(maybe(matches)),
    )


pairs = st.lists(st.tuples(st.sampled_from(["k", "m", "K", "k[]"]), values), max_size=3).map(tuple)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    query = draw(maybe(pairs))
    return Request(
        draw(st.sampled_from(["https", "https", "http"])),
        draw(hosts),
        draw(st.sampled_from([443, 443, 8443])),
        draw(methods),
        draw(paths),
        None if query is None else "&".join(f"{key}={value}" for key, value in query),
        query or (),
        draw(pairs),
        draw(st.sampled_from([False, False, True])),
        draw(st.sampled_from([False, False, True])),
    )


policies = st.lists(rules(), max_size=6, unique_by=lambda rule: rule.id)
callers = st.sampled_from("abc").map(lambda name: Principal(name, "", ""))
answers = st.lists(st.sampled_from(sorted(ADDRESSES)), min_size=1, max_size=2).map(
    lambda found: tuple(map(ip_address, found))
)


def policy(some: list[Rule], mode: str = "enforce") -> PolicySet:
    return build(some, AGENTS, (), Defaults(mode=mode), "d", "n")  # type: ignore[arg-type]


def asked(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...]
) -> Decision:
    return decide(request, caller, policy(some), addresses=found, now=NOW)


# the oracle: True, False, or None for unknown


def all_of(outcomes: list[bool | None]) -> bool | None:
    if False in outcomes:
        return False
    return None if None in outcomes else True


def host_expression(pattern: HostPattern) -> str:
    more = {"one_label": r"[^.]+\.", "any_depth": r"(?:[^.]+\.)+"}.get(pattern.kind, "")
    return more + re.escape(pattern.name)


def segment_expression(segment: Segment) -> str:
    return {
        "literal": re.escape(segment.text),
        "any": "[^/]+",
        "glob": "(?=[^/])" + "[^/]*".join(map(re.escape, segment.text.split("*"))),
        "int": "[0-9]+",
        "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    }[segment.kind]


def path_expression(pattern: PathPattern) -> str:
    return "".join("/" + segment_expression(one) for one in pattern.segments) + (
        "(?:/.*)?" if pattern.rest else ""
    )


def value_holds(predicate: Predicate, value: str) -> bool:
    match predicate.kind:
        case "exact" | "one_of":
            return value in predicate.values
        case "prefix":
            return value.startswith(predicate.values[0])
        case "suffix":
            return value.endswith(predicate.values[0])
        case _:
            return re.fullmatch(predicate.values[0], value) is not None


def query_holds(key: str, predicate: Predicate, request: Request) -> bool | None:
    found = [value for name, value in request.query_pairs if name == key]
    if any(name != key and name.lower().split("[")[0] == key for name, _ in request.query_pairs):
        return None
    if predicate.kind in ("present", "absent"):
        return bool(found) is (predicate.kind == "present")
    answers = {value_holds(predicate, value) for value in found}
    return None if len(answers) == 2 else answers == {True}


def header_holds(key: str, predicate: Predicate, request: Request) -> bool | None:
    found = [value for name, value in request.headers if name == key]
    if predicate.kind in ("present", "absent"):
        return bool(found) is (predicate.kind == "present")
    if len(found) > 1:
        return None
    return bool(found) and value_holds(predicate, found[0])


def match_holds(match: Match, request: Request, found: tuple[Address, ...]) -> bool | None:
    """Everything but websocket, body and dest_ip."""
    outcomes: list[bool | None] = []
    if match.hosts is not None:
        outcomes.append(any(re.fullmatch(host_expression(h), request.host) for h in match.hosts))
    if match.schemes is not None:
        outcomes.append(request.scheme in match.schemes)
    if match.ports is not None:
        outcomes.append(request.port in match.ports)
    if match.methods is not None:
        outcomes.append(request.method in match.methods)
    if match.paths is not None:
        outcomes.append(any(re.fullmatch(path_expression(p), request.path) for p in match.paths))
    if match.path_res is not None:
        outcomes.append(any(re.fullmatch(one, request.path) for one in match.path_res))
    outcomes += [query_holds(key, test, request) for key, test in match.query]
    outcomes += [header_holds(key, test, request) for key, test in match.headers]
    if match.query_only:
        listed = {key for key, _ in match.query}
        outcomes.append(True if {key for key, _ in request.query_pairs} <= listed else None)
    return all_of(outcomes)


def inside(found: tuple[Address, ...]) -> bool | None:
    answers = {ADDRESSES[str(address)][1] for address in map(spell, found)}
    return None if len(answers) == 2 else answers == {True}


def spell(address: Address) -> Address | str:
    """Python 3.13 writes a mapped address with dots, 3.12 does not."""
    return "::ffff:10.1.2.3" if int(address) == int(ip_address("::ffff:10.1.2.3")) else address


def rule_holds(rule: Rule, request: Request, found: tuple[Address, ...]) -> bool | None:
    match, is_allow = rule.match, rule.verdict is Verdict.ALLOW
    outcomes = [match_holds(match, request, found)]
    if is_allow and request.websocket:
        outcomes.append(match.websocket)
    if is_allow and request.body and request.method in BODILESS_METHODS:
        outcomes.append(match.body)
    if not is_allow and match.dest_ip is not None:
        outcomes.append(inside(found))
    if rule.unless is not None:
        unless = [match_holds(rule.unless, request, found)]
        unless += [request.websocket] if rule.unless.websocket else []
        unless += [request.body] if rule.unless.body else []
        unless += [inside(found)] if rule.unless.dest_ip is not None else []
        held = all_of(unless)
        outcomes.append(None if held is None else not held)
    return all_of(outcomes)


def opens(rule: Rule, found: tuple[Address, ...]) -> bool:
    if rule.match.dest_ip is not None:
        return inside(found) is True
    return all(ADDRESSES[str(spell(address))][0] for address in found)


def is_for(rule: Rule, caller: Principal) -> bool:
    groups = next(agent.groups for agent in AGENTS if agent.id == caller.agent)
    return rule.who is None or caller.agent in rule.who.agents or bool(groups & rule.who.groups)


def oracle(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...]
) -> tuple[str, str, tuple[str, ...], tuple[str, tuple[str, ...]] | None]:
    if request.host in ADDRESSES:
        found = (*found, ip_address(request.host))
    mine = [rule for rule in some if is_for(rule, caller)]
    loose = replace(request, path=request.path.replace("%2C", ","))
    denies = [
        rule
        for rule in mine
        if rule.verdict is Verdict.DENY
        and any(rule_holds(rule, one, found) is not False for one in (request, loose))
    ]
    held = [r for r in mine if r.verdict is Verdict.ALLOW and rule_holds(r, request, found) is True]
    allows = [rule for rule in held if opens(rule, found)]
    enforced = sorted(rule.id for rule in denies if not rule.shadow)
    granted = sorted(rule.id for rule in allows if not rule.shadow)
    shadow_denies = tuple(sorted(rule.id for rule in denies if rule.shadow))
    shadow_allows = tuple(sorted(rule.id for rule in allows if rule.shadow))
    if enforced:
        return "deny", "denied-by-rule", tuple(enforced), None
    if granted:
        return (
            "allow",
            "allowed",
            tuple(granted),
            ("deny", shadow_denies) if shadow_denies else None,
        )
    if any(not rule.shadow for rule in held):
        return "deny", "address-not-public", (), None
    would = ("allow", shadow_allows) if shadow_allows and not shadow_denies else None
    return "deny", "no-rule-matched", (), would


@given(policies, requests(), callers, answers)
@settings(max_examples=600, deadline=None)
def test_the_index_decides_as_a_reader_of_every_rule_does(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...]
) -> None:
    decision = asked(some, request, caller, found)
    would = decision.would
    assert (
        str(decision.verdict),
        decision.reason,
        decision.rules,
        would and (str(would.verdict), would.rules),
    ) == oracle(some, request, caller, found)


@given(policies, requests(), callers, answers, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_rules_has_no_meaning(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...], random: Any
) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert asked(some, request, caller, found) == asked(shuffled, request, caller, found)


@given(policies, rules((Verdict.DENY,)), requests(), callers, answers)
@settings(max_examples=150, deadline=None)
def test_another_deny_never_allows_more(
    some: list[Rule], extra: Rule, request: Request, caller: Principal, found: tuple[Address, ...]
) -> None:
    before = asked(some, request, caller, found)
    after = asked([*some, replace(extra, id="extra")], request, caller, found)
    assert after.verdict is Verdict.DENY or before.verdict is Verdict.ALLOW


@given(policies, rules((Verdict.ALLOW,)), requests(), callers, answers)
@settings(max_examples=150, deadline=None)
def test_another_allow_never_denies(
    some: list[Rule], extra: Rule, request: Request, caller: Principal, found: tuple[Address, ...]
) -> None:
    before = asked(some, request, caller, found)
    after = asked([*some, replace(extra, id="extra")], request, caller, found)
    assert before.verdict is Verdict.DENY or after.verdict is Verdict.ALLOW
    if before.reason == "denied-by-rule":
        assert after == before


@given(policies, requests(), callers, answers)
@settings(max_examples=200, deadline=None)
def test_stage_1_lets_pass_whatever_may_be_allowed_later(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...]
) -> None:
    if asked(some, request, caller, found).verdict is Verdict.ALLOW:
        for scheme in (None, request.scheme):
            first = screen(
                caller, policy(some), host=request.host, port=request.port, scheme=scheme, now=NOW
            )
            assert first.verdict is Verdict.ALLOW


@given(policies, requests(), callers, answers)
@settings(max_examples=150, deadline=None)
def test_observe_mode_changes_only_what_lacked_an_allow(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...]
) -> None:
    enforced = asked(some, request, caller, found)
    observed = decide(
        request, caller, policy(some, "observe"), addresses=found, now=NOW, observe=True
    )
    if observed != enforced:
        assert enforced.reason == "no-rule-matched"
        assert observed.reason in ("observed", "address-not-public")


@given(policies, st.data(), requests(), callers, answers)
@settings(max_examples=200, deadline=None)
def test_quarantine_decides_as_a_file_without_the_other_allows_does(
    some: list[Rule],
    data: st.DataObject,
    request: Request,
    caller: Principal,
    found: tuple[Address, ...],
) -> None:
    kept = data.draw(st.frozensets(st.sampled_from([rule.id for rule in some]))) if some else set()
    keep = frozenset(kept)
    full = build(some, AGENTS, (), Defaults(mode="observe"), "d", "n", keep_rules=keep)
    decision = decide(
        request, caller, full, addresses=found, now=NOW, observe=True, keep_rules=keep
    )
    less = [rule for rule in some if rule.id in keep or rule.verdict is Verdict.DENY]
    plain = asked(less, request, caller, found)
    lacks = plain.reason in ("no-rule-matched", "address-not-public")
    assert decision.reason == ("quarantined" if lacks else plain.reason)
    assert (decision.verdict, decision.rules) == (plain.verdict, plain.rules)
    assert decision.obligations == plain.obligations
    if decision.verdict is Verdict.ALLOW:
        place: Any = {"host": request.host, "port": request.port, "scheme": None, "now": NOW}
        assert screen(caller, full, **place, keep_rules=keep).verdict is Verdict.ALLOW


@given(policies, requests(), callers, answers)
@settings(max_examples=100, deadline=None)
def test_explain_agrees_with_the_decision_it_explains(
    some: list[Rule], request: Request, caller: Principal, found: tuple[Address, ...]
) -> None:
    explanation = explain(request, caller, policy(some), addresses=found, now=NOW)
    assert explanation.decision == asked(some, request, caller, found)
    matched = explanation.matched()
    assert set(explanation.decision.rules) <= {trace.rule.id for trace in matched}
    for trace in matched:
        if "%2C" not in request.path:
            assert trace.misses == ()
    for trace in explanation.nearest():
        assert trace.misses
    assert explanation.render()


anything: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.tuples(st.text(max_size=2)), st.floats(),
)  # fmt: skip


@given(policies, requests(), st.dictionaries(st.sampled_from(list(Request.__slots__)), anything))
@settings(max_examples=300, deadline=None)
def test_decide_never_raises_and_always_gives_a_known_reason(
    some: list[Rule], request: Request, odd: dict[str, Any]
) -> None:
    broken = replace(request, **odd)
    decision = decide(
        broken, Principal("a", "", ""), policy(some), addresses=(ip_address("8.8.8.8"),), now=NOW
    )
    assert decision.reason in REASONS
    screened = screen(
        Principal("a", "", ""), policy(some), host=broken.host, port=broken.port,
        scheme=broken.scheme, now=NOW,
    )  # fmt: skip
    assert screened.reason in REASONS


simple = st.builds(
    Match,
    hosts=st.sampled_from(["a.com", "b.com"]).map(lambda host: (parsed_host(host),)),
    methods=maybe(st.frozensets(methods, min_size=1)),
    paths=maybe(st.sampled_from(["/p", "/q"]).map(lambda path: (parsed_path(path),))),
)


def to_cedar(rule: Rule) -> str:
    conditions = [f'context.host == "{host.name}"' for host in rule.match.hosts or ()]
    if rule.match.methods is not None:
        listed = ", ".join(f'"{method}"' for method in sorted(rule.match.methods))
        conditions.append(f"[{listed}].contains(context.method)")
    conditions += [f'context.path == "{path}"' for path in rule.match.paths or ()]
    effect = "permit" if rule.verdict is Verdict.ALLOW else "forbid"
    return f"{effect}(principal, action, resource) when {{ {' && '.join(conditions)} }};"


@given(
    st.lists(
        st.builds(Rule, st.integers(0, 10**9).map(str), st.sampled_from(list(Verdict)), simple),
        max_size=5,
        unique_by=lambda rule: rule.id,
    ),
    st.sampled_from(["a.com", "b.com", "c.com"]),
    methods,
    st.sampled_from(["/p", "/q", "/r"]),
)
@settings(max_examples=60, deadline=None)
def test_cedar_decides_the_same(some: list[Rule], host: str, method: str, path: str) -> None:
    request = Request("https", host, 443, method, path)
    ours = asked(some, request, Principal("a", "", ""), (ip_address("8.8.8.8"),))
    theirs = cedarpy.is_authorized(
        {
            "principal": 'Agent::"a"',
            "action": 'Action::"call"',
            "resource": 'Host::"h"',
            "context": {"host": host, "method": method, "path": path},
        },
        "\n".join(map(to_cedar, some)),
        [],
    )
    assert (ours.verdict is Verdict.ALLOW) is theirs.allowed
