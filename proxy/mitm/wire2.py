"""HTTP/2 frames (RFC 9113) on mitmproxy's connection layers: strict heads, bounded buffers,
recorded violations."""

import h2.connection
import h2.events
import h2.exceptions
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import _http2
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from policies.canonical import RawHead
from proxy.mitm.message import build_request
from proxy.mitm.session import session_of
from proxy.mitm.window import RETRY_S, MeteredConnection
from proxy.mitm.wire1 import Continue, ReceivedHead, Refusal, check_ticket

_PSEUDO = (b":method", b":scheme", b":authority", b":path")
_STREAMS_MAX = 100  # at once, per connection
_RESETS_MAX = 200  # by the client, per connection: more is a rapid reset (CVE-2023-44487)
_HEADER_TABLE_BYTES_MAX = 4096
_DISCARDED_BYTES_MAX = 4 * 1024 * 1024  # of a refused upload whose client does not stop
_NO_ERROR = 0x0
_CANCEL = 0x8
_INTERNAL_ERROR = 0x2


class StrictHttp2Server(_http2.Http2Server):
    """The agent's side."""

    is_explained = False  # a denied tunnel, open for one answer (SPEC section 3)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._session = session_of(context)
        self._session.lag.watch(self._count_unsent)
        self._resets = 0
        self._refused: dict[int, int] = {}  # bytes thrown away, by stream
        self.h2_conn.local_settings.max_concurrent_streams = _STREAMS_MAX
        self.h2_conn.local_settings.acknowledge()

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, Refusal):
            yield from self._refuse(event)
        elif isinstance(event, Continue):
            if self.is_open_for_us(event.stream_id):
                self.h2_conn.send_headers(event.stream_id, [(b":status", b"100")])
                yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        elif isinstance(event, ResponseProtocolError):
            yield from self._reset(event.stream_id)
        else:
            yield from super()._handle_event(event)
            if isinstance(event, ResponseData):
                yield from self._bound_buffer(event.stream_id)

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        """As mitmproxy's, but heads are read here and resets are counted."""
        if isinstance(event, h2.events.RequestReceived):
            return (yield from self._receive(event))
        if isinstance(event, h2.events.RemoteSettingsChanged):
            bound_header_table(self.h2_conn)
        if isinstance(event, h2.events.DataReceived) and event.stream_id in self._refused:
            self._discard(event)
        if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            self._refused.pop(event.stream_id or 0, None)
        if isinstance(event, h2.events.StreamReset):
            self._resets += 1
            if self._resets > _RESETS_MAX:
                yield from self.protocol_error("too many resets")
                return True
            if event.stream_id not in self.streams:
                # it ended and was reset in one piece: mitmproxy forgot it at the end, and the
                # exchange would go on for nobody, holding what it holds
                gone = RequestProtocolError(event.stream_id or 0, "client-gone", ErrorCode.CANCEL)
                yield ReceiveHttp(gone)
                return False
        return (yield from super().handle_h2_event(event))

    def protocol_error(self, message: str, error_code: int = 1) -> CommandGenerator[None]:
        """Record what mitmproxy would only have logged (A13), then GOAWAY and close."""
        self._session.record_malformed(f"HTTP/2: {message}"[:200], b"")
        self._session.unjudged = False
        self.h2_conn.close_connection(error_code)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.close_connection(message)

    def _receive(self, event: h2.events.RequestReceived) -> CommandGenerator[bool]:
        self._session.unjudged = True
        settings = self._session.settings
        head = split_head(
            event.headers or [],
            bytes_max=settings.header_bytes_max,
            count_max=settings.header_count_max,
        )
        if isinstance(head, str):
            yield from self.protocol_error(head)
            return True
        pseudo, fields = head
        self.streams[event.stream_id] = _http2.StreamState.HEADERS_RECEIVED
        ended = bool(event.stream_ended)
        raw = RawHead(
            pseudo[b":method"],
            pseudo[b":path"],
            tuple(fields),
            "2",
            authority=pseudo[b":authority"],
            ends_stream=ended,
        )
        request = build_request(raw, b"HTTP/2.0", scheme=b"https")
        received = ReceivedHead(event.stream_id, request, end_stream=ended)
        received.raw = raw
        yield ReceiveHttp(received)
        return False

    def _refuse(self, event: Refusal) -> CommandGenerator[None]:
        """The answer; what the client still sends on this stream is thrown away.

        An RST_STREAM right behind it would be in order (RFC 9113 section 8.1), but clients in the
        middle of an upload then report a broken stream and not our 403 (curl 7.88). So they get it
        only where they go on and on.
        """
        if not self.is_open_for_us(event.stream_id):
            return
        rendered = event.rendered
        fields = [(b":status", b"%d" % rendered.status)]
        fields += [(n.lower(), v) for n, v in rendered.headers if n.lower() != b"connection"]
        self.h2_conn.send_headers(event.stream_id, fields, end_stream=not rendered.body)
        if rendered.body:
            self.h2_conn.send_data(event.stream_id, rendered.body, end_stream=True)
        if not self.is_closed(event.stream_id):
            self._refused[event.stream_id] = 0
        self.streams.pop(event.stream_id, None)
        if self.is_explained:
            self.h2_conn.close_connection(_NO_ERROR)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        if self.is_explained:
            yield from self.close_connection("explained")

    def _discard(self, event: h2.events.DataReceived) -> None:
        stream_id = event.stream_id or 0
        self._refused[stream_id] += len(event.data or b"")
        if self._refused[stream_id] > _DISCARDED_BYTES_MAX and not self.is_closed(stream_id):
            del self._refused[stream_id]
            self.h2_conn.reset_stream(stream_id, _NO_ERROR)

    def _reset(self, stream_id: int) -> CommandGenerator[None]:
        if not self.is_closed(stream_id):
            self.h2_conn.reset_stream(stream_id, _CANCEL)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())

    def _count_unsent(self, stream_id: int) -> int:
        """What waits for the agent to open a stream's window."""
        return sum(len(chunk.data) for chunk in self.h2_conn.stream_buffers.get(stream_id, ()))

    def _bound_buffer(self, stream_id: int) -> CommandGenerator[None]:
        """A client that opens no window makes us hold what the upstream sends: past the cap, reset
        the stream."""
        if stream_id not in self.h2_conn.stream_buffers:
            return
        if count_held_bytes(self.h2_conn) > self._session.settings.h2_buffer_bytes_max:
            self.h2_conn.reset_stream(stream_id, _INTERNAL_ERROR)
            self.streams.pop(stream_id, None)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
            yield ReceiveHttp(
                self.ReceiveProtocolError(
                    stream_id, "client-too-slow", self.ReceiveProtocolError.code
                )
            )


