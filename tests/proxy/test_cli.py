"""The root command: the table, what `--help` costs, how it complains; the process as a whole."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from proxy.cli import COMMANDS, root
from tests.kit.command import complaint, invoke
from tests.kit.proxy import run_command

HEAVY = ("mitmproxy", "fastapi", "uvicorn", "pydantic", "cryptography", "orjson", "structlog")
NO_VARIABLE = frozenset({"help", "version"})


def walk(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from walk(inner, *words, name)


EVERY = dict(walk(root))


@pytest.mark.parametrize("words", EVERY, ids=lambda words: " ".join(words) or "tollkeeper")
def test_help_is_data_and_has_an_example(words: tuple[str, ...]) -> None:
    result = invoke(*words, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Example" in result.stdout
    assert result.stdout.startswith(f"Usage: tollkeeper {' '.join(words)}".rstrip())


@pytest.mark.parametrize("words", EVERY, ids=lambda words: " ".join(words) or "tollkeeper")
def test_every_option_has_its_variable_spelled_out(words: tuple[str, ...]) -> None:
    for option in EVERY[words].params:
        if isinstance(option, click.Option) and option.name not in NO_VARIABLE:
            long = max(option.opts, key=len).removeprefix("--")
            assert option.envvar == "TOLLKEEPER_" + long.upper().replace("-", "_")


def test_commands_of_later_issues_do_not_appear() -> None:
    assert set(COMMANDS) == {
        *("init", "serve", "agent", "budget", "halt", "policy", "audit", "doctor")
    }
    later = {"--mode", "--workers"}
    options = {name for option in EVERY[("serve",)].params for name in option.opts}
    assert options & later == set()


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\nfrom proxy.cli import main\n"
        "try:\n main()\nexcept SystemExit as end:\n"
        f" sys.exit(','.join(set(sys.modules) & {set(HEAVY)}) or end.code)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "Commands:" in run.stdout


COMPLAINTS = {
    "an unknown command": (("serv",), "tollkeeper: no such command"),
    "an unknown flag": (("serve", "--nope"), "tollkeeper serve: no such option"),
    "a missing argument": (("agent", "add"), "tollkeeper agent add: missing argument 'NAME'"),
    "an argument too many": (("agent", "list", "x"), "tollkeeper agent list: got unexpected extra"),
    "a flag without its value": (("serve", "--listen"), "tollkeeper serve: option '--listen' req"),
    "a value for a switch": (("serve", "--check=yes"), "tollkeeper serve: option '--check' does"),
}


@pytest.mark.parametrize(("words", "begin"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_a_complaint_is_one_line_with_a_way_on(words: tuple[str, ...], begin: str) -> None:
    text = complaint(invoke(*words))
    assert text.startswith(begin)
    assert "\n" not in text
    assert "; see `tollkeeper " in text
    assert text.endswith("--help`")


@pytest.mark.parametrize("words", [(), ("agent",), ("audit",), ("policy",)])
def test_a_group_alone_shows_its_help_and_fails(words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert result.stdout == ""


def test_the_version_is_the_one_that_logs_name() -> None:
    assert invoke("--version").stdout.startswith("tollkeeper ")


def test_the_process_works_without_asserts(tmp_path: Path) -> None:
    """`python -O` removes `assert`: nothing may hang on it."""
    folder = tmp_path / "house"
    run = subprocess.run(
        [sys.executable, "-O", "-m", "proxy", "init", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("export HTTP_PROXY=http://127.0.0.1:8080\n")
    assert "policies.yaml: a policy to start from" in run.stderr


def test_a_reader_that_goes_away_leaves_no_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "proxy", "policy", "schema"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        if run.stdout is None or run.stderr is None:
            raise AssertionError("pipes were asked for")
        run.stdout.close()
        assert b"Traceback" not in run.stderr.read()


def test_no_colour_where_there_is_no_terminal(tmp_path: Path) -> None:
    run = run_command("doctor", "--state", str(tmp_path / "none"), check=False)
    assert "\x1b" not in run.stdout + run.stderr
