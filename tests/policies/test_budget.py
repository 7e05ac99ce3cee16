"""Budget arithmetic: boundaries of limits, slices, periods and thresholds.

The laws over random sequences are in tests/properties/test_budget_laws.py.
"""

import itertools
from dataclasses import replace

import pytest

from policies import budget
from policies.budget import (
    LIMIT_MAX,
    SLICE_BYTES,
    Amount,
    Closed,
    Hold,
    Left,
    extend,
    list_left,
    reserve,
)
from policies.model import ContractBroken
from tests.kit.ledgers import (
    DAY_MS,
    MIDNIGHT_MS,
    NOON_MS,
    account,
    extension,
    held,
    order,
    short,
)

NAME = "daily/coder"
FRIDAY = "daily/coder@2024-10-04T00:00:00Z"
SATURDAY = "daily/coder@2024-10-05T00:00:00Z"


# Reserving


@pytest.mark.parametrize(("limit", "amount", "fits"), [(0, 0, True), (0, 1, False), (5, 5, True)])
def test_an_exact_amount_fits_up_to_the_limit(limit: int, amount: int, fits: bool) -> None:
    answer = reserve([account(requests=limit)], order(requests=amount))
    assert isinstance(answer, Hold) is fits


def test_what_is_held_counts_like_what_was_spent() -> None:
    one = account(requests=5)
    one.spent["requests"], one.held["requests"] = 2, 1
    assert short(reserve([one], order(requests=3))).available == 2
    assert held(reserve([one], order(requests=2))).amounts == (Amount(NAME, "requests", 2),)
    assert one.held == {"requests": 3}


def test_a_hold_lists_every_limited_unit_also_where_it_takes_nothing() -> None:
    ones = [account("b", steps=5, requests=5), account("a", wall_time=9, bytes_in=9)]
    hold = held(reserve(ones, order(requests=1, steps=0, risk=7)))
    assert hold.amounts == (
        Amount("a/coder", "bytes_in", 0),
        Amount("a/coder", "wall_time", 0),
        Amount("b/coder", "requests", 1),
        Amount("b/coder", "steps", 0),
    )
    assert hold.granted == {"bytes_in": 0}
    assert [one.held for one in ones] == [{"requests": 1}, {}]


def test_wall_time_is_never_held_whatever_is_asked() -> None:
    one = account(wall_time=9)
    assert held(reserve([one], order(wall_time=5))).amounts == (Amount(NAME, "wall_time", 0),)
    assert one.held == {}


def test_a_shortfall_names_the_first_account_and_unit_that_do_not_suffice() -> None:
    ones = [account("a", requests=9), account("b", window_ms=DAY_MS, requests=9, steps=1, risk=0)]
    ones[1].spent["steps"] = 4  # its limit was lowered
    answer = short(reserve(ones, order(requests=1, steps=2, risk=2)))
    assert answer.account == "b/coder"
    assert (answer.budget, answer.unit) == ("b", "steps")
    assert (answer.needed, answer.available, answer.until_ms) == (2, 0, MIDNIGHT_MS)
    assert answer.left == list_left(ones, NOON_MS)
    assert [one.held for one in ones] == [{}, {}]


def test_an_account_that_just_suffices_is_not_the_one_that_is_short() -> None:
    ones = [account("a", requests=2, bytes_in=1), account("b", requests=1, steps=0)]
    answer = short(reserve(ones, order("d-1", "bytes_in", requests=2)))
    assert (answer.account, answer.unit) == ("b/coder", "requests")


def test_under_a_limit_that_fell_below_what_was_spent_nothing_is_held_at_all() -> None:
    """Not even a request that takes none of it: I2 would not hold behind it."""
    one = account(requests=9, risk=2)
    one.spent["risk"] = 3
    answer = short(reserve([one], order(requests=1)))
    assert (answer.unit, answer.needed, answer.available) == ("risk", 0, 0)
    one.spent["risk"] = 2
    assert held(reserve([one], order(requests=1))).amounts[0].amount == 1


def test_a_negative_amount_is_a_bug() -> None:
    with pytest.raises(ContractBroken, match="negative"):
        reserve([account(requests=1)], order(requests=1, steps=-1))
    assert isinstance(reserve([account(requests=1)], order()), Hold)


def test_the_first_request_of_a_period_is_remembered() -> None:
    limited, free = account(requests=5), account("free")
    reserve([limited, free], order(now_ms=NOON_MS))
    reserve([limited, free], order(now_ms=NOON_MS + 1))
    assert (limited.first_ms, free.first_ms) == (NOON_MS, 0)


def test_a_refused_request_is_nobodys_first() -> None:
    one = account(requests=0)
    reserve([one], order(requests=1))
    assert one.first_ms == 0


