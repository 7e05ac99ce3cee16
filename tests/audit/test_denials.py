"""The budget of denial records: single up to the rate, counted beyond it."""

from audit.denials import BURST, RATE_PER_S, DenialBudget


def admitted(budget: DenialBudget, agent: str, times: int, now_s: float) -> int:
    return sum(budget.admit(agent, "no-rule-matched", now_s) for _ in range(times))


def test_a_burst_is_recorded_singly_and_the_rest_is_counted() -> None:
    budget = DenialBudget()
    assert admitted(budget, "a", BURST + 500, 0.0) == BURST
    assert budget.drain() == [
        {"kind": "dropped", "n": 500, "reason": "no-rule-matched", "agent": "a"}
    ]
    assert budget.drain() == []


def test_the_budget_fills_again_with_time_up_to_the_burst() -> None:
    budget = DenialBudget()
    admitted(budget, "a", BURST, 0.0)
    assert admitted(budget, "a", 10_000, 1.0) == RATE_PER_S
    assert admitted(budget, "a", 10_000, 1e6) == BURST


def test_one_agent_does_not_use_up_the_budget_of_another() -> None:
    budget = DenialBudget(burst=1)
    assert admitted(budget, "a", 5, 0.0) == 1
    assert admitted(budget, "b", 5, 0.0) == 1
    assert [event["agent"] for event in budget.drain()] == ["a", "b"]


def test_a_caller_without_a_name_is_counted_without_one() -> None:
    budget = DenialBudget(burst=0)
    assert not budget.admit("", "credential-missing", 0.0)
    assert budget.drain() == [{"kind": "dropped", "n": 1, "reason": "credential-missing"}]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    budget = DenialBudget(burst=1)
    assert budget.admit("a", "x", 10.0)
    assert not budget.admit("a", "x", 10.0)
    assert not budget.admit("a", "x", 5.0)
