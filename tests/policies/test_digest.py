"""What changes the digest of a policy, and what does not."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.compile import compile_text
from policies.digest import compute_digest
from policies.model import Verdict
from policies.rule import Agent, Defaults, Match, Rate, Rule

BASE = """\
version: 1
name: base
agents: { coder: { groups: [dev, ops] }, bot: { identity: { source: [192.0.2.1, 10.0.0.0/8] } } }
rates: { slow: { each: agent, allow: 5, per: 1m } }
rules:
- id: a
  verdict: allow
  who: { groups: [dev, ops] }
  match:
    host: [a.example.com, "*.example.org"]
    methods: [GET, POST]
    query: { x: { one_of: [1, 2] }, q: z }
  with: { rate: slow }
- { id: b, verdict: deny, match: { path: [/x, /y] } }
"""


def digest_of(text: str) -> str:
    return compile_text(text).policy_set.digest


SAME = {
    "comments": ("rules:", "# hello\nrules: # there"),
    "block style": ("- { id: b, verdict: deny, match: { path: [/x, /y] } }",
                    "- id: b\n  match:\n    path:\n      - /x\n      - /y\n  verdict: deny"),
    "order of a list": ("[GET, POST]", "[POST, GET]"),
    "an entry twice": ("[/x, /y]", "[/x, /y, /x]"),
    "quotes": ("[GET, POST]", '["GET", POST]'),
    "order of keys": ("{ path: [/x, /y] }", "{ path: [/y, /x] }"),
    "a default written out": ("path: [/x, /y] }", "path: [/x, /y], websocket: false }"),
    "the default burst": ("per: 1m", "per: 1m, burst: 5"),
    "another unit": ("per: 1m", "per: 60s"),
    "the default port": ("[GET, POST]", "[GET, POST]\n    port: 443\n    scheme: https"),
    "an empty section": ("rates:", "include:\nrates:"),
    "empty parts of this version": ("rates:", "budgets:\nquarantine: { keep_rules: [] }\nrates:"),
    "the default cost": ("with: { rate: slow }",
                         "with: { rate: slow, show_budget: false }\n  cost: { steps: 1, risk: 0 }"),
    "one address as a range": ("[192.0.2.1,", "[192.0.2.1/32,"),
}  # fmt: skip
OTHER = {
    "a name": ("name: base", "name: other"),
    "an id": ("id: b", "id: c"),
    "a verdict": ("id: b, verdict", "id: b, mode: shadow, verdict"),
    "a method": ("[GET, POST]", "[GET]"),
    "a path": ("/y]", "/y/]"),
    "a predicate": ("q: z", "q: { prefix: z }"),
    "a rate": ("allow: 5", "allow: 6"),
    "an agent": ("groups: [dev, ops] }, bot", "groups: [dev, ops] }, more: {}, bot"),
    "a source": ("10.0.0.0/8", "10.0.0.0/9"),
    "a default of the whole": ("name: base", "name: base\ndefaults: { explain_denials: false }"),
    "a cost": ("with: { rate: slow }", "with: { rate: slow }\n  cost: { steps: 2 }"),
    "a shown budget": ("rate: slow }", "rate: slow, show_budget: true }"),
    "a rule that quarantine keeps": ("rates:", "quarantine: { keep_rules: a }\nrates:"),
    "a budget": ("rates:", "budgets: { b: { each: agent, limits: { requests: 5 } } }\nrates:"),
    "everyone instead of groups": ("  who: { groups: [dev, ops] }\n", ""),
}


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME)
def test_writing_does_not_change_the_digest(old: str, new: str) -> None:
    assert old in BASE
    assert digest_of(BASE.replace(old, new)) == digest_of(BASE)


@pytest.mark.parametrize(("old", "new"), OTHER.values(), ids=OTHER)
def test_meaning_changes_the_digest(old: str, new: str) -> None:
    assert old in BASE
    assert digest_of(BASE.replace(old, new, 1)) != digest_of(BASE)


def test_the_digest_of_a_known_policy_never_changes() -> None:
    """Records name it for years: a change here needs a new FORM and a line in the changelog."""
    assert digest_of(BASE) == "843646325d2e07a54110cc6a3dd4c24ac0f8ebcbb5e8bda998e13ba1b3055614"


BUDGET = """\
version: 1
agents: { coder: { groups: [dev] }, bot: {} }
budgets:
  x: { each: agent, who: { agents: [bot, coder] }, limits: { requests: 5, bytes_in: 1MB },
       window: 1d, at: [{ reached: 80%, do: warn }, { reached: 90%, do: halt }] }
  w: { each: session, limits: { wall_time: 60s } }
