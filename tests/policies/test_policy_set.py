"""Building a policy set, and the index it is asked through."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Verdict
from policies.policy_set import PolicySet, build, reaches
from policies.rule import Agent, Budget, Defaults, Rate, Rule, Who, With
from tests.kit.policy_sets import AGENTS, allow, ask, deny, get, policy


def test_a_policy_set_keeps_what_it_was_built_from() -> None:
    rules = allow("a"), deny("b")
    rate = Rate("slow", "agent", 1, 1000, 1)
    built = build(rules, AGENTS, [rate], Defaults(timezone="Europe/Berlin"), "d", "mine")
    assert (built.digest, built.name, built.rules) == ("d", "mine", rules)
    assert set(built.agents) == {"coder", "reviewer"}
    assert built.rates["slow"] is rate
    assert built.defaults.timezone == "Europe/Berlin"


def test_a_policy_set_cannot_be_changed() -> None:
    built = policy(allow("a"))
    with pytest.raises(AttributeError):
        built.digest = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        built.agents["new"] = Agent("new")  # type: ignore[index]


BROKEN = {
    "rule twice": ([allow("a"), deny("a")], [], []),
    "agent twice": ([], [Agent("x"), Agent("x")], []),
    "rate twice": ([], [], [Rate("r", "agent", 1, 1, 1)] * 2),
    "unknown rate": ([allow("a", with_=With(("none",)))], [], []),
    "bad expression": ([allow("a", fields={"path_res": ("(",)})], [], []),
}


@pytest.mark.parametrize(("rules", "agents", "rates"), BROKEN.values(), ids=BROKEN)
def test_what_the_validator_should_have_found_is_refused(
    rules: list[Rule], agents: list[Agent], rates: list[Rate]
) -> None:
    with pytest.raises(ValueError, match=r"`|expression"):
        build(rules, agents, rates, Defaults(), "d", "n")


def test_a_rule_of_many_hosts_paths_and_ports_is_found_once() -> None:
    rule = allow("r", "a.com **.a.com *.a.com", "/** /x/* /x/y", "GET")
    decision = ask(get("/x/y", host="b.a.com"), policy(rule))
    assert decision.rules == ("r",)


@pytest.mark.parametrize("port", [443, 1000, 1039])
def test_a_rule_of_more_ports_than_the_index_files_is_still_held_to_them(port: int) -> None:
    rule = allow("r", fields={"ports": frozenset(range(1000, 1040))})
    assert (ask(get(port=port), policy(rule)).verdict is Verdict.ALLOW) is (port >= 1000)


def test_expressions_are_found_below_their_literal_beginning() -> None:
    rules = [allow(f"r{i}", fields={"path_res": (f"/repos/x{i}/[a-z]+",)}) for i in range(20)]
    assert ask(get("/repos/x7/abc"), policy(*rules)).rules == ("r7",)
    assert ask(get("/repos/x7/ABC"), policy(*rules)).reason == "no-rule-matched"


def test_globs_are_found_by_their_beginning() -> None:
    rules = [allow(f"r{i}", paths=f"/report-{i}-*.pdf") for i in range(20)]
    assert ask(get("/report-7-x.pdf"), policy(*rules, allow("any", paths="/*.pdf"))).rules == (
        "any",
        "r7",
    )


def test_a_wildcard_never_takes_an_address() -> None:
    assert ask(get(host="1.2.3.4"), policy(allow("r", "**.a.com"))).reason == "no-rule-matched"


def test_an_agent_that_no_rule_names_gets_the_rules_for_everyone() -> None:
    assert ask(get(), policy(allow("r"))).rules == ("r",)


def budget(name: str, who: Who | None = None) -> Budget:
    return Budget(name, "agent", (("requests", 10),), who)


MEMBERS = (Agent("a", frozenset({"x", "y"})), Agent("b", frozenset({"y"})), Agent("c"))


def names_of(built: PolicySet, agent: str) -> list[str]:
    return [one.id for one in built.budgets_of(agent)]


def test_the_budgets_of_an_agent_are_resolved_through_its_groups() -> None:
    budgets = [
        budget("zero", Who()),
        budget("named", Who(frozenset({"a", "c"}))),
        budget("both", Who(frozenset({"b"}), frozenset({"x"}))),
        budget("all"),
    ]
    built = build([], MEMBERS, [], Defaults(), "d", "n", budgets=budgets)
    assert names_of(built, "a") == ["all", "both", "named"]
    assert names_of(built, "b") == ["all", "both"]
    assert names_of(built, "c") == ["all", "named"]
    assert built.budgets_of("stranger") == ()
    assert set(built.budgets) == {"zero", "named", "both", "all"}


agent_sets = st.frozensets(st.sampled_from("abc"))
who_is = st.none() | st.builds(Who, agent_sets, st.frozensets(st.sampled_from("xyz")))


@settings(deadline=None, max_examples=100)
@given(st.lists(who_is, max_size=6))
def test_the_table_of_budgets_says_what_each_who_says(selectors: list[Who | None]) -> None:
    budgets = [budget(f"b{number}", who) for number, who in enumerate(selectors)]
    built = build([], MEMBERS, [], Defaults(), "d", "n", budgets=budgets)
    for agent in MEMBERS:
        expected = [one.id for one in budgets if reaches(one.who, agent)]
        assert names_of(built, agent.id) == expected


def test_a_budget_given_twice_and_an_unknown_kept_rule_are_refused() -> None:
    with pytest.raises(ValueError, match="duplicate budget `b`"):
        build([], [], [], Defaults(), "d", "n", budgets=[budget("b")] * 2)
    with pytest.raises(ValueError, match="unknown rule `none`"):
        build([allow("a")], [], [], Defaults(), "d", "n", keep_rules=frozenset({"a", "none"}))


def test_a_policy_set_keeps_what_quarantine_leaves_open() -> None:
    built = build([allow("a")], [], [], Defaults(), "d", "n", keep_rules=frozenset({"a"}))
    assert built.keep_rules == {"a"}
    assert policy(allow("a")).keep_rules == frozenset()
    assert policy(allow("a")).budgets == {}
