"""The catalogue of findings, its page, and how a finding is shown."""

from pathlib import Path

import pytest

from policies.findings import CODES, arrange, document, find, render

DOCS = Path(__file__).parents[2] / "docs"
ISSUED = {
    *(f"AP00{digit}" for digit in "12345678"),
    "AP010",
    *(f"AP10{digit}" for digit in "1234578"),
    *("AP109", "AP110", "AP111", "AP204", "AP207", "AP301"),
    *("AP603", "AP604", "AP605", "AP609", "AP610"),
}


def test_the_catalogue_holds_the_codes_of_this_issue_and_no_others() -> None:
    assert set(CODES) == ISSUED


def test_the_page_is_the_catalogue() -> None:
    assert (DOCS / "findings.md").read_text(encoding="utf-8") == document()


@pytest.mark.parametrize("code", CODES)
def test_an_entry_is_complete(code: str) -> None:
    entry = CODES[code]
    assert entry.title
    assert entry.example
    assert entry.remedy
    assert entry.title[0].islower()
    assert not entry.title.endswith(".")


def test_findings_are_sorted_by_place_and_two_at_one_place_both_stay() -> None:
    late = find("AP006", "a.yaml", (10, 1), "x")
    early = find("AP007", "a.yaml", (9, 30), "b")
    twin = find("AP007", "a.yaml", (9, 30), "a")
    other = find("AP007", "B.yaml", (99, 1), "a")
    assert arrange([late, early, twin, early, other]) == (other, twin, early, late)


def test_syntax_is_shown_with_the_line_and_a_caret() -> None:
    shown = render(find("AP001", "p.yaml", (2, 4), "odd", "fix it"), ["a: 1", "b: @"])
    assert shown == "p.yaml:2:4: error[AP001]: odd\n  | b: @\n  |    ^\n  hint: fix it"


def test_other_findings_are_shown_without_the_line() -> None:
    shown = render(find("AP006", "p.yaml", (1, 1), "odd"), ["a: 1"])
    assert shown == "p.yaml:1:1: error[AP006]: odd"


def test_a_long_line_is_cut_around_the_caret() -> None:
    _, excerpt, caret = render(
        find("AP001", "p", (1, 500), "odd"), ["x" * 499 + "!" + "y" * 500]
    ).split("\n")
    assert len(excerpt) <= 104
    assert excerpt[caret.index("^")] == "!"


def test_what_would_move_the_cursor_or_hide_is_spelt_out() -> None:
    shown = render(find("AP006", "p", (1, 1), "`\x1b[2J\u202e`"), ["\x1b[2J"])
    assert shown == "p:1:1: error[AP006]: `\\u{001B}[2J\\u{202E}`"
