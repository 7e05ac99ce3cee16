"""Every example does what its expected.txt says, through the real command line and proxy.

`expected.txt` has one request per line, in columns; `#` begins a comment. Where its first column
is an agent, the verdict is `policy explain`'s; otherwise the requests go through a running proxy,
in that order, as the policy counts them.
"""

import json
import re
import ssl
from pathlib import Path

import httpx
import pytest

from examples.upstream import Upstream
from tests.kit.command import invoke
from tests.kit.proxy import Proxy

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(folder for folder in EXAMPLES.iterdir() if re.match(r"\d\d-", folder.name))
EXPLAINED = "agent method URL verdict reason rule"
SENT = "method URL bytes sent status reason"


def title_of(folder: Path) -> str:
    first = (folder / "expected.txt").read_text(encoding="utf-8").splitlines()[0]
    return " ".join(first.lstrip("# ").split())


def rows_of(folder: Path) -> list[list[str]]:
    lines = (folder / "expected.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def with_title(title: str) -> list[Path]:
    return [folder for folder in FOLDERS if title_of(folder) == title]


def test_every_example_is_complete_and_listed() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(FOLDERS) >= 3
    for folder in FOLDERS:
        found = {path.name for path in folder.iterdir()}
        assert found == {"README.md", "policy.yaml", "expected.txt"}, folder.name
        assert title_of(folder) in (EXPLAINED, SENT), folder.name
        assert f"({folder.name}/README.md)" in index


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_policy_of_the_examples_has_no_finding(folder: Path) -> None:
    result = invoke("policy", "check", "--fail-on", "info", str(folder / "policy.yaml"))
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize("folder", with_title(EXPLAINED), ids=lambda folder: folder.name)
def test_explain_gives_each_request_its_verdict(folder: Path) -> None:
    policy = str(folder / "policy.yaml")
    for agent, method, url, verdict, reason, rule in rows_of(folder):
        words = ("--agent", agent, "-X", method, "--policies", policy, "--json", url)
        result = invoke("policy", "explain", *words)
        told = json.loads(result.stdout)
        if "deny" in told:  # never became a request that rules are asked about
            found = ("deny", told["deny"].split()[0], "-")
        else:
            found = (told["verdict"], told["reason"], ",".join(told["rules"]) or "-")
        assert found == (verdict, reason, rule), f"{agent} {method} {url}"


@pytest.mark.parametrize("folder", with_title(SENT), ids=lambda folder: folder.name)
def test_the_proxy_answers_each_request_as_listed(folder: Path, tmp_path: Path) -> None:
    ca = tmp_path / "upstream-ca.pem"
    rows = rows_of(folder)
    with Upstream(["api.example.com"], ca) as upstream:
        pin = f"api.example.com:443:127.0.0.1:{upstream.port}"
        policy = folder / "policy.yaml"
        with Proxy(tmp_path, policy, resolve=[pin], upstream_ca=ca) as proxy:
            trusted = ssl.create_default_context(cafile=str(proxy.ca))
            for method, url, sent, status, reason in rows:
                with httpx.Client(proxy=proxy.url, verify=trusted, trust_env=False) as agent:
                    found = ask(agent, method, url, int(sent))
                assert found == (status, reason), f"{method} {url}"


def ask(agent: httpx.Client, method: str, url: str, body_bytes: int) -> tuple[str, str]:
    """Status and reason; a tunnel that is refused tells both in its status line."""
    try:
        answer = agent.request(method, url, content=b"x" * body_bytes)
    except httpx.ProxyError as refused:
        status, _, phrase = str(refused).partition(" ")
        return status, phrase.split()[-1].strip("()")
    return str(answer.status_code), "-" if answer.status_code == 200 else answer.json()["reason"]
