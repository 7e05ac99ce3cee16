"""Budgets: without room, without sessions, without end. More under tests/cases/policies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.compile import compile_text
from policies.model import Finding, PolicyRejected

HEAD = """\
version: 1
agents: { coder: { groups: dev }, bot: { identity: { source: 10.0.0.1 } } }
rules:
- { id: r, verdict: allow, match: { host: a.example.com } }
- { id: d, verdict: allow, who: { groups: dev }, match: { host: b.example.com },
    cost: { steps: 9 } }
"""


def findings(budgets: str, head: str = HEAD) -> tuple[Finding, ...]:
    try:
        return compile_text(head + budgets).findings
    except PolicyRejected as rejected:
        return rejected.findings


def codes(budgets: str, head: str = HEAD) -> list[str]:
    return [one.code for one in findings(budgets, head)]


def budget(fields: str) -> str:
    return f"budgets: {{ b: {{ {fields} }} }}\n"


CASES = {
    "everyone, enough": ("each: agent, limits: { steps: 9 }", []),
    "one step short": ("each: agent, limits: { steps: 8 }", ["AP604"]),
    "nothing on purpose": ("each: agent, limits: { steps: 0, requests: 0 }", []),
    "short for somebody else": (
        "each: agent, who: { agents: [bot] }, limits: { steps: 8 }",
        ["AP603"],
    ),
    "too little for anybody": (
        "each: agent, who: { groups: dev }, limits: { steps: 3, effort: 1 }",
        ["AP603", "AP604"],
    ),
    "sessions where there are some": (
        "each: session, who: { groups: dev }, limits: { requests: 1 }",
        ["AP603"],
    ),
    "sessions where there are none": ("each: session, limits: { requests: 1 }", ["AP610"]),
    "a halt at the end of a life": (
        "each: agent, limits: { requests: 1 }, at: { reached: 100%, do: halt }",
        [],
    ),
    "a halt at the end of a day": (
        "each: agent, window: 1d, limits: { requests: 1 }, at: { reached: 100%, do: halt }",
        ["AP605"],
    ),
    "quarantine in a window": (
        "each: agent, window: 1d, limits: { requests: 1 }, at: { reached: 90%, do: quarantine }",
        [],
    ),
    "no limits": ("each: agent, limits: {}", ["AP007"]),
}


@pytest.mark.parametrize(("fields", "expected"), CASES.values(), ids=CASES)
def test_a_budget_is_judged_by_the_agents_it_reaches(fields: str, expected: list[str]) -> None:
    assert sorted(codes(budget(fields))) == expected


def test_a_file_without_budgets_is_not_told_that_it_has_none() -> None:
    assert codes("") == []
    assert codes("budgets:\n") == []
    assert codes("budgets: {}\n") == []


def test_nobody_is_called_unbounded_while_a_part_cannot_be_read() -> None:
    broken = budget("each: agent, who: { groups: dev }, limits: { requests: 1 }")
    assert "AP603" in codes(broken)
    assert "AP603" not in codes(broken, HEAD + "- 5\n")
    two = "budgets: { a: { each: agent, limits: { requests: x } }, "
    two += "b: { each: agent, who: { groups: dev }, limits: { requests: 1 } } }\n"
    assert codes(two) == ["AP609"]


def test_many_agents_without_sessions_are_not_all_listed() -> None:
    agents = ", ".join(f"a{n}: {{ identity: {{ source: 10.0.0.{n} }} }}" for n in range(1, 9))
    head = f"version: 1\nagents: {{ {agents} }}\n"
    (found,) = [
        one
        for one in findings(budget("each: session, limits: { requests: 1 }"), head)
        if one.code == "AP610"
    ]
    assert "reaches agents `a1`, `a2`, `a3`, `a4`, `a5` and 3 more, known by" in found.message


def test_the_rule_that_needs_most_is_named_and_of_equals_the_first() -> None:
    rules = "".join(
        f"- {{ id: {name}, verdict: allow, match: {{ host: a.example.com }}, "
        f"with: {{ max_request: {size} }} }}\n"
        for name, size in (("z", "5MB"), ("m", "9MB"), ("k", "9MB"), ("a", "1MB"))
    )
    head = "version: 1\nagents: { coder: {} }\nrules:\n" + rules
    (found,) = findings(budget("each: agent, limits: { bytes_out: 2 MB }"), head)
    assert (found.code, found.line) == ("AP604", 8)
    assert found.message == (
        "`bytes_out: 2 MB` is too little for one request of rule `k`, which may take 9000000 bytes"
    )


def test_denies_and_shadow_rules_need_nothing() -> None:
    rules = "- { id: s, verdict: allow, mode: shadow, match: { host: a.example.com }, "
    rules += "cost: { steps: 50 } }\n- { id: wall, verdict: deny }\n"
    assert codes(budget("each: agent, limits: { steps: 9 }"), HEAD + rules) == []


names = st.frozensets(st.sampled_from(["p", "q", "r"]), max_size=3)
groups = st.frozensets(st.sampled_from(["g", "h"]), max_size=2)
selectors = st.none() | st.tuples(names, groups)


def write_who(who: tuple[frozenset[str], frozenset[str]] | None) -> str:
    if who is None:
        return ""
    agents, named = (", ".join(sorted(names_)) for names_ in who)
    return f"who: {{ agents: [{agents}], groups: [{named}] }}, "


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries(dict.fromkeys("pqr", groups)),
    st.lists(selectors, max_size=3),
    st.lists(selectors, min_size=1, max_size=3),
)
def test_an_agent_is_unbounded_exactly_where_an_allow_and_no_budget_reaches_it(
    members: dict[str, frozenset[str]],
    allowed: list[tuple[frozenset[str], frozenset[str]] | None],
    bounded: list[tuple[frozenset[str], frozenset[str]] | None],
) -> None:
    agents = ", ".join(
        f"{name}: {{ groups: [{', '.join(sorted(held))}] }}" for name, held in members.items()
    )
    rules = "".join(
        f"- {{ id: r{n}, verdict: allow, {write_who(who)}match: {{ host: a.example.com }} }}\n"
        for n, who in enumerate(allowed)
    )
    budgets = "".join(
        f"  b{n}: {{ each: agent, {write_who(who)}limits: {{ requests: 1 }} }}\n"
        for n, who in enumerate(bounded)
    )
    text = f"version: 1\nagents: {{ {agents} }}\nrules:\n{rules}budgets:\n{budgets}"

    def reached(name: str, by: list[tuple[frozenset[str], frozenset[str]] | None]) -> bool:
        return any(who is None or name in who[0] or who[1] & members[name] for who in by)

    expected = {name for name in "pqr" if reached(name, allowed) and not reached(name, bounded)}
    found = {one.message.split("`")[1] for one in findings(text, "") if one.code == "AP603"}
    assert found == expected
