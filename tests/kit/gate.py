"""The interception side in this process: a real Master on a thread of its own, a log in memory.

    with Gate(tmp_path, rules) as gate:
        answer = gate.exchange(b"GET http://api.test:80/ok HTTP/1.1\r\n...")

Sockets and TLS are real; only the process and the disk are left out.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from audit.writer import wall_clock
from proxy.enforcer import Enforcer
from proxy.mitm.ca import LeafMint, create_ca
from proxy.mitm.gates import check_gates
from proxy.mitm.master import Master
from proxy.mitm.options import freeze_options
from proxy.mitm.tls import Originator, Terminator
from proxy.settings import Settings
from tests.kit.enforcement import furnish
from tests.kit.proxy import read_all
from tests.kit.recorder import MemoryRecorder

POLICY = """
version: 1
defaults: {{ explain_denials: {explain} }}
agents: {{ local: {{ identity: {{ source: ["127.0.0.0/8"] }} }} }}
rules:
{rules}
"""
RULE = """
  - id: {id}
    verdict: allow
    match: {{ host: api.test, scheme: [http, https], port: [80, 443], dest_ip: loopback{more} }}
"""


class Gate:
    """Use it with `with`; then `port` takes agents' connections."""

    def __init__(
        self,
        folder: Path,
        rules: str = "",
        *,
        settings: Settings | None = None,
        trusted: tuple[Path, ...] = (),
        explain: bool = False,
        **parts: Any,
    ) -> None:
        text = POLICY.format(
            rules=rules or RULE.format(id="all", more=""), explain=str(explain).lower()
        )
        self.settings = settings or Settings()
        self.recorder = MemoryRecorder()
        self.enforcer: Enforcer
        parts.setdefault("now", wall_clock)
        self.enforcer, _ = furnish(text, recorder=self.recorder, settings=self.settings, **parts)
        self.folder = folder
        create_ca(folder / "ca", datetime.now(UTC))  # noqa: TID251  valid from now on
        http2 = check_gates().http2
        self.mint = LeafMint.load(folder / "ca")
        self.options = freeze_options(idle_timeout_s=int(self.settings.idle_timeout_s), http2=http2)
        self.terminator = Terminator(self.mint, http2=http2)
        self.originator = Originator(trusted)
        self.master = Master(
            self.enforcer, self.terminator, self.originator, self.options, http2=http2
        )
        self.port = 0
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self.run(self.master.listen(("127.0.0.1", 0)))[1]
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._sockets:
            connection.close()
        self.run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    async def _end(self) -> None:
        await asyncio.sleep(0.02)  # whoever was just accepted has begun
        await self.master.drain(0.0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports that were closed say so one turn later

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop of the gate."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    @property
    def ca(self) -> Path:
        """What an agent must trust."""
        return self.folder / "ca" / "ca.pem"

    def connect(self, timeout_s: float = 5.0) -> socket.socket:
        """A plain connection to the gate; closed with it, at the latest."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        self._sockets.append(connection)
        return connection

    def exchange(self, message: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Send bytes, return everything until the gate closes."""
        with self.connect(timeout_s) as connection:
            connection.sendall(message)
            return read_all(connection)

    def tunnel(self, authority: str = "api.test:443", timeout_s: float = 5.0) -> socket.socket:
        """A CONNECT that was answered 200; nothing is spoken inside yet."""
        connection = self.connect(timeout_s)
        connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            data = connection.recv(1)
            if not data:
                break
            answer += data
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            connection.close()
            raise ConnectionError(answer)
        return connection

    def secure(
        self,
        authority: str = "api.test:443",
        *,
        sni: str | None = None,
        protocols: tuple[str, ...] = ("http/1.1",),
        timeout_s: float = 5.0,
    ) -> ssl.SSLSocket:
        """A tunnel with TLS inside, as an agent that trusts our CA opens it."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False
        context.set_alpn_protocols(list(protocols))
        plain = self.tunnel(authority, timeout_s)
        secure = context.wrap_socket(plain, server_hostname=sni or authority.rpartition(":")[0])
        self._sockets.append(secure)
        return secure

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """The events of a kind, once there are `count`."""
        until = time.monotonic() + timeout_s
        while len(self.recorder.of(kind)) < count and time.monotonic() < until:
            time.sleep(0.005)
        return self.recorder.of(kind)

    def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        """Until no exchange and no connection is open."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            with contextlib.suppress(RuntimeError):
                if not self.enforcer.open_exchanges and not self.master.connections_open:
                    return
            time.sleep(0.005)
        raise TimeoutError("something is still open")


def eventually(read: Callable[[], Any], expected: object, timeout_s: float = 5.0) -> None:
    """Wait until `read` gives what is expected: for what happens on threads of others.

    Raises:
        AssertionError: it never did.
    """
    until = time.monotonic() + timeout_s
    while (found := read()) != expected:
        if time.monotonic() > until:
            raise AssertionError(f"{found!r} is not {expected!r}")
        time.sleep(0.005)
