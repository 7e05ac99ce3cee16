"""What several allows owe together: policy.md 2.6."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.compiled import compile_rule
from policies.model import Obligations, Principal, RateUse
from policies.obligation import Conflict, Specificity, join_obligations, rank
from policies.rule import Cost, Rate, Rule, Who, With
from tests.kit.policy_sets import AGENTS, CODER, allow, get

RATES = {name: Rate(name, name, 1, 1000, 1) for name in ("agent", "session", "rule")}
CAPTURE: dict[str, Any] = {"with_": With(capture="request")}


def join(*rules: Rule, caller: Principal = CODER) -> Obligations | Conflict:
    compiled = [compile_rule(rule) for rule in rules]
    return join_obligations(compiled, get("/x/1"), caller, AGENTS[0], RATES)


def test_one_rule_owes_what_it_says() -> None:
    assert join(allow("r")) == Obligations()


KEYS = {
    "agent": (CODER, "coder"),
    "session": (CODER, "s-1"),
    "rule": (CODER, "r"),
}


@pytest.mark.parametrize(("each", "expected"), KEYS.items(), ids=KEYS)
def test_a_rate_counts_for_each_of_what_it_says(each: str, expected: tuple[Principal, str]) -> None:
    caller, key = expected
    joined = join(allow("r", with_=With((each,))), caller=caller)
    assert joined == Obligations((RateUse(each, key),))


def test_an_agent_without_a_session_is_its_own() -> None:
    joined = join(allow("r", with_=With(("session",))), caller=Principal("coder", "", ""))
    assert joined == Obligations((RateUse("session", "coder"),))


def test_the_smallest_limit_wins_and_silence_is_no_limit() -> None:
    joined = join(allow("a"), allow("b", with_=With((), 5, 9)), allow("c", with_=With((), 7, 8)))
    assert isinstance(joined, Obligations)
    assert (joined.max_request_bytes, joined.max_response_bytes) == (5, 8)


def test_specificity_is_host_then_port_then_path_then_methods_then_who() -> None:
    agent = AGENTS[0]
    request = get("/x/1", host="b.a.com")
    everything = allow(
        "r", "*.a.com **.a.com", "/x/* /x/{n:int}", "GET", who=Who(frozenset({"coder"}))
    )
    assert rank(everything, request, agent) == Specificity(2, True, 1, True, 2)
    by_group = allow("r", "b.a.com", "/**", who=Who(groups=frozenset({"team"})))
    assert rank(by_group, request, agent) == Specificity(3, True, 0, False, 1)
    loose = allow("r", "", fields={"ports": None})
    assert rank(loose, request, agent) == Specificity(0, False, 0, False, 0)


HOST_RANKS = {"x.a.com": 3, "*.a.com": 2, "**.a.com": 1, "": 0}


@pytest.mark.parametrize(("hosts", "expected"), HOST_RANKS.items(), ids=HOST_RANKS)
def test_a_host_is_named_more_or_less_narrowly(hosts: str, expected: int) -> None:
    assert rank(allow("r", hosts), get(host="x.a.com"), AGENTS[0]).host == expected
    literal = rank(allow("r", "8.8.8.8"), get(host="8.8.8.8"), AGENTS[0])
    assert literal.host == HOST_RANKS["x.a.com"]


def test_only_the_entry_that_matches_says_how_narrow_a_rule_is() -> None:
    rule = allow("r", "other.com **.a.com", "/x/1/y /x/{n:int} /**")
    found = rank(rule, get("/x/1", host="x.a.com"), AGENTS[0])
    assert (found.host, found.literal_segments) == (1, 1)
    both = rank(
        allow("r", "**.a.com x.a.com *.a.com", "/** /x/1 /x/*"), get("/x/1", "x.a.com"), AGENTS[0]
    )
    assert (both.host, both.literal_segments) == (3, 2), "the narrowest of several"
    stripped = rank(allow("r", paths="/x/1"), get("/x;v=1/1", path_params=True), AGENTS[0])
    assert stripped.literal_segments == 2, "as it would be sent"
    kept = rank(allow("r", paths="/x;v=1/1"), get("/x;v=1/1", path_params=True), AGENTS[0])
    assert kept.literal_segments == 2, "or as it came"


def test_hidden_segments_are_united_in_order() -> None:
    rules = allow("a", with_=With(redact_path=(40, 9))), allow("b", with_=With(redact_path=(1, 9)))
    joined = join(*rules)
    assert isinstance(joined, Obligations)
    assert joined.redact_path == (1, 9, 40)


@pytest.mark.parametrize("flip", [False, True])
def test_the_more_specific_rule_gives_the_one_value(flip: bool) -> None:
    wide = allow("wide", paths="/**", methods="GET", with_=With(capture="request"))
    narrow = allow("narrow", paths="/x/*", with_=With(capture="metadata"))
    joined = join(*((narrow, wide) if flip else (wide, narrow)))
    assert isinstance(joined, Obligations)
    assert joined.capture == "metadata"


def test_rules_that_say_the_same_do_not_conflict() -> None:
    assert isinstance(join(allow("a", **CAPTURE), allow("b", **CAPTURE), allow("c")), Obligations)


@pytest.mark.parametrize("field", ["capture", "path_params"])
def test_equal_rules_that_disagree_are_a_conflict(field: str) -> None:
    values = {"capture": ("request", "metadata"), "path_params": ("strip", "keep")}[field]
    rules = [allow(f"r{n}", with_=With(**{field: value})) for n, value in enumerate(values)]  # type: ignore[arg-type]
    assert join(*rules) == Conflict(field, ("r0", "r1"))  # type: ignore[arg-type]
    assert join(*rules[::-1]) == Conflict(field, ("r0", "r1"))  # type: ignore[arg-type]


def test_steps_and_effort_add_up_and_the_largest_risk_counts() -> None:
    """A rule that names no cost costs one step and one effort, beside others as well as alone."""
    assert join(allow("a", cost=Cost(5, 7, 3))) == Obligations(steps=5, effort=7, risk=3)
    joined = join(allow("a", cost=Cost(5, 7, 3)), allow("b"), allow("c", cost=Cost(0, 0, 9)))
    assert joined == Obligations(steps=6, effort=8, risk=9)


def test_one_rule_that_shows_the_budget_is_enough() -> None:
    shows, hides = With(show_budget=True), With(show_budget=False)
    assert join(allow("a", with_=shows)) == Obligations(show_budget=True)
    assert join(allow("a", with_=hides)) == join(allow("a")) == Obligations()
    both = join(allow("a", with_=hides), allow("b", with_=shows), allow("c"))
    assert both == Obligations(steps=3, effort=3, show_budget=True)


costs = st.builds(Cost, *[st.integers(0, 1000)] * 3)


@settings(deadline=None, max_examples=60)
@given(st.lists(costs, min_size=1, max_size=6), st.randoms())
def test_the_order_of_rules_has_no_part_in_what_they_cost(
    found: list[Cost], shuffle: random.Random
) -> None:
    rules = [allow(f"r{number}", cost=cost) for number, cost in enumerate(found)]
    joined = join(*rules)
    shuffle.shuffle(rules)
    assert join(*rules) == joined
    assert joined == Obligations(
        steps=sum(cost.steps for cost in found),
        effort=sum(cost.effort for cost in found),
        risk=max(cost.risk for cost in found),
    )