@pytest.mark.parametrize(("passed_ms", "fits"), [(0, True), (99, True), (100, False), (500, False)])
def test_wall_time_is_over_at_its_limit(passed_ms: int, fits: bool) -> None:
    one = account(wall_time=100)
    one.first_ms = NOON_MS
    answer = reserve([one], order(now_ms=NOON_MS + passed_ms))
    assert isinstance(answer, Hold) is fits
    if not fits:
        assert (short(answer).needed, short(answer).available) == (1, 0)


def test_a_wall_time_of_nothing_allows_nothing() -> None:
    assert short(reserve([account(wall_time=0)], order())).unit == "wall_time"


def test_both_periods_are_told_where_one_begins() -> None:
    one = account(window_ms=DAY_MS, requests=5)
    one.spent["requests"] = 5
    hold = held(reserve([one], order(now_ms=MIDNIGHT_MS, requests=1)))
    assert hold.closed == (Closed(FRIDAY, {"requests": 5}),)
    (opened,) = hold.opened
    assert (opened.name, opened.spent, opened.held) == (SATURDAY, {}, {})
    assert hold.amounts == (Amount(SATURDAY, "requests", 1),)
    answer = short(reserve([one], order(now_ms=MIDNIGHT_MS + DAY_MS, requests=9)))
    assert [len(answer.closed), len(answer.opened)] == [1, 1]


def test_nothing_is_closed_before_its_end() -> None:
    one = account(window_ms=DAY_MS, requests=5)
    hold = held(reserve([one], order(now_ms=MIDNIGHT_MS - 1, requests=1)))
    assert (hold.closed, hold.opened) == ((), ())


def test_what_is_left_is_told_only_to_whom_asks() -> None:
    one = account(requests=5)
    hold = held(reserve([one], order(requests=1)))
    assert hold.left == (Left("daily", "requests", 4, 5, 0),)
    assert held(reserve([one], replace(order("d-2"), wants_left=False))).left == ()


def test_the_first_end_of_a_wall_time_is_told() -> None:
    ones = [account("a", requests=9), account("b", wall_time=50), account("c", wall_time=60)]
    assert held(reserve(ones[:1], order())).ends_ms == 0
    assert held(reserve(ones, order())).ends_ms == NOON_MS + 50
    ones[2].first_ms = NOON_MS - 20
    assert held(reserve(ones, order(now_ms=NOON_MS + 5))).ends_ms == NOON_MS + 40
    assert short(reserve(ones, order(now_ms=NOON_MS + 40))).account == "c/coder"


def test_wall_time_and_another_unit_that_are_both_over_are_named_in_the_order_of_the_file() -> None:
    first, second = account(requests=0, wall_time=0), account(wall_time=0, requests=0)
    assert short(reserve([first], order(requests=1))).unit == "requests"
    assert short(reserve([second], order(requests=1))).unit == "wall_time"


@pytest.mark.parametrize("names", ["ab", "ba", "abc", "cab", "bca"])
def test_what_is_held_is_sorted_by_name_whatever_the_order_of_the_accounts(names: str) -> None:
    ones = [account(name, steps=9, requests=9) for name in names]
    hold = held(reserve(ones, order(requests=1, steps=2)))
    assert hold.amounts == tuple(
        Amount(f"{name}/coder", unit, amount)
        for name in sorted(names)
        for unit, amount in (("requests", 1), ("steps", 2))
    )


def test_a_bug_in_the_last_account_leaves_the_first_untouched() -> None:
    ones = [account("a", requests=9), account("b", requests=9)]
    ones[1].held["requests"] = "many"  # type: ignore[assignment]
    with pytest.raises(TypeError):
        reserve(ones, order(requests=1))
    assert ones[0].held == {}


# Slices


@pytest.mark.parametrize(
    ("limit", "head", "granted"),
    [
        (0, 0, None),
        (1, 0, 1),
        (1, 1, None),
        (2, 1, 2),
        (100, 0, 100),
        (SLICE_BYTES, 0, SLICE_BYTES),
        (SLICE_BYTES + 1, 0, SLICE_BYTES),
        (SLICE_BYTES + 9, 10, SLICE_BYTES + 9),
        (SLICE_BYTES + 11, 10, SLICE_BYTES + 10),
    ],
)
def test_a_slice_is_what_is_there_and_at_least_one_byte(
    limit: int, head: int, granted: int | None
) -> None:
    one = account(bytes_out=limit)
    answer = reserve([one], order("d-1", "bytes_out", bytes_out=head))
    if granted is None:
        assert (short(answer).needed, short(answer).available) == (head + 1, limit)
        assert one.held == {}
    else:
        assert held(answer).granted == {"bytes_out": granted}
        assert one.held == {"bytes_out": granted}


