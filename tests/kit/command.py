"""The command line in this process: quick, with stdout and stderr apart."""

import os
from collections.abc import Mapping

from click.testing import CliRunner, Result

from proxy.cli import root


def invoke(*words: str, env: Mapping[str, str] | None = None) -> Result:
    """Run `tollkeeper WORDS`, without any TOLLKEEPER_ variable but those given."""
    clean = {name: None for name in os.environ if name.startswith("TOLLKEEPER_")}
    return CliRunner().invoke(root, list(words), env={**clean, **(env or {})})


def complaint(result: Result) -> str:
    """The one line on stderr of a command that was refused: exit 2, nothing on stdout."""
    if result.exit_code != 2 or result.stdout or "Traceback" in result.stderr:
        raise AssertionError(f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}")
    return result.stderr.rstrip("\n")
