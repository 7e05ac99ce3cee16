"""The gate proves itself on loopback before the port opens: known ways round, through the real
handler.

A throw-away policy, an origin that counts every byte, and about twenty raw messages. It takes tens
of milliseconds,
needs nothing from outside, writes nothing into the log, and a single byte too many keeps the port
closed.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from mitmproxy.options import Options

from audit.denials import DenialBudget
from audit.writer import Stored
from policies.compile import compile_text
from policies.ledger.memory import MemoryLedger
from proxy.bookkeeper import Bookkeeper
from proxy.call import Call
from proxy.credentials import CredentialStore
from proxy.destination import Resolver
from proxy.enforcer import Admitted, Enforcer, Generation, Refused
from proxy.exchange import Exchange
from proxy.ledger_clock import read_boot_ms
from proxy.metrics import Metrics
from proxy.mitm.master import Master
from proxy.mitm.tls import Originator, Terminator
from proxy.settings import Pin, Settings

_HOST = "origin.selftest.invalid"
_POLICY = """
version: 1
defaults: {{ explain_denials: false }}
agents: {{ self: {{ identity: {{ source: ["127.0.0.0/8"] }} }} }}
rules:
  - id: reach-origin
    verdict: allow
    match:
      host: {host}
      scheme: http
      port: [{port}]
      methods: [GET, POST]
      path: ["/ok", "/switch", "/fault", "/no-ticket"]
      dest_ip: [127.0.0.0/8]
"""
_ANSWER_S = 3.0


class SelfTestFailed(RuntimeError):  # noqa: N818  named after the failure
    """A known way round was open; the server refuses to start."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One message, the statuses that are right, and whether the origin may see it."""

    name: str
    message: bytes
    statuses: tuple[int, ...]  # 0: closed without an answer
    reaches_origin: bool = False
    then: bytes = b""  # sent once the first answer was read


