"""A server with budgets, an origin that counts, and the commands of those who look after both.

    with open_house(tmp_path, budgets="small: { each: agent, limits: { requests: 10 } }") as house:
        house.ask("/ok/1").status       one request in a tunnel of its own
        house.spent("small/local")      what `budget show` says, {unit: amount}
        house.check_books()             and that the log says the same

Every rule lets `local` (by address) and `coder`, `reviewer` (by token) reach one origin. The costly
checks of invariants are on: a ledger that differs from the log denies everything.
"""

import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy.control import ask
from proxy.oversight import list_accounts
from proxy.settings import Settings
from tests.kit.certificates import Authority
from tests.kit.http1 import Answer, Http1, format_request
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, run_command, wait_until
from tests.kit.sum_log import sum_log

API = "api.test.example"
GONE = "gone.test.example"  # where nobody listens
LOCAL = 'local: { identity: { source: ["127.0.0.0/8"] } }'
PATIENCE = [f"set.{name}_deadline_s={s}" for name, s in (("hook", 12), ("audit", 5), ("ledger", 5))]
CREDENTIALED = "coder: {}, reviewer: {}"
_EVERY_PATH = f'host: [{API}, {GONE}], methods: [GET, POST, PUT], path: "/**"'
_WEBSOCKETS = f"host: {API}, websocket: true, path: /ws"
RULES = (
    f"{{ id: api, verdict: allow, match: {{ {_EVERY_PATH}, dest_ip: loopback }} }}",
    f"{{ id: ws, verdict: allow, match: {{ {_WEBSOCKETS}, dest_ip: loopback }} }}",
    f"{{ id: never, verdict: deny, match: {{ host: {API}, path: /never }} }}",
)


def write_budgets(
    file: Path,
    budgets: Sequence[str],
    *,
    rules: Sequence[str] = RULES,
    agents: str = LOCAL,
    more: str = "",
) -> Path:
    """A policy file: budgets and rules are YAML, one entry per line. Put in place in one step."""
    listed = "".join(f"  - {rule}\n" for rule in rules)
    kept = "".join(f"  {budget}\n" for budget in budgets)
    text = f"version: 1\nagents: {{ {agents} }}\nrules:\n{listed}{more}"
    fresh = file.with_suffix(".fresh")
    fresh.write_text(text + (f"budgets:\n{kept}" if budgets else ""), encoding="utf-8")
    return fresh.replace(file)


