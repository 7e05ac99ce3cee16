"""`policy check` and `policy schema` as a user meets them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from policies.cli import policy
from policies.schema import json_schema

CASES = Path(__file__).parents[1] / "cases" / "policies"
BROKEN = str(CASES / "broken" / "misspelt-match-key.yaml")
WARNS = str(CASES / "suspicious" / "wide-range.yaml")
GOOD = str(CASES / "good" / "five-lines.yaml")


def run(*args: str, **env: str) -> Result:
    return CliRunner().invoke(policy, args, env=env)


EXITS = {
    "clean": (("check", GOOD), 0),
    "error": (("check", BROKEN), 1),
    "warning": (("check", WARNS), 0),
    "warning that counts": (("check", "--fail-on", "warning", WARNS), 1),
    "info counts warnings too": (("check", "--fail-on", "info", WARNS), 1),
    "missing": (("check", "no-such-file.yaml"), 2),
    "a folder": (("check", str(CASES)), 2),
    "an unknown option": (("check", "--nope"), 2),
}


@pytest.mark.parametrize(("args", "code"), EXITS.values(), ids=EXITS)
def test_the_exit_code_says_it(args: tuple[str, ...], code: int) -> None:
    assert run(*args).exit_code == code


def test_findings_are_data_and_the_summary_is_talk() -> None:
    result = run("check", BROKEN)
    assert result.stdout == (
        f"{BROKEN}:9:7: error[AP006]: unknown key `metods` in rule `r`\n"
        "  hint: did you mean `methods`?\n"
    )
    assert result.stderr == f"{BROKEN}: 1 error\n"
    result = run("check", GOOD)
    assert (result.stdout, result.stderr) == ("", f"{GOOD}: clean\n")


def test_what_cannot_be_read_says_why() -> None:
    result = run("check", "no-such-file.yaml")
    assert result.stdout == ""
    assert (
        result.stderr == "tollkeeper: cannot read `no-such-file.yaml`: no such file or directory\n"
    )


def test_json_is_one_object_with_the_digest_or_null() -> None:
    good = json.loads(run("check", "--json", GOOD).stdout)
    assert len(good["digest"]) == 64
    assert good["findings"] == []
    bad = json.loads(run("check", "--json", BROKEN).stdout)
    assert bad["digest"] is None
    assert [(one["code"], one["line"], one["rule"]) for one in bad["findings"]] == [
        ("AP006", 9, "r")
    ]


def test_colour_is_only_for_terminals() -> None:
    assert "\x1b[" not in run("check", BROKEN).stdout
    coloured = CliRunner().invoke(policy, ["check", BROKEN], color=True).stdout
    assert "\x1b[31m" in coloured


def test_every_option_is_an_environment_variable_too() -> None:
    assert run("check", WARNS, TOLLKEEPER_FAIL_ON="warning").exit_code == 1
    assert run("check", GOOD, TOLLKEEPER_JSON="1").stdout.startswith("{")
    assert run("check", TOLLKEEPER_POLICIES=BROKEN).exit_code == 1


@pytest.mark.parametrize("command", ["check", "schema"])
def test_help_has_an_example(command: str) -> None:
    text = run(command, "--help").output
    assert f"tollkeeper policy {command}" in text
    assert "Example:" in text


def test_the_schema_is_the_schema() -> None:
    assert json.loads(run("schema").stdout) == json_schema()


def test_thousands_of_syntax_findings_are_printed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nname:\n" + "".join(f"- no # {n}\n" for n in range(5000)))
    result = run("check", str(file))
    assert result.exit_code == 1
    assert result.stdout.count("error[AP004]") == 5000
