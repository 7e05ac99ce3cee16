"""Accepts agents' connections, bounds and counts them, and drains them when told to stop.

Not mitmproxy's Master: that one brings an addon manager, a command surface, hot reload and global
state, each a way
round (threats.md A5, A7, A22, A23). What is left is a listening socket and a set of handlers.
"""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Callable
from datetime import datetime

import structlog
from mitmproxy.options import Options

from audit.writer import wall_clock
from proxy.denial import OVERLOADED
from proxy.enforcer import Enforcer
from proxy.mitm.handler import Handler
from proxy.mitm.options import compare_options
from proxy.mitm.session import MintBound
from proxy.mitm.tls import Originator, Terminator
from proxy.settings import DESCRIPTORS_SPARE

log = structlog.get_logger()

_COMPARE_S = 60.0
_BACKLOG = 1024
_ACCEPTS = 16  # in one go: asyncio writes a traceback for each that finds no descriptor (B9)


class Master:
    """The interception side of one process."""

    def __init__(
        self,
        enforcer: Enforcer,
        terminator: Terminator,
        originator: Originator,
        options: Options,
        *,
        http2: bool,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self.enforcer = enforcer
        self._terminator = terminator
        self._originator = originator
        self._options = options
        self._http2 = http2
        self._now = now
        self._minted = MintBound()
        self._connections_max = min(enforcer.settings.connections_max, count_affordable())
        self._handlers: dict[asyncio.Task[None], Handler] = {}
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self.sealed = ""

    async def listen(self, endpoints: socket.socket | tuple[str, int]) -> tuple[str, int]:
        """Open the port. Returns the address that was bound.

        Raises:
            OSError: the address cannot be bound.
            OptionsTampered: mitmproxy's options are not as frozen.
        """
        compare_options(self._options, http2=self._http2)
        if isinstance(endpoints, socket.socket):
            self._server = await asyncio.start_server(
                self._accept, sock=endpoints, backlog=_ACCEPTS
            )
        else:
            host, port = endpoints
            self._server = await asyncio.start_server(self._accept, host, port, backlog=_ACCEPTS)
        listening = socket.socket(fileno=os.dup(self._server.sockets[0].fileno()))
        with listening:
            listening.listen(_BACKLOG)
        self._watch = asyncio.get_running_loop().create_task(self._compare_for_ever())
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    @property
    def connections_open(self) -> int:
        """Client connections that are being served."""
        return len(self._handlers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        try:
            if len(self._handlers) >= self._connections_max or self.sealed:
                self._turn_away(writer)
                return
            handler = Handler(
                reader,
                writer,
                options=self._options,
                enforcer=self.enforcer,
                terminator=self._terminator,
                originator=self._originator,
                minted=self._minted,
                now=self._now,
            )
            self._handlers[task] = handler
            await handler.handle_client()
        except Exception as error:  # noqa: BLE001  one connection's end is not the server's
            self.enforcer.count_fault("accept", error)
        finally:
            self._handlers.pop(task, None)
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    def _turn_away(self, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("",)
        self.enforcer.record_malformed(str(peer[0]), "overloaded", b"")
        writer.write(OVERLOADED)

    async def _compare_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_COMPARE_S)
            try:
                compare_options(self._options, http2=self._http2)
            except Exception as error:  # noqa: BLE001  sealing is the answer to every difference
                self.sealed = str(error)
                self.enforcer.count_fault("options", error)
                log.critical("sealed", cause=str(error))

    def cut(self, predicate: Callable[[Handler], bool], reason: str) -> int:
        """Cut the connections for which `predicate` holds; returns how many."""
        victims = [handler for handler in self._handlers.values() if predicate(handler)]
        for handler in victims:
            handler.cut(reason)
        return len(victims)

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, let what is under way finish, cut the rest after `timeout_s`."""
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None:
            self._server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while self._handlers and loop.time() < until:
            self.cut(lambda handler: not handler.is_busy, "draining")
            await asyncio.sleep(0.02)
        self.cut(lambda _handler: True, "draining")
        while self._handlers and loop.time() < until + 2.0:  # noqa: ASYNC110  they end themselves
            await asyncio.sleep(0.02)


def count_affordable() -> int:
    """Connections there are descriptors for: two each, beside what the rest of us needs (B9)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _BACKLOG * _BACKLOG
    return max(1, (limit - min(DESCRIPTORS_SPARE, limit // 4)) // 2)
