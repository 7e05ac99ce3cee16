"""The commands as people and scripts use them, and the room alone with click and orjson only."""

import json
import os
import pty
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import click
import orjson
import pytest
from click.testing import CliRunner, Result

import audit
from audit.cli import audit as commands
from tests.kit.chains import (
    at,
    chain,
    decision,
    everyday,
    moved,
    outcome,
    put,
    reserved,
    run,
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "log", everyday())
    return tmp_path / "log"


def test_init_prints_the_log_id_and_never_overwrites(tmp_path: Path) -> None:
    first = call("init", tmp_path / "log")
    assert first.exit_code == 0
    assert len(first.stdout.strip()) == 32
    assert call("verify", tmp_path / "log").exit_code == 0
    again = call("init", tmp_path / "log")
    assert again.exit_code == 1
    assert "is not empty: nothing was changed" in again.stderr


def test_init_where_nothing_can_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed = call("init", tmp_path / "file" / "log")
    assert failed.exit_code == 2
    assert "not a directory" in failed.stderr


def test_verify_says_the_grade_and_what_it_does_not_detect(folder: Path) -> None:
    said = call("verify", folder)
    assert said.exit_code == 0
    assert "grade    L0 (strict)" in said.stdout
    assert "L0 does not detect a complete rewrite" in said.stdout
    assert said.stderr == ""


def test_verify_names_the_place_on_stderr(folder: Path) -> None:
    lines = everyday()
    lines[3] = lines[3].replace(b"200", b"201")
    path = put(folder, lines)
    said = call("verify", folder)
    assert said.exit_code == 1
    place = len(b"".join(lines[:3]))
    assert said.stderr == (f"{path}:4: the record does not match its own hash (byte {place})\n")
    assert said.stdout.startswith("TAMPERED: ")


def test_verify_as_json_is_one_object(folder: Path) -> None:
    said = json.loads(call("verify", "--json", "--fast", folder).stdout)
    assert (said["exit_code"], said["verdict"], said["grade"]) == (0, "valid", "L0")
    assert (said["records"], said["mode"]) == (7, "fast")
    assert "the form of events" in said["not_checked"]


def test_options_may_come_from_the_environment(folder: Path) -> None:
    put(folder, everyday()[:-1])
    runner = CliRunner(env={"TOLLKEEPER_ALLOW_OPEN": "1", "TOLLKEEPER_JSON": "1"})
    said = runner.invoke(commands, ["verify", str(folder)])
    assert (said.exit_code, json.loads(said.stdout)["verdict"]) == (0, "valid")


def test_show_by_number_and_by_decision(folder: Path) -> None:
    shown = json.loads(call("show", folder, 2).stdout)
    assert (shown["seq"], shown["kind"], shown["id"]) == (2, "decision", f"{1:032x}")
    both = call("show", "--json", folder, f"{1:032x}").stdout.splitlines()
    assert [json.loads(line)["event"]["kind"] for line in both] == ["decision", "outcome"]
    missing = call("show", folder, 99)
    assert (missing.exit_code, missing.stderr) == (1, f"`{folder}`: no record `99`\n")


def test_what_refers_to_a_decision_is_shown_and_found_with_it(tmp_path: Path) -> None:
    put(tmp_path / "log", chain(run(
        decision(1), decision(2), reserved(1), outcome(1),
        moved("active", "halted", ref=f"{1:032x}", cause="budget daily/local requests 100%"),
    )))  # fmt: skip
    kinds = ["decision", "reserve", "outcome", "state"]
    shown = call("show", "--json", tmp_path / "log", f"{1:032x}").stdout.splitlines()
    assert [json.loads(line)["event"]["kind"] for line in shown] == kinds
    rows = call("find", "--decision", f"{1:032x}", tmp_path / "log").stdout.splitlines()
    assert [row.split(maxsplit=2)[2] for row in rows[1:]] == [
        f"reserve daily/local bytes_in=4 ref={1:032x}",
        f"outcome bytes_in=512 bytes_out=128 ms=12 ref={1:032x} status=200",
        f"state local active -> halted: budget daily/local requests 100% ref={1:032x}",
    ]
    rows = call("find", "--agent", "local", "--kind", "state", tmp_path / "log").stdout.splitlines()
    assert len(rows) == 1
    assert call("tail", "-n", 2, tmp_path / "log").stdout.splitlines()[0] == rows[0]


def test_tail_shows_the_last_records(folder: Path) -> None:
    rows = call("tail", "-n", 2, folder).stdout.splitlines()
    assert [row.split()[-1] for row in rows] == ["heartbeat", "log.close"]


