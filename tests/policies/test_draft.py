"""The parts of all files, each read on its own."""

from policies.draft import read_draft
from policies.sources import load_text


def test_one_broken_rule_hides_nothing_of_the_others() -> None:
    text = "version: 1\nrules:\n- { id: a, verdit: x }\n- { id: b, verdict: deny }\n"
    text += "- 5\n- { id: c, verdict: dny }\n"
    draft = read_draft(load_text(text))
    assert [part.id for part in draft.rules] == ["a", "b", "", "c"]
    assert [part.section is not None for part in draft.rules] == [False, True, False, False]
    assert [one.line for one in draft.findings] == [3, 3, 5, 6]


def test_a_part_knows_the_place_of_its_name() -> None:
    draft = read_draft(
        load_text("version: 1\nagents:\n  coder: {}\nrules:\n  - verdict: deny\n    id: r\n")
    )
    assert draft.agents[0].place == (3, 3)
    assert draft.rules[0].place == (6, 9)
    assert draft.whole


def test_a_bare_section_is_an_empty_one() -> None:
    draft = read_draft(
        load_text(
            "version: 1\nagents:\nrules:\nrates:\ndefaults:\ninclude:\nbudgets:\nquarantine:\n"
        )
    )
    assert draft.findings == []
    assert draft.rules == []


def test_a_file_that_is_not_yaml_is_not_whole() -> None:
    assert not read_draft(load_text("rules: [\n")).whole


def test_a_budget_is_read_on_its_own_and_its_empty_limits_have_a_code_of_their_own() -> None:
    text = "version: 1\nbudgets:\n  a: { each: agent, limits: { requests: , risk: 1 }, window: }\n"
    text += "  b: { each: agent, limits: { requests: 1 } }\n"
    draft = read_draft(load_text(text))
    assert [(part.id, part.section is not None) for part in draft.budgets] == [
        ("a", False),
        ("b", True),
    ]
    assert sorted((one.code, one.message) for one in draft.findings) == [
        ("AP007", "`window` has no value"),
        ("AP609", "`requests` has no value"),
    ]


def test_a_part_of_a_file_cannot_widen_quarantine() -> None:
    draft = read_draft(load_text("version: 1\nquarantine: { keep_rules: a }\n"))
    assert draft.header is not None
    assert draft.header.quarantine is not None
    assert draft.header.quarantine.keep_rules == ("a",)
    assert draft.main_file == "policies.yaml"
