"""Budget arithmetic behind the hold: what is booked, released, and put in place."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import budget
from policies.budget import (
    Account,
    Amount,
    Contract,
    Term,
    allocate,
    join,
    put,
    reserve,
    roll,
    settle,
)
from policies.model import ContractBroken
from tests.kit.ledgers import (
    DAY_MS,
    MIDNIGHT_MS,
    NOON_MS,
    account,
    contract,
    held,
    order,
)

NAME = "daily/coder"
FRIDAY = "daily/coder@2024-10-04T00:00:00Z"
SATURDAY = "daily/coder@2024-10-05T00:00:00Z"


# Allocating and settling


@pytest.mark.parametrize(
    ("counted", "booked"),
    [
        ({}, {"requests": 2}),
        ({"bytes_out": 0, "bytes_in": 0}, {"requests": 2}),
        ({"bytes_out": 10}, {"requests": 2, "bytes_out": 10}),
        ({"bytes_out": 100}, {"requests": 2, "bytes_out": 100}),
        ({"bytes_out": 101}, {"requests": 2, "bytes_out": 100}),
        ({"bytes_in": 50, "bytes_out": 1}, {"requests": 2, "bytes_out": 1, "bytes_in": 50}),
    ],
)
def test_exact_units_are_booked_in_full_and_bytes_as_counted(
    counted: dict[str, int], booked: dict[str, int]
) -> None:
    holds = [
        Amount(NAME, "requests", 2),
        Amount(NAME, "wall_time", 0),
        Amount(NAME, "bytes_out", 100),
        Amount(NAME, "bytes_in", 50),
    ]
    expected = tuple(sorted(Amount(NAME, unit, amount) for unit, amount in booked.items()))
    assert allocate(holds, counted) == allocate(sorted(holds), counted) == expected


def test_of_a_unit_that_nobody_counted_not_even_one_byte_is_booked() -> None:
    once, twice = [Amount(NAME, "bytes_in", 1)], [Amount(NAME, "bytes_in", 1)] * 2
    assert allocate(once, {}) == allocate(twice, {"bytes_out": 1}) == ()


@pytest.mark.parametrize(
    ("counted", "friday", "saturday"),
    [(5, 5, 0), (100, 100, 0), (101, 100, 1), (140, 100, 40), (160, 100, 60), (999, 100, 60)],
)
def test_a_stream_that_outlasts_a_period_pays_in_both(
    counted: int, friday: int, saturday: int
) -> None:
    holds = [Amount(FRIDAY, "bytes_in", 60), Amount(FRIDAY, "bytes_in", 40)]
    holds += [Amount(SATURDAY, "bytes_in", 60)]
    booked = {one.account: one.amount for one in allocate(holds, {"bytes_in": counted})}
    assert booked == {
        name: amount for name, amount in ((FRIDAY, friday), (SATURDAY, saturday)) if amount
    }


def test_every_account_pays_the_whole_count() -> None:
    holds = [Amount("a/x", "bytes_in", 60), Amount("b/x", "bytes_in", 60)]
    assert [one.amount for one in allocate(holds, {"bytes_in": 50})] == [50, 50]
    both = [Amount("a/x", "bytes_in", 60), Amount("a/x", "bytes_out", 60)]
    assert [one.amount for one in allocate(both, {"bytes_in": 50, "bytes_out": 40})] == [50, 40]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 60))
def test_what_is_allocated_is_what_was_counted_up_to_what_was_held(
    slices: list[int], counted: int
) -> None:
    holds = [Amount(f"a/x@{n // 2}", "bytes_in", one) for n, one in enumerate(slices)]
    booked = allocate(holds, {"bytes_in": counted})
    assert sum(one.amount for one in booked) == min(counted, sum(slices))
    assert all(one.amount > 0 for one in booked)


PERIODS = ["a/x", "a/x@2024-10-04T00:00:00Z", "a/x@2024-10-05T00:00:00Z", "a/x/s", "b/x"]
HOLDS = st.lists(
    st.builds(
        Amount,
        st.sampled_from(PERIODS),
        st.sampled_from(["bytes_in", "bytes_out", "requests", "steps"]),
        st.integers(0, 9),
    ),
    max_size=8,
)


@given(HOLDS, st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_what_is_allocated_is_the_plain_sum_in_whatever_order_the_holds_come(
    holds: list[Amount], read: int, sent: int, in_order: bool
) -> None:
    if in_order:
        holds = sorted({(one.account, one.unit): one for one in holds}.values())
    rest: dict[tuple[str, str], int] = {}
    wanted: dict[tuple[str, str], int] = {}
    for name, unit, amount in holds:
        counted = {"bytes_in": read, "bytes_out": sent}.get(unit, 10**9)
        key = name.partition("@")[0], unit
        taken = min(amount, rest.get(key, counted))
        rest[key] = rest.get(key, counted) - taken
        wanted[name, unit] = wanted.get((name, unit), 0) + taken
    expected = [Amount(*key, amount) for key, amount in sorted(wanted.items()) if amount]
    counts = {"bytes_in": read, "bytes_out": sent}
    assert allocate(holds, counts) == tuple(expected)
    assert all(type(one) is Amount for one in allocate(iter(holds), counts))


def test_a_settlement_releases_what_was_held_and_books_what_was_spent() -> None:
    one = account(requests=9, bytes_in=100)
    one.spent, one.held = {"bytes_in": 5}, {"requests": 3, "bytes_in": 80}
    holds = [
        Amount(NAME, "requests", 1),
        Amount(NAME, "bytes_in", 50),
        Amount(NAME, "bytes_in", 30),
    ]
    settle([one], holds, [Amount(NAME, "requests", 1), Amount(NAME, "bytes_in", 70)])
    assert one.spent == {"requests": 1, "bytes_in": 75}
    assert one.held == {"requests": 2}


def test_a_void_releases_and_books_nothing() -> None:
    one = account(requests=9)
    one.held["requests"] = 3
    settle([one], [Amount(NAME, "requests", 2)], [])
    assert (one.spent, one.held) == ({}, {"requests": 1})


def test_what_a_closed_period_is_owed_stays_with_it() -> None:
    one = account(window_ms=DAY_MS, requests=9)
    hold = held(reserve([one], order(requests=2)))
    roll(one, MIDNIGHT_MS)
    reserve([one], order("d-2", now_ms=MIDNIGHT_MS, requests=1))
    settle([one], hold.amounts, hold.amounts)
    assert (one.spent, one.held) == ({}, {"requests": 1})


@pytest.mark.parametrize(
    "spent",
    [
        [Amount(NAME, "requests", 3)],
        [Amount(NAME, "requests", -1)],
        [Amount(NAME, "steps", 1)],
        [Amount("b/coder", "requests", 1)],
        [Amount(NAME, "requests", 2), Amount(NAME, "requests", 1)],
    ],
)
def test_more_than_was_held_is_never_booked(spent: list[Amount]) -> None:
    one = account(requests=9, steps=9)
    one.held["requests"] = 2
    with pytest.raises(ContractBroken, match="I2"):
        settle([one], [Amount(NAME, "requests", 2)], spent)
    assert (one.spent, one.held) == ({}, {"requests": 2})


WRONG = [
    ([("a", "requests", 1), ("b", "requests", 3)], "I2"),
    ([("a", "requests", 1), ("b", "requests", -1)], "I2"),
    ([("a", "requests", 1), ("b", "steps", 1)], "I2"),
    ([("a", "requests", 1), ("b", "requests", 1), ("c", "requests", 1)], "I2"),
    ([("a", "requests", 1)], "I3"),
]


@pytest.mark.parametrize(("booked", "broken"), WRONG)
@pytest.mark.parametrize("turn", [1, -1])
def test_a_settlement_that_is_wrong_in_the_last_account_changes_no_other(
    booked: list[tuple[str, str, int]], broken: str, turn: int
) -> None:
    ones = [account("a", requests=9), account("b", requests=9), account("c", requests=9)]
    holds = held(reserve(ones[:2], order(requests=2))).amounts
    if broken == "I3":
        ones[1].held["requests"] = 1
    before = [budget.copy(one) for one in ones]
    spent = [Amount(f"{name}/coder", unit, amount) for name, unit, amount in booked]
    with pytest.raises(ContractBroken, match=broken):
        settle(ones, holds, spent[::turn])
    assert ones == before


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("named", [1, -1])
def test_a_settlement_books_the_same_in_whatever_order_it_comes(turn: int, named: int) -> None:
    ones = [account(name, requests=9, steps=9, bytes_in=9, bytes_out=9) for name in "abc"]
    holds = held(reserve(ones, order(requests=2, bytes_in=5, bytes_out=4))).amounts
    booked = allocate(holds, {"bytes_in": 3})
    settle(ones[::named], holds, booked[::turn])
    assert [(one.spent, one.held) for one in ones] == [({"requests": 2, "bytes_in": 3}, {})] * 3


def test_a_zero_that_was_held_may_be_booked() -> None:
    one = account(requests=9)
    settle([one], [Amount(NAME, "requests", 0)], [Amount(NAME, "requests", 0)])
    assert (one.spent, one.held) == ({}, {})


@pytest.mark.parametrize(("held_now", "amount"), [({}, 1), ({}, 2), ({"requests": 1}, 2)])
def test_a_hold_that_was_released_is_not_released_again(
    held_now: dict[str, int], amount: int
) -> None:
    one = account(requests=9)
    one.held.update(held_now)
    with pytest.raises(ContractBroken, match="I3"):
        settle([one], [Amount(NAME, "requests", amount)], [])


def test_a_closed_period_keeps_no_other_account_from_settling() -> None:
    ones = [account("a", window_ms=DAY_MS, requests=9), account("b", requests=9, steps=9)]
    hold = held(reserve(ones, order(requests=2, steps=1)))
    roll(ones[0], MIDNIGHT_MS)
    settle(ones, hold.amounts, hold.amounts)
    assert [one.spent for one in ones] == [{}, {"requests": 2, "steps": 1}]
    assert [one.held for one in ones] == [{}, {}]


def test_a_settlement_touches_only_the_account_it_names() -> None:
    first, second = account("a", requests=9), account("b", requests=9)
    first.held["requests"], second.held["requests"] = 5, 2
    hold = [Amount("b/coder", "requests", 2)]
    settle([first, second], hold, hold)
    assert (first.spent, first.held) == ({}, {"requests": 5})
    assert (second.spent, second.held) == ({"requests": 2}, {})


def test_a_zero_in_front_keeps_no_other_unit_from_settling() -> None:
    one = account(requests=9, bytes_in=9)
    hold = held(reserve([one], order(requests=2)))
    assert hold.amounts[0].amount == 0
    settle([one], hold.amounts, hold.amounts)
    assert (one.spent, one.held) == ({"requests": 2}, {})


def test_what_has_gone_is_not_booked_again() -> None:
    one = account(bytes_in=100)
    one.spent["bytes_in"] = 60  # counted when the window changed
    gone = [Amount(FRIDAY, "bytes_in", 60)]
    settle([one], [], [Amount(FRIDAY, "bytes_in", 60)], gone)
    assert one.spent == {"bytes_in": 60}
    with pytest.raises(ContractBroken, match="I2"):
        settle([one], [], [Amount(FRIDAY, "bytes_in", 61)], gone)


@pytest.mark.parametrize(("booked", "more"), [(0, 0), (5, 0), (60, 0), (61, 1), (70, 10)])
def test_of_what_has_gone_only_the_rest_is_booked(booked: int, more: int) -> None:
    one = account(bytes_in=100)
    one.spent["bytes_in"], one.held["bytes_in"] = 60, 10
    amounts = [Amount(NAME, "bytes_in", booked)]
    settle([one], [Amount(NAME, "bytes_in", 10)], amounts, [Amount(NAME, "bytes_in", 60)])
    assert (one.spent, one.held) == ({"bytes_in": 60 + more}, {})


# Copies and contracts


def test_a_copy_changes_on_its_own() -> None:
    one = account("daily", "coder", "s-1", window_ms=DAY_MS, at=[(80, "warn")], requests=5)
    one.spent["requests"], one.held["requests"], one.first_ms = 2, 1, NOON_MS
    other = budget.copy(one)
    assert other == one
    other.spent["requests"], other.held["requests"] = 9, 9
    assert (one.spent, one.held) == ({"requests": 2}, {"requests": 1})


def test_a_new_account_is_put_as_it_is() -> None:
    one = account(requests=5)
    new = put(None, one)
    assert new == one
    assert new is not one


def test_within_a_period_only_the_contract_is_put() -> None:
    known, other = account(requests=5), account(requests=9)
    known.spent["requests"], known.held["requests"], known.first_ms = 3, 1, NOON_MS
    other.spent["requests"] = 0
    merged = put(known, other)
    assert merged.contract == other.contract
    assert (merged.spent, merged.held) == ({"requests": 3}, {"requests": 1})
    assert merged.first_ms == NOON_MS
    assert known.contract.terms == {"requests": Term(5, 5)}


def test_another_window_counts_what_is_held_as_spent() -> None:
    known, other = account(window_ms=DAY_MS, requests=9, steps=9), account(requests=9)
    known.spent, known.held = {"requests": 3}, {"requests": 2, "steps": 1}
    merged = put(known, other)
    assert (merged.name, merged.from_ms) == (NAME, 0)
    assert (merged.spent, merged.held) == ({"requests": 5, "steps": 1}, {})
    assert known.held == {"requests": 2, "steps": 1}


@pytest.mark.parametrize("days", [-1, 1])
def test_the_same_window_never_moves_the_period(days: int) -> None:
    known = account(window_ms=DAY_MS, requests=9)
    known.held["requests"] = 2
    other = replace(known, from_ms=known.from_ms + days * DAY_MS, name="")
    merged = put(known, other)
    assert (merged.name, merged.held) == (FRIDAY, {"requests": 2})


def test_another_window_that_begins_at_the_same_moment_keeps_the_period() -> None:
    known = account(window_ms=DAY_MS, requests=9)
    known.held["requests"] = 2
    merged = put(known, Account("daily", "coder", "", contract({}, window_ms=1), known.from_ms))
    assert (merged.name, merged.held) == (FRIDAY, {"requests": 2})
    assert merged.contract == Contract({}, 1)


# Streams that are extended again and again

_HOLDS = st.lists(
    st.tuples(
        st.sampled_from(("a/coder", "b/coder")),
        st.sampled_from(("bytes_in", "bytes_out")),
        st.integers(0, 99),
    ),
    max_size=12,
)


@given(_HOLDS, st.integers(0, 12), st.integers(0, 400), st.integers(0, 400))
def test_holds_that_are_joined_book_what_they_would_have_booked_apart(
    rows: list[tuple[str, str, int]], turn: int, sent: int, received: int
) -> None:
    """Its period turns for every account after `turn` holds."""
    holds = [
        Amount(f"{base}@2024-10-0{4 + (at >= turn)}T00:00:00Z", unit, amount)
        for at, (base, unit, amount) in enumerate(rows)
    ]
    joined: tuple[Amount, ...] = ()
    for one in holds:
        joined = join(joined, (one,))
    assert len({one[:2] for one in joined}) == len(joined)
    counted = {"bytes_out": sent, "bytes_in": received}
    assert allocate(joined, counted) == allocate(holds, counted)


def test_a_stream_holds_one_entry_however_long_it_is() -> None:
    joined: tuple[Amount, ...] = ()
    for _ in range(1_000):
        joined = join(joined, [Amount(FRIDAY, "bytes_in", 5)])
    assert joined == (Amount(FRIDAY, "bytes_in", 5_000),)
