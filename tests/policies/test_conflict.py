"""AP301: certain ties are found, doubtful ones are not, and the search is not quadratic."""

from dataclasses import replace
from typing import Any

import pytest

from policies.compile import compile_text
from policies.conflict import find_conflicts
from policies.model import PolicyRejected, Verdict
from policies.rule import HostPattern, Match, PathPattern, Rule, Segment, Who, With

HEAD = "version: 1\nagents: { x: { groups: g }, y2: { groups: g } }\nrules:\n"


def conflicts(one: str, other: str) -> bool:
    """Whether two allow rules, one that captures and one that does not, are refused as a tie."""
    text = (
        f"{HEAD}- {{ id: a, verdict: allow, with: {{ capture: request }}, {one} }}\n"
        f"- {{ id: b, verdict: allow, with: {{ capture: metadata }}, {other} }}\n"
        "- { id: use, verdict: deny, who: { groups: g } }\n"
    )
    try:
        compile_text(text)
    except PolicyRejected as rejected:
        return {one.code for one in rejected.findings} == {"AP301"}
    return False


def match(fields: str = "", host: str = "a.example.com") -> str:
    return f'match: {{ host: "{host}", {fields} }}'


TIES = {
    "the same host": (match(), match(), True),
    "another host": (match(), match(host="b.example.com"), False),
    "an exact host is more specific": (match(), match(host="*.example.com"), False),
    "the same wildcard": (match(host="*.example.com"), match(host="*.example.com"), True),
    "two wildcards of two kinds": (
        match(host="*.example.com"),
        match(host="**.example.com"),
        False,
    ),
    "a wildcard inside a wildcard": (
        match(host="**.example.com"),
        match(host="**.b.example.com"),
        True,
    ),
    "more literal segments": (match("path: /a/**"), match("path: /a/b/**"), False),
    "literals at other places": (match("path: /a/*"), match("path: /*/b"), True),
    "other literals": (match("path: /a/*"), match("path: /b/*"), False),
    "other lengths": (match("path: /a/*"), match("path: /a/*/*"), False),
    "an open end": (match("path: /a/*/*"), match("path: /a/**"), True),
    "an open end that starts later": (match("path: /a"), match("path: /a/*/**"), False),
    "a number and a word": (match('path: "/{x:int}"'), match('path: "/{y:uuid}"'), False),
    "a number and any segment": (match('path: "/{x:int}"'), match("path: /*"), True),
    "two globs are not certain": (match("path: /a*"), match("path: /*b"), False),
    "a method list is more specific": (match("methods: GET"), match(), False),
    "methods in common": (match("methods: [GET, PUT]"), match("methods: [PUT]"), True),
    "no method in common": (match("methods: GET"), match("methods: PUT"), False),
    "no port in common": (match("port: 8443"), match(), False),
    "an agent is more specific": (f"who: {{ agents: x }}, {match()}", match(), False),
    "the same agent": (
        f"who: {{ agents: x }}, {match()}",
        f"who: {{ agents: [y2, x] }}, {match()}",
        True,
    ),
    "another agent": (
        f"who: {{ agents: x }}, {match()}",
        f"who: {{ agents: y2 }}, {match()}",
        False,
    ),
    "the same group": (
        f"who: {{ groups: g }}, {match()}",
        f"who: {{ groups: g }}, {match()}",
        True,
    ),
    "a group whose only member may be named": (
        f"who: {{ agents: x, groups: g }}, {match()}",
        f"who: {{ groups: g }}, {match()}",
        False,
    ),
    "an exception is not certain": (f"unless: {{ path: /x }}, {match()}", match(), False),
    "two windows are not certain": (
        f"when: {{ days: mon }}, {match()}",
        f"when: {{ days: tue }}, {match()}",
        False,
    ),
    "one window": (f"when: {{ days: mon }}, {match()}", match(), True),
    "two values of one key": (match("query: { p: 1 }"), match("query: { p: 2 }"), False),
    "values in common": (match("query: { p: 1 }"), match("query: { p: { one_of: [1, 2] } }"), True),
    "two keys": (match("query: { p: 1 }"), match("query: { q: 2 }"), True),
    "a key that the other refuses": (
        match("query: { p: 1 }, query_only: true"),
        match("query: { q: 2 }"),
        False,
    ),
    "two expressions are not certain": (
        match("query: { p: { re: a } }"),
        match("query: { p: { re: b } }"),
        False,
    ),
    "an expression for the path is not certain": (match("path_re: /a"), match(), False),
    "a shadow rule is not enforced": (f"mode: shadow, {match()}", match(), False),
}


@pytest.mark.parametrize(("one", "other", "expected"), TIES.values(), ids=TIES)
def test_two_rules_tie(one: str, other: str, expected: bool) -> None:
    assert conflicts(one, other) is expected
    assert conflicts(other, one) is expected


def test_the_same_value_is_no_conflict() -> None:
    rule = make("a", capture="request")
    assert list(find_conflicts([rule, replace(rule, id="b")])) == []


def make(id_: str, path: str = "x", **with_: Any) -> Rule:
    host = HostPattern("exact", "a.example.com")
    pattern = PathPattern((Segment("literal", path),))
    shape = Match((host,), frozenset({"https"}), frozenset({443}), paths=(pattern,))
    return Rule(id_, Verdict.ALLOW, shape, with_=With(**with_))


def test_each_rule_is_told_once_per_obligation() -> None:
    rules = [make(f"r{n:03}", capture=("request", "metadata")[n % 2]) for n in range(200)]
    found = list(find_conflicts(rules))
    assert len({conflict.rule for conflict in found}) == len(found)
    assert {conflict.key for conflict in found} == {"capture"}
    assert all(conflict.rule > conflict.other for conflict in found)


CROWDS = {
    "one host, other paths": lambda n: make(
        f"r{n}", path=f"p{n}", capture=("request", "metadata")[n % 2]
    ),
    "one host, one path, other agents": lambda n: replace(
        make(f"r{n}", capture=("request", "metadata")[n % 2]), who=Who(frozenset({f"a{n}"}))
    ),
    "all alike": lambda n: make(f"r{n}", capture=("request", "metadata")[n % 2]),
    "alike but for the port": lambda n: replace(
        make(f"r{n}", capture=("request", "metadata")[n % 2]),
        match=replace(make("x").match, ports=frozenset({n + 1})),
    ),
}


@pytest.mark.parametrize("build", CROWDS.values(), ids=CROWDS)
def test_ten_thousand_rules_on_one_host_are_no_obstacle(build: Any) -> None:
    """Pairwise this would be fifty million comparisons, minutes: the time limit of pytest holds."""
    assert len(list(find_conflicts([build(n) for n in range(10_000)]))) <= 10_000
