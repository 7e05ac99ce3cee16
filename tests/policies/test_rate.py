"""Rates: GCRA."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import RateUse
from policies.rate import RateLimiter, RateState, admit
from policies.rule import Rate

MINUTE = Rate("minute", "agent", allow=60, per_ms=60_000, burst=20)
THIRDS = Rate("thirds", "agent", allow=3, per_ms=1000, burst=3)
RATES = {"minute": MINUTE, "thirds": THIRDS, "one": Rate("one", "agent", 1, 1000, 1)}


def count(rate: Rate, times_ms: list[int]) -> int:
    state: RateState | None = None
    admitted = 0
    for now_ms in times_ms:
        new, _ = admit(state, rate, now_ms)
        if new is not None:
            state, admitted = new, admitted + 1
    return admitted


def test_burst_twenty_admits_twenty_at_rest() -> None:
    assert count(MINUTE, [5000] * 30) == 20


def test_after_the_burst_one_a_second() -> None:
    assert count(MINUTE, [5000] * 30 + [5999, 6000, 6001, 7000]) == 22


def test_thirds_of_a_second_do_not_drift() -> None:
    assert count(THIRDS, [0] * 5) == 3
    assert count(THIRDS, [0] * 5 + [333, 334, 666, 667, 999, 1000]) == 6


def test_a_refusal_says_exactly_when_to_come_back() -> None:
    state: RateState | None = None
    for _ in range(3):
        state, _ = admit(state, THIRDS, 0)
    refused, retry_after_ms = admit(state, THIRDS, 0)
    assert refused is None
    assert retry_after_ms == 334
    assert admit(state, THIRDS, 333)[0] is None
    assert admit(state, THIRDS, 334)[0] is not None


@pytest.mark.parametrize("rate", [Rate("x", "agent", 0, 1000, 5), Rate("x", "agent", 5, 1000, 0)])
def test_zero_means_nothing(rate: Rate) -> None:
    assert admit(None, rate, 10**9) == (None, 1000)


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    assert count(MINUTE, [100_000] * 20 + [0] * 20) == 20


def test_a_reload_to_another_rate_keeps_what_was_used() -> None:
    state: RateState | None = None
    for _ in range(3):
        state, _ = admit(state, THIRDS, 0)
    tighter = Rate("thirds", "agent", 1, 1000, 1)
    assert admit(state, tighter, 0) == (None, 1000)
    assert admit(state, tighter, 1000)[0] is not None


def test_a_reload_counts_in_the_parts_of_the_new_rate() -> None:
    state, _ = admit(None, Rate("thirds", "agent", 1, 1000, 1), 0)
    assert admit(state, THIRDS, 0) == (None, 334)
    assert admit(state, THIRDS, 334)[0] is not None


def test_the_shortest_wait_is_a_millisecond() -> None:
    assert admit(None, Rate("x", "agent", 0, 0, 5), 0) == (None, 1)


def test_a_key_makes_room_the_moment_it_is_at_rest() -> None:
    limiter = RateLimiter(keys_max=1)
    assert limiter.admit([RateUse("thirds", "a")], RATES, 0) is None
    assert limiter.admit([RateUse("thirds", "b")], RATES, 333) == 1000
    assert limiter.admit([RateUse("thirds", "b")], RATES, 334) is None


def test_the_last_place_is_a_place() -> None:
    limiter = RateLimiter(keys_max=2)
    for key, now_ms in (("a", 0), ("b", 900), ("c", 1000)):
        assert limiter.admit([RateUse("one", key)], RATES, now_ms) is None
    assert len(limiter) == 2


@given(
    st.integers(1, 7),
    st.integers(1, 2000),
    st.integers(1, 9),
    st.lists(st.integers(0, 400), max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_no_stretch_of_time_admits_more_than_burst_plus_its_share(
    allow: int, per_ms: int, burst: int, steps: list[int]
) -> None:
    rate = Rate("r", "agent", allow, per_ms, burst)
    state: RateState | None = None
    now_ms, admitted = 0, []
    for step in steps:
        now_ms += step
        new, retry_after_ms = admit(state, rate, now_ms)
        if new is None:
            assert retry_after_ms is not None
            assert retry_after_ms > 0
        else:
            state = new
            admitted.append(now_ms)
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            length_ms = admitted[last] - admitted[first]
            assert last - first + 1 <= burst + length_ms * allow // per_ms


def test_several_rates_are_taken_together_or_not_at_all() -> None:
    limiter = RateLimiter()
    both = [RateUse("minute", "coder"), RateUse("one", "coder")]
    assert limiter.admit(both, RATES, 0) is None
    for _ in range(5):
        assert limiter.admit(both, RATES, 0) == 1000
    alone = [RateUse("minute", "coder")]
    assert [limiter.admit(alone, RATES, 0) for _ in range(20)] == [None] * 19 + [1000]


def test_keys_do_not_share() -> None:
    limiter = RateLimiter()
    assert limiter.admit([RateUse("one", "a")], RATES, 0) is None
    assert limiter.admit([RateUse("one", "b")], RATES, 0) is None
    assert limiter.admit([RateUse("one", "a")], RATES, 0) == 1000


def test_one_use_twice_counts_twice() -> None:
    limiter = RateLimiter()
    assert limiter.admit([RateUse("one", "a")] * 2, RATES, 0) == 1000
    assert limiter.admit([RateUse("one", "a")], RATES, 0) is None


def test_no_rates_are_always_admitted() -> None:
    assert RateLimiter().admit([], RATES, 0) is None


def test_memory_is_bounded_and_keys_at_rest_are_forgotten() -> None:
    limiter = RateLimiter(keys_max=3)
    for key in "abc":
        assert limiter.admit([RateUse("one", key)], RATES, 0) is None
    assert limiter.admit([RateUse("one", "d")], RATES, 0) == 1000
    assert limiter.admit([RateUse("one", "d")], RATES, 1000) is None
    assert len(limiter) == 1


def test_an_unknown_rate_is_a_bug() -> None:
    with pytest.raises(KeyError):
        RateLimiter().admit([RateUse("none", "a")], RATES, 0)
