"""WebSocket frames (RFC 6455), passed on as they come and metered, never collected into messages.

Rule 1: only data frames and the close code cross. Pings and pongs are answered here: their
        payload and the close reason would be a channel nobody meters (threats.md D7).
Rule 2: no extension was negotiated (the handshake offers none), so what is counted is what is sent.
Rule 3: nothing is held: a part of a frame goes on as a fragment (D9). A protocol error closes both
        sides.
"""

from collections.abc import Callable
from typing import Any

import wsproto.events
from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from wsproto.connection import Connection as FrameConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from proxy.allowance import Passing
from proxy.vocabulary import (
    Event,
    Failed,
    RequestSent,
    ResponseEnd,
    ResponseReceived,
)

_NORMAL = 1000
_PROTOCOL_ERROR = 1002
_POLICY_VIOLATION = 1008


class WebSocketRelay(layer.Layer):
    """Relays one WebSocket connection of an allowed handshake."""

    def __init__(
        self,
        context: Context,
        advance: Callable[[Event], str | None],
        cover: Callable[[Passing], layer.CommandGenerator[None]],
    ) -> None:
        super().__init__(context)
        self._advance = advance
        self._cover = cover  # waits until a frame is held
        # Each is our end of one connection: a server to the client, a client to the server.
        self._ends: dict[Connection, FrameConnection] = {}
        self._over = False

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            self._ends = {
                self.context.client: FrameConnection(ConnectionType.SERVER),
                self.context.server: FrameConnection(ConnectionType.CLIENT),
            }
            return
        if self._over or not isinstance(event, events.DataReceived | events.ConnectionClosed):
            return
        data = event.data if isinstance(event, events.DataReceived) else None
        if data is None:
            yield from self._end("client-gone" if self._is_client(event.connection) else "")
            return
        source = self._ends[event.connection]
        try:
            source.receive_data(data)
            for frame in source.events():
                if not self._over:
                    yield from self._relay(event.connection, frame)
        except RemoteProtocolError:
            yield from self._break(event.connection)

    def _relay(
        self, origin: Connection, frame: wsproto.events.Event
    ) -> layer.CommandGenerator[None]:
        peer = self.context.server if self._is_client(origin) else self.context.client
        match frame:
            case wsproto.events.Message():
                yield from self._relay_data(origin, peer, frame)
            case wsproto.events.Ping():
                yield from self._send(origin, frame.response())
            case wsproto.events.Pong():
                pass
            case wsproto.events.CloseConnection():
                yield from self._relay_close(origin, peer, frame)
            case _:
                yield from self._break(origin)

    def _relay_data(
        self, origin: Connection, peer: Connection, frame: wsproto.events.Message[Any]
    ) -> layer.CommandGenerator[None]:
        if not frame.data and not frame.message_finished:
            return  # a fragment of nothing: it would tell something that nobody counts
        size = len(frame.data.encode()) if isinstance(frame.data, str) else len(frame.data)
        size = size or 1  # an empty message tells something, too, and must not be free
        count: Passing = ResponseReceived(size, divisible=False)
        if self._is_client(origin):
            count = RequestSent(size, divisible=False)
        yield from self._cover(count)
        cut = self._advance(count)
        if cut:
            yield from self._close_both(_POLICY_VIOLATION, "")
            return
        kind = type(frame)
        yield from self._send(peer, kind(frame.data, message_finished=frame.message_finished))

    def _relay_close(
        self, origin: Connection, peer: Connection, frame: wsproto.events.CloseConnection
    ) -> layer.CommandGenerator[None]:
        if self._ends[origin].state is ConnectionState.OPEN:
            yield from self._break(origin)  # no close came: the parser gave up
            return
        code = frame.code or _NORMAL
        yield from self._send(peer, wsproto.events.CloseConnection(code=code))
        yield from self._send(origin, wsproto.events.CloseConnection(code=code))
        yield from self._end("")

    def _send(
        self, connection: Connection, frame: wsproto.events.Event
    ) -> layer.CommandGenerator[None]:
        try:
            data = self._ends[connection].send(frame)
        except LocalProtocolError:
            return  # that side is closing already
        yield commands.SendData(connection, data)

    def _break(self, culprit: Connection) -> layer.CommandGenerator[None]:
        """One side does not speak RFC 6455."""
        failure = "malformed" if self._is_client(culprit) else "upstream-protocol"
        yield from self._close_both(_PROTOCOL_ERROR, failure)

    def _close_both(self, code: int, failure: str) -> layer.CommandGenerator[None]:
        for connection in self._ends:
            yield from self._send(connection, wsproto.events.CloseConnection(code=code))
        yield from self._end(failure)

    def _end(self, failure: str) -> layer.CommandGenerator[None]:
        self._over = True
        self._advance(Failed(failure) if failure else ResponseEnd())
        yield commands.CloseConnection(self.context.server)
        yield commands.CloseConnection(self.context.client)

    def _is_client(self, connection: Connection) -> bool:
        return connection is self.context.client
