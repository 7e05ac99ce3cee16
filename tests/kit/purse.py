"""Agents with a budget each, in one server: a purse is an agent that is told by the address it
calls from.

    with open_purses(folder, {"upload": "{ bytes_out: 300 }"}) as purses:
        purse = purses["upload"]
        with purse.http1() as client: ...
        purse.outcomes[-1]["bytes_out"], purse.spent["bytes_out"]

Three destinations: `API` answers by path and counts (tests/kit/origin.py), `ROGUE` does what the
test says (tests/kit/rogue.py), `FAST` speaks HTTP/2.
"""

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.certificates import Authority
from tests.kit.faults import Event, Journal
from tests.kit.http1 import Http1
from tests.kit.http2 import Http2, Http2Origin
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, wait_until
from tests.kit.rogue import Rogue

API = "api.test.example"
ROGUE = "rogue.test.example"
FAST = "fast.test.example"
RULES = f"""rules:
  - {{ id: api, verdict: allow, match: {{ host: {API}, methods: [GET, HEAD, POST, PUT], path: "/**", dest_ip: loopback }} }}
  - {{ id: rogue, verdict: allow, match: {{ host: {ROGUE}, methods: [GET, HEAD, POST], path: "/**", dest_ip: loopback }} }}
  - {{ id: fast, verdict: allow, match: {{ host: {FAST}, methods: [GET, POST], path: "/**", dest_ip: loopback }} }}
  - {{ id: talk, verdict: allow, match: {{ host: {API}, path: /ws, websocket: true, dest_ip: loopback }} }}
  - {{ id: talk-rogue, verdict: allow, match: {{ host: {ROGUE}, path: "/ws/*", websocket: true, dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best
_PLAIN_BYTES = re.compile(r"(bytes_\w+: \d+)(?=[ ,}])")
_SPENT = re.compile(
    r'^tollkeeper_budget_(\w+)\{account="([^"]+)",unit="(\w+)"\} (\S+)$', re.MULTILINE
)


def count_head(line: str, *fields: str) -> int:
    """Bytes of a head in its HTTP/1.1 form."""
    return sum(len(one) + 2 for one in (line, *fields)) + 2


def format_purses(limits: Mapping[str, str], rules: str = RULES) -> str:
    """A policy file in which each agent has one budget, of its own name. A value is the limits,
    or, with a `limits:` in it, the whole budget behind `each`; bytes may go without their unit."""
    agents = "".join(
        f'  {name}: {{ identity: {{ source: ["{_address(number)}/32"] }} }}\n'
        for number, name in enumerate(limits)
    )
    budgets = "".join(
        f"  {name}: {{ each: agent, who: {{ agents: [{name}] }}, "
        f"{text if 'limits:' in text else f'limits: {text}'} }}\n"
        for name, text in limits.items()
    )
    budgets = _PLAIN_BYTES.sub(r"\1B", budgets)
    return f"version: 1\nagents:\n{agents}budgets:\n{budgets}{rules}"


def _address(number: int) -> str:
    return f"127.0.1.{number + 1}"


@dataclass
class Purse:
    """One agent."""

    name: str
    address: str
    purses: "Purses"

    @property
    def proxy(self) -> Proxy:
        """The server it speaks to."""
        return self.purses.proxy

    def tunnel(
        self, host: str = API, protocols: Sequence[str] = (), timeout_s: float = 10.0
    ) -> ssl.SSLSocket:
        """CONNECT and TLS, from the agent's address."""
        place = f"{host}:443"
        plain = socket.create_connection(
            ("127.0.0.1", self.proxy.port), timeout_s, (self.address, 0)
        )
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.purses.opened.append(plain)
        plain.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            got = plain.recv(1)
            if not got:
                raise ConnectionError(answer)
            answer += got
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(answer)
        secured = self.proxy.secure(plain, host, protocols)
        self.purses.opened.append(secured)
        return secured

    def http1(self, host: str = API, timeout_s: float = 10.0) -> Http1:
        """A client inside a tunnel."""
        return Http1(self.tunnel(host, timeout_s=timeout_s))

    def http2(self, host: str = API) -> Http2:
        """The same, HTTP/2."""
        return Http2(self.tunnel(host, ("h2",)))

    @property
    def events(self) -> list[Event]:
        """Decisions about requests, slices and outcomes of this agent so far, in order."""
        ids: set[str] = set()
        found = []
        for event in self.purses.journal.events:
            if event["kind"] == "decision" and event.get("agent", {}).get("id") == self.name:
                if event["stage"] == "request":
                    ids.add(event["id"])
                    found.append(event)
            elif event["kind"] in ("reserve", "outcome") and event["ref"] in ids:
                found.append(event)
        return found

    def of(self, kind: str) -> list[Event]:
        """Its events of one kind."""
        return [event for event in self.events if event["kind"] == kind]

    def settle(self) -> list[Event]:
        """Its outcomes, once there is one for every request that was allowed and nothing is
        held."""

        def is_settled() -> bool:
            allowed = [one for one in self.of("decision") if one["verdict"] == "allow"]
            return len(self.of("outcome")) == len(allowed) and not any(self.held.values())

        assert wait_until(is_settled), f"{self.events[-3:]}, held {self.held}"
        return self.of("outcome")

    @property
    def spent(self) -> dict[str, int]:
        """What the ledger says, by unit."""
        return self._scrape("spent_total")

    @property
    def held(self) -> dict[str, int]:
        """What the ledger says is under way."""
        return self._scrape("held")

    def granted(self, unit: str) -> int:
        """What the log says was ever held of a unit, over all periods."""
        return sum(
            one["amount"]
            for event in self.events
            for one in event.get("reserve", ())
            if one["unit"] == unit
        )

    def _scrape(self, series: str) -> dict[str, int]:
        _, text = self.proxy.scrape("/metrics")
        account = f"{self.name}/{self.name}"
        return {
            unit: int(float(value))
            for name, label, unit, value in _SPENT.findall(text)
            if name == series and label == account
        }


