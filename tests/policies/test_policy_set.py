"""Building a policy set, and the index it is asked through."""

import pytest

from policies.model import Verdict
from policies.policy_set import build
from policies.rule import Agent, Defaults, Rate, Rule, With
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
