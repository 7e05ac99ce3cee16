""".ci/setup: what it installs and when it starts over. Python here only takes notes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.tree import ROOT

FAKE = """#!/bin/sh
case "$*" in
    *ensurepip*) echo "$0" ;;
    "-I -c "*) echo "{home}" ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv >>calls ;;
    *" --require-hashes --only-binary :all: -r "*) echo "lock ${{*##*-r }}" >>calls ;;
    *"pip "*-e*) echo ourselves >>calls ;;
esac
"""
RUNTIME = ["venv", "lock requirements.lock", "ourselves"]
DEVELOPMENT = "lock requirements-dev.lock"


class Checkout:
    """A checkout in which nothing is really installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        shutil.copytree(ROOT / ".ci", self.folder / ".ci")
        for name in ("requirements.lock", "requirements-dev.lock", "pyproject.toml"):
            (self.folder / name).write_text(f"# {name}\n")
        self.python = self.interpreter("one")

    def interpreter(self, home: str) -> Path:
        path = self.folder.parent / f"python-{home}"
        path.write_text(FAKE.format(home=home))
        path.chmod(0o755)
        return path

    def setup(self, *arguments: str) -> list[str]:
        """What the Python was asked to do."""
        calls = self.folder / "calls"
        calls.write_text("")
        subprocess.run(
            ["/bin/sh", self.folder / ".ci" / "setup", *arguments],
            env={**os.environ, "PYTHON": str(self.python)},
            check=True,
            capture_output=True,
        )
        return calls.read_text().splitlines()

    def change(self, name: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write("# changed\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_time_installs_the_lock_with_hashes_and_then_ourselves(
    checkout: Checkout,
) -> None:
    assert checkout.setup() == RUNTIME


def test_the_second_time_does_nothing(checkout: Checkout) -> None:
    checkout.setup()
    assert checkout.setup() == []


def test_the_tests_need_more_and_running_keeps_it(checkout: Checkout) -> None:
    checkout.setup()
    assert checkout.setup("dev") == [DEVELOPMENT]
    assert checkout.setup("dev") == checkout.setup() == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_changed_lock_starts_from_nothing(checkout: Checkout, name: str) -> None:
    checkout.setup("dev")
    checkout.change(name)
    assert checkout.setup("dev") == [*RUNTIME, DEVELOPMENT]


def test_a_changed_project_file_installs_ourselves_again(checkout: Checkout) -> None:
    checkout.setup("dev")
    checkout.change("pyproject.toml")
    assert checkout.setup("dev") == ["ourselves"]


def test_another_interpreter_starts_from_nothing(checkout: Checkout) -> None:
    checkout.setup()
    checkout.python = checkout.interpreter("two")
    assert checkout.setup() == RUNTIME


def test_a_moved_checkout_starts_from_nothing(checkout: Checkout) -> None:
    checkout.setup()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.setup() == RUNTIME


def test_an_interrupted_set_up_starts_from_nothing(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.folder / ".venv" / ".runtime").unlink()
    assert checkout.setup() == RUNTIME