@dataclass
class Purses:
    """Made by `open_purses`."""

    proxy: Proxy
    origin: Origin
    rogue: Rogue
    fast: Http2Origin
    names: tuple[str, ...]
    opened: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = Journal(self.proxy.state / "log")

    def __getitem__(self, name: str) -> Purse:
        return Purse(name, _address(self.names.index(name)), self)

    def close_connections(self) -> None:
        """Of the clients."""
        while self.opened:
            self.opened.pop().close()


@contextlib.contextmanager
def open_purses(
    folder: Path,
    limits: Mapping[str, str],
    *options: str,
    kind: type[Proxy] = Proxy,
    rules: str = "",
    resolve: Sequence[str] = (),
    **more: Any,
) -> Iterator[Purses]:
    """Start destinations and server; what was recorded must verify in the end, and no contract may
    have been broken. `rules` and `resolve` are further ones."""
    authority = Authority(folder / "origin")
    policy = folder / "policies.yaml"
    policy.write_text(format_purses(limits, RULES + rules), encoding="utf-8")
    fast_tls = authority.server_context(FAST, protocols=("h2",))
    with (
        Origin(tls=authority.server_context(API)) as origin,
        Rogue(tls=authority.server_context(ROGUE)) as rogue,
        Http2Origin(tls=fast_tls) as fast,
    ):
        pins = [
            f"{host}:443:127.0.0.1:{port}"
            for host, port in ((API, origin.port), (ROGUE, rogue.port), (FAST, fast.port))
        ]
        pem = authority.pem
        proxy = kind(folder, policy, *options, resolve=[*pins, *resolve], upstream_ca=pem, **more)
        purses = Purses(proxy, origin, rogue, fast, tuple(limits))
        with proxy:
            yield purses
            purses.close_connections()
        done = proxy.verify()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ContractBroken" not in proxy.stderr, proxy.stderr[-3000:]