def test_the_tightest_account_decides_about_the_slice() -> None:
    ones = [account("a", bytes_in=50), account("b", bytes_in=7), account("c", requests=1)]
    for turn in itertools.permutations(ones):
        given = [budget.copy(one) for one in turn]
        hold = held(reserve(given, order("d-1", "bytes_in", "bytes_out")))
        assert hold.granted == {"bytes_in": 7}
        assert [amount[2] for amount in hold.amounts] == [7, 7, 0]


@pytest.mark.parametrize(("spent", "on_hold", "granted"), [(30, 20, 50), (20, 79, 1), (0, 0, 100)])
def test_a_slice_is_what_others_have_left_whether_or_not_a_head_goes_with_it(
    spent: int, on_hold: int, granted: int
) -> None:
    one = account(bytes_in=100)
    one.spent["bytes_in"], one.held["bytes_in"] = spent, on_hold
    assert held(reserve([one], order("d-1", "bytes_in"))).granted == {"bytes_in": granted}
    assert one.held == {"bytes_in": on_hold + granted}
    assert short(reserve([one], order("d-2", "bytes_in"))).available == 0


def test_an_exact_amount_of_bytes_is_never_clipped() -> None:
    assert short(reserve([account(bytes_out=9)], order(bytes_out=10))).available == 9
    assert held(reserve([account(bytes_out=10)], order(bytes_out=10))).granted == {"bytes_out": 10}


@pytest.mark.parametrize(
    ("need", "whole", "limit", "granted"),
    [
        (1, False, 0, None),
        (1, False, 1, 1),
        (5, False, 3, 3),
        (5, False, SLICE_BYTES + 1, SLICE_BYTES),
        (SLICE_BYTES + 1, False, LIMIT_MAX, SLICE_BYTES + 1),
        (5, True, 4, None),
        (5, True, 5, 5),
        (5, True, 100, 5),
        (1, True, 1, 1),
    ],
)
def test_an_extension_takes_what_is_there_or_all_where_it_must(
    need: int, whole: bool, limit: int, granted: int | None
) -> None:
    ones = [account("a", bytes_in=limit), account("b", requests=0), account("c", bytes_in=10**9)]
    answer = extend(ones, extension(need, whole=whole))
    if granted is None:
        assert short(answer).account == "a/coder"
        assert (short(answer).budget, short(answer).unit) == ("a", "bytes_in")
        assert (short(answer).needed, short(answer).available) == (need if whole else 1, limit)
        assert short(answer).left == list_left(ones, NOON_MS)
        assert [one.held for one in ones] == [{}, {}, {}]
        assert [one.first_ms for one in ones] == [0, 0, 0]
        return
    assert held(answer).granted == {"bytes_in": granted}
    assert held(answer).amounts == (
        Amount("a/coder", "bytes_in", granted),
        Amount("c/coder", "bytes_in", granted),
    )
    assert [one.held.get("bytes_in", 0) for one in ones] == [granted, 0, granted]
    assert [one.first_ms for one in ones] == [NOON_MS, 0, NOON_MS]
    assert held(answer).left == list_left(ones, NOON_MS)


def test_an_extension_adds_to_what_is_held_and_sorts() -> None:
    ones = [account("b", bytes_in=9), account("a", bytes_in=9)]
    ones[0].held["bytes_in"], ones[0].first_ms = 4, 5
    hold = held(extend(ones, extension(3, whole=True)))
    assert [one.account for one in hold.amounts] == ["a/coder", "b/coder"]
    assert ones[0].held == {"bytes_in": 7}
    assert ones[0].first_ms == 5


def test_an_extension_of_what_nobody_limits_is_granted_without_a_figure() -> None:
    hold = held(extend([account(requests=1)], extension(10**12)))
    assert (hold.amounts, hold.granted) == ((), {})


def test_an_extension_tells_of_the_end_of_a_period() -> None:
    one = account(window_ms=DAY_MS, bytes_in=9)
    hold = held(extend([one], extension(5, now_ms=MIDNIGHT_MS)))
    assert [entry.name for entry in hold.closed] == [FRIDAY]
    assert [entry.name for entry in hold.opened] == [SATURDAY]
    answer = short(extend([one], extension(99, now_ms=MIDNIGHT_MS + DAY_MS, whole=True)))
    assert [entry.name for entry in answer.closed] == [SATURDAY]
    assert len(answer.opened) == 1
    assert answer.until_ms == MIDNIGHT_MS + 2 * DAY_MS


@pytest.mark.parametrize("wrong", [extension(0), extension(-1), extension(1, unit="requests")])
def test_an_extension_of_nothing_is_a_bug(wrong: budget.Extension) -> None:
    one = account(window_ms=DAY_MS, bytes_in=9, requests=9)
    with pytest.raises(ContractBroken):
        extend([one], replace(wrong, now_ms=MIDNIGHT_MS))
    assert one.name == FRIDAY