def list_vectors(port: int) -> list[Vector]:
    """The messages, for an origin on `port` (threats.md numbers in the names)."""
    there = f"http://{_HOST}:{port}".encode()
    host = f"Host: {_HOST}:{port}\r\n".encode()

    def get(path: bytes, fields: bytes = host, method: bytes = b"GET") -> bytes:
        return method + b" " + there + path + b" HTTP/1.1\r\n" + fields + b"\r\n"

    connect = f"CONNECT {_HOST}:{port} HTTP/1.1\r\nHost: {_HOST}:{port}\r\n\r\n".encode()
    return [
        Vector("an allowed request passes", get(b"/ok"), (200,), reaches_origin=True),
        Vector("a path no rule allows", get(b"/other"), (403,)),
        Vector("A1 a decision that raises", get(b"/fault"), (403,)),
        # only a part of the body comes: the denial must not wait for the rest
        Vector("A9 a body behind a denied head", get(
            b"/other", host + b"Content-Length: 65536\r\n", b"POST") + b"x" * 1024, (403,)),
        Vector("an allow without a ticket", get(b"/no-ticket"), (0, 403)),
        Vector("A13 garbage", b"\x00\x01\x02 nonsense\r\n\r\n", (400,)),
        Vector("B5 a byte above 0x7f in the path", get(b"/ok\xff"), (400, 403)),
        Vector("B6 no Host", get(b"/ok", b""), (400, 403)),
        Vector("C4 a space in the target", get(b"/ok HTTP/1.1 x"), (400,)),
        Vector("C9 length and chunked", get(
            b"/ok", host + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"POST")
            + b"0\r\n\r\n", (400,)),
        Vector("C13 a bare CR", get(b"/ok", host + b"X: a\rEvil: 1\r\n"), (400, 403)),
        Vector("C14 a folded field", get(b"/ok", host + b"X: a\r\n b\r\n"), (400, 403)),
        Vector("C25 a method in mixed case", get(b"/ok", host, b"gEt"), (400, 403)),
        Vector("D1 something else in a tunnel", connect, (200, 403), then=b"SSH-2.0-probe\r\n"),
        Vector("D3 an origin that switches", get(b"/switch"), (502,), reaches_origin=True),
        Vector("D5 a tunnel to port 53", connect.replace(str(port).encode(), b"53"), (403,)),
        Vector("E1 another Host", get(b"/ok", b"Host: other.selftest.invalid\r\n"), (403,)),
        Vector("E11 a number as host",
            b"GET http://2130706433/ok HTTP/1.1\r\nHost: 2130706433\r\n\r\n", (403,)),
        Vector("E18 CONNECT to nowhere", b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", (400, 403)),
        Vector("G1 dot segments above the root", get(b"/ok/../../ok"), (403,)),
    ]  # fmt: skip


async def prove_gate(
    settings: Settings, terminator: Terminator, options: Options, *, http2: bool
) -> int:
    """Run every vector. Returns how many there were.

    Raises:
        SelfTestFailed: with the name of the vector and what happened.
    """
    origin = _Origin()
    port = await origin.start()
    enforcer, recorder = _furnish(settings, port)
    master = Master(enforcer, terminator, Originator(), options, http2=http2)
    try:
        _, proxy_port = await master.listen(("127.0.0.1", 0))
        vectors = list_vectors(port)
        for vector in vectors:
            seen, recorded = origin.requests, len(recorder.events)
            try:
                status = await _send(proxy_port, vector)
            except TimeoutError:
                raise SelfTestFailed(
                    f"self-test `{vector.name}`: no answer within {_ANSWER_S} s; please report it"
                ) from None
            reached = origin.requests > seen
            if status not in vector.statuses or reached is not vector.reaches_origin:
                raise SelfTestFailed(
                    f"self-test `{vector.name}`: answered {status}, origin reached: {reached};"
                    " this build must not serve; please report it"
                )
            if len(recorder.events) == recorded:
                raise SelfTestFailed(f"self-test `{vector.name}`: no record; please report it")
        return len(vectors)
    finally:
        await master.drain(0.0)
        await origin.stop()


class _Recorder:
    """Keeps events in memory: the self-test must not write into anybody's log."""

    failure: str | None = None

    def __init__(self) -> None:
        self.events: list[Mapping[str, object]] = []

    async def store(self, event: Mapping[str, object]) -> Stored:
        self.events.append(event)
        return Stored(len(self.events), "", "")

    def submit(self, event: Mapping[str, object]) -> None:
        self.events.append(event)


class _ProbedEnforcer(Enforcer):
    """The real one, with two faults that only the self-test's own paths can reach."""

    async def judge(self, exchange: Exchange, call: Call) -> Admitted | Refused:
        if call.head.target.endswith(b"/fault"):
            raise RuntimeError("self-test")
        verdict = await super().judge(exchange, call)
        if call.head.target.endswith(b"/no-ticket") and isinstance(verdict, Admitted):
            return replace(verdict, ticket=None)
        return verdict

    def count_fault(self, where: str, error: BaseException) -> None:
        """Expected here; not logged."""


def _furnish(settings: Settings, port: int) -> tuple[Enforcer, _Recorder]:
    compiled = compile_text(_POLICY.format(host=_HOST, port=port), "self-test")
    pin = Pin(_HOST, port, IPv4Address("127.0.0.1"), port)
    quiet = replace(settings, resolve=(pin,), dns=None, upstream_proxy=None)
    recorder = _Recorder()
    metrics = Metrics()
    bookkeeper = Bookkeeper(MemoryLedger(), recorder=recorder, metrics=metrics, now_ms=read_boot_ms)
    enforcer = _ProbedEnforcer(
        quiet,
        Generation(compiled.policy_set, 1),
        recorder=recorder,
        bookkeeper=bookkeeper,
        resolver=Resolver(quiet.resolve),
        credentials=CredentialStore(Path("/nonexistent/self-test")),
        metrics=metrics,
        denials=DenialBudget(),
        quiet=True,
    )
    return enforcer, recorder


class _Origin:
    """Counts requests; switches protocols when asked to."""

    def __init__(self) -> None:
        self.requests = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(65_536)
        if data:
            self.requests += 1
            if b" /switch " in data:
                writer.write(
                    b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
                )
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()


async def _send(port: int, vector: Vector) -> int:
    """The status of the first answer, 0 where the connection was closed without one."""
    async with asyncio.timeout(_ANSWER_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(vector.message)
            line = await reader.readline()
            status = int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
            if vector.then and status == 200:
                while (await reader.readline()).strip():
                    pass  # the rest of the head
                writer.write(vector.then)
                if await reader.read():
                    return 0xBAD
            return status
        except (ConnectionError, asyncio.IncompleteReadError):
            return 0
        finally:
            writer.close()
