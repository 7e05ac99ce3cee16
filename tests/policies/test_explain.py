"""Why a request is decided so."""

import json
from ipaddress import ip_address
from zoneinfo import ZoneInfo

from policies.explain import Explanation, explain
from policies.model import Principal, Request
from policies.outcome import FALSE
from policies.policy_set import PolicySet
from policies.rule import Budget, Cost, Predicate, Rule, Who, Window, With
from tests.kit.policy_sets import CODER, NOW, allow, ask, deny, get, match, policy

READ = allow("read", "api.a.com", "/repos/**", "GET HEAD", line=12)
OTHER = allow("other", "b.com", "/repos/**", "DELETE", line=20)


def told(request: Request, *rules: Rule, addresses: str | None = None) -> Explanation:
    found = None if addresses is None else tuple(map(ip_address, addresses.split()))
    return explain(request, CODER, policy(*rules), addresses=found, now=NOW)


def test_the_decision_is_the_engines() -> None:
    request = get("/repos/x", host="api.a.com")
    assert told(request, READ).decision == ask(request, policy(READ))


def test_the_nearest_rule_names_the_one_field_it_missed_by() -> None:
    explanation = told(get("/repos/x", host="api.a.com", method="DELETE"), OTHER, READ)
    nearest, *others = explanation.nearest()
    assert nearest.rule.id == "read"
    (miss,) = nearest.misses
    assert (miss.field, miss.outcome, miss.got) == ("match.methods", FALSE, "DELETE")
    assert miss.expected == "GET or HEAD"
    assert [trace.rule.id for trace in others] == ["other"]
    assert explanation.matched() == ()


def test_far_rules_are_not_near() -> None:
    far = allow("far", "c.com", "/x", "PUT", who=Who(frozenset({"reviewer"})))
    explanation = told(get("/repos/x", host="api.a.com", method="DELETE"), far, READ)
    assert [trace.rule.id for trace in explanation.nearest()] == ["read"]


def test_an_allow_has_no_near_misses() -> None:
    explanation = told(get("/repos/x", host="api.a.com"), READ, OTHER)
    assert [trace.rule.id for trace in explanation.matched()] == ["read"]
    assert explanation.matched()[0].misses == ()
    assert explanation.nearest() == ()


def test_a_deny_shows_the_rule_that_denied() -> None:
    wall = deny("wall", "**.a.com", line=3)
    explanation = told(get("/repos/x", host="api.a.com"), READ, wall)
    assert [trace.rule.id for trace in explanation.matched()] == ["read", "wall"]
    assert "deny: denied-by-rule" in explanation.render()
    assert "rule `wall` (deny, line 3)" in explanation.render()


MISSES: dict[str, tuple[Rule, Request, str]] = {
    "who": (allow("r", who=Who(groups=frozenset({"x"}))), get(), "who"),
    "host": (allow("r", "*.a.com"), get(), "match.host"),
    "scheme": (allow("r"), get(scheme="http"), "match.scheme"),
    "port": (allow("r"), get(port=444), "match.port"),
    "path": (allow("r", paths="/x"), get(), "match.path"),
    "path_re": (allow("r", fields={"path_res": ("/x+",)}), get(), "match.path_re"),
    "query": (
        allow("r", fields={"query": (("q", Predicate("exact", ("1",))),)}),
        get(),
        "query.q",
    ),
    "header": (
        allow("r", fields={"headers": (("x-a", Predicate("present")),)}),
        get(),
        "headers.x-a",
    ),
    "query_only": (
        allow("r", fields={"query_only": True}),
        get(query="z=1", query_pairs=(("z", "1"),)),
        "match.query_only",
    ),
    "websocket": (allow("r"), get(websocket=True), "match.websocket"),
    "body": (allow("r"), get(body=True), "match.body"),
    "path_params": (allow("r"), get("/a;b", path_params=True), "with.path_params"),
    "unless": (allow("r", unless=match("a.com")), get(), "unless"),
    "when": (allow("r", when=Window(ZoneInfo("UTC"), between=(0, 60))), get(), "when.between"),
}


def test_every_kind_of_miss_is_named_with_what_was_wanted_and_got() -> None:
    for rule, request, field in MISSES.values():
        explanation = told(request, rule)
        if field == "with.path_params":  # the rule matches; its parameters are refused after it
            assert explanation.decision.reason == "path-not-canonical"
            (trace,) = explanation.matched()
        else:
            (trace,) = explanation.nearest()
        assert [miss.field for miss in trace.misses] == [field]
        assert trace.misses[0].expected
        assert trace.misses[0].got
        assert f"MISS {field}" in explanation.render()


