"""Accounts: names, moments, what is left, periods and thresholds."""

import pytest

from policies import budget
from policies.account import (
    BYTE_UNITS,
    LIMIT_MAX,
    UNITS,
    Account,
    Closed,
    Contract,
    Left,
    State,
    Threshold,
    begin_period,
    find_threshold,
    format_moment,
    list_left,
    name_account,
    name_period,
    roll,
)
from policies.budget import SLICE_BYTES, Hold
from tests.kit.ledgers import DAY_MS, MIDNIGHT_MS, NOON_MS, account, contract

NAME = "daily/coder"
FRIDAY = "daily/coder@2024-10-04T00:00:00Z"
SATURDAY = "daily/coder@2024-10-05T00:00:00Z"


# Names and moments


def test_an_account_is_named_by_budget_agent_and_session() -> None:
    assert name_account("daily", "coder") == "daily/coder"
    assert name_account("daily", "coder", "s-1") == "daily/coder/s-1"
    assert account("daily", "coder", "s-1").base == "daily/coder/s-1"


def test_a_period_is_named_by_its_first_moment() -> None:
    assert name_period("daily/coder", 0) == "daily/coder"
    assert name_period("daily/coder", MIDNIGHT_MS) == SATURDAY
    assert account(window_ms=DAY_MS).name == FRIDAY
    assert account().name == NAME


