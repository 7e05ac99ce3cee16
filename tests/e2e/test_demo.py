"""The demo, as `make demo` runs it: exit 0 when all of it happened, and only then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import demo

ROOT = Path(__file__).parents[2]
TOLD = (
    "200  allowed by `read-items`",
    "403  no rule allows it",
    "403  its name is allowed, but it resolves to 10.0.0.5",
    "200  the second request",
    "403  the third does not fit",
    "local  active  life/local  requests  2      0     0     2",
    "raised life/local requests 2 -> 5",
    "200  now it does",
    "halted local",
    "403 Forbidden: halted",
    "halted  life/local  requests  3",
    "valid: state/log/",
    "TAMPERED: state/log/",
    ".jsonl:9: the record does not match its own hash",
    "All of it happened as told.",
)


def test_the_demo_tells_and_does_all_of_it() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        # settings of the caller are none of the demo's
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOLLKEEPER_STATE": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    at = 0
    for line in TOLD:
        at = run.stdout.find(line, at)
        assert at >= 0, f"{line}\n{run.stdout}"


def test_the_demo_fails_where_something_happens_that_it_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(demo.ENVIRONMENT, "PYTHONPATH", str(ROOT))
    monkeypatch.setattr(demo, "POLICY", demo.POLICY.replace("[GET, HEAD]", "[GET, DELETE]"))
    assert demo.main() == 1
    told = capsys.readouterr().out
    assert "not as it should be: the status of DELETE" in told
    assert "happened as told" not in told


def test_the_make_target_runs_the_demo() -> None:
    assert ".venv/bin/python -m examples.demo" in (ROOT / "Makefile").read_text(encoding="utf-8")
