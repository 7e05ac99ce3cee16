"""HTTP on one client connection: which stream a message belongs to, and which upstream connection
it may use.

Only connections that were dialled under a ticket exist here, and a request may reuse one only where
its own ticket
names the very address that is at the other end: what was judged is what is reached, also on a warm
connection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    RegisterHttpConnection,
)
from mitmproxy.proxy.utils import expect

from policies.model import Address, Scheme
from proxy.call import Tunnel
from proxy.mitm.session import session_of
from proxy.mitm.tls_layers import OriginTls
from proxy.mitm.wire1 import StrictHttp1Client, StrictHttp1Server
from proxy.mitm.wire2 import StrictHttp2Client, StrictHttp2Server
from proxy.vocabulary import (
    Ticket,
)


@dataclass
class Dial(GetHttpConnection):
    """Get a connection for exactly this ticket."""

    ticket: Ticket | None = None

    def __hash__(self) -> int:
        return id(self)


class GatedHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with our streams, our wire layers and our rule for reuse."""

    def __init__(
        self, context: Context, tunnel: Tunnel | None = None, *, tls: bool = False
    ) -> None:
        super().__init__(context, HTTPMode.transparent if tunnel else HTTPMode.regular)
        self.tunnel = tunnel
        self.tls = tls
        self.session = session_of(context)
        self._ended: set[Connection] = set()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            http2 = self.context.client.alpn == b"h2"
            context = self.context.fork()
            server = StrictHttp2Server(context) if http2 else StrictHttp1Server(context)
            if isinstance(server, StrictHttp2Server) and self.tunnel is not None:
                server.is_explained = bool(self.tunnel.refusal)
            self.connections[self.context.client] = server
        yield from super()._handle_event(event)
        if (
            isinstance(event, events.ConnectionClosed)
            and event.connection is not self.context.client
        ):
            self._ended.add(event.connection)
        elif isinstance(event, events.OpenConnectionCompleted) and event.reply:
            self._ended.add(event.command.connection)

    def _forget_ended(self) -> None:
        """Drop upstream connections that are over and that no stream may still write to: with a new
        one for every request, an agent that stays would have us keep all of them."""
        used = {stream.context.server for stream in self.streams.values()}
        for connection in self._ended - used - self.waiting_for_establishment.keys():
            self._ended.discard(connection)
            self.connections.pop(connection, None)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """A stream of ours for every message."""
        from proxy.mitm.stream import Stream

        self.streams[stream_id] = Stream(self.context.fork(), stream_id, self)  # type: ignore[assignment]
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def standing_peer(self, host: str, port: int, scheme: Scheme) -> tuple[Address, int] | None:
        """Address and port of a live connection that a request to this destination would reuse."""
        for connection in self.connections:
            if isinstance(connection, Server) and self._is_reusable(
                connection, (host, port), tls=scheme == "https"
            ):
                ticket = self.session.tickets.get(connection)
                if ticket is not None and connection.peername:
                    return ip_address(connection.peername[0].partition("%")[0]), ticket.dial_port
        return None

    def _is_reusable(self, connection: Server, address: tuple[str, int], *, tls: bool) -> bool:
        return (
            connection.address == address
            and connection.tls is tls
            and connection.connected
            and not connection.error
            and connection not in self.waiting_for_establishment
            # an HTTP/1 upstream serves one request at a time; an HTTP/2 client sends many
            and (self.context.client.alpn != b"h2" or connection.alpn == b"h2")
        )

    def get_connection(
        self, event: GetHttpConnection, *, reuse: bool = True
    ) -> layer.CommandGenerator[None]:
        """A connection under the command's ticket: a standing one to a vetted address, or a new
        one."""
        ticket = event.ticket if isinstance(event, Dial) else None
        if ticket is None:
            stream = self.command_sources.pop(event)
            failed = GetHttpConnectionCompleted(event, (None, "contract-broken"))
            yield from self.event_to_child(stream, failed)
            return
        for connection in list(self.connections) if reuse else []:
            if not isinstance(connection, Server) or not self._suits(connection, event, ticket):
                continue
            if connection in self.waiting_for_establishment:
                self.waiting_for_establishment[connection].append(event)
                return
            stream = self.command_sources.pop(event)
            done = GetHttpConnectionCompleted(event, (connection, None))
            yield from self.event_to_child(stream, done)
            return
        yield from self._open(event, ticket)

    def _suits(self, connection: Server, event: GetHttpConnection, ticket: Ticket) -> bool:
        if connection in self.waiting_for_establishment:
            pending = self.session.tickets.get(connection)
            return (
                event.connection_spec_matches(connection)
                and pending is not None
                and (pending.addresses, pending.dial_port) == (ticket.addresses, ticket.dial_port)
            )
        standing = self._is_reusable(connection, event.address, tls=event.tls)
        if not standing or not connection.peername:
            return False
        peer = ip_address(connection.peername[0].partition("%")[0])
        return peer in ticket.addresses and connection.peername[1] == ticket.dial_port

    def _open(self, event: GetHttpConnection, ticket: Ticket) -> layer.CommandGenerator[None]:
        self._forget_ended()
        context = self.context.fork()
        context.server = Server(address=event.address, transport_protocol="tcp")
        self.session.tickets[context.server] = ticket
        stack = tunnel.LayerStack()
        if event.tls:
            context.server.sni = event.address[0]
            context.server.alpn_offers = self._protocols()
            stack /= OriginTls(context)
        stack /= GatedHttpClient(context)
        self.connections[context.server] = stack[0]
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(stack[0], events.Start())

    def _protocols(self) -> Sequence[bytes]:
        if self.context.client.alpn == b"h2":
            return (b"h2", b"http/1.1")
        return (b"http/1.1",)


class GatedHttpClient(layer.Layer):
    """Opens one upstream connection, then speaks whatever was negotiated on it."""

    @expect(events.Start)
    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        err: str | None = yield commands.OpenConnection(self.context.server)
        if not err:
            http2 = self.context.server.alpn == b"h2"
            client = StrictHttp2Client if http2 else StrictHttp1Client
            child = client(self.context)
            self._handle_event = child.handle_event
            yield from self._handle_event(event)
        yield RegisterHttpConnection(self.context.server, err)
