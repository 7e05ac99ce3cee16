"""The README's tour, word for word, in one shell; and its client snippets, each in a process.

Between `<!-- tour -->` and `<!-- the tour ends -->` every `sh` block is run as it stands, and the
`text` block behind it is what must be printed: all of it, with `…` for what differs from run to
run, and a line that is only `…` for any number of lines.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest

from examples.upstream import Upstream
from proxy.cli import root
from tests.house.documents import walk
from tests.kit.proxy import Proxy, write_policy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = README.partition("<!-- tour -->")[2].partition("<!-- the tour ends -->")[0]
CLIENTS = README.partition("## Pointing a client at it")[2].partition("\n## ")[0]
BLOCK = re.compile(r"^```sh\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP = "--- step"
RULES = "  - { id: r, verdict: allow, match: { host: api.example.com, dest_ip: loopback } }\n"
RUNNERS = {
    "sh": ["sh", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "-e"],
}


def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    steps = BLOCK.findall(TOUR)
    printed = take_tour(tmp_path, [commands for commands, _ in steps])
    assert len(printed) == len(steps) > 8
    for (commands, expected), actual in zip(steps, printed, strict=True):
        # a body that curl prints has no final newline
        whole = actual if actual.endswith("\n") or not actual else f"{actual}\n"
        assert re.fullmatch(pattern_of(expected), whole), f"{commands}\nprinted:\n{actual}"


def test_each_snippet_reaches_an_allowed_host_through_the_proxy(tmp_path: Path) -> None:
    ca = tmp_path / "upstream-ca.pem"
    policy = write_policy(tmp_path / "policies.yaml", RULES)
    snippets = SNIPPET.findall(CLIENTS)
    assert [language for language, _ in snippets] == ["sh", "python", "python", "python", "js"]
    with Upstream(["api.example.com"], ca) as upstream:
        pin = f"api.example.com:443:127.0.0.1:{upstream.port}"
        with Proxy(tmp_path, policy, resolve=[pin], upstream_ca=ca) as proxy:
            exports = tollkeeper("init", "--listen", f"127.0.0.1:{proxy.port}", cwd=tmp_path)
            for language, code in snippets:
                answer = run_client(language, code, exports)
                assert "200" in answer or '"method": "GET"' in answer, answer
    assert upstream.seen == ["GET /items/1"] * len(snippets)


def test_the_table_of_commands_is_whole() -> None:
    """Groups share a row: `tollkeeper agent add` · `list`."""
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    for words, command in walk(root):
        if not isinstance(command, click.Group):
            *group, name = words.split()
            rows = [row for row in table.splitlines() if " ".join(group) in row]
            assert any(re.search(rf"(`| ){name}`", row) for row in rows), words


# --- how


def take_tour(folder: Path, steps: list[str]) -> list[str]:
    """What each step prints, both streams, in one shell as a person would use it."""
    (folder / ".venv").symlink_to(sys.prefix)
    assert (folder / ".venv" / "bin" / "tollkeeper").exists(), "run `make setup`"
    script = "\n".join(f"{step}\necho '{STEP}'" for step in steps)
    output = folder / "printed.txt"  # no pipe: what a failed tour leaves behind would hold it open
    with output.open("wb") as file:
        shell = subprocess.Popen(
            [*alone(), "bash", "--noprofile", "--norc", "-c", f"exec 2>&1\n{script}"],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            start_new_session=True,
        )
        try:
            code = shell.wait(120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait(10)
    *printed, rest = output.read_text(encoding="utf-8").split(f"{STEP}\n")
    assert (code, rest) == (0, ""), f"{printed}\n{rest}"
    return printed


def alone() -> list[str]:
    """A network of its own, where the kernel gives one: then the tour's ports are free, and no
    internet is proven. Elsewhere the ports are this machine's."""
    isolated = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"']
    words = [*isolated, "sh"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return []
    probe = subprocess.run([*words, "true"], capture_output=True, timeout=20, check=False)
    return words if probe.returncode == 0 else []


def environment() -> dict[str, str]:
    """Nothing of the caller's that a client or the proxy would look at."""
    return {
        name: value
        for name, value in os.environ.items()
        if not re.search(r"proxy|tollkeeper|_ca_|cert|pythonpath", name, re.IGNORECASE)
    }


def pattern_of(expected: str) -> str:
    """A line that is only `…` is any number of lines; elsewhere it is any text within a line."""
    return "".join(_pattern_of_line(line) for line in expected.splitlines())


def _pattern_of_line(line: str) -> str:
    if line == "…":
        return r"(?:.*\n)*?"
    return "[^\n]*".join(map(re.escape, line.split("…"))) + r"\n"


def tollkeeper(*words: str, cwd: Path) -> str:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *words],
        cwd=cwd,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def run_client(language: str, code: str, exports: str) -> str:
    """A snippet in an agent's environment: the lines that `init` prints, and nothing else."""
    if language == "js" and shutil.which("node") is None:
        pytest.fail("node is missing: `.ci/setup-clients` installs it")
    run = subprocess.run(
        ["sh", "-c", f'{exports}\nexec "$@"', "sh", *RUNNERS[language], code],
        env={**environment(), "NODE_PATH": str(ROOT / "tests" / "e2e" / "node_modules")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
