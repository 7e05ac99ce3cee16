"""A house to break into: a faulty server, origins with and without TLS, and books on all of them.

    with world.attempt() as seen:          # notes log and origins
        with world.proxy.fault("decide:raise"):
            answer = way.ask("/ok/1")
    seen.refusals, seen.bytes, ...         # what happened meanwhile, after a good request went by

The good request is the end mark: the log is written in order, so what is not in it by then was
submitted later, or never.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.certificates import Authority
from tests.kit.faults import Event, FaultyProxy
from tests.kit.ingress import Answer, open_plain
from tests.kit.origin import Origin
from tests.kit.proxy import write_policy

HOST = "api.test.example"
GOOD = "good.test.example"  # an origin of its own: what is counted elsewhere is not our doing
STRANGER = "stranger.test.example"
RULES = """
  - id: tls
    verdict: allow
    match:
      host: api.test.example
      path: ["/ok/**", "/trickle/*", "/big/*", "/status/*", "/slow/*", "/switch", "/sse"]
      methods: [GET, HEAD, POST]
      dest_ip: loopback
  - id: plain
    verdict: allow
    match:
      host: api.test.example
      scheme: http
      port: [80]
      path: ["/ok/**", "/trickle/*", "/big/*"]
      methods: [GET, HEAD, POST]
      dest_ip: loopback
  - id: good
    verdict: allow
    match: { host: good.test.example, scheme: http, port: [80], path: "/good/*", dest_ip: loopback }
  - { id: ws, verdict: allow, match: { host: api.test.example, path: "/ws", websocket: true, dest_ip: loopback } }
  - { id: dns, verdict: allow, match: { host: unpinned.test.example, path: "/ok/**" } }
  - { id: bad-tls, verdict: allow, match: { host: untrusted.test.example, path: "/ok/**", dest_ip: loopback } }
"""  # noqa: E501


@dataclass
class Seen:
    """What happened during one attempt."""

    events: list[Event] = field(default_factory=list)  # of the attempt, without tunnels that opened
    connects: list[Event] = field(default_factory=list)  # CONNECT, allowed
    connections: int = 0  # at the origins
    touched: int = 0  # of them with at least one byte, be it of TLS
    bytes: int = 0  # of HTTP
    struck: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Event]:
        """The events of these kinds."""
        return [event for event in self.events if event["kind"] in kinds]

    @property
    def refusals(self) -> list[Event]:
        """Denied decisions, and messages nobody could judge."""
        return [
            event
            for event in self.of("decision", "malformed")
            if event["kind"] == "malformed" or event["verdict"] == "deny"
        ]

    @property
    def untouched(self) -> bool:
        """No connection, hence no byte."""
        return (self.connections, self.touched, self.bytes) == (0, 0, 0)


@dataclass
class World:
    """Made by `furnish`."""

    proxy: FaultyProxy
    tls: Origin
    plain: Origin
    untrusted: Origin
    good: Origin
    number: Iterator[int] = field(default_factory=itertools.count)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Everything that must stay untouched."""
        return self.tls, self.plain, self.untrusted

    def count(self) -> tuple[int, int, int]:
        """Connections, touched ones and bytes over all origins; nothing waits to be accepted."""
        for origin in self.origins:
            origin.catch_up()
        connections = sum(origin.connections for origin in self.origins)
        touched = sum(origin.touched for origin in self.origins)
        return connections, touched, sum(origin.bytes_received for origin in self.origins)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Seen]:
        """Note everything that happens inside; a good request must pass right behind it."""
        seen = Seen()
        since, before = len(self.proxy.journal.events), self.count()
        yield seen
        seen.struck = self.proxy.struck
        path = self.pass_good_request()
        for event in self.proxy.journal.wait(since, path, "outcome"):
            self._sort(seen, event, path)
        after = self.count()
        seen.connections, seen.touched, seen.bytes = (
            b - a for a, b in zip(before, after, strict=True)
        )

    def reconcile(self) -> None:
        """No request at an origin that the log does not allow."""
        allowed = [
            event["target"]["path"]
            for event in self.proxy.journal.events
            if event["kind"] == "decision"
            and (event["stage"], event["verdict"]) == ("request", "allow")
        ]
        arrived = [
            line.split(" ")[1].partition("?")[0]
            for origin in (*self.origins, self.good)
            for line in origin.lines
        ]
        assert Counter(arrived) <= Counter(allowed)

    def send(self, message: bytes, timeout_s: float = 6.0) -> bytes:
        """Raw bytes to the proxy; everything that comes back until the end."""
        return self.proxy.exchange(message, timeout_s=timeout_s)

    def pass_good_request(self) -> str:
        """A request that is allowed and answered; returns its path."""
        path = f"/good/{next(self.number)}"
        with open_plain(self.proxy, GOOD) as way:
            answer = way.ask(path)
        assert answer.status == 200, f"after the fault nobody is served: {answer}"
        return path

    def _sort(self, seen: Seen, event: Event, good: str) -> None:
        target = event.get("target", {})
        if target.get("path") == good:
            seen.events.append(event | {"kind": "good"})
        elif event["kind"] == "outcome" and not any(
            event["ref"] == other.get("id") for other in seen.events if other["kind"] == "decision"
        ):
            return  # of the good request, or of one from before
        elif event["kind"] == "decision" and (event["stage"], event["verdict"]) == (
            "connect",
            "allow",
        ):
            seen.connects.append(event)
        elif event["kind"] not in ("heartbeat", "clock.step"):
            seen.events.append(event)


@contextlib.contextmanager
def furnish(
    folder: Path,
    *options: str,
    head: str = "",
    rules: str = "",
    hosts: Sequence[str] = (),
    wishes: Sequence[str] = (),
    verified: int = 0,
    **more: Any,
) -> Iterator[World]:
    """Start everything, and hand it over; what was recorded must verify in the end (exit code).

    `rules` are more rules, `hosts` more names of the origins, with TLS and without.
    """
    authority = Authority(folder / "origin")
    stranger = Authority(folder / "untrusted")
    with (
        Origin(tls=authority.server_context(HOST, *hosts)) as tls,
        Origin() as plain,
        Origin() as good,
        Origin(tls=stranger.server_context("untrusted.test.example")) as untrusted,
    ):
        policy = write_policy(folder / "policies.yaml", RULES + rules, head=head)
        proxy = FaultyProxy(
            folder,
            policy,
            *options,
            resolve=[
                *(f"{host}:443:127.0.0.1:{tls.port}" for host in (HOST, *hosts)),
                *(f"{host}:80:127.0.0.1:{plain.port}" for host in (HOST, *hosts)),
                f"{GOOD}:80:127.0.0.1:{good.port}",
                f"untrusted.test.example:443:127.0.0.1:{untrusted.port}",
            ],
            upstream_ca=authority.pem,
            wishes=wishes,
            **more,
        )
        with proxy:
            world = World(proxy, tls, plain, untrusted, good)
            yield world
        done = proxy.verify()
        assert done.returncode == verified, done.stdout + done.stderr
        world.reconcile()


def describe(answer: Answer, seen: Seen, proxy: FaultyProxy) -> str:
    """For the text of an assertion that fails."""
    return f"{answer}\n{seen}\n{proxy.stderr[-3000:]}"
