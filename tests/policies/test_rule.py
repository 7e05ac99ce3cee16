"""The compiled form of one policy entry: plain, comparable data."""

from dataclasses import FrozenInstanceError, replace

import pytest

from policies.rule import Match, Rule
from tests.kit.policy_sets import allow, parsed_host, parsed_path


@pytest.mark.parametrize("text", ["a.com", "*.a.com", "**.a.com", "10.0.0.1"])
def test_a_host_pattern_is_written_as_in_yaml(text: str) -> None:
    assert str(parsed_host(text)) == text


@pytest.mark.parametrize("text", ["/", "/**", "/a/*/{n:int}/r-*.pdf/**"])
def test_a_path_pattern_is_written_as_in_yaml(text: str) -> None:
    assert str(parsed_path(text)) == text


def test_rules_are_compared_by_what_they_say() -> None:
    assert allow("r", "*.a.com", "/x/**", "GET") == allow("r", "*.a.com", "/x/**", "GET")
    assert allow("r") != allow("r", "b.com")
    assert len({allow("r"), allow("r"), allow("s")}) == 2


def test_a_rule_cannot_be_changed_only_copied() -> None:
    rule: Rule = allow("r")
    with pytest.raises(FrozenInstanceError):
        rule.id = "s"  # type: ignore[misc]
    assert replace(rule, id="s").match == rule.match


def test_an_empty_match_names_nothing() -> None:
    assert Match() == Match(None, None, None, None, None, None, (), (), False, False, False, None)
