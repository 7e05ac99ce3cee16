"""Export formats: the common contract, and what is special about each."""

import csv
import io

import pytest

from audit.export import COLUMNS, FORMATS, Csv, JsonLines, export
from audit.reader import Line
from audit.record import parse
from tests.kit.chains import (
    Event,
    amounts,
    chain,
    decision,
    everyday,
    moved,
    outcome,
    raised,
    reserved,
    snapshot,
)
from tests.kit.export_contract import ExportContract


class TestJsonLines(ExportContract):
    form = JsonLines()

    def test_the_bytes_are_those_of_the_log(self) -> None:
        assert b"".join(export(self.lines(), self.form)) == b"".join(everyday())


class TestCsv(ExportContract):
    form = Csv()

    def test_decisions_and_outcomes_share_their_columns(self) -> None:
        text = b"".join(export(self.lines(), self.form)).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert tuple(rows[0]) == COLUMNS
        decided, ended = rows[2], rows[3]
        assert decided["decision"] == ended["decision"] == f"{1:032x}"
        assert (decided["agent"], decided["host"], decided["port"]) == (
            "local",
            "api.github.com",
            "443",
        )
        assert (ended["status"], ended["bytes_out"]) == ("200", "128")


def test_every_format_has_its_contract() -> None:
    tested = {type(case.form) for case in ExportContract.__subclasses__()}
    assert {type(form) for form in FORMATS} <= tested
    assert len({form.name for form in FORMATS}) == len(FORMATS)


FORMULAS = ["=1+1", "+1", "-1", "@sum", "|calc", "%0", "=cmd|' /C calc'!A0"]


def cells(event: Event) -> dict[str, str]:
    raw = chain([event])[0]
    row = Csv().row(Line(parse(raw[:-1]), raw)).decode()
    return dict(zip(COLUMNS, next(csv.reader([row])), strict=True))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_is_never_a_formula(text: str) -> None:
    found = cells(decision(1, target={"path": text}, client=text))
    assert found["path"] == found["client"] == "'" + text


HELD = amounts(("daily/a", "bytes_out", 9), ("daily/a", "requests", 1), ("life/a", "requests", 1))
TOLD = "daily/a bytes_out=9 requests=1, life/a requests=1"
BUDGETS: dict[str, tuple[Event, dict[str, str]]] = {
    "a decision": (decision(1, reserve=HELD), {"reserve": TOLD, "settle": ""}),
    "an outcome": (outcome(1, settle=HELD), {"settle": TOLD, "reserve": ""}),
    "a slice": (
        reserved(7, time="2026-01-31T00:00:00.000000Z"),
        {
            "decision": f"{7:032x}",
            "reserve": "daily/local bytes_in=4",
            "time": "2026-01-31T00:00:00.000000Z",
        },
    ),
    "a state": (
        moved("active", "halted", by="operator", session="s1", ref=f"{7:032x}"),
        {
            "agent": "local",
            "session": "s1",
            "from": "active",
            "to": "halted",
            "by": "operator",
            "detail": "enough",
            "decision": f"{7:032x}",
        },
    ),
    "a raise": (
        raised(1, 2),
        {"account": "daily/local", "unit": "requests", "from": "1", "to": "2", "by": "operator"},
    ),
    "a raise without limit": (raised(1, None), {"from": "1", "to": ""}),
    "a snapshot": (
        snapshot(),
        {
            "account": "daily/local@2026-01-31T00:00:00Z",
            "detail": "opened",
            "spent": "requests=7",
            "limits": "requests=100 bytes_out=4096 (file: none)",
            "window_ms": "86400000",
        },
    ),
}


@pytest.mark.parametrize(("event", "expected"), BUDGETS.values(), ids=BUDGETS)
def test_what_concerns_budgets_has_its_cells(event: Event, expected: dict[str, str]) -> None:
    found = cells(event)
    assert {name: found[name] for name in expected} == expected
    assert found["kind"] == event["kind"]


def test_a_cell_may_hold_anything_csv_can_quote() -> None:
    assert cells(outcome(1, error='a,"b"'))["error"] == 'a,"b"'