@pytest.mark.parametrize(
    ("moment_ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_234, "1970-01-01T00:00:01.234Z"),
        (MIDNIGHT_MS, "2024-10-05T00:00:00Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_moment_is_written_in_utc(moment_ms: int, text: str) -> None:
    assert format_moment(moment_ms) == text


@pytest.mark.parametrize(
    ("window_ms", "now_ms", "began_ms"),
    [
        (0, NOON_MS, 0),
        (DAY_MS, NOON_MS, MIDNIGHT_MS - DAY_MS),
        (DAY_MS, MIDNIGHT_MS - 1, MIDNIGHT_MS - DAY_MS),
        (DAY_MS, MIDNIGHT_MS, MIDNIGHT_MS),
        (7, 20, 14),
    ],
)
def test_periods_are_whole_windows_since_1970(window_ms: int, now_ms: int, began_ms: int) -> None:
    assert begin_period(window_ms, now_ms) == began_ms


def test_states_have_an_order_and_words() -> None:
    assert [state.word for state in sorted(State)] == ["active", "warned", "quarantined", "halted"]
    does = {
        "warn": State.WARNED,
        "quarantine": State.QUARANTINED,
        "halt": State.HALTED,
    }
    assert {do: Threshold(1, do).state for do in does} == does  # type: ignore[arg-type]


def test_units_and_the_highest_limit_are_what_records_and_policies_say() -> None:
    assert (
        *("requests", "steps", "effort", "risk", "bytes_out", "bytes_in", "wall_time"),
    ) == UNITS
    assert frozenset({"bytes_out", "bytes_in"}) == BYTE_UNITS
    assert (LIMIT_MAX, SLICE_BYTES) == (9_007_199_254_740_991, 262_144)


def test_what_is_not_said_is_the_least() -> None:
    plain = Account("daily", "coder", "", Contract())
    assert (plain.from_ms, plain.first_ms, plain.spent, plain.held) == (0, 0, {}, {})
    assert (Contract().terms, Contract().window_ms, Contract().at) == ({}, 0, ())
    assert not budget.Extension("d-1", "bytes_in", 1, NOON_MS).whole
    asked = budget.Order("d-1", "coder", "s-1", NOON_MS, {})
    assert (asked.slices, asked.wants_left) == (frozenset(), True)
    assert Hold() == ((), {}, (), (), (), 0)
    assert budget.Shortfall("a/b", "a", "steps", 1, 0, 0).left == ()


def test_a_name_that_is_given_is_kept() -> None:
    assert Account("daily", "coder", "", Contract(), name="daily/coder@then").name[-4:] == "then"


def test_contracts_are_equal_and_shown_by_what_they_say_and_not_by_what_follows_from_it() -> None:
    limits = {"bytes_in": 1, "bytes_out": 2, "wall_time": 3}
    one, turned = contract(limits), contract(dict(reversed(limits.items())))
    assert one.byte_units != turned.byte_units
    assert one == turned
    assert repr(one) == f"Contract(terms={one.terms}, window_ms=0, at=())"


# What is left


def test_available_is_the_limit_less_spent_and_held_and_never_below_nothing() -> None:
    one = account(requests=10)
    one.spent["requests"], one.held["requests"] = 3, 2
    assert one.available("requests", NOON_MS) == 5
    one.spent["requests"] = 9
    assert one.available("requests", NOON_MS) == 0


def test_wall_time_runs_from_the_first_moment_on() -> None:
    one = account(wall_time=100)
    assert one.available("wall_time", NOON_MS) == 100
    assert one.elapsed_ms(NOON_MS) == 0
    one.first_ms = NOON_MS
    assert one.elapsed_ms(NOON_MS + 30) == one.spent_of("wall_time", NOON_MS + 30) == 30
    assert one.available("wall_time", NOON_MS + 30) == 70
    assert one.available("wall_time", NOON_MS + 101) == 0
    assert one.elapsed_ms(NOON_MS - 5) == 0


def test_wall_time_ends_with_its_period_whoever_looks_later() -> None:
    one = account(window_ms=DAY_MS, at=[(100, "halt")], wall_time=DAY_MS - 1)
    one.first_ms = NOON_MS
    at_midnight_ms = one.until_ms
    assert one.elapsed_ms(at_midnight_ms - 1) == DAY_MS // 2 - 1
    assert one.elapsed_ms(at_midnight_ms + DAY_MS) == DAY_MS // 2
    assert find_threshold(one, at_midnight_ms + DAY_MS) is None  # nobody is halted for a night


def test_what_was_spent_of_a_unit_is_0_until_something_was() -> None:
    one = account(requests=1)
    assert one.spent_of("requests", NOON_MS) == 0
    one.spent["requests"] = 1
    assert one.spent_of("requests", NOON_MS) == 1


def test_what_is_left_is_listed_account_by_account_and_unit_by_unit() -> None:
    one, other = account("a", window_ms=DAY_MS, requests=3, steps=1), account("b", wall_time=50)
    one.held["requests"], other.first_ms = 2, NOON_MS - 20
    assert list_left([one, other], NOON_MS) == (
        Left("a", "requests", 1, 3, MIDNIGHT_MS),
        Left("a", "steps", 1, 1, MIDNIGHT_MS),
        Left("b", "wall_time", 30, 50, 0),
    )


# Periods


def test_a_period_ends_with_its_window() -> None:
    one = account(window_ms=DAY_MS, requests=5)
    assert one.until_ms == MIDNIGHT_MS
    one.spent["requests"], one.held["requests"], one.first_ms = 3, 1, NOON_MS
    assert roll(one, MIDNIGHT_MS - 1) is None
    assert one.name == FRIDAY
    assert roll(one, MIDNIGHT_MS) == Closed(FRIDAY, {"requests": 3})
    assert (one.name, one.from_ms, one.first_ms) == (SATURDAY, MIDNIGHT_MS, 0)
    assert (one.spent, one.held) == ({}, {})
    assert roll(one, MIDNIGHT_MS) is None


def test_time_that_goes_back_begins_no_period() -> None:
    one = account(window_ms=DAY_MS, requests=5)
    one.spent["requests"] = 3
    assert roll(one, MIDNIGHT_MS - 2 * DAY_MS) is None
    assert one.spent == {"requests": 3}


def test_periods_in_which_nothing_happened_are_skipped() -> None:
    one = account(window_ms=DAY_MS)
    roll(one, MIDNIGHT_MS + 3 * DAY_MS + 1)
    assert one.from_ms == MIDNIGHT_MS + 3 * DAY_MS


def test_without_a_window_a_period_is_for_life() -> None:
    one = account(requests=5)
    assert one.until_ms == 0
    assert roll(one, 10 * MIDNIGHT_MS) is None


def test_what_was_closed_does_not_change_any_more() -> None:
    one = account(window_ms=DAY_MS, requests=5)
    one.spent["requests"] = 1
    closed = roll(one, MIDNIGHT_MS)
    one.spent["requests"] = 2
    assert closed == Closed(FRIDAY, {"requests": 1})


# Thresholds


@pytest.mark.parametrize(
    ("spent", "limit", "percent", "reached"),
    [
        (79, 100, 80, False),
        (80, 100, 80, True),
        (7, 9, 80, False),
        (8, 10, 80, True),
        (0, 0, 80, False),
        (0, 100, 1, False),
        (1, 0, 100, True),
        (99, 100, 100, False),
        (100, 100, 100, True),
        (LIMIT_MAX - 1, LIMIT_MAX, 100, False),
        (LIMIT_MAX, LIMIT_MAX, 100, True),
        (1, 100, 1, True),
    ],
)
def test_a_threshold_is_reached_at_its_percentage(
    spent: int, limit: int, percent: int, reached: bool
) -> None:
    one = account(at=[(percent, "warn")], requests=limit)
    one.spent["requests"] = spent
    found = find_threshold(one, NOON_MS)
    assert found == ((Threshold(percent, "warn"), "requests") if reached else None)


def test_the_farthest_state_that_was_reached_is_found_with_the_unit_that_did() -> None:
    at = [(50, "warn"), (90, "halt"), (70, "quarantine")]
    one = account(at=at, requests=10, steps=10)
    one.spent = {"requests": 6, "steps": 7}
    assert find_threshold(one, NOON_MS) == (Threshold(70, "quarantine"), "steps")
    one.spent = {"requests": 9, "steps": 8}
    assert find_threshold(one, NOON_MS) == (Threshold(90, "halt"), "requests")
    one.spent = {"requests": 5, "steps": 5}
    assert find_threshold(one, NOON_MS) == (Threshold(50, "warn"), "requests")


def test_of_two_that_lead_to_the_same_state_the_first_is_found() -> None:
    one = account(at=[(50, "warn"), (60, "warn")], requests=10)
    one.spent["requests"] = 6
    assert find_threshold(one, NOON_MS) == (Threshold(50, "warn"), "requests")


def test_what_is_only_held_reaches_no_threshold() -> None:
    one = account(at=[(1, "halt")], requests=10)
    one.held["requests"] = 10
    assert find_threshold(one, NOON_MS) is None


@pytest.mark.parametrize(("passed_ms", "reached"), [(79, False), (80, True)])
def test_a_threshold_of_wall_time_is_reached_by_waiting(passed_ms: int, reached: bool) -> None:
    one = account(at=[(80, "warn")], wall_time=100)
    one.first_ms = NOON_MS
    assert (find_threshold(one, NOON_MS + passed_ms) is not None) is reached
