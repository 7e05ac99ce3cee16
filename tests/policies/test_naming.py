"""Names: undefined, unused, claimed twice; sources that overlap."""

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
