"""Rules in words."""

from datetime import UTC, datetime
from ipaddress import ip_network
from zoneinfo import ZoneInfo

import pytest

from policies.budget import Threshold
from policies.describe import (
    describe_budget,
    describe_cost,
    describe_dest_ip,
    describe_field,
    describe_match,
    describe_predicate,
)
from policies.model import Obligations
from policies.rule import Budget, DestIp, Match, Predicate, Rule, Who, Window, With
from tests.kit.policy_sets import allow, match

FULL = allow(
    "r",
    "*.a.com 10.0.0.1",
    "/x/** /y",
    "GET PUT",
    who=Who(frozenset({"coder"}), frozenset({"team"})),
    unless=match("z.a.com", methods="PUT"),
    when=Window(
        ZoneInfo("Europe/Berlin"),
        frozenset({0, 4}),
        (600, 1080),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    ),
    with_=With(path_params="strip"),
    fields={
        "path_res": ("/x.*",),
        "query": (("q", Predicate("one_of", ("1", "2"))),),
        "headers": (("x-a", Predicate("re", ("a+",))),),
        "query_only": True,
        "websocket": True,
    },
)

FIELDS = {
    "who": "agent `coder` or group `team`",
    "match.host": "exactly one more label before `a.com`, as in `x.a.com`; not `a.com` itself"
    " or the address `10.0.0.1` and nothing else",
    "match.scheme": "https",
    "match.port": "443",
    "match.methods": "GET or PUT",
    "match.path": "`/x` and everything below it or `/y` segment by segment, nothing below it",
    "match.path_re": "`/x.*`",
    "match.query_only": "no query key but `q`",
    "match.websocket": "upgrades too",
    "match.body": "no body with GET, HEAD, DELETE or OPTIONS",
    "match.dest_ip": "only public addresses",
    "query.q": "one of `1` or `2`",
    "headers.x-a": "wholly matching `a+`",
    "when.from": "from 2026-01-01T00:00:00+00:00",
    "when.until": "before 2027-01-01T00:00:00+00:00",
    "when.between": "mon fri, 10:00 to before 18:00, Europe/Berlin",
    "with.path_params": "path parameters: strip",
    "unless": "not: host `z.a.com` and nothing else; methods PUT",
}


@pytest.mark.parametrize(("field", "words"), FIELDS.items(), ids=FIELDS)
def test_every_field_of_a_rule_can_be_said(field: str, words: str) -> None:
    assert describe_field(FULL, field) == words


PREDICATES = {
    "exactly `a`": Predicate("exact", ("a",)),
    "beginning with `a`": Predicate("prefix", ("a",)),
    "ending with `a`": Predicate("suffix", ("a",)),
    "present": Predicate("present"),
    "absent": Predicate("absent"),
}


@pytest.mark.parametrize(("words", "predicate"), PREDICATES.items(), ids=PREDICATES)
def test_every_predicate_can_be_said(words: str, predicate: Predicate) -> None:
    assert describe_predicate(predicate) == words


def test_an_empty_match_is_everything_and_a_full_one_names_all() -> None:
    assert describe_match(Match()) == "everything"
    said = describe_match(FULL.match)
    assert "query `q` one of `1` or `2`" in said
    assert "header `x-a` wholly matching `a+`" in said


def test_ranges_and_classes_are_listed() -> None:
    dest_ip = DestIp(frozenset({"private", "cgnat"}), (ip_network("10.0.0.0/8"),))
    assert describe_dest_ip(dest_ip) == "cgnat or private or 10.0.0.0/8"


def test_silence_about_parameters_means_none() -> None:
    assert describe_field(allow("r"), "with.path_params") == "no path parameters"
    days: Rule = allow("r", when=Window(ZoneInfo("UTC"), frozenset({6})))
    assert describe_field(days, "when.days") == "sun, UTC"


BUDGETS = {
    "each agent: requests 10": Budget("b", "agent", (("requests", 10),)),
    "each session every 1d: bytes_out 50MB, wall_time 90m; warn at 80%; halt at 100%": Budget(
        "b",
        "session",
        (("bytes_out", 50_000_000), ("wall_time", 5_400_000)),
        None,
        86_400_000,
        (Threshold(80, "warn"), Threshold(100, "halt")),
    ),
    "each agent every 36h: bytes_in 0B, wall_time 0s": Budget(
        "b", "agent", (("bytes_in", 0), ("wall_time", 0)), None, 129_600_000
    ),
}


@pytest.mark.parametrize(("words", "budget"), BUDGETS.items(), ids=BUDGETS)
def test_a_budget_can_be_said_in_a_line(words: str, budget: Budget) -> None:
    assert describe_budget(budget) == words


def test_a_cost_can_be_said() -> None:
    assert describe_cost(Obligations()) == "1 request, 1 step, 1 effort, 0 risk"
    owed = Obligations(steps=2, effort=3, risk=4)
    assert describe_cost(owed) == "1 request, 2 steps, 3 effort, 4 risk"
