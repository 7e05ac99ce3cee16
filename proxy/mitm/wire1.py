"""HTTP/1.1 bytes, read strictly in both directions (RFC 9112), on mitmproxy's connection layers.

mitmproxy's own readers accept bare LF, odd white space, folded fields and heads without end, answer
errors with
pages that name its version, hold a denial back until the whole body was read, and crash on trailers
(house.md 2.4). Everything they would do with a head is replaced here; bodies keep h11's readers.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

import h11
from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)

from policies.canonical import RawHead, format_head
from policies.model import ContractBroken, Request
from proxy.denial import BAD_REQUEST, Rendered
from proxy.exchange import digest_head
from proxy.head import HeadError, RequestHead, framing, read_request_head, read_response_head
from proxy.mitm.message import build_request, build_response
from proxy.mitm.session import session_of
from proxy.vocabulary import (
    Ticket,
)

_HEAD_END = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAY_BEGIN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z\r\n-]|\Z").match  # a method, or an empty line
_SEEN_BYTES = 512  # of a malformed message that its record shows


@dataclass
class ReceivedHead(RequestHeaders):
    """A request head as it came off the wire, beside mitmproxy's own view of it."""

    raw: RawHead = field(default_factory=lambda: RawHead(b"", b"", ()))


@dataclass
class TicketedHead(RequestHeaders):
    """A request head on its way upstream, with the permission for it."""

    ticket: Ticket | None = None


@dataclass
class Refusal(HttpEvent):
    """Answer with this and read no further."""

    rendered: Rendered


@dataclass
class Continue(HttpEvent):
    """Tell the client to send its body (RFC 9110 section 15.2.1)."""


def wire_request(request: Request) -> http.Request:
    """A judged request in the form mitmproxy sends."""
    return build_request(
        format_head(request),
        b"HTTP/1.1",
        scheme=request.scheme.encode("ascii"),
        host=request.host,
        port=request.port,
    )


def check_ticket(event: RequestHeaders) -> None:
    """The last look before a head leaves: the ticket must be for exactly these bytes.

    Raises:
        ContractBroken: there is no ticket, or it is for something else; the connection is closed.
    """
    ticket = event.ticket if isinstance(event, TicketedHead) else None
    if ticket is None:
        raise ContractBroken("L1: a request head without a ticket")
    request = event.request
    data = request.data
    head = RawHead(data.method, data.path, tuple(request.headers.fields))
    digest = digest_head(request.scheme, request.host, request.port, head)
    if digest != ticket.digest:
        raise ContractBroken("L1: the request is not the one its ticket was issued for")


