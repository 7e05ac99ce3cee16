"""RE2 and what the index reads from an expression."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.regex import compile_test, find_problem, read_literal_prefix


def test_an_expression_matches_the_whole_text() -> None:
    test = compile_test("/a/[0-9]+")
    assert test("/a/12")
    assert not test("/a/12/b")
    assert not test("x/a/12")


def test_unicode_counts_in_characters() -> None:
    assert compile_test("a.b")("aéb")


@pytest.mark.parametrize("text", ["(?=x)", "(", "a{1001}", "((a{100}){100}){100}", "x" * 2001])
def test_what_re2_or_the_bound_refuses_has_a_problem(text: str) -> None:
    assert find_problem(text)
    with pytest.raises(ValueError, match="bad regular expression"):
        compile_test(text)


def test_the_classic_of_catastrophic_backtracking_is_fine() -> None:
    assert find_problem("(a+)+$") is None
    assert not compile_test("(a+)+$")("a" * 4000 + "!")


PREFIXES = {
    "literal": ("/a/b", "/a/b"),
    "class": ("/a/[0-9]", "/a/"),
    "anchor": ("^/a/b$", "/a/b"),
    "alternatives": ("/a|/b", ""),
    "optional letter": ("/ab?", "/a"),
    "repeated letter": ("/ab+", "/a"),
    "counted letter": ("/ab{0,2}", "/a"),
    "escaped dot": (r"/a\.json/x.", "/a.json/x"),
    "optional escaped dot": (r"/a\.?x", "/a"),
    "class escape": (r"/a\d", "/a"),
    "group": ("/a(b)", "/a"),
    "flags": ("(?i)/a", ""),
}


@pytest.mark.parametrize(("text", "expected"), PREFIXES.values(), ids=PREFIXES)
def test_the_literal_prefix_of_an_expression(text: str, expected: str) -> None:
    assert read_literal_prefix(text) == expected


@given(st.text("/ab.|?*+(){}[]^$\\1", max_size=8), st.text("/ab.1", max_size=6))
@settings(max_examples=500, deadline=None)
def test_every_match_begins_with_the_literal_prefix(expression: str, text: str) -> None:
    if find_problem(expression) is None and compile_test(expression)(text):
        assert text.startswith(read_literal_prefix(expression))
