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
    draft = read_draft(load_text("version: 1\nagents:\nrules:\nrates:\ndefaults:\ninclude:\n"))
    assert draft.findings == []
    assert draft.rules == []


def test_a_file_that_is_not_yaml_is_not_whole() -> None:
    assert not read_draft(load_text("rules: [\n")).whole