class StrictHttp1Server(_http1.Http1Server):
    """The agent's side."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._session = session_of(context)
        self._answered = False
        self._heads = 0  # complete ones
        self._awaited: tuple[commands.RequestWakeup, int] | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            yield from self._check_patience(event)
        else:
            yield from super()._handle_event(event)

    def _check_patience(self, event: events.Wakeup) -> CommandGenerator[None]:
        """A head that is still not complete keeps a descriptor for nothing (slowloris, I1)."""
        awaited, self._awaited = self._awaited, None
        if awaited is None or awaited[0] is not event.command or awaited[1] != self._heads:
            return
        if self.state == self.read_headers and self.buf:
            yield from self._reject("the head took too long")

    def _await_head(self) -> CommandGenerator[None]:
        if self._awaited is None and self.buf:
            wakeup = commands.RequestWakeup(self._session.settings.header_timeout_s)
            self._awaited = (wakeup, self._heads)
            yield wakeup

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        """Read one head, or answer 400 and record why it is none."""
        if isinstance(event, events.ConnectionClosed):
            seen = bytes(self.buf)
            if seen.strip(b"\r\n"):
                self._session.record_malformed("the head was not complete", seen[:_SEEN_BYTES])
            yield commands.CloseConnection(self.conn)
            return
        head = self._take_head()
        if head is None:
            yield from self._await_head()
            return
        self._heads += 1
        if isinstance(head, HeadError):
            yield from self._reject(head.why)
            return
        frame = framing(head)
        if isinstance(frame, HeadError):
            yield from self._reject(frame.why)
            return
        if head.method == b"CONNECT" and frame.kind != "none":
            yield from self._reject("a body in CONNECT")
            return
        yield from self._receive(head, frame.kind, frame.length, event)

    def _take_head(self) -> RequestHead | HeadError | None:
        seen, self._seen = bytes(self.buf), b""
        skip = 0
        while seen.startswith(b"\r\n", skip) and skip < 4:
            skip += 2  # RFC 9112 section 2.2: at least one empty line before a request is ignored
        end = seen.find(_HEAD_END, skip)
        limit = self._session.settings.header_bytes_max
        if end < 0:
            if len(seen) > limit:
                return HeadError("head-too-large")
            if not _MAY_BEGIN(seen, skip):  # a second TLS inside the first, a binary protocol (D10)
                return HeadError("no request line")
            bare = seen.find(b"\n", skip)
            if bare >= 0 and (bare == skip or seen[bare - 1] != 0x0D):
                return HeadError("bare line feed")
            return None
        if end + 4 - skip > limit:
            return HeadError("head-too-large")
        raw = self.buf.maybe_extract_at_most(end + 4)
        self._seen = bytes(raw or b"")[skip:]
        self._session.unjudged = self._session.awaiting_answer = True
        return read_request_head(self._seen, count_max=self._session.settings.header_count_max)

    def _receive(
        self, head: RequestHead, kind: str, length: int, event: events.ConnectionEvent
    ) -> CommandGenerator[None]:
        version: Literal["1.0", "1.1"] = "1.0" if head.version == b"HTTP/1.0" else "1.1"
        raw = RawHead(head.method, head.target, head.headers, version)
        self.request = build_request(raw, head.version)
        self._answered = False
        has_body = kind == "chunked" or length > 0
        received = ReceivedHead(self.stream_id, self.request, end_stream=not has_body)
        received.raw = raw
        yield ReceiveHttp(received)
        self.body_reader = _http1.make_body_reader(None if kind == "chunked" else length)
        if self.state == self.read_headers:  # not yet closed by an answer
            self.state = self.read_body
            yield from self.state(event)

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        """As mitmproxy's, but what it cannot read is answered, and trailers do not crash the layer
        (C12)."""
        while True:
            try:
                if isinstance(event, events.DataReceived):
                    message = self.body_reader(self.buf)
                else:
                    message = self.body_reader.read_eof()
            except h11.ProtocolError:
                if isinstance(event, events.ConnectionClosed):
                    yield commands.CloseConnection(self.conn)
                    yield from self._break("client-gone")
                else:
                    yield from self._break("malformed")
                return
            if message is None:
                if len(self.buf) > self._session.settings.header_bytes_max:
                    yield from self._break("malformed")  # a chunk's head or a trailer without end
                return
            if isinstance(message, h11.Data):
                if message.data:
                    yield ReceiveHttp(RequestData(self.stream_id, bytes(message.data)))
                continue
            if message.headers:
                yield from self._break("trailer-refused")
                return
            if self.request is not None and self.request.data.method != b"CONNECT":
                yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            yield from self.mark_done(request=True)
            return

    def wait(self, event: events.Event) -> CommandGenerator[None]:
        """As mitmproxy's, but what is sent ahead of an answer is bounded (I3)."""
        limit = self._session.settings.pipelined_bytes_max
        if isinstance(event, events.DataReceived) and len(self.buf) > limit:
            self._session.record_malformed("too much sent ahead of the answer", b"")
            yield from self._break("malformed")
            yield commands.CloseConnection(self.conn)
            return
        yield from super().wait(event)

    def _break(self, reason: str) -> CommandGenerator[None]:
        self.state = self.done
        yield ReceiveHttp(
            RequestProtocolError(self.stream_id, reason, ErrorCode.GENERIC_CLIENT_ERROR)
        )

    def _reject(self, why: str) -> CommandGenerator[None]:
        seen = self._seen or bytes(self.buf)
        self._session.record_malformed(why, seen[:_SEEN_BYTES])
        self._session.unjudged = self._session.awaiting_answer = False
        yield commands.SendData(self.conn, BAD_REQUEST)
        yield commands.CloseConnection(self.conn)
        self.state = self.done

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        """Towards the agent; our own two events, and no page of mitmproxy's."""
        if isinstance(event, Refusal):
            self.state = self.done
            if not self._answered:
                self._mark_answered()
                yield commands.SendData(self.conn, event.rendered.encode())
            yield commands.CloseConnection(self.conn)
        elif isinstance(event, Continue):
            yield commands.SendData(self.conn, _CONTINUE)
        elif isinstance(event, ResponseTrailers):
            return  # HTTP/1 agents get none
        elif isinstance(event, ResponseProtocolError):
            self.state = self.done
            yield commands.CloseConnection(self.conn)
        else:
            if isinstance(event, ResponseHeaders):
                self._mark_answered()
            yield from super().send(event)

    def _mark_answered(self) -> None:
        self._answered = True
        self._session.awaiting_answer = False