def test_a_private_address_is_a_miss_of_its_own() -> None:
    explanation = told(get(), allow("r"), addresses="10.0.0.1")
    (trace,) = explanation.nearest()
    (miss,) = trace.misses
    assert (miss.field, miss.expected, miss.got) == (
        "match.dest_ip",
        "only public addresses",
        "10.0.0.1",
    )


def test_without_addresses_a_name_is_public_and_a_literal_is_itself() -> None:
    assert told(get(), allow("r")).decision.reason == "allowed"
    assert (
        told(get(host="10.0.0.1"), allow("r", "10.0.0.1")).decision.reason == "address-not-public"
    )


def test_patterns_are_expanded_in_words() -> None:
    text = told(get(host="a.com"), allow("r", "*.a.com **.b.com")).render()
    assert "exactly one more label before `a.com`" in text
    assert "one or more labels before `b.com`" in text


def test_shadow_rules_are_shown_as_such() -> None:
    text = told(get(), allow("r"), deny("s", shadow=True)).render()
    assert "rule `s` (deny, shadow, line 0)" in text
    assert "would    deny s" in text


def test_stripped_parameters_are_traced_on_the_stripped_path() -> None:
    rule = allow("r", paths="/a/b", with_=With(path_params="strip"))
    explanation = told(get("/a;v/b", path_params=True), rule)
    assert explanation.decision.reason == "allowed"
    assert explanation.matched()[0].misses == ()


def test_an_unknown_agent_gets_a_reason_and_no_rules() -> None:
    rules: PolicySet = policy(READ)
    explanation = explain(get(), Principal("x", "", ""), rules, addresses=None, now=NOW)
    assert explanation.decision.reason == "agent-unknown"
    assert explanation.matched() == ()
    assert explanation.nearest() == ()
    assert "agent-unknown" in explanation.render()


def test_the_json_form_is_json_and_complete() -> None:
    explanation = told(
        get("/repos/x", host="api.a.com", method="PUT"), READ, deny("s", shadow=True)
    )
    found = json.loads(json.dumps(explanation.to_dict()))
    assert found["verdict"] == "deny"
    assert found["reason"] == "no-rule-matched"
    assert found["request"] == "PUT https://api.a.com/repos/x"
    assert found["nearest"][0]["rule"] == "read"
    assert found["nearest"][0]["misses"] == ["match.methods"]
    assert found["matched"][0]["rule"] == "s"


DAILY = Budget("daily", "agent", (("requests", 10),), None, 86_400_000)
THEIRS = Budget("theirs", "agent", (("steps", 10),), Who(frozenset({"reviewer"})))


def told_with_budgets(*rules: Rule, keep: frozenset[str] | None = None) -> Explanation:
    rules_ = policy(*rules, budgets=(THEIRS, DAILY), keep_rules=keep or frozenset())
    return explain(get(), CODER, rules_, addresses=None, now=NOW, keep_rules=keep)


def test_an_allowed_request_names_its_cost_and_the_budgets_of_its_agent() -> None:
    explanation = told_with_budgets(allow("r", cost=Cost(3, 4, 5)), allow("s"))
    assert explanation.budgets() == (DAILY,)
    text = explanation.render()
    assert "cost     1 request, 4 steps, 5 effort, 5 risk" in text
    assert "budget   daily, each agent every 1d: requests 10" in text
    assert "theirs" not in text
    found = json.loads(json.dumps(explanation.to_dict()))
    assert found["cost"] == {"requests": 1, "steps": 4, "effort": 5, "risk": 5}
    assert [one["budget"] for one in found["budgets"]] == ["daily"]
    assert found["suspended"] == []


def test_a_denied_request_names_no_budget() -> None:
    explanation = told_with_budgets(deny("d"))
    assert explanation.budgets() == ()
    assert "budget" not in explanation.render()
    assert "cost" not in explanation.render()
    assert explanation.to_dict()["cost"] is None


def test_rules_that_quarantine_suspends_are_shown_and_are_no_match() -> None:
    explanation = told_with_budgets(allow("b", line=7), allow("a"), keep=frozenset())
    assert explanation.decision.reason == "quarantined"
    assert [rule.id for rule in explanation.suspended()] == ["a", "b"]
    assert explanation.matched() == explanation.nearest() == ()
    assert "suspended: rule `b` (allow, line 7), quarantine does not" in explanation.render()
    kept = told_with_budgets(allow("b"), allow("a"), keep=frozenset({"a"}))
    assert [trace.rule.id for trace in kept.matched()] == ["a"]
    assert kept.to_dict()["suspended"] == ["b"]
