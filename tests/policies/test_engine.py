"""The decision: policy.md section 2, threats B14, E13, F5, F6, G7, G12, G13."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from policies.engine import decide, decide_with_tally, screen
from policies.match import Facts
from policies.model import Decision, Obligations, Principal, RateUse, Read, Verdict, Would
from policies.policy_set import PolicySet
from policies.rule import Cost, DestIp, Match, Predicate, Rate, Rule, Who, Window, With
from tests.kit.policy_sets import CODER, NOW, PUBLIC, allow, ask, deny, get, match, policy

BERLIN = ZoneInfo("Europe/Berlin")
CLOSED = Window(BERLIN, between=(0, 60))
OPEN = Window(BERLIN, between=(600, 1080))


def outcome(decision: Decision) -> tuple[str, str, tuple[str, ...]]:
    return str(decision.verdict), decision.reason, decision.rules


def test_an_empty_policy_denies_everything() -> None:
    assert outcome(ask(get(), policy())) == ("deny", "no-rule-matched", ())


def test_an_allow_names_its_rule_and_the_policy() -> None:
    decision = ask(get(), policy(allow("r")))
    assert outcome(decision) == ("allow", "allowed", ("r",))
    assert decision.policy_digest == "d1g3st"
    assert decision.obligations == Obligations()
    assert decision.read == (
        Read("match.host", "true"),
        Read("match.scheme", "true"),
        Read("match.port", "true"),
    )


def test_a_deny_wins_whatever_the_order() -> None:
    rules = allow("a"), deny("d2", methods="GET"), deny("d1")
    for order in (rules, rules[::-1]):
        assert outcome(ask(get(), policy(*order))) == ("deny", "denied-by-rule", ("d1", "d2"))


def test_a_deny_without_hosts_covers_every_port_and_scheme() -> None:
    rules = allow("a", fields={"schemes": frozenset({"http"}), "ports": frozenset({8080})})
    request = get(scheme="http", port=8080)
    assert ask(request, policy(rules)).verdict is Verdict.ALLOW
    assert ask(request, policy(rules, deny("d"))).reason == "denied-by-rule"


def test_all_matching_allows_are_named() -> None:
    rules = allow("b"), allow("a", methods="GET"), allow("c", methods="PUT")
    assert ask(get(), policy(*rules)).rules == ("a", "b")


def test_agents_that_are_not_in_the_file_are_denied() -> None:
    stranger = Principal("stranger", "", "")
    decision = decide(get(), stranger, policy(allow("r")), addresses=PUBLIC, now=NOW)
    assert decision.reason == "agent-unknown"
    place = {"host": "a.com", "port": 443, "scheme": None, "now": NOW}
    assert screen(stranger, policy(allow("r")), **place).reason == "agent-unknown"  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["TRACE", "get", "CONNECT", ""])
def test_unknown_methods_never_pass(method: str) -> None:
    assert ask(get(method=method), policy(allow("r"))).reason == "method-not-allowed"


WHO = {
    "everyone": (None, True),
    "the agent": (Who(frozenset({"coder"})), True),
    "its group": (Who(groups=frozenset({"team"})), True),
    "agent or group": (Who(frozenset({"reviewer"}), frozenset({"team"})), True),
    "another agent": (Who(frozenset({"reviewer"})), False),
    "another group": (Who(groups=frozenset({"other"})), False),
    "nobody": (Who(), False),
}


@pytest.mark.parametrize(("who", "expected"), WHO.values(), ids=WHO)
def test_who_selects_by_agent_or_group(who: Who | None, expected: bool) -> None:
    assert (ask(get(), policy(allow("r", who=who))).verdict is Verdict.ALLOW) is expected
    denied = ask(get(), policy(allow("r"), deny("d", who=who)))
    assert (denied.reason == "denied-by-rule") is expected


UNKNOWN = Match(query=(("a", Predicate("exact", ("1",))),))
TWICE = get(query="a=1&a=2", query_pairs=(("a", "1"), ("a", "2")))


def test_unknown_is_no_match_for_an_allow_and_a_match_for_a_deny() -> None:
    fields = {"query": UNKNOWN.query}
    assert ask(TWICE, policy(allow("r", fields=fields))).reason == "no-rule-matched"
    denied = ask(TWICE, policy(allow("r"), deny("d", fields=fields)))
    assert outcome(denied) == ("deny", "denied-by-rule", ("d",))
    assert denied.read == (Read("query.a", "unknown"),)


def test_unless_takes_away_and_unknown_takes_the_safe_side() -> None:
    once = get(query="a=1", query_pairs=(("a", "1"),))
    exempt = allow("r", unless=UNKNOWN)
    assert ask(get(), policy(exempt)).verdict is Verdict.ALLOW
    assert ask(once, policy(exempt)).reason == "no-rule-matched"
    assert ask(TWICE, policy(exempt)).reason == "no-rule-matched"
    wall = allow("r"), deny("d", unless=UNKNOWN)
    assert ask(get(), policy(*wall)).reason == "denied-by-rule"
    assert ask(once, policy(*wall)).verdict is Verdict.ALLOW
    assert ask(TWICE, policy(*wall)).reason == "denied-by-rule"


def test_the_record_says_what_the_exception_was() -> None:
    decision = ask(get(), policy(allow("r", unless=UNKNOWN)))
    assert decision.read[-1] == Read("unless", "false")


def test_windows_open_and_close_rules() -> None:
    assert ask(get(), policy(allow("r", when=OPEN))).verdict is Verdict.ALLOW
    assert ask(get(), policy(allow("r", when=CLOSED))).reason == "no-rule-matched"
    assert ask(get(), policy(allow("r"), deny("d", when=CLOSED))).verdict is Verdict.ALLOW
    assert ask(get(), policy(allow("r"), deny("d", when=OPEN))).reason == "denied-by-rule"


def test_an_ambiguous_time_closes_allows_and_keeps_denies() -> None:
    now = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # 02:30 in Berlin, for the first time
    window = Window(BERLIN, between=(120, 180))
    lone = policy(allow("r", when=window))
    assert decide(get(), CODER, lone, addresses=PUBLIC, now=now).verdict is Verdict.DENY
    walled = policy(allow("r"), deny("d", when=window))
    assert decide(get(), CODER, walled, addresses=PUBLIC, now=now).reason == "denied-by-rule"


def test_an_upgrade_needs_websocket_true_in_an_allow_and_not_in_a_deny() -> None:
    upgrade = get(websocket=True)
    assert ask(upgrade, policy(allow("r"))).reason == "no-rule-matched"
    sockets = allow("r", fields={"websocket": True})
    assert ask(upgrade, policy(sockets)).verdict is Verdict.ALLOW
    assert ask(get(), policy(sockets)).verdict is Verdict.ALLOW
    assert ask(upgrade, policy(sockets, deny("d"))).reason == "denied-by-rule"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_a_body_where_none_belongs_needs_body_true(method: str) -> None:
    request = get(method=method, body=True)
    assert ask(request, policy(allow("r"))).reason == "no-rule-matched"
    assert ask(request, policy(allow("r", fields={"body": True}))).verdict is Verdict.ALLOW
    assert ask(replace(request, method="POST"), policy(allow("r"))).verdict is Verdict.ALLOW


PRIVATE = {"dest_ip": DestIp(frozenset({"private"}))}
ADDRESSES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "public": ({}, ["8.8.8.8"], "allowed"),
    "private": ({}, ["10.0.0.1"], "address-not-public"),
    "one bad answer refuses all": ({}, ["8.8.8.8", "127.0.0.1"], "address-not-public"),
    "mapped loopback": ({}, ["::ffff:127.0.0.1"], "address-not-public"),
    "NAT64 of a private one": ({}, ["64:ff9b::a00:1"], "address-not-public"),
    "metadata": ({}, ["169.254.169.254"], "address-not-public"),
    "opened class": (PRIVATE, ["10.0.0.1"], "allowed"),
    "opened class, mapped": (PRIVATE, ["::ffff:10.0.0.1"], "allowed"),
    "opened class, one outside": (PRIVATE, ["10.0.0.1", "8.8.8.8"], "address-not-public"),
    "opened class is not metadata": (PRIVATE, ["169.254.169.254"], "address-not-public"),
    "wide range is not metadata": (
        {"dest_ip": DestIp(networks=(ip_network("169.254.0.0/16"),))},
        ["169.254.169.254"],
        "address-not-public",
    ),
    "the one address is": (
        {"dest_ip": DestIp(networks=(ip_network("169.254.169.254/32"),))},
        ["169.254.169.254"],
        "allowed",
    ),
}


@pytest.mark.parametrize(("fields", "addresses", "reason"), ADDRESSES.values(), ids=ADDRESSES)
def test_the_address_guard(fields: dict[str, Any], addresses: list[str], reason: str) -> None:
    assert ask(get(), policy(allow("r", fields=fields)), *addresses).reason == reason


def test_without_an_address_nothing_is_allowed() -> None:
    decision = decide(get(), CODER, policy(allow("r")), addresses=(), now=NOW)
    assert decision.reason == "address-not-public"


def test_an_ip_literal_is_its_own_answer() -> None:
    rules = policy(allow("r", "127.0.0.1"), allow("s", "8.8.8.8"))
    assert ask(get(host="127.0.0.1"), rules, "8.8.8.8").reason == "address-not-public"
    assert decide(get(host="8.8.8.8"), CODER, rules, addresses=(), now=NOW).rules == ("s",)


def test_another_rule_may_open_the_address() -> None:
    rules = policy(allow("public"), allow("inside", fields=PRIVATE))
    assert ask(get(), rules, "10.0.0.1").rules == ("inside",)
    assert ask(get(), rules, "8.8.8.8").rules == ("public",)


def test_a_deny_matches_when_any_address_is_in_its_range() -> None:
    wide = {"dest_ip": DestIp(networks=(ip_network("8.8.8.0/24"),))}
    rules = policy(allow("r"), deny("d", fields=wide))
    assert ask(get(), rules, "1.1.1.1").verdict is Verdict.ALLOW
    assert ask(get(), rules, "1.1.1.1", "8.8.8.8").reason == "denied-by-rule"


def test_shadow_rules_only_show_in_would() -> None:
    shadow_deny = deny("sd", shadow=True)
    allowed = ask(get(), policy(allow("r"), shadow_deny))
    assert outcome(allowed) == ("allow", "allowed", ("r",))
    assert allowed.would == Would(Verdict.DENY, ("sd",))
    shadow_allow = allow("sa", shadow=True)
    denied = ask(get(), policy(shadow_allow))
    assert outcome(denied) == ("deny", "no-rule-matched", ())
    assert denied.would == Would(Verdict.ALLOW, ("sa",))
    assert ask(get(), policy(shadow_allow, shadow_deny)).would is None
    assert ask(get(), policy(shadow_allow, allow("r"))).would is None
    assert ask(get(), policy(shadow_deny, deny("d"))).would is None


def test_a_shadow_allow_lends_no_obligations() -> None:
    rules = policy(allow("r"), allow("s", shadow=True, with_=With(max_request_bytes=1)))
    assert ask(get(), rules).obligations.max_request_bytes is None


def test_observe_forwards_what_lacks_an_allow_and_says_so() -> None:
    decision = ask(get(), policy(mode="observe"), observe=True)
    assert outcome(decision) == ("allow", "observed", ())
    assert decision.would == Would(Verdict.DENY, ())


NOT_OBSERVED: dict[str, tuple[PolicySet, dict[str, Any], list[str], bool, str]] = {
    "without the flag": (policy(mode="observe"), {}, [], False, "no-rule-matched"),
    "without the key": (policy(), {}, [], True, "no-rule-matched"),
    "a deny": (policy(deny("d"), mode="observe"), {}, [], True, "denied-by-rule"),
    "a private address": (policy(mode="observe"), {}, ["10.0.0.1"], True, "address-not-public"),
    "an allow short of its address": (
        policy(allow("r"), mode="observe"),
        {},
        ["10.0.0.1"],
        True,
        "address-not-public",
    ),
    "an unknown method": (
        policy(mode="observe"),
        {"method": "TRACE"},
        [],
        True,
        "method-not-allowed",
    ),
    "path parameters": (
        policy(mode="observe"),
        {"path": "/a;x", "path_params": True},
        [],
        True,
        "path-not-canonical",
    ),
    "a method override": (
        policy(mode="observe"),
        {"headers": (("x-http-method-override", "DELETE"),)},
        [],
        True,
        "method-override",
    ),
}


@pytest.mark.parametrize(
    ("policy_set", "fields", "addresses", "observe", "reason"),
    NOT_OBSERVED.values(),
    ids=NOT_OBSERVED,
)
def test_observe_never_forwards(
    policy_set: PolicySet, fields: dict[str, Any], addresses: list[str], observe: bool, reason: str
) -> None:
    decision = ask(get(**fields), policy_set, *addresses, observe=observe)
    assert outcome(decision)[:2] == ("deny", reason)


OVERRIDES: dict[str, dict[str, Any]] = {
    "header": {"headers": (("x-http-method-override", "DELETE"),)},
    "short header": {"headers": (("x-http-method", "DELETE"),)},
    "other header": {"headers": (("x-method-override", "DELETE"),)},
    "query key": {"query": "_method=DELETE", "query_pairs": (("_method", "DELETE"),)},
    "query key in upper case": {"query": "_METHOD=x", "query_pairs": (("_METHOD", "x"),)},
}


@pytest.mark.parametrize("fields", OVERRIDES.values(), ids=OVERRIDES)
def test_method_overrides_are_refused(fields: dict[str, Any]) -> None:
    assert ask(get(method="POST", **fields), policy(allow("r"))).reason == "method-override"


def test_a_rule_may_name_a_method_override() -> None:
    header = (("x-http-method-override", Predicate("exact", ("PATCH",))),)
    rules = policy(allow("r", fields={"headers": header}), allow("s", methods="POST"))
    patch = get(method="POST", headers=(("x-http-method-override", "PATCH"),))
    delete = get(method="POST", headers=(("x-http-method-override", "DELETE"),))
    assert ask(patch, rules).verdict is Verdict.ALLOW
    assert ask(delete, rules).reason == "method-override"
    key = (("_method", Predicate("exact", ("PUT",))),)
    put = get(method="POST", query="_method=PUT", query_pairs=(("_method", "PUT"),))
    assert ask(put, policy(allow("r", fields={"query": key}))).verdict is Verdict.ALLOW


PARAMS = get("/a;v=1/b", path_params=True)


def test_path_parameters_are_refused_unless_the_rule_says_otherwise() -> None:
    assert ask(PARAMS, policy(allow("r", paths="/a/b"))).reason == "path-not-canonical"
    assert ask(PARAMS, policy(allow("r"))).reason == "path-not-canonical"
    refuse = allow("r", with_=With(path_params="refuse"))
    assert ask(PARAMS, policy(refuse)).reason == "path-not-canonical"


def test_a_shadow_allow_would_not_let_parameters_through_either() -> None:
    keep = allow("r", shadow=True, with_=With(path_params="keep"))
    assert ask(PARAMS, policy(keep)).would is None
    assert ask(get("/a"), policy(keep)).would == Would(Verdict.ALLOW, ("r",))


def test_stripped_parameters_are_judged_without_kept_ones_with() -> None:
    strip, keep = With(path_params="strip"), With(path_params="keep")
    decision = ask(PARAMS, policy(allow("r", paths="/a/b", with_=strip)))
    assert decision.obligations.path_params == "strip"
    assert ask(PARAMS, policy(allow("r", paths="/a/b", with_=keep))).reason == "no-rule-matched"
    assert ask(PARAMS, policy(allow("r", paths="/a;v=*/b", with_=keep))).verdict is Verdict.ALLOW
    kept = allow("r", paths="/a;v=*/b", with_=strip)
    assert ask(PARAMS, policy(kept)).reason == "no-rule-matched"


def test_denies_see_the_path_with_and_without_parameters() -> None:
    keep = allow("r", with_=With(path_params="keep"))
    assert ask(PARAMS, policy(keep, deny("d", paths="/a/b"))).rules == ("d",)
    assert ask(PARAMS, policy(keep, deny("d", paths="/a;v=1/b"))).rules == ("d",)
    assert ask(PARAMS, policy(keep, deny("d", paths="/a/c"))).verdict is Verdict.ALLOW


def test_a_deny_is_not_evaded_by_encoding_reserved_characters() -> None:
    rules = policy(allow("r"), deny("d", paths="/@admin/a,b"))
    assert ask(get("/%40admin/a%2Cb"), rules).reason == "denied-by-rule"
    assert ask(get("/%40admin/a%2Cc"), rules).verdict is Verdict.ALLOW
    written = policy(allow("r"), deny("d", paths="/a%2Cb"))
    assert ask(get("/a,b"), written).reason == "denied-by-rule"
    assert ask(get("/a%2Cb"), policy(allow("r", paths="/a,b"))).reason == "no-rule-matched"


RATES = (
    Rate("per-agent", "agent", 1, 1000, 1),
    Rate("per-session", "session", 1, 1000, 1),
    Rate("per-rule", "rule", 1, 1000, 1),
)


def test_obligations_join() -> None:
    one = With(("per-agent", "per-rule"), 100, None, None, (2,))
    two = With(("per-agent", "per-session", "per-rule"), 50, 7, None, (1, 2))
    rules = policy(allow("a", with_=one), allow("b", with_=two), rates=RATES)
    assert ask(get(), rules).obligations == Obligations(
        (
            RateUse("per-agent", "coder"),
            RateUse("per-rule", "a"),
            RateUse("per-rule", "b"),
            RateUse("per-session", "s-1"),
        ),
        50,
        7,
        "metadata",
        (1, 2),
        "refuse",
        steps=2,
        effort=2,
    )


def test_one_value_comes_from_the_most_specific_rule() -> None:
    wide = allow("wide", "**.a.com", with_=With(capture="request"))
    narrow = allow("narrow", "x.a.com", with_=With(capture="metadata"))
    silent = allow("silent", "x.a.com", "/y", "GET")
    decision = ask(get("/y", host="x.a.com"), policy(wide, narrow, silent))
    assert decision.obligations.capture == "metadata"
    assert decision.rules == ("narrow", "silent", "wide")


def test_a_tie_with_different_values_is_a_denial() -> None:
    one = allow("one", "x.a.com", with_=With(capture="request"))
    two = allow("two", "x.a.com", with_=With(capture="request_response"))
    wide = allow("wide", "*.a.com", with_=With(capture="metadata"))
    decision = ask(get(host="x.a.com"), policy(one, two, wide))
    assert outcome(decision) == ("deny", "rule-conflict", ("one", "two"))


class Broken(frozenset[str]):
    """A set that cannot be asked."""

    def __contains__(self, item: object) -> bool:
        raise RuntimeError("broken")


def broken(rule: Rule) -> Rule:
    return replace(rule, match=replace(rule.match, methods=Broken({"GET"})))


def test_an_error_in_a_deny_rule_denies_by_that_rule() -> None:
    decision = ask(get(), policy(allow("r"), broken(deny("d"))))
    assert outcome(decision) == ("deny", "denied-by-rule", ("d",))


def test_a_deny_that_cannot_even_say_what_it_read_still_denies_by_its_name() -> None:
    odd: Any = (("a", []),)  # a list cannot be looked up in a set
    rules = policy(allow("r"), deny("d", fields={"query": UNKNOWN.query}))
    decision = ask(get(query="a=", query_pairs=odd), rules)
    assert outcome(decision) == ("deny", "denied-by-rule", ("d",))
    assert decision.read == (Read("match", "unknown"),)


def test_an_error_in_a_shadow_deny_never_changes_the_verdict() -> None:
    decision = ask(get(), policy(allow("r"), broken(deny("d", shadow=True))))
    assert outcome(decision) == ("allow", "allowed", ("r",))
    assert decision.would == Would(Verdict.DENY, ("d",))


def test_an_error_in_an_allow_rule_is_an_internal_error() -> None:
    decision = ask(get(), policy(allow("r"), broken(allow("b"))))
    assert outcome(decision) == ("deny", "internal-error", ())
    assert decision.policy_digest == "d1g3st"


@pytest.mark.parametrize("odd", [None, 7, [], object()])
def test_odd_types_are_denied_not_raised(odd: Any) -> None:
    rules = policy(allow("r", fields={"query": UNKNOWN.query}), deny("d", methods="PUT"))
    for field in ("host", "port", "method", "path", "headers", "query_pairs", "scheme"):
        request = replace(get(), **{field: odd})
        assert decide(request, CODER, rules, addresses=PUBLIC, now=NOW).verdict is Verdict.DENY
    for args in ((odd, CODER, rules), (get(), odd, rules), (get(), CODER, odd)):
        assert decide(*args, addresses=PUBLIC, now=NOW).reason == "internal-error"
    assert decide(get(), CODER, rules, addresses=odd, now=NOW).verdict is Verdict.DENY
    nameless = decide(get(), CODER, odd, addresses=PUBLIC, now=NOW)
    assert nameless.policy_digest == ""
    unnamed: Any = SimpleNamespace(digest=odd)
    assert decide(get(), CODER, unnamed, addresses=PUBLIC, now=NOW) == nameless
    assert screen(CODER, odd, host=odd, port=1, scheme=None, now=NOW).reason == "internal-error"


def stage_1(policy_set: PolicySet, host: str = "a.com", **fields: Any) -> Decision:
    place: dict[str, Any] = {"port": 443, "scheme": None, "now": NOW} | fields
    return screen(CODER, policy_set, host=host, **place)


SCREENS: dict[str, tuple[PolicySet, dict[str, Any], tuple[str, ...]]] = {
    "could match": (policy(allow("r", methods="PUT", paths="/x")), {}, ("allowed", "r")),
    "wildcard": (policy(allow("r", "*.a.com")), {"host": "x.a.com"}, ("allowed", "r")),
    "other host": (policy(allow("r")), {"host": "b.com"}, ("host-not-allowed",)),
    "label under an exact rule": (policy(allow("r")), {"host": "x.a.com"}, ("host-not-allowed",)),
    "other port": (policy(allow("r")), {"port": 8443}, ("host-not-allowed",)),
    "other scheme": (policy(allow("r")), {"scheme": "http"}, ("host-not-allowed",)),
    "same scheme": (policy(allow("r")), {"scheme": "https"}, ("allowed", "r")),
    "other agent": (
        policy(allow("r", who=Who(frozenset({"reviewer"})))),
        {},
        ("host-not-allowed",),
    ),
    "closed": (policy(allow("r", when=CLOSED)), {}, ("host-not-allowed",)),
    "open": (policy(allow("r", when=OPEN)), {}, ("allowed", "r")),
    "shadow": (policy(allow("r", shadow=True)), {}, ("host-not-allowed",)),
    "exempt destination": (
        policy(allow("r", "*.a.com", unless=match("x.a.com"))),
        {"host": "x.a.com"},
        ("host-not-allowed",),
    ),
    "exempt by something stage 1 cannot see": (
        policy(allow("r", unless=match("a.com", methods="PUT"))),
        {},
        ("allowed", "r"),
    ),
    "exempt by what stage 1 only makes up": (
        policy(allow("r", unless=match("a.com", "/", "GET"))),
        {},
        ("allowed", "r"),
    ),
    "wall": (policy(allow("r"), deny("d", "a.com")), {}, ("denied-by-rule", "d")),
    "wall with a window": (policy(allow("r"), deny("d", when=OPEN)), {}, ("denied-by-rule", "d")),
    "wall with a closed window": (policy(allow("r"), deny("d", when=CLOSED)), {}, ("allowed", "r")),
    "deny of some paths": (policy(allow("r"), deny("d", paths="/x")), {}, ("allowed", "r")),
    "wall of the other scheme": (
        policy(allow("r"), deny("d", fields={"schemes": frozenset({"http"})})),
        {},
        ("allowed", "r"),
    ),
    "shadow wall": (policy(allow("r"), deny("d", shadow=True)), {}, ("allowed", "r")),
    "dest_ip is not judged": (policy(allow("r", fields=PRIVATE)), {}, ("allowed", "r")),
    "address without a rule": (
        policy(allow("r", "**.a.com")),
        {"host": "8.8.8.8"},
        ("host-not-allowed",),
    ),
}


@pytest.mark.parametrize(("policy_set", "fields", "expected"), SCREENS.values(), ids=SCREENS)
def test_stage_1(policy_set: PolicySet, fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    decision = stage_1(policy_set, **fields)
    assert (decision.reason, *decision.rules) == expected
    assert (decision.verdict is Verdict.ALLOW) is (expected[0] == "allowed")


def test_stage_1_observes_with_key_and_flag_only() -> None:
    observed = stage_1(policy(mode="observe"), observe=True)
    assert (observed.verdict, observed.reason) == (Verdict.ALLOW, "observed")
    assert stage_1(policy(mode="observe")).reason == "host-not-allowed"
    assert stage_1(policy(), observe=True).reason == "host-not-allowed"
    assert stage_1(policy(deny("d"), mode="observe"), observe=True).reason == "denied-by-rule"


def test_stage_1_says_what_a_shadow_allow_would_do() -> None:
    decision = stage_1(policy(allow("r", shadow=True)))
    assert decision.would == Would(Verdict.ALLOW, ("r",))
    plain = allow("plain", shadow=True, fields={"schemes": frozenset({"http"})})
    both = policy(plain, allow("tls", shadow=True))
    assert stage_1(both).would == Would(Verdict.ALLOW, ("tls",)), "https is asked first"


def test_stage_1_names_every_wall_in_order_whatever_the_order_of_the_file() -> None:
    names = ("d", "a", "c", "e", "b")
    rules = policy(allow("r"), *(deny(name, "a.com") for name in names))
    assert stage_1(rules).rules == ("a", "b", "c", "d", "e")


def test_nothing_is_observed_unless_the_caller_says_so() -> None:
    decision = decide(get(), CODER, policy(mode="observe"), addresses=PUBLIC, now=NOW)
    assert outcome(decision) == ("deny", "no-rule-matched", ())
    told = decide_with_tally(get(), CODER, policy(mode="observe"), addresses=PUBLIC, now=NOW)
    assert told[0] == decision


def test_an_explained_decision_never_raises_either() -> None:
    odd: Any = None
    decision, tally, facts = decide_with_tally(get(), CODER, odd, addresses=PUBLIC, now=NOW)
    assert outcome(decision) == ("deny", "internal-error", ())
    assert tally is None
    assert facts == Facts(get(), PUBLIC, NOW)


@pytest.mark.parametrize("agent", ["coder", "reviewer"])
def test_stage_1_lets_pass_whatever_stage_3_may_allow(agent: str) -> None:
    """Ten rules alike: one witness is kept for each audience."""
    rules = [allow(f"r{i}", who=Who(frozenset({agent}))) for i in range(10)]
    principal = Principal(agent, "", "")
    place: dict[str, Any] = {"host": "a.com", "port": 443, "scheme": None, "now": NOW}
    assert screen(principal, policy(*rules), **place).verdict is Verdict.ALLOW
    other = Principal("reviewer" if agent == "coder" else "coder", "", "")
    assert screen(other, policy(*rules), **place).verdict is Verdict.DENY


PLACE: dict[str, Any] = {"host": "a.com", "port": 443, "scheme": None, "now": NOW}
KEEP = frozenset({"kept"})


def judge_in_quarantine(
    policy_set: PolicySet, request: Any = None, address: str = "", observe: bool = False
) -> Decision:
    addresses = (ip_address(address),) if address else PUBLIC
    asked: dict[str, Any] = {"addresses": addresses, "now": NOW, "observe": observe}
    return decide(request or get(), CODER, policy_set, keep_rules=policy_set.keep_rules, **asked)


def test_of_a_quarantined_agent_only_the_kept_rules_count() -> None:
    rules = policy(allow("kept", methods="GET"), allow("other"), keep_rules=KEEP)
    assert outcome(judge_in_quarantine(rules)) == ("allow", "allowed", ("kept",))
    refused = judge_in_quarantine(rules, get(method="POST"))
    assert outcome(refused) == ("deny", "quarantined", ())
    assert ask(get(method="POST"), rules).verdict is Verdict.ALLOW, "of others all count"


def test_the_cost_of_rules_that_do_not_count_is_not_paid() -> None:
    dear = allow("other", cost=Cost(50, 50, 50), with_=With(show_budget=True))
    joined = judge_in_quarantine(policy(allow("kept"), dear, keep_rules=KEEP)).obligations
    assert joined == Obligations()


def test_a_deny_counts_in_quarantine_as_ever() -> None:
    rules = policy(allow("kept"), deny("d"), keep_rules=KEEP)
    assert judge_in_quarantine(rules).reason == "denied-by-rule"
    assert screen(CODER, rules, keep_rules=KEEP, **PLACE).reason == "denied-by-rule"


UNKEPT = {
    "nothing is kept": (policy(allow("other")), get(), ""),
    "nothing matches": (policy(allow("kept", "b.com"), keep_rules=KEEP), get(), ""),
    "a private address": (policy(allow("kept"), keep_rules=KEEP), get(), "10.0.0.1"),
    "a shadow rule": (policy(allow("kept", shadow=True), keep_rules=KEEP), get(), ""),
    "observe mode": (policy(mode="observe"), get(), ""),
}


@pytest.mark.parametrize(("rules", "request_", "address"), UNKEPT.values(), ids=UNKEPT)
def test_what_is_not_kept_is_refused_as_quarantined(
    rules: PolicySet, request_: Any, address: str
) -> None:
    decision = judge_in_quarantine(rules, request_, address, observe=True)
    assert outcome(decision) == ("deny", "quarantined", ())


def test_stage_1_finds_a_kept_rule_among_many_alike() -> None:
    """Stage 1 keeps one witness of rules that are alike: a kept one is always a witness."""
    alike = [allow(f"r{number}") for number in range(20)]
    rules = policy(*alike, allow("kept"), *[allow(f"s{n}") for n in range(20)], keep_rules=KEEP)
    assert outcome(screen(CODER, rules, keep_rules=KEEP, **PLACE)) == (
        "allow",
        "allowed",
        ("kept",),
    )
    assert screen(CODER, rules, keep_rules=frozenset(), **PLACE).reason == "quarantined"
    assert screen(CODER, rules, **PLACE).verdict is Verdict.ALLOW


def test_stage_1_observes_nothing_for_a_quarantined_agent() -> None:
    rules = policy(mode="observe")
    asked = PLACE | {"observe": True}
    assert screen(CODER, rules, **asked).reason == "observed"
    assert screen(CODER, rules, keep_rules=frozenset(), **asked).reason == "quarantined"


def test_an_agent_that_nobody_knows_is_unknown_before_it_is_quarantined() -> None:
    stranger, rules = Principal("stranger", "", ""), policy(allow("kept"), keep_rules=KEEP)
    asked: dict[str, Any] = {"keep_rules": KEEP}
    decision = decide(get(), stranger, rules, addresses=PUBLIC, now=NOW, **asked)
    assert decision.reason == "agent-unknown"
    assert screen(stranger, rules, **asked, **PLACE).reason == "agent-unknown"


def test_an_explanation_knows_which_rules_are_suspended() -> None:
    rules = policy(allow("kept"), allow("other"), keep_rules=KEEP)
    _, tally, _ = decide_with_tally(
        get(), CODER, rules, addresses=PUBLIC, now=NOW, keep_rules=frozenset()
    )
    assert tally is not None
    assert sorted(rule.id for rule in tally.suspended) == ["kept", "other"]
    assert tally.allows == []


def test_what_observe_mode_forwards_costs_what_a_request_costs() -> None:
    decision = ask(get(), policy(mode="observe"), observe=True)
    assert (decision.reason, decision.obligations) == ("observed", Obligations(steps=1, effort=1))
