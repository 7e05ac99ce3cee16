"""The parser's phrases in plain words."""

import pytest
import yaml

from policies.load import parse
from policies.syntax import explain_syntax

CASES = {
    "tab before a key": ("a:\n\tb: 1\n", (2, 1), "a tab is used to indent"),
    "tab before a list": ("a:\n\t- b\n", (2, 1), "a tab is used to indent"),
    "missing space": ("a:b\nc: d\n", (1, 3), "a space is missing after `:`"),
    "missing space in a list": ("r:\n  - id:x\n    v: y\n", (2, 8), "a space is missing after `:`"),
    "two colons": ("a: b: c\n", (1, 5), "a second `: ` in one line, or a wrong indent"),
    "open bracket": (
        "a: [1\nb: 2\n",
        (1, 4),
        "a `[` is opened and not closed, or a comma is missing",
    ),
    "open brace": (
        "a: {b: 1\nc: 2\n",
        (1, 4),
        "a `{` is opened and not closed, or a comma is missing",
    ),
    "open quote": ("a: 'x\n", (1, 4), "a quote is opened and never closed"),
    "stray bracket": ("}\n", (1, 1), "a value is missing here"),
    "percent": ("a: %x\n", (1, 4), "`%` cannot begin plain text"),
    "dedent into nothing": (" a: 1\nb: 2\n", (2, 1), "this line does not belong to the map above"),
}


@pytest.mark.parametrize(("text", "place", "message"), CASES.values(), ids=CASES)
def test_a_mistake_is_explained(text: str, place: tuple[int, int], message: str) -> None:
    _, findings = parse(text, "p.yaml")
    assert [(one.line, one.column) for one in findings] == [place]
    assert findings[0].message == f"not YAML: {message}"


def test_an_unknown_phrase_still_names_the_place() -> None:
    place, message, hint = explain_syntax(["a"], "while juggling", "dropped it", (1, 1), (1, 1))
    assert (place, message) == ((1, 1), "this cannot be read")
    assert hint


def test_the_parser_is_the_strict_one_of_the_lock_file() -> None:
    assert yaml.__with_libyaml__
