"""Contracts over time: the file lowers at once, only an operator raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budget import LIMIT_MAX, Account, Contract, Term, Threshold
from policies.contract import (
    Pending,
    accept,
    list_pending,
    lower,
    open_account,
    raise_limit,
    write_contract,
)
from policies.rule import Budget
from tests.kit.ledgers import DAY_MS, MIDNIGHT_MS, NOON_MS

AT = (Threshold(80, "warn"),)


def filed(*, window_ms: int | None = None, at: tuple[Threshold, ...] = (), **limits: int) -> Budget:
    """What the policy file says."""
    return Budget("daily", "agent", tuple(limits.items()), window_ms=window_ms, at=at)


def terms(**limits: int | tuple[int, int | None]) -> dict[str, Term]:
    """`unit=limit`, or `unit=(limit, filed)` where the file says something else."""
    return {
        unit: Term(*one) if isinstance(one, tuple) else Term(one, one)
        for unit, one in limits.items()
    }


def test_an_account_is_opened_under_what_the_file_says() -> None:
    one = open_account(filed(window_ms=DAY_MS, at=AT, requests=5), "coder", "s-1", NOON_MS)
    assert one.name == "daily/coder/s-1@2024-10-04T00:00:00Z"
    assert one.contract == Contract(terms(requests=5), DAY_MS, AT)
    assert (one.spent, one.held, one.first_ms) == ({}, {}, 0)
    plain = open_account(filed(requests=5), "coder", "", NOON_MS)
    assert (plain.name, plain.from_ms, plain.contract.window_ms) == ("daily/coder", 0, 0)


LOWER = [
    # in force before           the file says              in force after
    (terms(requests=5), filed(requests=5), terms(requests=5)),
    (terms(requests=5), filed(requests=4), terms(requests=4)),
    (terms(requests=5), filed(requests=0), terms(requests=0)),
    (terms(requests=5), filed(requests=6), terms(requests=(5, 6))),
    (terms(requests=5), filed(requests=5, steps=3), terms(requests=5, steps=3)),
    (terms(requests=5, steps=3), filed(requests=5), terms(requests=5, steps=(3, None))),
    (terms(requests=5), None, terms(requests=(5, None))),
    # raised by hand: stays until somebody edits the file
    (terms(requests=(9, 5)), filed(requests=5), terms(requests=(9, 5))),
    (terms(requests=(9, 5)), filed(requests=6), terms(requests=6)),
    (terms(requests=(9, 5)), filed(requests=10), terms(requests=(9, 10))),
    (terms(requests=(9, 5)), filed(requests=4), terms(requests=4)),
    # was pending or gone, and is back
    (terms(requests=(5, 9)), filed(requests=5), terms(requests=5)),
    (terms(requests=(5, None)), filed(requests=5), terms(requests=5)),
    (terms(requests=(5, None)), filed(requests=3), terms(requests=3)),
    (terms(requests=(5, None)), filed(requests=8), terms(requests=(5, 8))),
]


@pytest.mark.parametrize(("before", "file", "after"), LOWER)
def test_a_reload_only_lowers(
    before: dict[str, Term], file: Budget | None, after: dict[str, Term]
) -> None:
    assert lower(Contract(before), file).terms == after


def test_thresholds_follow_the_file_at_once_and_stay_where_the_budget_is_gone() -> None:
    before = Contract(terms(requests=5), 0, AT)
    later = (Threshold(50, "halt"),)
    assert lower(before, filed(requests=5, at=later)).at == later
    assert lower(before, filed(requests=5)).at == ()
    assert lower(before, None).at == AT


def test_a_reload_never_changes_the_window() -> None:
    before = Contract(terms(requests=5), DAY_MS)
    for file in (filed(requests=5), filed(requests=5, window_ms=1), None):
        assert lower(before, file).window_ms == DAY_MS


@given(
    st.dictionaries(
        st.sampled_from(["requests", "steps", "risk"]),
        st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)),
    ),
    st.none() | st.dictionaries(st.sampled_from(["requests", "steps", "risk"]), st.integers(0, 9)),
)
def test_whatever_the_file_says_no_limit_rises_and_a_second_reading_changes_nothing(
    known: dict[str, tuple[int, int | None]], says: dict[str, int] | None
) -> None:
    before = Contract(terms(**known))
    file = None if says is None else Budget("daily", "agent", tuple(says.items()))
    after = lower(before, file)
    for unit, term in before.terms.items():
        assert after.terms[unit].limit <= term.limit
    assert lower(after, file) == after


PENDING = [
    (terms(requests=5), filed(requests=5), []),
    (terms(requests=(5, 6)), filed(requests=6), [Pending("requests", 5, 6)]),
    (terms(requests=(9, 5)), filed(requests=5), []),
    (terms(requests=(9, 9)), filed(requests=10), [Pending("requests", 9, 10)]),
    (terms(requests=5, steps=3), filed(requests=5), [Pending("steps", 3, None)]),
    (terms(requests=5), None, [Pending("requests", 5, None)]),
    (terms(), None, []),
    (terms(requests=0), filed(requests=0), []),
]


@pytest.mark.parametrize(("known", "file", "waits"), PENDING)
def test_what_would_allow_more_waits(
    known: dict[str, Term], file: Budget | None, waits: list[Pending]
) -> None:
    assert list(list_pending(Contract(known), file)) == waits


def test_another_window_waits() -> None:
    known = Contract(terms(requests=5), DAY_MS)
    assert list_pending(known, filed(requests=5, window_ms=DAY_MS)) == ()
    assert list_pending(known, filed(requests=5)) == (Pending("", DAY_MS, 0),)
    assert list_pending(known, filed(requests=5, window_ms=1)) == (Pending("", DAY_MS, 1),)
    assert list_pending(known, None) == (Pending("requests", 5, None),)
    assert list_pending(Contract(), filed(window_ms=1)) == (Pending("", 0, 1),)


def using(window_ms: int = 0, **limits: int) -> Account:
    file = Budget("daily", "agent", tuple(limits.items()), window_ms=window_ms or None)
    one = open_account(file, "coder", "", NOON_MS)
    one.spent, one.held, one.first_ms = {"requests": 4}, {"requests": 1}, NOON_MS
    return one


def test_accepting_takes_what_the_file_says_and_forgets_nothing() -> None:
    after = accept(using(requests=5), filed(requests=9, at=AT), MIDNIGHT_MS)
    assert after.contract == Contract(terms(requests=9), 0, AT)
    assert (after.spent, after.held) == ({"requests": 4}, {"requests": 1})


@pytest.mark.parametrize(("says", "limit"), [(5, 8), (8, 8), (9, 9)])
def test_accepting_takes_no_limit_back_that_was_raised_by_hand(says: int, limit: int) -> None:
    one = using(requests=5)
    one.contract = raise_limit(one.contract, "requests", 8)
    after = accept(one, filed(requests=says, steps=2), NOON_MS)
    assert after.contract.terms == terms(requests=(limit, says), steps=2)


def test_accepting_another_window_takes_its_limits_as_they_are_filed() -> None:
    one = using(requests=5)
    one.contract = raise_limit(one.contract, "requests", 8)
    after = accept(one, filed(requests=5, window_ms=DAY_MS), NOON_MS)
    assert after.contract == Contract(terms(requests=5), DAY_MS)


def test_accepting_that_a_budget_is_gone_takes_its_limits_away() -> None:
    after = accept(using(requests=5), None, NOON_MS)
    assert after.contract == Contract()
    assert (after.name, after.spent, after.held) == (
        *("daily/coder", {"requests": 4}, {"requests": 1}),
    )
    windowed = accept(using(DAY_MS, requests=5), None, NOON_MS)
    assert (windowed.name, windowed.spent) == ("daily/coder", {"requests": 5})


def test_accepting_another_window_begins_the_period_of_now_with_all_that_was_spent() -> None:
    after = accept(using(requests=5), filed(requests=5, window_ms=DAY_MS), MIDNIGHT_MS + 1)
    assert after.name == "daily/coder@2024-10-05T00:00:00Z"
    assert (after.spent, after.held) == ({"requests": 5}, {})


def test_accepting_with_the_same_window_stays_in_the_period() -> None:
    """The next request begins the next one, and both are recorded."""
    after = accept(using(DAY_MS, requests=5), filed(requests=9, window_ms=DAY_MS), MIDNIGHT_MS)
    assert after.name == "daily/coder@2024-10-04T00:00:00Z"
    assert after.contract.terms == terms(requests=9)


def test_a_limit_is_raised_by_hand_and_the_file_still_says_what_it_said() -> None:
    before = Contract(terms(requests=5, steps=3), DAY_MS, AT)
    after = raise_limit(before, "requests", 6)
    assert after == Contract(terms(requests=(6, 5), steps=3), DAY_MS, AT)
    assert raise_limit(before, "steps", LIMIT_MAX).terms["steps"] == Term(LIMIT_MAX, 3)
    assert before.terms == terms(requests=5, steps=3)


@pytest.mark.parametrize(
    ("unit", "limit", "text"),
    [
        ("requests", 5, "5 is not higher than the limit in force, 5; to lower it, edit"),
        ("requests", 4, "4 is not higher than the limit in force, 5"),
        ("requests", LIMIT_MAX + 1, f"{LIMIT_MAX + 1} is beyond {LIMIT_MAX}"),
        ("risk", 9, "`risk` is not limited here; limited are: requests, steps"),
    ],
)
def test_what_cannot_be_raised_says_why(unit: str, limit: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        raise_limit(Contract(terms(requests=5, steps=3)), unit, limit)


def test_where_nothing_is_limited_nothing_can_be_raised() -> None:
    with pytest.raises(ValueError, match="limited are: nothing"):
        raise_limit(Contract(), "requests", 5)


def test_what_the_file_says_is_a_contract_of_its_own() -> None:
    file = filed(window_ms=DAY_MS, at=AT, requests=5)
    assert write_contract(file) == Contract(terms(requests=5), DAY_MS, AT)
    assert write_contract(filed()).window_ms == 0