@dataclass
class CountingHouse:
    """Made by `open_house`."""

    proxy: Proxy
    origin: Origin
    policy: dict[str, Any] = field(default_factory=dict)  # what `write_budgets` was told last

    # --- an agent

    def tunnel(self, authorization: str = "", protocols: Sequence[str] = ()) -> Http1:
        """A connection inside TLS inside CONNECT.

        Raises:
            ConnectionError: CONNECT was refused; with the answer.
        """
        fields = f"Proxy-Authorization: {authorization}\r\n" if authorization else ""
        return Http1(
            self.proxy.tunnel(API, 443, headers=fields, protocols=protocols, timeout_s=20.0)
        )

    def ask(
        self,
        path: str,
        authorization: str = "",
        *,
        host: str = API,
        method: str = "GET",
        body: bytes = b"",
    ) -> Answer:
        """One request in a tunnel of its own; the answer to CONNECT where that is refused."""
        place = f"{host}:443"
        fields = [f"Proxy-Authorization: {authorization}"] if authorization else []
        with Http1(self.proxy.connect(20.0)) as outside:
            outside.connection.sendall(format_request(place, place, "CONNECT", fields))
            answer = outside.read_head()
            if answer.status != 200:
                body = outside.exactly(int(answer.value("content-length") or 0))
                return Answer(answer.status, answer.reason, answer.headers, body)
            with Http1(self.proxy.secure(outside.connection, host)) as inside:
                return inside.ask(path, host, method=method, body=body)

    def issue(self, agent: str, *command: str) -> str:
        """`tollkeeper agent add` (or another command); what goes into Proxy-Authorization."""
        issued = json.loads(self.command("agent", *(command or ("add",)), agent).stdout)
        return basic(agent, issued["token"])

    # --- an operator

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`tollkeeper WORDS --json` on the state directory and the policy of this house."""
        state = ["--state", str(self.proxy.state), "--json"]
        if words[0] != "agent" or words[1] == "add":
            state += ["--policies", str(self.proxy.policy)]
        return run_command(*words, *state, check=check)

    def show(self, *, command: bool = False) -> dict[str, dict[str, Any]]:
        """What `budget show --json` prints, by account; `command`: in a process of its own."""
        settings = Settings(state=self.proxy.state, policies=self.proxy.policy)
        shown = (
            json.loads(self.command("budget", "show").stdout)
            if command
            else list_accounts(settings, None)[0]
        )
        return {one["account"] or one["agent"]: one for one in shown}

    def spent(self, account: str) -> dict[str, int]:
        """What an account has spent in its current period, zeros left out."""
        return _amounts(self._find(account), "spent")

    def limits(self, account: str) -> dict[str, int]:
        """The limits in force."""
        return {unit["unit"]: unit["limit"] for unit in self._find(account)["units"]}

    def state(self, agent: str) -> str:
        """Where an agent stands."""
        return next(str(one["state"]) for one in self.show().values() if one["agent"] == agent)

    def halt(self, agent: str, reason: str = "that is enough") -> str:
        """`tollkeeper halt`; the state it was in."""
        return str(json.loads(self.command("halt", agent, "--reason", reason).stdout)["before"])

    def load(self, *budgets: str, **policy: Any) -> None:
        """Edit the policy file, and return when the server has taken it."""
        self.policy = {**self.policy, **policy}
        write_budgets(self.proxy.policy, budgets, **self.policy)
        answer = ask(self.proxy.state / "control.sock", "reload")
        assert answer["result"] in ("applied", "unchanged"), answer

    # --- an auditor

    def _find(self, account: str) -> dict[str, Any]:
        return next(one for name, one in self.show().items() if name.partition("@")[0] == account)

    def settled(self) -> bool:
        """Whether every request that this run of the server let through has its outcome."""
        records = self.proxy.records()
        began = max(at for at, one in enumerate(records) if one["kind"] == "log.open")
        run = records[began:]
        allowed = {one["id"] for one in run if one["kind"] == "decision" and one["reserve"]}
        return allowed <= {one["ref"] for one in run if one["kind"] == "outcome"}

    def check_books(self, *, command: bool = False) -> dict[str, dict[str, int]]:
        """`budget show`, once nothing is under way: what is spent, by account; equals the log."""
        assert wait_until(self.settled), "an exchange did not end"
        assert wait_until(lambda: not _held(self.show())), "held after all has ended"
        shown = self.show(command=command)
        spent = {name: _amounts(one, "spent") for name, one in shown.items() if one["budget"]}
        logged = sum_log(self.proxy.state / "log")
        limited = {name: {unit["unit"] for unit in one["units"]} for name, one in shown.items()}
        assert spent == {
            name: {unit: n for unit, n in logged.get(name, {}).items() if unit in limited[name]}
            for name in spent
        }
        return spent


def _held(shown: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {name: held for name, one in shown.items() if (held := _amounts(one, "held"))}


def basic(agent: str, token: str) -> str:
    """The value of Proxy-Authorization."""
    return "Basic " + base64.b64encode(f"{agent}:{token}".encode()).decode()


def reason_of(answer: Answer) -> str:
    """The reason of a denial; "" for anything else."""
    return str(json.loads(answer.body)["reason"]) if answer.status == 403 else ""


def _amounts(account: dict[str, Any], word: str) -> dict[str, int]:
    return {unit["unit"]: unit[word] for unit in account["units"] if unit[word]}


@contextlib.contextmanager
def open_house(folder: Path, *budgets: str, **policy: Any) -> Iterator[CountingHouse]:
    """A house in `folder` under these budgets, until the end of the block. Its server is patient:
    two busy cores make a ledger late, and whether it is late is tested elsewhere."""
    with contextlib.ExitStack() as undo:
        folder.mkdir(exist_ok=True)
        closed = undo.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # and does not listen
        authority = Authority(folder / "origin")
        origin = undo.enter_context(Origin(tls=authority.server_context(API, GONE)))
        pins = [
            f"{API}:443:127.0.0.1:{origin.port}",
            f"{GONE}:443:127.0.0.1:{closed.getsockname()[1]}",
        ]
        file = write_budgets(folder / "policies.yaml", budgets, **policy)
        proxy = Proxy(
            folder,
            file,
            resolve=pins,
            upstream_ca=authority.pem,
            env={"TOLLKEEPER_CONTRACTS": "1"},
            python=[sys.executable, "-m", "tests.kit.faulty", *PATIENCE],
        )
        undo.callback(lambda: proxy.stop(signal.SIGKILL))
        yield CountingHouse(proxy.start(), origin, policy)
