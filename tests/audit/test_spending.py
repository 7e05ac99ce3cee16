"""Records about budgets and states: what they must hold, one by one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import spending
from audit.fields import STATES
from audit.spending import Standings, explain_amounts, explain_raise, explain_snapshot
from tests.kit.chains import Event, amounts, spell

UNSORTED = "the amounts are not sorted by account and unit, or name one of them twice"
LISTS: dict[str, tuple[list[Event], bool]] = {
    "none": ([], True),
    "one": (amounts(("b", "y", 1)), True),
    "by account": (amounts(("a", "y", 1), ("b", "x", 1)), True),
    "then by unit": (amounts(("a", "x", 2), ("a", "y", 1)), True),
    "the amount does not count": (amounts(("a", "x", 1), ("a", "x", 2)), False),
    "accounts in the other order": (amounts(("b", "x", 1), ("a", "y", 1)), False),
    "units in the other order": (amounts(("a", "y", 1), ("a", "x", 1)), False),
    "the shorter name first": (amounts(("a", "x", 1), ("a!", "x", 1), ("a/b", "x", 1)), True),
    "a period behind its base": (amounts(("a/b", "x", 1), ("a/b@2026", "x", 1)), True),
    "apart, but twice": (amounts(("a", "x", 1), ("b", "x", 1), ("a", "x", 1)), False),
    "a decoy in a name": (amounts(('"account":"z","amount":1,"unit":"z"', "x", 1)), True),
}


@pytest.mark.parametrize(("listed", "fits"), LISTS.values(), ids=LISTS)
def test_amounts_are_sorted_and_named_once(listed: list[Event], fits: bool) -> None:
    assert explain_amounts(b"[%s]" % b",".join(map(spell, listed))) == ("" if fits else UNSORTED)


@given(st.dictionaries(st.tuples(st.text('ab!~/"\\', max_size=3), st.text("xy", max_size=2)),
                       st.integers(0, 9), max_size=5))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_a_list_in_the_order_of_its_bytes_is_one_whatever_the_names(
    held: dict[tuple[str, str], int],
) -> None:
    listed = amounts(*((*place, much) for place, much in held.items()))
    listed.sort(key=lambda one: (spell(one["account"])[1:-1], spell(one["unit"])[1:-1]))
    assert explain_amounts(b"[%s]" % b",".join(map(spell, listed))) == ""
    if len(listed) > 1:
        assert explain_amounts(b"[%s]" % b",".join(map(spell, listed[::-1]))) == UNSORTED


SNAPSHOTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "both empty": ((), (), ""),
    "limits in the order of the file": (("y", "x"), ("x", "y"), ""),
    "a limit twice": (("x", "y", "x"), (), "the limits name a unit twice"),
    "spent out of order": (("x",), ("y", "x"), "what was spent is not sorted by unit"),
    "spent twice": (("x",), ("x", "x"), "what was spent is not sorted by unit"),
}


@pytest.mark.parametrize(("limits", "spent", "problem"), SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_a_snapshot_names_each_unit_once(
    limits: tuple[str, ...], spent: tuple[str, ...], problem: str
) -> None:
    of = b",".join(spell({"filed": 2, "limit": 1, "unit": unit}) for unit in limits)
    on = b",".join(spell({"amount": 1, "unit": unit}) for unit in spent)
    said = explain_snapshot(b"[%s]" % of, b"[%s]" % on)
    assert said.startswith(problem)
    assert bool(said) is bool(problem)


RAISES = [
    (b"1", b"2", b'"requests"', True),
    (b"9", b"10", b'"requests"', True),
    (b"2", b"2", b'"requests"', False),
    (b"10", b"9", b'"requests"', False),
    (b"9", None, b'"requests"', True),
    (b"9", b"3", b'"window"', True),
    (b"9", b"9", b'"window"', True),
    (b"9", b"3", b'"windows"', False),
]


@pytest.mark.parametrize(("before", "after", "unit", "fits"), RAISES)
def test_a_raise_raises_unless_it_is_about_the_window(
    before: bytes, after: bytes | None, unit: bytes, fits: bool
) -> None:
    assert (explain_raise(before, after, unit) == "") is fits


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_a_state_only_moves_right(before: str, after: str) -> None:
    standings = Standings()
    said = standings.move(b'"a"', before.encode(), after.encode())
    assert (said == "") is (STATES.index(before) < STATES.index(after))
    assert len(standings) == (said == ""), "what is refused leaves no trace"


def test_a_state_never_ends_left_of_where_the_log_was() -> None:
    standings = Standings()
    assert standings.move(b'"a"', b"active", b"quarantined") == ""
    assert standings.move(b'"b"', b"active", b"warned") == "", "another agent"
    assert standings.move(b'"a"', b"active", b"warned") == (
        "a state moves to warned, but the agent was quarantined already"
    )
    assert standings.move(b'"a"', b"active", b"halted") == "", "moves in between may be lost"
    assert standings.move(b'"a"', b"active", b"quarantined") != ""


@pytest.mark.parametrize("left", STATES)
@pytest.mark.parametrize("before", STATES[:-1])
def test_a_halt_can_always_be_recorded(left: str, before: str) -> None:
    standings = Standings()
    if left != "active":
        assert standings.move(b'"a"', b"active", left.encode()) == ""
    assert standings.move(b'"a"', before.encode(), b"halted") == ""


def test_a_full_memory_keeps_whom_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "STANDINGS_MAX", 2)
    standings = Standings()
    for agent in (b'"a"', b'"b"', b'"c"'):
        assert standings.move(agent, b"active", b"quarantined") == ""
    assert len(standings) == 2
    assert standings.move(b'"a"', b"active", b"warned") != ""
    assert standings.move(b'"a"', b"active", b"halted") == "", "it still moves"
    assert standings.move(b'"a"', b"active", b"quarantined") != ""
    assert standings.move(b'"c"', b"active", b"warned") == "", "nobody remembers"
    assert standings.move(b'"c"', b"halted", b"warned") != "", "left is left for everybody"