def test_find_filters_and_limits(folder: Path) -> None:
    rows = call("find", "--verdict", "deny", folder).stdout.splitlines()
    assert len(rows) == 1
    assert "deny denied-by-rule local GET https://api.github.com:443/repos/a/b/issues" in rows[0]
    assert len(call("find", "--limit", 3, folder).stdout.splitlines()) == 3
    assert len(call("find", "--since", at(5), folder).stdout.splitlines()) == 2
    assert len(call("find", "--until", "2026-01-31", folder).stdout.splitlines()) == 0
    assert call("find", "--since", "yesterday", folder).exit_code == 2


def test_export_to_stdout_and_to_a_file(folder: Path, tmp_path: Path) -> None:
    assert call("export", folder).stdout_bytes == b"".join(everyday())
    assert call("export", "--format", "csv", "-o", tmp_path / "out", folder).exit_code == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 8


READING = [("show", "0"), ("tail",), ("find",), ("export",)]


@pytest.mark.parametrize(("command", "more"), [(c[0], c[1:]) for c in READING])
def test_a_log_that_cannot_be_read_is_exit_2_and_a_broken_line_is_exit_1(
    command: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    absent = call(command, tmp_path / "absent", *more)
    assert absent.exit_code == 2
    assert "no such file" in absent.stderr
    put(tmp_path / "log", b'{"seq":0,"ts":"\n')
    broken = call(command, tmp_path / "log", *more)
    assert broken.exit_code == 1
    assert "not a valid record" in broken.stderr


def test_what_an_operator_wrote_cannot_steer_the_terminal(tmp_path: Path) -> None:
    detail = "\x1b[2J\u202eevil\u009b31m"
    put(tmp_path / "log", chain(run({"kind": "alert", "cause": "a", "detail": detail})))
    for command in (("tail",), ("find",), ("show", "2")):
        said = call(command[0], tmp_path / "log", *command[1:]).stdout
        assert all(c.isprintable() or c == "\n" for c in said)


def test_every_command_has_an_example_in_its_help() -> None:
    for name in ("init", "verify", "show", "tail", "find", "export"):
        assert f"audit {name} " in call(name, "--help").stdout


def test_a_progress_bar_appears_on_a_terminal_only(folder: Path) -> None:
    assert "verifying" not in call("verify", folder).output
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "audit", "verify", str(folder)],
        cwd=Path(audit.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    assert "verifying" in os.read(ours, 10_000).decode()
    assert b"verifying" not in done.stdout
    os.close(ours)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the audit room, click and orjson, and nothing else."""
    home = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python3*/site-packages"))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(audit.__file__).parent, site / "audit", ignore=ignored)
    for module in (click, orjson):
        root = Path(str(module.__file__)).parent
        shutil.copytree(root, site / root.name, ignore=ignored)
    assert distribution("click").version
    return home / "bin" / "python"


def test_the_room_verifies_alone_in_isolated_mode(
    alone: Path, folder: Path, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    (trap / "audit").mkdir(parents=True)
    (trap / "audit" / "__main__.py").write_text("raise SystemExit(99)")

    def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(alone), "-I", "-m", "audit", *arguments],
            cwd=trap,
            capture_output=True,
            text=True,
            check=False,
        )

    for module in ("mitmproxy", "pydantic", "proxy", "policies"):
        code = f"import {module}"
        assert subprocess.run([str(alone), "-Ic", code], check=False, stderr=-3).returncode == 1
    assert verify("verify", str(folder)).returncode == 0
    put(folder, everyday()[:-1])
    assert verify("verify", str(folder)).returncode == 3
    put(folder, everyday()[1:])
    assert verify("verify", str(folder)).returncode == 1
    assert verify("verify", str(folder / "absent")).returncode == 2
    assert verify("init", str(tmp_path / "new")).returncode == 0
    assert "policy.load" in verify("find", "--kind", "policy.load", str(put(
        tmp_path / "other", chain(run(decision(1)))
    ))).stdout  # fmt: skip


def test_the_room_runs_without_asserts(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-m", "audit", "verify", str(folder)],
        cwd=Path(audit.__file__).parents[1],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0


def test_a_reader_that_has_seen_enough_is_no_complaint(folder: Path) -> None:
    """`audit export LOG | head`: the pipe is closed before everything was written."""
    for command in ("export", "tail", "find"):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "audit", command, str(folder)],
            cwd=Path(audit.__file__).parents[1],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b""), command
