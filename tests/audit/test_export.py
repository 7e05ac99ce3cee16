"""Export formats: the common contract, and what is special about each."""

import csv
import io

import pytest

from audit.export import COLUMNS, FORMATS, Csv, JsonLines, export
from audit.reader import Line
from audit.record import parse
from tests.kit.chains import Event, chain, decision, everyday, outcome
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


def test_a_cell_may_hold_anything_csv_can_quote() -> None:
    assert cells(outcome(1, error='a,"b"'))["error"] == 'a,"b"'
