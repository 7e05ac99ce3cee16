"""`make lint`, as tests: one `make test` tells everything that is wrong, not the first thing."""

import subprocess
import sys

import pytest

from tests.house.tree import ROOT

CHECKS = {
    "ruff finds nothing": ["ruff", "check", "--quiet", "--output-format=concise", "."],
    "ruff would format nothing": ["ruff", "format", "--check", "."],
    "mypy finds nothing": ["mypy"],
}


@pytest.mark.timeout(900)  # mypy without its cache, on a busy machine
@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS)
def test_the_linters_agree(command: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"\n{run.stdout}{run.stderr}"
