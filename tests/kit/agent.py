"""What an agent's process gets: nothing but a path and the lines that `tollkeeper init` prints."""

import os
import subprocess
from collections.abc import Mapping

from tests.kit.proxy import Proxy, run_command

_KEPT = ("PATH", "LANG", "LC_ALL")


def read_environment(proxy: Proxy, **more: str) -> dict[str, str]:
    """The environment of an agent, made by a shell out of the very lines of `init`."""
    listen = f"127.0.0.1:{proxy.port}"
    printed = run_command(
        "init", str(proxy.folder), "--state", str(proxy.state), "--listen", listen
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'eval "$LINES"; unset LINES; exec env -0'],
        env={**_blank(), "HOME": str(proxy.folder), "LINES": printed.stdout},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    pairs = (pair.partition("=") for pair in done.stdout.split("\0") if pair)
    return {**{name: value for name, _, value in pairs}, **more}


def run_agent(
    environment: Mapping[str, str], *command: str, timeout_s: float = 60.0, cwd: object = None
) -> subprocess.CompletedProcess[str]:
    """Run a client to its end; whatever it exits with is for the test to judge."""
    return subprocess.run(
        command,
        env=dict(environment),
        cwd=str(cwd) if cwd is not None else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def _blank() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}