class StrictHttp1Client(_http1.Http1Client):
    """The upstream's side."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._session = session_of(context)

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        """Towards the upstream; a head needs its ticket."""
        if isinstance(event, RequestHeaders):
            check_ticket(event)
        yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        """Read one response head; interim responses are dropped (C22), anything unclear ends the
        connection."""
        if not isinstance(event, events.DataReceived) or self.request is None:
            yield from super().read_headers(event)
            return
        while True:
            seen = bytes(self.buf)
            end = seen.find(_HEAD_END)
            if max(end, len(seen) if end < 0 else 0) > 2 * self._session.settings.header_bytes_max:
                yield from self._break("the response head is too large")
                return
            if end < 0:
                return
            raw = bytes(self.buf.maybe_extract_at_most(end + 4) or b"")
            head = read_response_head(raw, method=self.request.data.method)
            if isinstance(head, HeadError):
                yield from self._break(head.why)
                return
            if head.status >= 200 or head.status == 101:
                break
        self.response = build_response(head.status, head.reason, head.headers, head.version)
        size = {"none": 0, "length": head.length, "chunked": None, "close": -1}[head.framing]
        if self.stream_id is None:
            raise ContractBroken("a response without a request")
        yield ReceiveHttp(ResponseHeaders(self.stream_id, self.response, size == 0))
        self.body_reader = _http1.make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        """As mitmproxy's; trailers of a response are dropped."""
        if self.stream_id is None:
            return
        if self.response_done:  # the answer came before the request was complete: that was all
            yield commands.CloseConnection(self.conn)
            return
        while True:
            try:
                if isinstance(event, events.DataReceived):
                    message = self.body_reader(self.buf)
                else:
                    message = self.body_reader.read_eof()
            except h11.ProtocolError:
                yield from self._break("the response body broke its framing")
                return
            if message is None:
                if len(self.buf) > self._session.settings.header_bytes_max:
                    yield from self._break("a chunk's head or a trailer is too large")
                return
            if isinstance(message, h11.Data):
                if message.data:
                    yield ReceiveHttp(ResponseData(self.stream_id, bytes(message.data)))
                continue
            yield ReceiveHttp(ResponseEndOfMessage(self.stream_id))
            yield from self.mark_done(response=True)
            return

    def mark_done(self, *, request: bool = False, response: bool = False) -> CommandGenerator[None]:
        """As mitmproxy's; under an HTTP/2 client each request has its own upstream connection."""
        yield from super().mark_done(request=request, response=response)
        if self.stream_id is None and self.context.client.alpn == b"h2":
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def _break(self, why: str) -> CommandGenerator[None]:
        yield commands.CloseConnection(self.conn)
        if self.stream_id is not None:
            yield ReceiveHttp(
                ResponseProtocolError(self.stream_id, why, ErrorCode.GENERIC_SERVER_ERROR)
            )
        self.state = self.done
