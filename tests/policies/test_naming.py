"""Names: undefined, unused, claimed twice; sources that overlap."""

from dataclasses import replace

import pytest

from policies.draft import read_draft
from policies.naming import check_names
from policies.sources import load_text


def find(text: str) -> list[tuple[str, str]]:
    draft = read_draft(load_text(f"version: 1\n{text}"))
    return [(one.code, one.message) for one in check_names(draft)]


SOURCES = {
    "apart": ("10.0.0.0/9", "10.128.0.0/9", False),
    "the same": ("10.0.0.0/8", "10.0.0.0/8", True),
    "inside": ("10.0.0.0/8", "10.1.2.3", True),
    "around": ("10.1.2.3", "10.0.0.0/8", True),
    "other versions": ("0.0.0.0/0", '"::/0"', False),
    "IPv6": ('"2001:db8::/32"', '"2001:db8:1::/48"', True),
}


@pytest.mark.parametrize(("one", "other", "overlap"), SOURCES.values(), ids=SOURCES)
def test_one_address_leads_to_one_agent(one: str, other: str, overlap: bool) -> None:
    agents = f"agents:\n  a: {{ identity: {{ source: {one} }} }}\n"
    agents += f"  b: {{ identity: {{ source: {other} }} }}\n"
    assert [code for code, _ in find(agents)] == (["AP103"] if overlap else [])


def test_an_overlap_is_found_past_a_smaller_range_between() -> None:
    agents = "agents:\n  a: { identity: { source: [10.0.0.0/8, 10.1.0.0/16] } }\n"
    agents += "  b: { identity: { source: 10.200.0.0/16 } }\n"
    assert [code for code, _ in find(agents)] == ["AP103"]


def test_an_agent_may_overlap_itself() -> None:
    assert find("agents:\n  a: { identity: { source: [10.0.0.0/8, 10.1.0.0/16] } }\n") == []


def test_a_rule_with_a_fault_still_uses_what_it_names() -> None:
    text = "rates: { slow: { each: agent, allow: 1, per: 1s } }\n"
    text += "rules:\n- { id: r, with: { rate: slow } }\n"
    assert find(text) == []


def test_an_agent_with_a_fault_still_exists() -> None:
    text = "agents: { coder: { grups: x } }\n"
    text += "rules:\n- { id: r, verdict: deny, who: { agents: coder } }\n"
    assert find(text) == []


def test_the_nearest_name_is_suggested() -> None:
    draft = read_draft(
        load_text("version: 1\nagents: { coder: {} }\nrules:\n- { who: { agents: codr } }\n")
    )
    assert check_names(draft)[0].hint == "did you mean `coder`?"


BUDGET = (
    "agents: { coder: { groups: dev } }\nbudgets: { daily: { each: agent, limits: { requests: 1 }"
)


def test_a_budget_uses_the_group_it_names() -> None:
    assert find("agents: { coder: { groups: dev } }\n") == [
        ("AP102", "group `dev` is not named by any rule")
    ]
    assert find(f"{BUDGET}, who: {{ groups: dev }} }} }}\n") == []


def test_a_budget_names_agents_and_groups_that_exist() -> None:
    found = find(f"{BUDGET}, who: {{ groups: [dev, deb], agents: codr }} }} }}\n")
    assert sorted(found) == [
        ("AP101", "there is no agent `codr`"),
        ("AP101", "there is no group `deb`"),
    ]


NOBODY = {
    "an empty who": (f"{BUDGET}, who: {{}} }} }}\n", True),
    "empty lists": (f"{BUDGET}, who: {{ agents: [], groups: [] }} }} }}\n", True),
    "somebody": (f"{BUDGET}, who: {{ agents: [], groups: dev }} }} }}\n", False),
    "everyone": (f"{BUDGET} }} }}\n", False),
    "no agents at all": ("budgets: { daily: { each: agent, limits: { requests: 1 } } }\n", True),
    "no who that can be read": (f"{BUDGET}, who: coder }} }}\n", False),
    "a fault elsewhere": (f"{BUDGET}, every: day }} }}\n", False),
}


@pytest.mark.parametrize(("text", "is_nobody"), NOBODY.values(), ids=NOBODY)
def test_a_budget_for_nobody_is_reported(text: str, is_nobody: bool) -> None:
    found = ("AP102", "budget `daily` is for no agent") in find(text)
    assert found is is_nobody


def test_a_rule_that_quarantine_keeps_must_exist() -> None:
    text = "rules:\n- { id: read, verdict: allow }\nquarantine: { keep_rules: [read, raed] }\n"
    draft = read_draft(load_text(f"version: 1\n{text}"))
    (found,) = check_names(draft)
    assert (found.code, found.line, found.column) == ("AP101", 4, 34)
    assert (found.message, found.hint) == ("there is no rule `raed`", "did you mean `read`?")
    (undefined,) = check_names(
        read_draft(load_text("version: 1\nquarantine: { keep_rules: read }\n"))
    )
    assert undefined.hint == "define it under `rules:`"


def test_a_budget_may_not_be_given_twice() -> None:
    draft = read_draft(load_text("version: 1\nbudgets: { a: { each: agent } }\n"))
    draft.budgets *= 2
    draft.budgets[1] = replace(draft.budgets[1], file="other.yaml")
    assert [one.message for one in check_names(draft) if one.code == "AP103"] == [
        "duplicate budget `a`, first given in policies.yaml:2"
    ]
