"""One exchange on mitmproxy's HTTP layer: the wire's events go to the enforcer, its verdict to the
wire.

    head -> Judge (the one hook) -> Refusal
                                 -> Dial(ticket) -> head upstream -> bodies both ways -> end

Nothing is held back: bodies stream in both directions as they come. Nothing leaves before `Judge`
answered with a
ticket, and the wire layer checks that ticket again against the very head it is about to send.
"""

from typing import Any

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)

from policies.model import ContractBroken, Request, Scheme
from policies.reasons import REASONS
from proxy.allowance import Passing
from proxy.budget_header import BUDGET_HEADER
from proxy.call import Call, Tunnel, find_authorization
from proxy.denial import Denial, Rendered, deny, render
from proxy.enforcer import Admitted, Refused
from proxy.exchange import Exchange
from proxy.fault import ANY_FAULT
from proxy.mitm.dial import name_failure
from proxy.mitm.hooks import Extend, Judge
from proxy.mitm.layers import Dial, GatedHttpLayer
from proxy.mitm.message import build_response, find_phrase
from proxy.mitm.pressure import Hasten
from proxy.mitm.session import session_of
from proxy.mitm.websocket import WebSocketRelay
from proxy.mitm.wire1 import Continue, ReceivedHead, Refusal, TicketedHead, wire_request
from proxy.response import (
    count_field_bytes,
    count_head_bytes,
    prepare_answer,
    prepare_trailers,
)
from proxy.vocabulary import (
    Event,
    Failed,
    RequestSent,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
    Stage,
)

BUDGET_FIELD = BUDGET_HEADER.lower().encode()
LAST_RESORT_RENDERED = render(
    deny("internal-error", decision_id=""), accept="", content_type="", method="GET"
)
_EXPLAIN_WAIT_S = 2.0  # for the ClientHello of a tunnel that is only explained (SPEC section 3)


