"""`make demo`: calls of an agent until its budget is used up and it is halted; then a forged log
being caught. Nothing in it is simulated.

    agent (httpx) --> tollkeeper serve --> examples/upstream.py      a real TLS server on loopback
          allowed   200                    sees a request
          denied    403                    sees nothing
          private   403                    sees nothing
          allowed   200                    sees a request
          exhausted 403                    sees nothing, until an operator raises the budget
          halted    403                    sees nothing, ever again
    then: stop, delete the ledger, `budget show` knows it all; `audit verify` = 0, flip one byte,
    `audit verify` = 1 and names the line

Exit 0 only if everything happened as it is told; otherwise 1, and what was different.
"""

import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from examples.upstream import Upstream

POLICY = """\
version: 1
agents:
  local: { identity: { source: "127.0.0.0/8" } }
rules:
  - id: read-items
    verdict: allow
    match: { host: api.example.com, methods: [GET, HEAD], path: /items/**, dest_ip: loopback }
  - id: read-wiki             # allowed by name; its address is private, and no dest_ip opens that
    verdict: allow
    match: { host: wiki.example.com, methods: GET }
budgets:
  life: { each: agent, limits: { requests: 2 } }
"""
Call = tuple[str, str, int, str, str]
# method, URL, status, reason of the denial, what a person is told about it
CALLS: tuple[Call, ...] = (
    ("GET", "https://api.example.com/items/1", 200, "", "allowed by `read-items`"),
    ("DELETE", "https://api.example.com/items/1", 403, "no-rule-matched", "no rule allows it"),
    (
        "GET",
        "https://wiki.example.com/",
        403,
        "address-not-public",
        "its name is allowed, but it resolves to 10.0.0.5",
    ),
)
EXHAUSTED = (
    ("GET", "https://api.example.com/items/2", 200, "", "the second request"),
    ("GET", "https://api.example.com/items/3", 403, "budget-exhausted", "the third does not fit"),
)
RAISED = (("GET", "https://api.example.com/items/3", 200, "", "now it does"),)
HALTED = (
    ("GET", "https://api.example.com/items/4", 403, "halted", "the way back is a new agent id"),
)
READY_S = 30.0
STOP_S = 20.0
COMMAND_S = 60.0
TOLLKEEPER = (sys.executable, "-m", "proxy")
# settings of whoever runs the demo are not the demo's
ENVIRONMENT = {name: at for name, at in os.environ.items() if not name.startswith("TOLLKEEPER_")}


class DemoFailed(Exception):  # noqa: N818  named after the failure
    """Something did not happen as the demo tells it."""


