"""The fail-closed choke point: one per client connection. Everything mitmproxy would do to the
outside passes here.

mitmproxy swallows exceptions in three places and lets the flow go on (house.md 2.4). So here

1. a hook that raises, hangs or is unknown poisons its subject: the request is denied, the
   connection closed;
2. a layer that crashes closes both sides, with an answer if one is owed, and leaves a record;
3. `open_connection` dials only the addresses of a ticket, and looks again at whom it reached;
4. no byte goes to an upstream connection that was not dialled under a ticket;
5. closing a client connection lets what was sent arrive: FIN first, then the rest of its input
   is thrown away.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from ipaddress import ip_address
from typing import Any

import structlog
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO

from policies.model import ContractBroken
from proxy.denial import LAST_RESORT
from proxy.enforcer import Admitted, Enforcer
from proxy.fault import ANY_FAULT
from proxy.mitm.choice import choose_layer
from proxy.mitm.dial import dial, explain_failure
from proxy.mitm.handshake import TlsHooks
from proxy.mitm.hooks import Extend, Judge, require_answer
from proxy.mitm.layers import GatedHttpLayer
from proxy.mitm.pressure import Hasten, Pause, Timers
from proxy.mitm.session import Caller, MintBound, Session
from proxy.mitm.tls import Originator, Terminator
from proxy.vocabulary import Failed

log = structlog.get_logger()

_NET_S = 0.05  # the handler's own deadline lies just outside the enforcer's
_LINGER_S = 1.0
_LINGER_BYTES = 4 * 1024 * 1024
_READ_BYTES = 65_535

Hook = Callable[[Any], Awaitable[None]]


class Handler(TlsHooks, ConnectionHandler):
    """See the module."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        options: Options,
        enforcer: Enforcer,
        terminator: Terminator,
        originator: Originator,
        minted: MintBound,
        now: Callable[[], Any],
    ) -> None:
        peer = writer.get_extra_info("peername")
        client = Caller(
            peername=peer,
            sockname=writer.get_extra_info("sockname"),
            timestamp_start=time.monotonic(),
            state=ConnectionState.OPEN,
        )
        address = str(ip_address(peer[0].partition("%")[0]))
        self.session = Session(
            enforcer, terminator, originator, client=address, now=now, minted=minted
        )
        client.session = self.session
        context = Context(client, options)
        super().__init__(context)
        self.layer = GatedHttpLayer(context)
        self.transports[client] = ConnectionIO(handler=None, reader=reader, writer=writer)
        self.enforcer = enforcer
        self._pending: collections.deque[events.Event] = collections.deque()
        self._dispatching = False
        self._judging = Pause()
        self._extending = Pause()  # a stream waits for its budget: what is read could not go on
        self._unread_bytes = 0
        self._lingering = False
        self._linger_bytes = 0
        self._crashed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers = Timers(self.wakeup_timer)
        self.hooks: dict[type, Hook] = {
            Judge: self.judge,
            Extend: self.extend,
            layer.NextLayerHook: self.next_layer,
            server_hooks.ClientConnectedHook: self.client_connected,
            server_hooks.ClientDisconnectedHook: self.client_disconnected,
            tls.TlsClienthelloHook: self.tls_clienthello,
            tls.TlsStartClientHook: self.tls_start_client,
            tls.TlsStartServerHook: self.tls_start_server,
            tls.TlsEstablishedClientHook: self.tls_established,
            tls.TlsEstablishedServerHook: self.tls_established,
            tls.TlsFailedClientHook: self.tls_failed_client,
            tls.TlsFailedServerHook: self.tls_failed_server,
        }

    # --- hooks: each may fail in any way it likes

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Run one hook under a deadline; whatever goes wrong poisons its subject."""
        try:
            run = self.hooks.get(type(hook))
            if run is None:
                raise ContractBroken(f"no hook for {hook.name}")
            if isinstance(hook, Judge):
                await self._bounded_judge(run, hook)
            else:
                async with asyncio.timeout(self.session.settings.hook_deadline_s):
                    await run(hook)
            require_answer(hook)
        except BaseException as error:
            self.poison(hook, error)
            task = asyncio.current_task()
            ending = task is not None and task.cancelling() > 0
            if ending or isinstance(error, KeyboardInterrupt | SystemExit):
                raise

    async def _bounded_judge(self, run: Hook, hook: Judge) -> None:
        """The enforcer bounds itself, letting only DNS outlast its deadline; this is the net below
        it."""
        settings = self.session.settings
        task = asyncio.ensure_future(run(hook))
        done, _ = await asyncio.wait({task}, timeout=settings.hook_deadline_s + _NET_S)
        if not done and self.enforcer.is_resolving(hook.stream.exchange):
            done, _ = await asyncio.wait({task}, timeout=settings.dns_timeout_s + 1.0)
        if not done:
            task.cancel()
            raise TimeoutError
        await task

    def poison(self, hook: commands.StartHook, error: BaseException) -> None:
        """Make sure that nothing is forwarded because of a hook that failed; never raises an
        Exception."""
        self.enforcer.count_fault(f"hook-{hook.name}", error)
        try:
            if isinstance(hook, Judge):
                stream = hook.stream
                stream.verdict = None
                if stream.exchange is not None:
                    stream.verdict = self.enforcer.abandon(stream.exchange, error)
                else:
                    self.session.record_malformed("internal-error", b"")
            elif isinstance(hook, layer.NextLayerHook):
                hook.data.layer = choose_layer(hook.data.context, b"", refuse="internal-error")
            elif isinstance(hook, server_hooks.ClientConnectedHook):
                self._turn_away("internal-error")
            elif isinstance(hook, server_hooks.ClientDisconnectedHook):
                self.session.end("client-gone")
            elif isinstance(hook, tls.TlsStartClientHook | tls.TlsStartServerHook):
                hook.data.ssl_conn = None  # the layer then closes the connection
                self.record_tls_fault(hook)
            elif isinstance(hook, Extend):
                pass  # nothing was granted: the stream is cut at what it holds
            else:
                if not self.session.exchanges:  # else the outcome tells
                    self.session.record_malformed("internal-error", b"")
                self._crash(error)
        except ANY_FAULT as second:  # the subject is closed below whatever happens
            self.enforcer.count_fault("poison", second)
            self._crash(second)

    async def judge(self, hook: Judge) -> None:
        """The one decision path."""
        stream = hook.stream
        if stream.call is None:
            raise ContractBroken("nothing to judge")
        stream.exchange = self.enforcer.open(stream.call)
        stream.verdict = await self.enforcer.judge(stream.exchange, stream.call)

    async def extend(self, hook: Extend) -> None:
        """A stream waits for more of its budget; where there is none, it cuts itself."""
        await self.enforcer.extensions.extend(hook.exchange, hook.event)

    async def client_connected(self, _hook: server_hooks.ClientConnectedHook) -> None:
        """Nothing is decided here: master.py admitted the connection."""

    async def client_disconnected(self, _hook: server_hooks.ClientDisconnectedHook) -> None:
        """Every exchange that is still open gets its outcome."""
        self.session.end("client-gone")

    async def next_layer(self, hook: layer.NextLayerHook) -> None:
        """What is spoken inside a tunnel: TLS, HTTP, or nothing we pass on."""
        hook.data.layer = choose_layer(hook.data.context, hook.data.data_client())

    # --- the event loop of one connection

    async def server_event(self, event: events.Event) -> None:
        """Feed one event to the layers and carry out what they ask for. Never raises an
        Exception."""
        self._pending.append(event)
        if self._dispatching:
            return  # an eager task came back while its cause is still being carried out
        self._dispatching = True
        try:
            self.timeout_watchdog.register_activity()
            while self._pending:
                self._dispatch(self._pending.popleft())
        except ANY_FAULT as error:  # counted; both sides are closed
            self._crash(error)
        finally:
            self._dispatching = False

    def _dispatch(self, event: events.Event) -> None:
        if self._crashed:
            return
        from_client = isinstance(event, events.ConnectionEvent) and event.connection is self.client
        if self._lingering and from_client:
            return
        for command in self.layer.handle_event(event):
            self._carry_out(command)

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.SendData():
                self._send(command)
            case commands.StartHook():
                pause = self._pause(command)
                if pause is not None:
                    pause.begin()
                self._spawn(self.hook_task(command))
            case commands.OpenConnection():
                self.transports[command.connection] = ConnectionIO(handler=None)
                task = self._spawn(self.open_connection(command))
                if command.connection in self.transports:
                    self.transports[command.connection].handler = task
            case commands.CloseTcpConnection():
                if command.connection in self.transports:
                    self.close_connection(command.connection, command.half_close)
            case commands.CloseConnection():
                if command.connection in self.transports:
                    self.close_connection(command.connection)
            case commands.RequestWakeup():
                self._timers.keep(command, self._spawn(self.wakeup(command)))
            case Hasten():
                if self._timers.end(command.wakeup):
                    self._pending.append(events.Wakeup(command.wakeup))
            case commands.Log():
                pass  # mitmproxy's texts quote agents' bytes; what matters has its own record
            case _:
                raise ContractBroken(f"unexpected command {type(command).__name__}")

    def _send(self, command: commands.SendData) -> None:
        connection = command.connection
        if connection is not self.client and connection not in self.session.tickets:
            raise ContractBroken("L1: bytes for an upstream without a ticket")
        io = self.transports.get(connection)
        if io is None or io.writer is None or (self._lingering and connection is self.client):
            return  # closed in the meantime
        if not io.writer.is_closing():
            io.writer.write(command.data)

    async def hook_task(self, hook: commands.StartHook) -> None:
        """Run a hook and report it done."""
        try:
            await self.handle_hook(hook)
        finally:
            pause = self._pause(hook)
            if pause is not None:
                pause.end()
            if not self._judging:
                self._unread_bytes = 0
        if isinstance(hook, Judge) and (self._crashed or self.session.ended):
            self._withdraw(hook)  # nobody is left to act on the verdict
        elif hook.blocking:
            if isinstance(hook, Judge) and isinstance(hook.stream.verdict, Admitted):
                exchange = hook.stream.verdict.exchange
                self.session.exchanges[exchange.id] = exchange  # a crash now leaves an outcome
            await self.server_event(events.HookCompleted(hook))

    def _pause(self, hook: commands.StartHook) -> Pause | None:
        match hook:
            case Judge():
                return self._judging
            case Extend():
                return self._extending
        return None

    def _withdraw(self, hook: Judge) -> None:
        verdict, hook.stream.verdict = hook.stream.verdict, None
        if isinstance(verdict, Admitted):
            self.enforcer.advance(verdict.exchange, Failed("client-gone"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """Something inside broke: answer if an answer is owed, record, close everything."""
        if self._crashed:
            return
        self._crashed = True
        reason = "contract-broken" if isinstance(error, ContractBroken) else "internal-error"
        session = self.session
        for step in (  # one that fails as well must not keep the next from being done
            lambda: self.enforcer.count_fault("handler", error),
            lambda: session.end(reason),
            lambda: session.record_malformed(reason, b"") if session.unjudged else None,
            self._answer_last_resort,
        ):
            with contextlib.suppress(*ANY_FAULT):
                step()
        for connection in list(self.transports):
            if connection is not self.client:
                self.close_connection(connection)
        if self.client in self.transports:
            self.close_connection(self.client)

    def _answer_last_resort(self) -> None:
        io = self.transports.get(self.client)
        if not self.session.awaiting_answer or io is None or io.writer is None:
            return
        self.session.awaiting_answer = False
        connection = self.session.client_tls
        if connection is None:
            io.writer.write(LAST_RESORT)
        elif connection.get_alpn_proto_negotiated() != b"h2":
            connection.sendall(LAST_RESORT)
            io.writer.write(connection.bio_read(65_535))

    def _turn_away(self, reason: str) -> None:
        """Refuse a connection before anything was read."""
        self.session.record_malformed(reason, b"")
        io = self.transports.get(self.client)
        if io is not None and io.writer is not None:
            io.writer.write(LAST_RESORT)
        self.client.error = reason

    # --- connections

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dial one of the vetted addresses, under the ticket this connection was made for."""
        server = command.connection
        ticket = self.session.tickets.get(server)
        try:
            if ticket is None:
                raise ContractBroken("L1: dialling without a ticket")
            settings = self.session.settings
            reached = await dial(ticket, settings.connect_timeout_s, settings.upstream_proxy)
        except BaseException as error:
            reason = explain_failure(error)
            server.error = reason
            self.transports.pop(server, None)
            await self.server_event(events.OpenConnectionCompleted(command, reason))
            if isinstance(error, ContractBroken):
                self.enforcer.count_fault("dial", error)
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise
            return
        server.state = ConnectionState.OPEN
        server.peername = (str(reached.address), ticket.dial_port)
        server.sockname = reached.writer.get_extra_info("sockname")
        task = asyncio.current_task()
        self.transports[server] = ConnectionIO(
            handler=task, reader=reached.reader, writer=reached.writer
        )
        deadline_s = self.session.settings.connect_timeout_s
        bound = asyncio.get_running_loop().call_later(deadline_s, self._end_handshake, server)
        await self.server_event(events.OpenConnectionCompleted(command, None))
        try:
            await self.handle_connection(server)
        finally:
            bound.cancel()

    def _end_handshake(self, server: Server) -> None:
        """An upstream that accepts and then does not finish TLS would hold the request for ever
        (F14)."""
        if server.tls and not server.tls_established and server in self.transports:
            self.close_connection(server)

    async def handle_connection(self, connection: Connection) -> None:
        """Read until the end, then let half-closed connections finish."""
        io = self.transports[connection]
        cancelled: BaseException | None = None
        try:
            await self._read(connection, io)
        except OSError:
            pass
        except asyncio.CancelledError as error:
            cancelled = error
        connection.state &= ~ConnectionState.CAN_READ
        if cancelled is not None:
            connection.state = ConnectionState.CLOSED
        await self.server_event(events.ConnectionClosed(connection))
        if cancelled is None and connection.state is ConnectionState.CAN_WRITE:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                cancelled = error
        writer = io.writer
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
        self.transports.pop(connection, None)
        if cancelled is not None:
            raise cancelled

    async def _read(self, connection: Connection, io: ConnectionIO) -> None:
        reader = io.reader
        if not isinstance(reader, asyncio.StreamReader):
            raise ContractBroken("not a stream")
        while data := await reader.read(_READ_BYTES):
            if connection is self.client:
                if self._lingering:
                    self._linger_bytes += len(data)
                    if self._linger_bytes > _LINGER_BYTES:
                        return
                    continue
                if self._judging:
                    self._unread_bytes += len(data)
            await self.server_event(events.DataReceived(connection, data))
            await self._extending.wait()
            if connection is self.client and (
                self._unread_bytes > self.session.settings.pipelined_bytes_max
            ):
                await self._judging.wait()
            if connection is self.client:
                await self.session.pressure.wait()
            await self.drain_writers()
            if isinstance(connection, Server):
                await self.session.lag.wait(connection)
            else:
                self.session.lag.move()

    def close_connection(self, connection: Connection, half_close: bool = False) -> None:
        """Close; the client's side lingers so that the answer is not lost to a reset (RFC 9112
        section 9.6)."""
        io = self.transports.get(connection)
        if io is None:
            return
        if connection is self.client:
            self._linger(io)
            return
        if half_close:
            super().close_connection(connection, half_close=True)
            return
        connection.state = ConnectionState.CLOSED
        if io.handler is not None:
            io.handler.cancel("closed by command")

    def _linger(self, io: ConnectionIO) -> None:
        if self._lingering:
            return
        self._lingering = True
        self.client.state = ConnectionState.CLOSED
        writer = io.writer
        if isinstance(writer, asyncio.StreamWriter) and not writer.is_closing():
            with contextlib.suppress(OSError, RuntimeError):
                if writer.can_write_eof():
                    writer.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_S, self._stop_lingering)

    def _stop_lingering(self) -> None:
        io = self.transports.get(self.client)
        if io is not None and io.handler is not None:
            io.handler.cancel("lingered")

    @property
    def is_busy(self) -> bool:
        """A request is being judged, or is under way."""
        return bool(self._judging) or bool(self.session.exchanges)

    def cut(self, reason: str) -> None:
        """End this connection from outside: a drain that is over, a policy that no longer allows
        it."""
        self.session.end(reason)
        for connection in list(self.transports):
            if connection is not self.client:
                self.close_connection(connection)
        io = self.transports.get(self.client)
        if io is not None and io.handler is not None:
            io.handler.cancel(reason)

    def log(self, *_args: object, **_keywords: object) -> None:
        """mitmproxy's own connection log: agents' bytes may be in it, and our exchange lines say
        more."""