class Stream(layer.Layer):
    """See the module."""

    def __init__(self, context: Context, stream_id: int, parent: GatedHttpLayer) -> None:
        super().__init__(context)
        self.stream_id = stream_id
        self.parent = parent
        self.session = session_of(context)
        self.call: Call | None = None
        self.exchange: Exchange | None = None
        self.verdict: Admitted | Refused | None = None
        self.tunnel: Tunnel | None = None  # what a CONNECT on this stream opened
        self._child: layer.Layer | None = None
        self._request: Request | None = None
        self._head: ReceivedHead | None = None
        self._request_ended = False
        self._response_started = False
        self._response_ended = False
        self._bodiless = False
        self._over = False
        self._timer: commands.RequestWakeup | None = None
        self._held_bytes = 0

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """As mitmproxy's; while it waits (for the verdict, for the upstream) events pile up."""
        if self._paused and isinstance(event, RequestData):
            self._held_bytes += len(event.data)
        yield from super().handle_event(event)
        if not self._paused:
            self._held_bytes = 0
        limit = self.session.settings.pipelined_bytes_max
        self.session.pressure.report(self, full=self._held_bytes > limit)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._over or isinstance(event, events.Start):
            return
        if self._child is not None:
            yield from self._pass_to_child(event)
            return
        step = _STEPS.get(type(event))
        if step is None:
            raise ContractBroken(f"{type(event).__name__} in a stream")
        yield from step(self, event)

    # --- the request's head

    def _on_head(self, event: ReceivedHead) -> layer.CommandGenerator[None]:
        self._head = event
        self._request_ended = False
        self.call = self._describe(event)
        self.session.unjudged = False  # whatever becomes of Judge, it leaves a record
        yield Judge(self)
        verdict = self.verdict
        self.exchange = verdict.exchange if verdict is not None else self.exchange
        if isinstance(verdict, Admitted):
            self.session.exchanges[verdict.exchange.id] = verdict.exchange
            if self.call.stage is Stage.CONNECT:
                yield from self._open_tunnel("")
            else:
                yield from self._forward(event, verdict)
        elif isinstance(verdict, Refused) and self._may_explain(verdict):
            yield from self._open_tunnel(verdict.denial.reason)
        else:
            yield from self._refuse(verdict)

    def _describe(self, event: ReceivedHead) -> Call:
        tunnel, tls = self.parent.tunnel, self.parent.tls
        connect = event.raw.method == b"CONNECT" and tunnel is None
        scheme: Scheme | None = None
        if tunnel is not None:
            scheme = "https" if tls else "http"
        return Call(
            Stage.CONNECT if connect else Stage.REQUEST,
            self.session.client,
            event.raw,
            scheme=scheme,
            tunnel=tunnel,
            sni=self.context.client.sni if tls else None,
            tls=tls,
            standing_peer=self.parent.standing_peer,
        )

    def _forward(self, event: ReceivedHead, verdict: Admitted) -> layer.CommandGenerator[None]:
        request, ticket = verdict.request, verdict.ticket
        if request is None or ticket is None:
            raise ContractBroken("L1: an allow without a ticket")
        broken = self._find_break()
        if broken == "client-gone":
            self._advance(Failed(broken))
            self._finish()
            yield DropStream(self.stream_id)
            return
        if broken:  # head and broken body came in one piece: an answer is still owed
            yield from self._fail(broken)
            return
        self._request = request
        address = (request.host, request.port)
        connection, err = yield Dial(address, request.scheme == "https", None, "tcp", ticket)
        if err:
            yield from self._fail(name_failure(err, tls=request.scheme == "https"))
            return
        self.context.server = connection
        self.session.lag.serve(connection, self.stream_id)
        if not event.end_stream and _field(event, b"expect").lower() == "100-continue":
            yield SendHttp(Continue(self.stream_id), self.context.client)
        head = wire_request(request)
        cut = self._advance(RequestSent(verdict.exchange.head_bytes, body=False))
        if cut:
            yield from self._fail(cut)
            return
        ticketed = TicketedHead(self.stream_id, head, end_stream=event.end_stream)
        ticketed.ticket = ticket
        yield SendHttp(ticketed, connection)
        yield from self._set_timer(self.session.settings.first_byte_timeout_s)

    def _on_wakeup(self, _event: events.Wakeup) -> layer.CommandGenerator[None]:
        """The first byte of the answer is overdue, unless the request itself is still being
        sent."""
        if self._response_started:
            return
        if self._request_ended:
            yield from self._fail("upstream-timeout")
        else:
            yield from self._set_timer(self.session.settings.first_byte_timeout_s)

    def _set_timer(self, seconds: float) -> layer.CommandGenerator[None]:
        self._timer = commands.RequestWakeup(seconds)
        yield self._timer

    def _stop_timer(self) -> layer.CommandGenerator[None]:
        timer, self._timer = self._timer, None
        if timer is not None:
            yield Hasten(timer)

    # --- bodies

    def _on_request_data(self, event: RequestData) -> layer.CommandGenerator[None]:
        cut = yield from self._pass(RequestSent(len(event.data)))
        data = event.data[: self._fitting(cut, len(event.data))]
        if data:
            yield SendHttp(RequestData(self.stream_id, data), self.context.server)
        if cut:
            yield from self._fail(cut)

    def _on_request_end(self, event: RequestEndOfMessage) -> layer.CommandGenerator[None]:
        self._request_ended = True
        yield SendHttp(event, self.context.server)
        if self._response_ended:
            yield from self._complete()

    def _on_request_trailers(self, _event: RequestTrailers) -> layer.CommandGenerator[None]:
        yield from self._fail("trailer-refused")

    def _on_response_head(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        request, head = self._request, self._head
        if request is None or head is None:
            raise ContractBroken("a response before a request")
        response = event.response

        answer = prepare_answer(
            response.status_code,
            response.headers.fields,
            method=request.method,
            client=head.raw.version,
            websocket=request.websocket,
        )
        if isinstance(answer, str):
            yield from self._fail(answer)
            return
        lengths = [v for n, v in answer.headers if n.lower() == b"content-length"]
        length = int(lengths[0]) if lengths and not answer.bodiless else None
        line = len("HTTP/1.1 200 ") + len(response.data.reason)
        size = count_head_bytes(response.headers.fields, line)
        arrived = ResponseHead(answer.status, size, length, answer.bodiless)
        cut = yield from self._pass(arrived)
        if cut:
            yield from self._fail(cut)
            return
        self._bodiless = answer.bodiless
        self._response_started = True
        yield from self._stop_timer()
        reason = response.data.reason or find_phrase(answer.status)
        shown = self.verdict.budget.encode() if isinstance(self.verdict, Admitted) else b""
        headers = (*answer.headers, (BUDGET_FIELD, shown)) if shown else answer.headers
        forwarded = build_response(answer.status, reason, headers)
        ended = event.end_stream and (answer.bodiless or length == 0)
        yield SendHttp(ResponseHeaders(self.stream_id, forwarded, ended), self.context.client)

    def _on_response_data(self, event: ResponseData) -> layer.CommandGenerator[None]:
        cut = yield from self._pass(ResponseReceived(len(event.data)))
        data = event.data[: self._fitting(cut, len(event.data))]
        if data:
            yield SendHttp(ResponseData(self.stream_id, data), self.context.client)
        if cut:
            yield from self._fail(cut)

    def _on_response_trailers(self, event: ResponseTrailers) -> layer.CommandGenerator[None]:
        fields = prepare_trailers(event.trailers.fields)
        cut = yield from self._pass(ResponseReceived(count_field_bytes(fields), divisible=False))
        if cut:
            yield from self._fail(cut)
            return
        if fields:
            trailers = ResponseTrailers(self.stream_id, http.Headers(fields))
            yield SendHttp(trailers, self.context.client)

    def _on_response_end(self, event: ResponseEndOfMessage) -> layer.CommandGenerator[None]:
        self._response_ended = True
        if self.exchange is not None and self.exchange.status == 101:
            self._child = WebSocketRelay(self.context, self._advance, self._cover)
            yield from self._child.handle_event(events.Start())
            yield SendHttp(event, self.context.client)
            return
        if self._request_ended:
            self._advance(ResponseEnd())
            self._finish()
            yield DropStream(self.stream_id)
        yield SendHttp(event, self.context.client)

    def _complete(self) -> layer.CommandGenerator[None]:
        self._advance(ResponseEnd())
        self._finish()
        yield DropStream(self.stream_id)

    # --- errors

    def _on_request_error(self, event: RequestProtocolError) -> layer.CommandGenerator[None]:
        """The client broke off, or broke the protocol."""
        reason = _break_reason(event)
        if reason == "client-gone":
            self._advance(Failed(reason))
            yield from self._stop_timer()
            yield from self._close_upstream(event.message)
            self._finish()
            yield DropStream(self.stream_id)
        else:
            yield from self._fail(reason)

    def _on_response_error(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        yield from self._fail("upstream-protocol", event.message)

    def _fail(self, reason: str, detail: str = "") -> layer.CommandGenerator[None]:
        """End the exchange: with an answer where none was begun, else by cutting."""
        reason = self.session.ended_why or reason  # it may fail because we closed its upstream
        self._advance(Failed(reason, detail))
        yield from self._stop_timer()
        yield from self._close_upstream(reason)
        if self._response_started:
            error = ResponseProtocolError(self.stream_id, reason, ErrorCode.CANCEL)
            yield SendHttp(error, self.context.client)
        else:
            identity = self.exchange.id if self.exchange else ""
            principal = self.exchange.principal if self.exchange else None
            agent = principal.agent if principal else None
            short = self.exchange.allowance.shortfall if self.exchange else None
            denial = deny(
                reason,
                decision_id=identity,
                agent=agent,
                remaining=short.left if short else (),
                reopens_ms=short.until_ms if short else None,
            )
            rendered = self._render(denial)
            yield SendHttp(Refusal(self.stream_id, rendered), self.context.client)
        self._finish()
        yield DropStream(self.stream_id)

    def _close_upstream(self, why: str) -> layer.CommandGenerator[None]:
        server = self.context.server
        if self._request is not None and server in self.parent.connections and server.connected:
            yield SendHttp(RequestProtocolError(self.stream_id, why, ErrorCode.CANCEL), server)

    def _refuse(self, verdict: Refused | None) -> layer.CommandGenerator[None]:
        rendered = self._render(verdict.denial) if verdict else LAST_RESORT_RENDERED
        yield SendHttp(Refusal(self.stream_id, rendered), self.context.client)
        self._finish()
        yield DropStream(self.stream_id)

    def _render(self, denial: Denial) -> Rendered:
        """The denial for this client; the constant one where rendering fails (A19)."""
        try:
            head = self._head
            if head is None:
                return LAST_RESORT_RENDERED
            http2 = self.context.client.alpn == b"h2"
            return render(
                denial,
                accept=_field(head, b"accept"),
                content_type=_field(head, b"content-type"),
                method=head.raw.method.decode("latin-1"),
                http2=http2,
            )
        except ANY_FAULT as error:  # the constant still denies; counted
            self.session.enforcer.count_fault("render", error)
            return LAST_RESORT_RENDERED

    # --- tunnels

    def _may_explain(self, verdict: Refused) -> bool:
        """Whether a denied CONNECT is opened only to tell why (SPEC section 3)."""
        call, exchange = self.call, verdict.exchange
        if call is None or call.stage is not Stage.CONNECT or not verdict.softenable:
            return False
        principal = exchange.principal
        host = exchange.target.host
        explains = self.session.enforcer.generation.policy_set.defaults.explain_denials
        return bool(
            explains
            and principal is not None
            and exchange.target.port
            and self.session.minted.admit(principal.agent, host)
        )

    def _open_tunnel(self, refusal: str) -> layer.CommandGenerator[None]:
        exchange = self.exchange
        if exchange is None or self._head is None:
            raise ContractBroken("a tunnel without an exchange")
        target = exchange.target
        authorization = find_authorization(self._head.raw)
        self.tunnel = Tunnel(target.host, target.port, authorization, refusal)
        self.context.server.address = (target.host, target.port)
        self.session.exchanges.pop(exchange.id, None)
        self._child = layer.NextLayer(self.context)
        yield from self._child.handle_event(events.Start())
        ok = build_response(200, b"Connection established")
        yield SendHttp(ResponseHeaders(self.stream_id, ok, end_stream=False), self.context.client)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        if refusal:
            yield from self._set_timer(_EXPLAIN_WAIT_S)

    def _pass_to_child(self, event: events.Event) -> layer.CommandGenerator[None]:
        """After CONNECT or 101 the stream's messages are plain connection data again."""
        child = self._child
        if child is None:
            raise ContractBroken("no child layer")
        plain: events.Event = event
        if isinstance(event, RequestData):
            plain = events.DataReceived(self.context.client, event.data)
        elif isinstance(event, ResponseData):
            plain = events.DataReceived(self.context.server, event.data)
        elif isinstance(event, RequestEndOfMessage | RequestProtocolError):
            plain = events.ConnectionClosed(self.context.client)
        elif isinstance(event, ResponseEndOfMessage | ResponseProtocolError):
            plain = events.ConnectionClosed(self.context.server)
        elif isinstance(event, events.Wakeup) and event.command is self._timer:
            if self.tunnel and self.session.client_tls is None:
                yield commands.CloseConnection(self.context.client)
            return  # all others are for the layers inside
        for command in child.handle_event(plain):
            yield from self._through_wire(command)

    def _through_wire(self, command: commands.Command) -> layer.CommandGenerator[None]:
        """What the relay sends upstream passes the wire layer, and so the TLS below it.

        A tunnel's own layers hold their upstream connections themselves.
        """
        server = self.context.server
        if self.tunnel is None and isinstance(command, commands.ConnectionCommand):
            if command.connection is server and isinstance(command, commands.SendData):
                yield SendHttp(RequestData(self.stream_id, command.data), server)
                return
            if command.connection is server and isinstance(command, commands.CloseConnection):
                yield SendHttp(
                    RequestProtocolError(self.stream_id, "over", ErrorCode.PASSTHROUGH_CLOSE),
                    server,
                )
                return
        yield command

    # --- book-keeping

    def _advance(self, event: Event) -> str | None:
        if self.exchange is None:
            return None
        return self.session.enforcer.advance(self.exchange, event)

    def _cover(self, event: Passing) -> layer.CommandGenerator[None]:
        """Wait for what must be held before `event` may pass; mostly it is there."""
        exchange = self.exchange
        if exchange is not None and exchange.find_shortage(event) is not None:
            yield Extend(exchange, event)

    def _pass(self, event: Passing) -> layer.CommandGenerator[str | None]:
        """Count what is about to pass; returns the reason to cut it."""
        yield from self._cover(event)
        return self._advance(event)

    def _fitting(self, cut: str | None, size: int) -> int:
        """How much of a part may still pass where a budget ends in the middle of it."""
        if cut is None or self.exchange is None:
            return size
        return self.exchange.allowance.fit_bytes

    def _finish(self) -> None:
        self._over = True
        if self.exchange is not None:
            self.session.exchanges.pop(self.exchange.id, None)

    def _find_break(self) -> str:
        """Why the request broke off while it was judged, "" where it did not."""
        for event in self._paused_event_queue:
            if isinstance(event, RequestProtocolError):
                return _break_reason(event)
        return ""


_STEPS: dict[type, Any] = {
    ReceivedHead: Stream._on_head,
    events.Wakeup: Stream._on_wakeup,
    RequestData: Stream._on_request_data,
    RequestTrailers: Stream._on_request_trailers,
    RequestEndOfMessage: Stream._on_request_end,
    RequestProtocolError: Stream._on_request_error,
    ResponseHeaders: Stream._on_response_head,
    ResponseData: Stream._on_response_data,
    ResponseTrailers: Stream._on_response_trailers,
    ResponseEndOfMessage: Stream._on_response_end,
    ResponseProtocolError: Stream._on_response_error,
}


def _break_reason(event: RequestProtocolError) -> str:
    return event.message if event.message in REASONS else "client-gone"


def _field(head: ReceivedHead, name: bytes) -> str:
    for key, value in head.raw.headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return ""