def main() -> int:
    """Tell the story. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-demo-") as folder:
        try:
            tell(Path(folder))
        except DemoFailed as error:
            print(f"\nnot as it should be: {error}")
            return 1
    print("\nAll of it happened as told.")
    return 0


def tell(folder: Path) -> None:
    """The whole demo, in a folder that is empty.

    Raises:
        DemoFailed: what was different.
    """
    say("The policy")
    (folder / "policies.yaml").write_text(POLICY, encoding="utf-8")
    print(indent(POLICY))
    run(folder, 0, "policy", "check")
    with Upstream(["api.example.com", "wiki.example.com"], folder / "upstream-ca.pem") as upstream:
        with serve(folder, upstream.port) as proxy_url:
            say("The agent calls")
            call(folder, proxy_url, CALLS)
            expect("the upstream saw", upstream.seen, ["GET /items/1"])
            say("What the upstream saw of these three calls")
            print(indent("\n".join(upstream.seen)))
            spend(folder, proxy_url)
        expect("the upstream saw", upstream.seen, ["GET /items/1", "GET /items/2", "GET /items/3"])
    check_log(folder)


def spend(folder: Path, proxy_url: str) -> None:
    """The budget runs out, is raised, and the agent is halted."""
    say("Its budget is two requests, and one is spent: denied calls cost nothing")
    call(folder, proxy_url, EXHAUSTED)
    run(folder, 0, "budget", "show")
    say("Only an operator can raise it, and that is recorded")
    run(folder, 0, *("budget", "raise", "life"), *("--unit", "requests", "--to", "5"))
    call(folder, proxy_url, RAISED)
    say("And stop it, for good")
    run(folder, 0, "halt", "local", "--reason", "it asked for too much")
    call(folder, proxy_url, HALTED)


def check_log(folder: Path) -> None:
    """The log as it is, and as a forger left it."""
    say("What was recorded of it, before anything was answered or sent")
    run(folder, 0, "audit", "find", "state/log", "--kind", "decision")
    say("The proxy was stopped, and somebody deletes the ledger: the log knows what was spent")
    for path in (folder / "state").glob("ledger.db*"):
        path.unlink()
    shown = run(folder, 0, "budget", "show")
    expect("what the log says", re.findall(r"halted +life/local +requests +3 ", shown) != [], True)
    say("Is the record whole?")
    run(folder, 0, "audit", "verify", "state/log")
    place = forge(folder)
    say(f"One byte is changed: in line {place} the DELETE now went to /items/7")
    printed = run(folder, 1, "audit", "verify", "state/log")
    if f".jsonl:{place}: " not in printed:
        raise DemoFailed(f"verify did not name line {place}")
    say("And the proxy does not start on it")
    run(folder, 2, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


def call(folder: Path, proxy_url: str, calls: tuple[Call, ...]) -> None:
    """What the agent does: plain httpx with the proxy's CA, as `tollkeeper init` sets it up."""
    trusted = ssl.create_default_context(cafile=str(folder / "state" / "ca" / "ca.pem"))
    with httpx.Client(proxy=proxy_url, verify=trusted, trust_env=False, timeout=10) as agent:
        for method, url, status, reason, why in calls:
            try:
                answer = agent.request(method, url)
            except httpx.ProxyError as refused:  # the tunnel itself; its status line says why
                print(f"  {method:<6} {url}\n         {refused}  {why}")
                expect("the refusal", str(refused), f"{status} Forbidden: {reason}")
                continue
            print(f"  {method:<6} {url}\n         {answer.status_code}  {why}")
            expect(f"the status of {method} {url}", answer.status_code, status)
            if reason:
                told = answer.json()
                expect("the reason", told["reason"], reason)
                print(f"         {told['detail']}\n         decision {told['decision']}")


@contextmanager
def serve(folder: Path, upstream_port: int) -> Iterator[str]:
    """A running proxy; gives its URL, and stops it in order."""
    options = (
        *("--resolve", f"api.example.com:443:127.0.0.1:{upstream_port}"),
        *("--resolve", "wiki.example.com:443:10.0.0.5"),
        *("--upstream-ca", "upstream-ca.pem"),
        *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
    )
    said = folder / "proxy.log"
    say("The proxy starts")
    with said.open("wb") as stderr:
        server = subprocess.Popen(
            [*TOLLKEEPER, "serve", *options],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        address = wait_for_port(server, said)
        print(f"  listening on {address}")
        yield f"http://{address}"
    finally:
        server.terminate()
        try:
            code = server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
    expect("the proxy's exit code", code, 0)


def wait_for_port(server: subprocess.Popen[bytes], said: Path) -> str:
    """Where the proxy listens, as it says itself once everything is in order."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until and server.poll() is None:
        found = re.search(r"^listening on (\S+)$", said.read_text(), re.MULTILINE)
        if found:
            return found[1]
        time.sleep(0.05)
    raise DemoFailed(f"the proxy did not start:\n{said.read_text()}")


def forge(folder: Path) -> int:
    """Change one byte of the record of the denied call. Returns its line, counted from 1."""
    [log] = (folder / "state" / "log").glob("*.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    [place] = [at for at, line in enumerate(lines) if b'"DELETE"' in line]
    lines[place] = lines[place].replace(b"/items/1", b"/items/7")
    log.write_bytes(b"".join(lines))
    return place + 1


def run(folder: Path, code: int, *words: str) -> str:
    """One command, shown with what it prints. Its exit code must be `code`."""
    print(f"  $ tollkeeper {' '.join(words)}")
    done = subprocess.run(
        [*TOLLKEEPER, *words],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    print(f"{indent(done.stdout)}\n  exit {done.returncode}")
    expect(f"the exit code of `{' '.join(words)}`", done.returncode, code)
    return done.stdout


def expect(what: str, found: object, wanted: object) -> None:
    """Raises DemoFailed unless both are equal."""
    if found != wanted:
        raise DemoFailed(f"{what} is {found!r}, not {wanted!r}")


def say(text: str) -> None:
    """A heading, seen at once also where output is not a terminal."""
    print(f"\n{text}", flush=True)


def indent(text: str) -> str:
    """Two blanks before every line, none at the end."""
    return "\n".join(f"  {line}".rstrip() for line in text.rstrip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
