"""What budgets cost a whole request: the real proxy with four accounts against one without any.

Two servers of the same build on loopback, one agent each, keep-alive requests in turn, so that what
else happens on this machine happens to both. The figure is wall time at the client; the proxy's CPU
time per request stands beside it.
"""

import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from tests.bench import Row
from tests.kit.certificates import Authority
from tests.kit.http1 import Http1, format_request
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, run_command, write_policy

HOST = "api.test.example"
ROUNDS = 1_500
GOAL = 1.10
RULES = f"  - {{ id: api, verdict: allow, match: {{ host: {HOST}, dest_ip: loopback }} }}\n"
LIMITS = "limits: { requests: 1000000, steps: 1000000, bytes_out: 1TB, bytes_in: 1TB }"
BUDGETS = "budgets:\n" + "".join(
    f"  b{n}: {{ each: agent, {LIMITS}{window} }}\n"
    for n, window in enumerate(
        ("", ", window: 1d", ", window: 1h", ", at: [{ reached: 80%, do: warn }]")
    )
)


class Side:
    """One server and a client with one tunnel through it."""

    def __init__(self, folder: Path, rules: str, ledger: str, origin: Origin, ca: Path) -> None:
        folder.mkdir()
        run_command("init", str(folder))
        policy = write_policy(folder / "policies.yaml", rules)
        pin = f"{HOST}:443:127.0.0.1:{origin.port}"
        options = ("--ledger", ledger, "--log-format", "json")
        self.proxy = Proxy(folder, policy, *options, resolve=[pin], upstream_ca=ca).start()
        plain = self.proxy.connect(10)
        plain.sendall(format_request(f"{HOST}:443", f"{HOST}:443", "CONNECT"))
        Http1(plain).read_head()
        self._client = Http1(self.proxy.secure(plain, HOST))
        self.seconds: list[float] = []

    def ask(self) -> None:
        """One request, timed."""
        began = perf_counter()
        answer = self._client.ask("/item", HOST)
        self.seconds.append(perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.body!r}")

    @property
    def cpu_s(self) -> float:
        """User and system time of the server so far."""
        fields = Path(f"/proc/{self.proxy.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run() -> list[Row]:
    """A row for each ledger."""
    authority = Authority(Path(tempfile.mkdtemp()))
    rows = []
    with Origin(tls=authority.server_context(HOST)) as origin:
        for ledger in ("memory", "sqlite"):
            folder = Path(tempfile.mkdtemp())
            without = Side(folder / "without", RULES, "memory", origin, authority.pem)
            budgets = Side(folder / "budgets", RULES + BUDGETS, ledger, origin, authority.pem)
            sides = (without, budgets)
            try:
                rows.append(_compare(ledger, *sides))
            finally:
                for side in sides:
                    side.proxy.stop()
    return rows


def _compare(ledger: str, without: Side, budgets: Side) -> Row:
    for _ in range(ROUNDS // 10):  # warm
        without.ask()
        budgets.ask()
    began = without.cpu_s, budgets.cpu_s
    without.seconds, budgets.seconds = [], []
    for _ in range(ROUNDS):
        without.ask()
        budgets.ask()
    plain, charged = median(without.seconds), median(budgets.seconds)
    cpu = [
        (side.cpu_s - was) / ROUNDS * 1e3
        for side, was in zip((without, budgets), began, strict=True)
    ]
    value = (
        f"{charged / plain:.2f}x ({charged * 1e3:.2f} / {plain * 1e3:.2f} ms;"
        f" CPU {cpu[1]:.2f} / {cpu[0]:.2f} ms)"
    )
    name = f"request with four accounts in {ledger} / without budgets, p50"
    return Row(name, f"<= {GOAL}x", value, charged <= GOAL * plain)