"""
SAME_BUDGET = {
    "order of limits": ("{ requests: 5, bytes_in: 1MB }", "{ bytes_in: 1MB, requests: 5 }"),
    "order of agents": ("[bot, coder]", "[coder, bot]"),
    "order of thresholds": ("[{ reached: 80%, do: warn }, { reached: 90%, do: halt }]",
                            "[{ reached: 90%, do: halt }, { reached: 80%, do: warn }]"),
    "another unit": ("60s", "1m"),
    "a day in hours": ("1d", "24h"),
    "bytes one by one": ("1MB", "1000kB"),
}  # fmt: skip
OTHER_BUDGET = {
    "a limit": ("requests: 5", "requests: 6"),
    "a limit of nothing": ("requests: 5", "requests: 5, steps: 0"),
    "a window": ("1d", "2d"),
    "no window": ("window: 1d, ", ""),
    "whom it is for": (" who: { agents: [bot, coder] },", ""),
    "for each what": ("each: agent", "each: session"),
    "a threshold": ("80%", "81%"),
    "what a threshold does": ("do: warn", "do: quarantine"),
    "its name": ("x: {", "z: {"),
}


@pytest.mark.parametrize(("old", "new"), SAME_BUDGET.values(), ids=SAME_BUDGET)
def test_how_a_budget_is_written_does_not_change_the_digest(old: str, new: str) -> None:
    assert old in BUDGET
    assert digest_of(BUDGET.replace(old, new)) == digest_of(BUDGET)


@pytest.mark.parametrize(("old", "new"), OTHER_BUDGET.values(), ids=OTHER_BUDGET)
def test_what_a_budget_says_changes_the_digest(old: str, new: str) -> None:
    assert old in BUDGET
    assert digest_of(BUDGET.replace(old, new, 1)) != digest_of(BUDGET)


def test_the_place_of_a_rule_is_not_part_of_it() -> None:
    digests = {
        compute_digest("", Defaults(), [], [], [Rule("r", Verdict.DENY, Match(), line=line)])
        for line in (1, 99)
    }
    assert len(digests) == 1


def test_order_of_parts_is_not_part_of_it() -> None:
    rules = [Rule("a", Verdict.DENY), Rule("b", Verdict.DENY)]
    agents = [Agent("x"), Agent("y")]
    rates = [Rate("p", "agent", 1, 1, 1), Rate("q", "agent", 1, 1, 1)]
    forward = compute_digest("", Defaults(), agents, rates, rules)
    assert compute_digest("", Defaults(), agents[::-1], rates[::-1], rules[::-1]) == forward


ids = st.lists(st.sampled_from("abcdef"), unique=True, min_size=1, max_size=5)
hosts = st.lists(
    st.sampled_from(["a.example.com", "*.example.org", "**.example.net"]), min_size=1, unique=True
)
matches = st.fixed_dictionaries(
    {"host": hosts},
    optional={
        "methods": st.lists(st.sampled_from(["GET", "POST", "PUT"]), min_size=1, unique=True),
        "path": st.lists(st.sampled_from(["/", "/a/**", "/b/{x:int}"]), min_size=1, unique=True),
        "headers": st.dictionaries(st.sampled_from(["x-a", "x-b"]), st.text(max_size=8)),
        "query_only": st.booleans(),
    },
)


def write(value: Any, draw: st.DataObject) -> str:
    """A value as YAML in flow style, keys and list entries in any order."""
    if isinstance(value, dict):
        pairs = draw.draw(st.permutations(list(value.items())))
        return "{ " + ", ".join(f"{key}: {write(held, draw)}" for key, held in pairs) + " }"
    if isinstance(value, list):
        return (
            "[" + ", ".join(write(item, draw) for item in draw.draw(st.permutations(value))) + "]"
        )
    if isinstance(value, bool):
        return str(value).lower()
    escaped = "".join(f"\\U{ord(mark):08X}" for mark in value)
    return f'"{escaped}"'


@settings(deadline=None, max_examples=60)
@given(ids, st.lists(matches, min_size=5, max_size=5), st.data())
def test_any_order_gives_the_digest_and_the_archive_compiles_to_it(
    names: list[str], found: list[dict[str, Any]], data: st.DataObject
) -> None:
    rules = [
        {"id": name, "description": f'é "{name}"\n', "verdict": "allow", "match": match}
        for name, match in zip(names, found, strict=False)
    ]
    texts: list[str] = []
    for _ in range(2):
        lines = [
            f"- {write(rule, data)} # {len(texts)}" for rule in data.draw(st.permutations(rules))
        ]
        texts.append("\n".join(["version: 1", "rules:", *lines]) + "\n")
    first, second = (compile_text(text) for text in texts)
    assert first.policy_set.digest == second.policy_set.digest
    again = compile_text(first.archive)
    assert again.policy_set.digest == first.policy_set.digest
    assert again.archive == first.archive
