"""What a report says; which log gets which exit code is in test_attacks.py."""

import subprocess
import sys
from pathlib import Path

from audit.verify import GRADE, NOT_PROVEN, verify
from tests.kit.chains import (
    CLOSED,
    HEARTBEAT,
    LOG,
    chain,
    decision,
    everyday,
    hash_of,
    loaded,
    opened,
    outcome,
    put,
    run,
)


def test_the_report_names_the_first_break(tmp_path: Path) -> None:
    lines = everyday()
    lines[4] = lines[4].replace(b"deny", b"dent")
    path = put(tmp_path / "log", lines)
    found = verify(tmp_path / "log")
    assert (found.line, found.offset) == (5, len(b"".join(lines[:4])))
    assert found.path == str(path)
    assert found.problem == "the record does not match its own hash"
    assert (found.records, found.grade) == (4, None)


def test_the_report_of_a_valid_log_says_what_it_is(tmp_path: Path) -> None:
    lines = everyday()
    found = verify(put(tmp_path / "log", lines))
    assert (found.exit_code, found.grade, found.mode) == (0, GRADE, "strict")
    assert (found.log, found.records, found.head) == (LOG, 7, hash_of(lines[-1]))
    assert (found.bytes, found.closed, found.runs) == (len(b"".join(lines)), True, 1)
    assert set(NOT_PROVEN) <= set(found.not_checked)


def test_outcomes_that_never_came_are_counted_not_judged(tmp_path: Path) -> None:
    events = [opened(), loaded(), decision(1), decision(2), opened("crash"), decision(3), CLOSED]
    found = verify(put(tmp_path / "log", chain(events)))
    assert (found.exit_code, found.outcomes_unknown, found.outcomes_open) == (0, 2, 1)


def test_only_the_chain_is_checked_when_fast(tmp_path: Path) -> None:
    put(tmp_path / "log", chain(run(outcome(1))))
    found = verify(tmp_path / "log", fast=True)
    assert found.exit_code == 0
    assert "policies and outcomes that events refer to" in found.not_checked


PROBLEMS: dict[str, tuple[list[bytes], str]] = {
    "another log": (chain([opened()]) + chain([opened()], log="f" * 32), "another log"),
    "an old number": (chain([opened()]) * 2, "the record has number 0, expected 1"),
    "an unknown field": (chain([opened(x=1)]), "`event` has an unknown field `x`"),
    "an unknown kind": (chain([opened(), {"kind": "nap"}]), "`nap` is not a kind of event"),
    "a repeated key": (
        chain([opened(), b'{"kind":"heartbeat","kind":"heartbeat"}']),
        "the event is not in canonical form",
    ),
    "no JSON": (chain([opened(), b"{x}"]), "the event is not JSON"),
    "a gap": ([*chain([opened(), HEARTBEAT])[:1], *chain([opened(), HEARTBEAT, CLOSED])[2:]], "2"),
}


def test_every_problem_is_said_in_words(tmp_path: Path) -> None:
    for number, (lines, words) in enumerate(PROBLEMS.values()):
        assert words in verify(put(tmp_path / str(number), lines)).problem


def test_a_reader_without_the_right_could_not_check(tmp_path: Path) -> None:
    path = put(tmp_path / "log", everyday())
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from audit.verify import verify\n"
        "os.setuid(65534); sys.exit(verify(Path(sys.argv[1])).exit_code)"
    )
    for parent in path.parents:
        if parent.owner() == "root" and "pytest" in parent.name:
            parent.chmod(0o755)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert done.returncode == 2


def test_memory_is_bounded_whatever_is_open(tmp_path: Path) -> None:
    """A run of 120,000 allowed requests that never end; VmHWM is this process's own."""
    events = [opened(), loaded(), *(decision(n) for n in range(120_000)), CLOSED]
    path = put(tmp_path / "log", chain(events, step_s=0))
    code = (
        "import sys, pathlib; from audit.verify import verify\n"
        "found = verify(pathlib.Path(sys.argv[1]))\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(found.exit_code, status.split('VmHWM:')[1].split()[0])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, check=True, capture_output=True
    )
    exit_code, kib = map(int, done.stdout.split())
    assert exit_code == 0
    assert kib < 62_500  # 64 MB
