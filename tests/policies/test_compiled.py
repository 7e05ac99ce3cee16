"""A rule in the form the engine asks."""

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from policies.compiled import compile_rule, compile_window
from policies.match import Facts
from policies.model import Obligations, Read
from policies.rule import DestIp, Predicate, Rule, Who, Window, With
from tests.kit.policy_sets import NOW, PUBLIC, allow, deny, get, match

UTC_ZONE = ZoneInfo("UTC")
QUERY = {"query": (("a", Predicate("exact", ("1",))),)}


def judge(rule: Rule, **fields: Any) -> str:
    return compile_rule(rule).judge(Facts(get(**fields), PUBLIC, NOW))


def test_host_path_and_who_are_the_indexs_work() -> None:
    rule = allow("r", "b.com", "/other", who=Who())
    assert judge(rule) == "true"


@pytest.mark.parametrize(
    "fields",
    [{"method": "PUT"}, {"scheme": "http"}, {"port": 80}, {"websocket": True}, {"body": True}],
)
def test_an_allow_is_held_to_its_fields(fields: dict[str, Any]) -> None:
    rule = allow("r", methods="GET")
    assert judge(rule) == "true"
    assert judge(rule, **fields) == "false"


def test_a_deny_takes_upgrades_and_bodies_as_they_come() -> None:
    assert judge(deny("d"), websocket=True, body=True) == "true"


def test_every_check_counts_and_unknown_is_kept() -> None:
    twice = {"query": "a=1&a=2", "query_pairs": (("a", "1"), ("a", "2"))}
    assert judge(deny("d", fields=QUERY), **twice) == "unknown"
    both = deny("d", fields=QUERY, unless=match("a.com"))
    assert judge(both, **twice) == "false"


def test_reads_name_every_field_once() -> None:
    rule = allow(
        "r",
        paths="/x",
        methods="GET",
        who=Who(frozenset({"coder"})),
        unless=match(paths="/y"),
        when=Window(UTC_ZONE, between=(0, 1440)),
        fields=QUERY | {"dest_ip": DestIp(frozenset({"private"}))},
    )
    assert [read.field for read in compile_rule(rule).reads] == [
        "who",
        "match.host",
        "match.scheme",
        "match.port",
        "match.methods",
        "match.path",
        "match.dest_ip",
        "when.between",
        "query.a",
        "unless",
    ]
    assert compile_rule(rule).reads[-1] == Read("unless", "false")


def test_reads_name_upgrades_and_bodies_only_where_the_rule_does() -> None:
    both = compile_rule(deny("d", fields={"websocket": True, "body": True}))
    assert both.reads == (Read("match.websocket", "true"), Read("match.body", "true"))
    assert compile_rule(deny("d")).reads == ()


def test_the_trace_of_an_uncertain_match_says_what_was_unknown() -> None:
    twice = get(query="a=1&a=2", query_pairs=(("a", "1"), ("a", "2")))
    compiled = compile_rule(deny("d", "a.com", fields=QUERY))
    assert compiled.trace(Facts(twice, PUBLIC, NOW)) == (
        Read("match.host", "true"),
        Read("query.a", "unknown"),
    )


def test_a_window_is_one_check_for_each_bound() -> None:
    window = Window(
        UTC_ZONE,
        frozenset({0}),
        (60, 120),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )
    fields = [check.field for check in compile_window(window)]
    assert fields == ["when.from", "when.until", "when.between"]
    assert [check.field for check in compile_window(Window(UTC_ZONE, frozenset({0})))] == [
        "when.days"
    ]
    assert compile_window(None) == ()


WEEKDAYS = frozenset(range(5))
HELD = {  # NOW is Friday, 2026-11-20, noon UTC
    "from": (Window(UTC_ZONE, from_=datetime(2026, 11, 20, 12, tzinfo=UTC)), "true"),
    "not yet": (Window(UTC_ZONE, from_=datetime(2026, 11, 20, 12, 1, tzinfo=UTC)), "false"),
    "until": (Window(UTC_ZONE, until=datetime(2026, 11, 20, 12, 1, tzinfo=UTC)), "true"),
    "no longer": (Window(UTC_ZONE, until=datetime(2026, 11, 20, 12, tzinfo=UTC)), "false"),
    "the day": (Window(UTC_ZONE, WEEKDAYS), "true"),
    "another day": (Window(UTC_ZONE, frozenset({5})), "false"),
    "the hour": (Window(UTC_ZONE, None, (720, 721)), "true"),
    "another hour": (Window(UTC_ZONE, None, (721, 722)), "false"),
    "the hour of another day": (Window(UTC_ZONE, frozenset({5}), (720, 721)), "false"),
    "the hour elsewhere": (Window(ZoneInfo("Asia/Tokyo"), None, (720, 721)), "false"),
}


@pytest.mark.parametrize(("window", "expected"), HELD.values(), ids=HELD)
def test_each_bound_of_a_window_holds_the_rule_in_both_stages(
    window: Window, expected: str
) -> None:
    for rule in (allow("r", when=window), deny("d", when=window)):
        compiled, facts = compile_rule(rule), Facts(get(), PUBLIC, NOW)
        assert compiled.judge(facts) == expected
        assert compiled.could_match(facts) == expected


def test_an_allow_opens_public_addresses_or_its_own_range() -> None:
    private = Facts(get(), (ip_address("10.0.0.1"),), NOW)
    assert not compile_rule(allow("r")).opens(private)
    inside = allow("r", fields={"dest_ip": DestIp(frozenset({"private"}))})
    assert compile_rule(inside).opens(private)


WALLS = {
    "everything": (deny("d"), True),
    "host": (deny("d", "a.com"), True),
    "scheme": (deny("d", fields={"schemes": frozenset({"http"})}), True),
    "port": (deny("d", fields={"ports": frozenset({80})}), True),
    "window": (deny("d", when=Window(UTC_ZONE, frozenset({0}))), True),
    "exempt host": (deny("d", unless=match("b.com")), True),
    "method": (deny("d", methods="PUT"), False),
    "query": (deny("d", fields=QUERY), False),
    "address": (deny("d", fields={"dest_ip": DestIp(frozenset({"private"}))}), False),
    "exempt path": (deny("d", unless=match(paths="/x")), False),
    "allow": (allow("r"), False),
}


@pytest.mark.parametrize(("rule", "expected"), WALLS.values(), ids=WALLS)
def test_a_wall_is_decided_by_destination_caller_and_time(rule: Rule, expected: bool) -> None:
    assert compile_rule(rule).is_wall() is expected


def test_obligations_of_one_rule_are_ready_made() -> None:
    rule = allow("r", with_=With((), 10, 20, "request", (3, 1, 3), "keep"))
    assert compile_rule(rule).obligations == Obligations((), 10, 20, "request", (1, 3), "keep")