class StrictHttp2Client(_http2.Http2Client):
    """The upstream's side."""

    h2_conn: MeteredConnection

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._session = session_of(context)
        self.h2_conn = MeteredConnection(self.h2_conf)
        self._retry: commands.RequestWakeup | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self._retry:
            self._retry = None
            yield from self._open_windows()
            return
        if isinstance(event, RequestHeaders):
            check_ticket(event)
        yield from super()._handle_event(event)
        yield from self._open_windows()
        # an upstream that opens no window: its agent has to wait, or we would hold the upload
        limit = self._session.settings.h2_buffer_bytes_max
        full = count_held_bytes(self.h2_conn) > limit
        self._session.pressure.report(self, full=full)

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        """As mitmproxy's; the upstream does not choose how much we remember for it."""
        if isinstance(event, h2.events.RemoteSettingsChanged):
            bound_header_table(self.h2_conn)
        return (yield from super().handle_h2_event(event))

    def close_connection(self, msg: str) -> CommandGenerator[None]:
        """As mitmproxy's; what was not sent never will be."""
        self.h2_conn.stream_buffers.clear()
        yield from super().close_connection(msg)

    def _open_windows(self) -> CommandGenerator[None]:
        """For every stream whose agent keeps up; the others are looked at again soon."""
        connection = self.h2_conn
        if connection.state_machine.state is h2.connection.ConnectionState.CLOSED:
            return
        behind = False
        for ours in list(connection.owed):
            if self._session.lag.is_behind(self.their_stream_id[ours]):
                behind = True
            else:
                connection.settle(ours)
        if data := connection.data_to_send():
            yield commands.SendData(self.conn, data)
        if behind and self._retry is None:
            self._retry = commands.RequestWakeup(RETRY_S)
            yield self._retry

    def protocol_error(self, message: str, error_code: int = 1) -> CommandGenerator[None]:
        """GOAWAY without mitmproxy's text; the streams learn of it and answer 502."""
        self.h2_conn.close_connection(error_code)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.close_connection(message)


def count_held_bytes(connection: BufferedH2Connection) -> int:
    """What waits for the peer to open its windows."""
    return sum(len(chunk.data) for queue in connection.stream_buffers.values() for chunk in queue)


def bound_header_table(connection: BufferedH2Connection) -> None:
    """Keep our encoder's table at the default, however much the peer would remember (RFC 7541 4.2).

    The table is searched entry by entry: at 4 GB, each answer would cost more than the one before.
    """
    encoder = connection.encoder
    encoder.header_table_size = min(encoder.header_table_size, _HEADER_TABLE_BYTES_MAX)
    told = encoder.table_size_changes  # with the next head: the smallest and the last are enough
    told[:] = sorted({min(told), told[-1]}) if told else []


def split_head(
    headers: list[tuple[bytes, bytes]], *, bytes_max: int = 2**16, count_max: int = 2**16
) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]] | str:
    """Pseudo-header fields (each exactly once, RFC 9113 section 8.3.1) and the rest; or what is
    wrong.

    CONNECT and extended CONNECT inside a tunnel have other sets of fields and are refused with
    that.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name.startswith(b":"):
            if name in pseudo or name not in _PSEUDO or fields:
                return "pseudo-header fields"
            pseudo[bytes(name)] = bytes(value)
        else:
            fields.append((bytes(name), bytes(value)))
    if set(pseudo) != set(_PSEUDO):
        return "pseudo-header fields"
    crumbs = sum(name == b"cookie" for name, _ in fields)  # one field, split (RFC 9113 8.2.3)
    if len(fields) - crumbs + bool(crumbs) > count_max:
        return "head-too-large"
    if sum(len(name) + len(value) + 4 for name, value in headers) > bytes_max:
        return "head-too-large"
    return pseudo, fields
