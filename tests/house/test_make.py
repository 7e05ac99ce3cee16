"""`make` on strange machines: which Python is found, and what is said where there is none."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

PYTHON = Path(sys._base_executable if hasattr(sys, "_base_executable") else sys.executable)
MINOR = f"3.{sys.version_info.minor}"
BROKEN_SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"
TOO_OLD = "#!/bin/sh\nexit 1\n"  # what the probe makes of any other version
TARGETS = ("help", "setup", "run", "demo", "test", "lint", "deep", "bench", "clean")


class Machine:
    """A machine as far as .ci/find-python sees it: a PATH, a home, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.bin.mkdir()
        self.home.mkdir()
        for tool in ("sh", "ls", "sort", "uname"):
            (self.bin / tool).symlink_to(shutil.which(tool) or "/bin/false")

    def put(self, path: Path, script: str | None = None) -> Path:
        """A program: `script`, or the real Python of this run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script if script is not None else f'#!/bin/sh\nexec "{PYTHON}" "$@"\n')
        path.chmod(0o755)
        return path

    def find(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", ROOT / ".ci" / "find-python"],
            env={"PATH": str(self.bin), "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_any_python_one_sentence_and_exit_2(machine: Machine) -> None:
    machine.put(machine.bin / "python3", TOO_OLD)
    run = machine.find()
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert "no Python 3.12 or 3.13" in run.stderr


def test_a_suitable_default_python_is_taken(machine: Machine) -> None:
    machine.put(machine.bin / "python3")
    run = machine.find()
    assert (run.returncode, run.stdout.strip()) == (0, str(PYTHON))


def test_a_shim_that_does_not_run_is_passed_over_for_the_versions_folder(machine: Machine) -> None:
    for name in ("python3.13", "python3.12"):
        machine.put(machine.bin / name, BROKEN_SHIM)
    machine.put(machine.bin / "python3", TOO_OLD)
    machine.put(machine.home / ".pyenv" / "versions" / f"{MINOR}.0" / "bin" / "python")
    assert machine.find().stdout.strip() == str(PYTHON)


def test_pyenv_root_is_looked_at(machine: Machine, tmp_path: Path) -> None:
    root = tmp_path / "a folder with spaces"
    machine.put(root / "versions" / f"{MINOR}.1" / "bin" / "python")
    assert machine.find(PYENV_ROOT=str(root)).stdout.strip() == str(PYTHON)


def test_the_managed_python_of_uv_comes_last(machine: Machine) -> None:
    managed = machine.put(machine.home / "managed" / "python")
    machine.put(machine.bin / "uv", f'#!/bin/sh\n[ "$2" = find ] && echo "{managed}"\n')
    assert machine.find().stdout.strip() == str(PYTHON)


def test_a_chosen_python_is_taken_or_refused_never_replaced(machine: Machine) -> None:
    machine.put(machine.bin / "python3")
    chosen = machine.put(machine.home / "mine", TOO_OLD)
    run = machine.find(PYTHON=str(chosen))
    assert (run.returncode, run.stdout) == (2, "")
    assert str(chosen) in run.stderr
    assert machine.find(PYTHON=str(machine.put(machine.home / "good"))).returncode == 0


def test_make_alone_lists_every_target() -> None:
    run = subprocess.run(
        ["make", "-C", str(ROOT)], capture_output=True, text=True, check=True, env=without_make()
    )
    listed = re.findall(r"^  make (\S+) ", run.stdout, re.MULTILINE)
    assert tuple(listed) == TARGETS


def test_the_shell_scripts_are_posix() -> None:
    for script in sorted((ROOT / ".ci").iterdir()):
        if script.name == "run":  # CI calls it with bash
            continue
        assert script.read_text().startswith("#!/bin/sh\n"), script.name
        assert os.access(script, os.X_OK), script.name
        subprocess.run(["sh", "-n", script], check=True)


def without_make() -> dict[str, str]:
    """The environment without what an outer `make test` put into it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
