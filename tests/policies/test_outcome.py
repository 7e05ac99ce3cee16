"""Kleene's tables."""

import pytest

from policies.outcome import Outcome, agree, conjoin, negate


def test_negation_keeps_what_is_unknown() -> None:
    assert [negate(one) for one in ("true", "false", "unknown")] == ["false", "true", "unknown"]


AND: dict[str, tuple[list[Outcome], Outcome]] = {
    "nothing": ([], "true"),
    "all true": (["true", "true"], "true"),
    "one unknown": (["true", "unknown"], "unknown"),
    "one false": (["unknown", "false", "true"], "false"),
}


@pytest.mark.parametrize(("outcomes", "expected"), AND.values(), ids=AND)
def test_false_beats_unknown_in_a_conjunction(outcomes: list[Outcome], expected: Outcome) -> None:
    assert conjoin(outcomes) == expected


def test_readings_that_disagree_are_unknown() -> None:
    assert [agree(*one) for one in ((0, 0), (0, 2), (2, 2), (1, 2))] == [
        "false",
        "false",
        "true",
        "unknown",
    ]
