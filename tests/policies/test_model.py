"""The nouns hold what they promise about themselves."""

import dataclasses
import inspect

import pytest

from policies import model
from policies.model import Decision, Finding, PolicyRejected, Verdict

NOUNS = [
    noun
    for _, noun in inspect.getmembers(model, inspect.isclass)
    if noun.__module__ == model.__name__ and dataclasses.is_dataclass(noun)
]


@pytest.mark.parametrize("noun", NOUNS)
def test_a_noun_cannot_be_changed(noun: type) -> None:
    """What was judged is what is recorded and sent."""
    assert noun.__dataclass_params__.frozen  # type: ignore[attr-defined]  # dataclasses' own
    assert hasattr(noun, "__slots__")


def test_an_allow_names_the_rule_that_permitted_it() -> None:
    with pytest.raises(ValueError, match="must name the rule"):
        Decision(Verdict.ALLOW, "allowed")
    assert Decision(Verdict.ALLOW, "allowed", ("read",)).rules == ("read",)


def test_only_observe_mode_allows_without_a_rule() -> None:
    assert Decision(Verdict.ALLOW, "observed").rules == ()
    assert Decision(Verdict.DENY, "no-rule-matched").rules == ()


def test_findings_are_sorted_by_place() -> None:
    later = Finding("a.yaml", 10, 1, "AP001", "error", "z")
    sooner = Finding("a.yaml", 9, 7, "AP207", "warning", "a")
    other = Finding("b.yaml", 1, 1, "AP001", "error", "")
    assert sorted([other, later, sooner]) == [sooner, later, other]


def test_a_rejection_carries_every_finding_at_once() -> None:
    findings = tuple(Finding("a.yaml", n, 1, "AP006", "error", "") for n in (1, 2))
    rejected = PolicyRejected(findings, {"a.yaml": "text"})
    assert (rejected.findings, rejected.sources) == (findings, {"a.yaml": "text"})
    assert str(rejected) == "2 findings"
