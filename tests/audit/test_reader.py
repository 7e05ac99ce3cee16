"""Reading records back: all, the last, those that match, those that come."""

from pathlib import Path

import pytest

from audit.reader import Filter, LineBroken, find_segment, follow, read, read_tail
from audit.segment import LogUnreadable
from tests.kit.chains import (
    at,
    chain,
    decision,
    everyday,
    moved,
    opened,
    outcome,
    put,
    reserved,
    run,
)

FILTERS: dict[str, tuple[Filter, list[int]]] = {
    "nothing asked": (Filter(), [0, 1, 2, 3, 4, 5, 6]),
    "a number": (Filter(seq=4), [4]),
    "a kind": (Filter(kinds=frozenset({"heartbeat"})), [5]),
    "two kinds": (Filter(kinds=frozenset({"heartbeat", "outcome"})), [3, 5]),
    "an agent": (Filter(agent="local"), [2, 4]),
    "another agent": (Filter(agent="loca"), []),
    "a verdict": (Filter(verdict="deny"), [4]),
    "a reason": (Filter(reason="denied-by-rule"), [4]),
    "a rule": (Filter(rule="read-github"), [2, 4]),
    "a host": (Filter(host="api.github.com"), [2, 4]),
    "a decision and its outcome": (Filter(decision=f"{1:032x}"), [2, 3]),
    "since, inclusive": (Filter(since=at(5)), [5, 6]),
    "until, exclusive": (Filter(until=at(2)), [0, 1]),
    "all must hold": (Filter(agent="local", verdict="allow"), [2]),
}


@pytest.mark.parametrize(("wanted", "found"), FILTERS.values(), ids=FILTERS)
def test_a_filter_admits(wanted: Filter, found: list[int], tmp_path: Path) -> None:
    put(tmp_path / "log", everyday())
    assert [line.record.seq for line in read(tmp_path / "log", wanted)] == found


SPENDING: dict[str, tuple[Filter, list[int]]] = {
    "all that refers to a decision": (Filter(decision=f"{1:032x}"), [2, 3, 5, 6]),
    "a decision without more": (Filter(decision=f"{2:032x}"), [4]),
    "an agent, and what became of it": (Filter(agent="local"), [2, 4, 6]),
    "another agent's state": (Filter(agent="other"), [7]),
    "states": (Filter(kinds=frozenset({"state"})), [6, 7]),
    "a state that no decision led to": (
        Filter(kinds=frozenset({"state"}), decision=f"{3:032x}"),
        [],
    ),
}


@pytest.mark.parametrize(("wanted", "found"), SPENDING.values(), ids=SPENDING)
def test_a_filter_admits_what_refers_to_a_decision(
    wanted: Filter, found: list[int], tmp_path: Path
) -> None:
    put(tmp_path / "log", chain(run(
        decision(1), reserved(1), decision(2), outcome(1),
        moved("active", "warned", ref=f"{1:032x}"), moved("active", "halted", agent="other"),
    )))  # fmt: skip
    assert [line.record.seq for line in read(tmp_path / "log", wanted)] == found


def test_a_torn_tail_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "log", b"".join(everyday()) + b'{"chain":')
    assert len(list(read(tmp_path / "log"))) == 7
    lines, _ = read_tail(tmp_path / "log", 1)
    assert lines[0].record.seq == 6


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    lines = everyday()
    lines[3] = lines[3].replace(b"200", b"201")
    path = put(tmp_path / "log", lines)
    with pytest.raises(LineBroken, match=f"{path}:4: "):
        list(read(tmp_path / "log"))


@pytest.mark.parametrize("count", [0, 1, 3, 7, 100])
def test_the_tail_is_the_last_records_and_where_they_end(count: int, tmp_path: Path) -> None:
    path = put(tmp_path / "log", everyday())
    lines, offset = read_tail(tmp_path / "log", count)
    assert [line.record.seq for line in lines] == list(range(7))[max(0, 7 - count) :][:count]
    assert offset == path.stat().st_size


def test_the_tail_of_a_large_log_is_found_from_its_end(tmp_path: Path) -> None:
    events = [decision(n, client="x" * 3000) for n in range(500)]
    put(tmp_path / "log", chain(run(*events)))
    lines, _ = read_tail(tmp_path / "log", 200)
    assert [line.record.seq for line in lines] == list(range(303, 503))


def test_following_gives_what_is_appended_later(tmp_path: Path) -> None:
    lines = everyday()
    path = put(tmp_path / "log", lines[:3])
    _, offset = read_tail(path, 0)
    rounds = iter(range(4))

    def is_over() -> bool:
        number = next(rounds, None)
        if number == 1:
            with path.open("ab") as file:
                file.write(b"".join(lines[3:])[:-5])
        elif number == 2:
            with path.open("ab") as file:
                file.write(lines[-1][-5:])
        return number is None

    assert [line.record.seq for line in follow(path, offset, is_over)] == [3, 4, 5, 6]


def test_following_a_log_that_was_replaced_says_so(tmp_path: Path) -> None:
    path = put(tmp_path / "log", everyday())

    def replace() -> bool:
        if not (tmp_path / "away").exists():
            path.rename(tmp_path / "away")
            path.write_bytes(b"")
        return False

    with pytest.raises(LogUnreadable, match="cut or replaced"):
        list(follow(path, path.stat().st_size, replace))


def test_a_folder_must_hold_one_log(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable, match="holds 0 logs"):
        find_segment(tmp_path)
    put(tmp_path, chain([opened()]))
    put(tmp_path, chain([outcome(1)]), log="f" * 32)
    with pytest.raises(LogUnreadable, match="holds 2 logs"):
        find_segment(tmp_path)


def test_lines_that_are_not_needed_are_not_looked_at(tmp_path: Path) -> None:
    lines = everyday()
    broken = [line.replace(b'"hash":"', b'"hash":"0') for line in lines]
    put(tmp_path / "log", [*broken[:3], lines[3], *broken[4:]])
    found = list(read(tmp_path / "log", needs=lambda line: line == lines[3]))
    assert [line.raw for line in found] == [lines[3]]
