"""Every file under tests/cases/policies gives exactly the findings written beside it."""

from pathlib import Path

import pytest

from policies.compile import compile_policy
from policies.findings import CODES, render
from policies.model import Finding, PolicyRejected

CASES = Path(__file__).parents[1] / "cases" / "policies"
BROKEN = sorted((CASES / "broken").glob("*.yaml"))
SUSPICIOUS = sorted((CASES / "suspicious").glob("*.yaml"))
GOOD = sorted((CASES / "good").glob("*.yaml"))


def read_findings(path: Path) -> tuple[tuple[Finding, ...], str]:
    """The findings of a file and their text, as the command prints it."""
    try:
        compiled = compile_policy(path)
        findings, sources = compiled.findings, compiled.sources
    except PolicyRejected as rejected:
        findings, sources = rejected.findings, rejected.sources
    lines = {file: text.splitlines() for file, text in sources.items()}
    shown = [render(one, lines.get(one.file, ())) for one in findings]
    return findings, "".join(f"{text}\n" for text in shown)


@pytest.mark.parametrize("path", BROKEN + SUSPICIOUS, ids=lambda path: path.stem)
def test_a_file_gives_exactly_its_findings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    findings, shown = read_findings(Path(path.name))
    assert shown == path.with_suffix(".expected").read_text(encoding="utf-8")
    refused = any(one.severity == "error" for one in findings)
    assert refused is (path.parent.name == "broken")
    assert "Input should" not in shown
    assert "pydantic" not in shown


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_file_has_no_findings(path: Path) -> None:
    assert compile_policy(path).findings == ()


def test_there_are_at_least_sixty_broken_files_and_each_has_its_findings() -> None:
    assert len(BROKEN) >= 60
    for folder in ("broken", "suspicious"):
        yaml = {path.stem for path in (CASES / folder).glob("*.yaml")}
        assert yaml == {path.stem for path in (CASES / folder).glob("*.expected")}


def test_every_code_of_the_catalogue_is_shown_by_some_file() -> None:
    expected = "".join(path.read_text(encoding="utf-8") for path in CASES.rglob("*.expected"))
    assert [code for code in CODES if f"[{code}]" not in expected] == []


def test_messages_follow_the_house_style() -> None:
    """Lower case, no full stop; hints too."""
    for path in BROKEN + SUSPICIOUS:
        for one in read_findings(path)[0]:
            for text in filter(None, (one.message, one.hint)):
                first = text.removeprefix("`")[:1]
                assert text.startswith(("`", "RE2", "not YAML")) or not first.isupper(), text
                assert not text.endswith("."), text
