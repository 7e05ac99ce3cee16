"""`Tollkeeper-Budget`: exact bytes, and that a strict reader of RFC 9651 reads back what was
meant."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budget import LIMIT_MAX, UNITS, Left
from proxy.budget_header import BUDGET_HEADER, BUDGETS_MAX, NUMBER_MAX, format_budget, gather

DAY_MS = 86_400_000
LATER_MS = 20_777 * DAY_MS  # a midnight


def left(budget: str, unit: str, available: int, until_ms: int = 0, limit: int = 1000) -> Left:
    return Left(budget, unit, available, limit, until_ms)


CASES = {
    "no budget is no field": ((), 0, ""),
    "a window has its reset": (
        (
            left("daily", "requests", 989, LATER_MS),
            left("daily", "bytes_out", 49_999_000, LATER_MS, 50_000_000),
        ),
        LATER_MS - 86_123_000,
        '"daily";requests=989;bytes_out=49999000;reset=86123',
    ),
    "a budget for life has none": ((left("life", "steps", 400),), 5, '"life";steps=400'),
    "budgets in their order": (
        (left("b", "steps", 1), left("a", "wall_time", 0, 9_001)),
        5_000,
        '"b";steps=1, "a";wall_time=0;reset=5',
    ),
    "part of a second counts": ((left("a", "risk", 1, 1_001),), 1_000, '"a";risk=1;reset=1'),
    "a period that is over": ((left("a", "risk", 1, 900),), 1_000, '"a";risk=1;reset=0'),
    "the same budget twice: the smaller rest and the nearer end": (
        (left("a", "steps", 7, 9_000), left("a", "steps", 3, 4_000), left("a", "effort", 5)),
        1_000,
        '"a";steps=3;effort=5;reset=3',
    ),
    "quotes and backslashes": ((left('a"\\', "steps", 1),), 0, '"a\\"\\\\";steps=1'),
    "more than an integer of RFC 9651": (
        (left("a", "steps", LIMIT_MAX, limit=LIMIT_MAX),),
        0,
        f'"a";steps={NUMBER_MAX}',
    ),
    "never below nothing": ((left("a", "steps", -4),), 0, '"a";steps=0'),
    "no name": ((left("a\r\nSet-Cookie: x", "steps", 1), left("é", "steps", 1)), 0, ""),
    "no unit": ((left("a", "x;y=1", 1),), 0, ""),
}


@pytest.mark.parametrize(("given_left", "now_ms", "expected"), CASES.values(), ids=CASES)
def test_the_field_is_written_so(given_left: tuple[Left, ...], now_ms: int, expected: str) -> None:
    assert format_budget(given_left, now_ms) == expected


def test_of_many_budgets_those_are_told_that_end_first() -> None:
    many = tuple(left(f"b{number}", "requests", 1000 - number) for number in range(100))
    found = gather(many)
    assert list(found) == [f"b{number}" for number in range(100 - BUDGETS_MAX, 100)]


def test_the_longest_field_is_one_that_clients_read() -> None:
    longest = tuple(
        Left(f"{number:064}", unit, LIMIT_MAX, LIMIT_MAX, 2**60)
        for number in range(99)
        for unit in UNITS
    )
    assert len(format_budget(longest, 0)) < 5000


def test_the_name_of_the_field_is_fixed() -> None:
    assert BUDGET_HEADER == "Tollkeeper-Budget"


LEFTS = st.builds(
    Left,
    st.one_of(st.from_regex(r"[a-z][a-z0-9.-]{0,9}", fullmatch=True), st.text(max_size=5)),
    st.sampled_from([*UNITS, "no unit"]),
    st.integers(-5, 2**60),
    st.integers(0, 2**60),
    st.integers(0, 2**60),
)


@given(st.lists(LEFTS, max_size=40).map(tuple), st.integers(0, 2**60))
@settings(max_examples=200, deadline=None)
def test_a_strict_reader_reads_back_what_was_gathered(
    given_left: tuple[Left, ...], now_ms: int
) -> None:
    items = parse_list(format_budget(given_left, now_ms))
    assert len(items) <= BUDGETS_MAX
    told = {name: {unit: n for unit, n in units.items() if unit in UNITS} for name, units in items}
    assert len(told) == len(items)
    assert told == {
        name: {unit: min(amount, NUMBER_MAX) for unit, amount in units.items()}
        for name, units in gather(given_left).items()
    }
    for name, units in items:
        windowed = any(one.until_ms for one in given_left if one.budget == name)
        assert ("reset" not in units) or windowed


STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
PARAMETER = re.compile(r";([a-z*][a-z0-9_.*-]*)=(-?[0-9]{1,15})(?![0-9])")


def parse_list(text: str) -> list[tuple[str, dict[str, int]]]:
    """A list of strings with integer parameters, and nothing else (RFC 9651 section 4.2)."""
    items: list[tuple[str, dict[str, int]]] = []
    place = 0
    while place < len(text):
        if items:
            assert text.startswith(", ", place), text[place:]
            place += 2
        string = STRING.match(text, place)
        assert string, text[place:]
        place = string.end()
        parameters: dict[str, int] = {}
        while found := PARAMETER.match(text, place):
            assert found[1] not in parameters
            parameters[found[1]] = int(found[2])
            place = found.end()
        items.append((re.sub(r"\\(.)", r"\1", string[1]), parameters))
    return items
