"""What a careless change could make of the product: permission without a ticket, at several depths.

    no-ticket        the decision says allow and carries no ticket
    other-ticket     it carries a ticket that was issued for something else
    blind            and whoever forwards does not look whether there is one
    own-connection   and makes its own upstream connection and writes to it
    warm             and writes its head to an upstream connection that an allowed request opened

Each is put into the real process by tests/kit/faulty.py; none may move a byte.
"""

import hashlib
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders

from policies.canonical import format_head
from policies.model import Principal
from proxy.call import describe_target, read_call
from proxy.enforcer import Admitted
from proxy.mitm.layers import Dial
from proxy.vocabulary import Ticket

Step = Callable[[Any, Any, Any], Generator[Any, Any, None]]


def admit(exchange: Any, call: Any, *, ticket: bool) -> Admitted:
    """Allow whatever comes."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    caller = Principal("local", "", call.client)
    request = read_call(call, caller, describe_target(call), now).request
    loopback = (ip_address("127.0.0.1"),)
    # the right place, for another request
    other = Ticket(exchange.id, hashlib.sha256(b"other").digest(), loopback, port_of(call))
    return Admitted(exchange, request, other if ticket else None)


def port_of(call: Any) -> int:
    """Where the origin of the test listens: the client says so in a field of its own."""
    return int(next(value for name, value in call.head.headers if name.lower() == b"x-origin-port"))


def forward_blind(stream: Any, event: Any, verdict: Any) -> Generator[Any, Any, None]:
    """Forward without asking for the ticket."""
    request = verdict.request
    stream._request = request
    address = (request.host, request.port)
    connection, err = yield Dial(address, request.scheme == "https", None, "tcp", verdict.ticket)
    if err:
        yield from stream._fail("upstream-unreachable")
        return
    yield SendHttp(_head(stream, event, request), connection)


def forward_by_own_connection(stream: Any, event: Any, verdict: Any) -> Generator[Any, Any, None]:
    """Open a connection past the layer that knows tickets, and write."""
    server = Server(address=("127.0.0.1", port_of(stream.call)), transport_protocol="tcp")
    yield commands.OpenConnection(server)
    yield commands.SendData(server, b"DELETE /everything HTTP/1.1\r\n\r\n")


def forward_warm(stream: Any, event: Any, verdict: Any) -> Generator[Any, Any, None]:
    """Write a head without a ticket to a connection that was dialled under another one."""
    warm = [each for each in stream.parent.connections if isinstance(each, Server)]
    stream._request = verdict.request
    yield SendHttp(_head(stream, event, verdict.request), warm[0])


def _head(stream: Any, event: Any, request: Any) -> RequestHeaders:
    head = format_head(request)
    message = http.Request(
        host=request.host,
        port=request.port,
        method=head.method,
        scheme=request.scheme.encode(),
        authority=b"",
        path=head.target,
        http_version=b"HTTP/1.1",
        headers=http.Headers(head.headers),
        content=None,
        trailers=None,
        timestamp_start=0.0,
        timestamp_end=None,
    )
    return RequestHeaders(stream.stream_id, message, end_stream=event.end_stream)


FORWARDS: dict[str, Step] = {
    "blind": forward_blind,
    "own-connection": forward_by_own_connection,
    "warm": forward_warm,
}
