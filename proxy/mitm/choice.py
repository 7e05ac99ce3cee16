"""What is spoken inside a tunnel. TLS and HTTP/1 go on; everything else ends here, recorded
(threats.md D1, D2, D5, D10).

There is no raw relay at all: not for port 53, not after an odd ALPN, not for a second TLS inside
the first.
"""

import re

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from proxy.call import Tunnel
from proxy.mitm.layers import GatedHttpLayer
from proxy.mitm.session import session_of
from proxy.mitm.tls_layers import AgentTls

_REQUEST_LINE = re.compile(rb"[A-Z]{3,16} ")
SNIFF_BYTES = 20  # enough for a TLS record header or the longest method that could pass
_SEEN_BYTES = 64


class Reject(layer.Layer):
    """Closes the client connection; swallows whatever comes."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start | events.DataReceived):
            yield commands.CloseConnection(self.context.client)


def choose_layer(context: Context, seen: bytes, *, refuse: str = "") -> layer.Layer | None:
    """The layer for the first bytes of a tunnel, or None where more bytes are needed."""
    tunnel = _tunnel_of(context)
    session = session_of(context)
    if refuse or tunnel is None:
        session.record_malformed(refuse or "protocol-refused", seen[:_SEEN_BYTES])
        return Reject(context)
    if context.client.tls:  # what comes out of TLS is HTTP or nothing; the wire layers are strict
        return GatedHttpLayer(context, tunnel, tls=True)
    if len(seen) < 3 and not seen.startswith(b"\r\n"):
        return None
    if starts_like_tls_record(seen):
        return AgentTls(context)
    if not tunnel.refusal:
        if _REQUEST_LINE.match(seen):
            return GatedHttpLayer(context, tunnel)
        if len(seen) < SNIFF_BYTES and re.fullmatch(rb"[A-Z]+", seen):
            return None
    session.record_malformed("protocol-refused", seen[:_SEEN_BYTES])
    return Reject(context)


def _tunnel_of(context: Context) -> Tunnel | None:
    for parent in reversed(context.layers):
        tunnel = getattr(parent, "tunnel", None)
        if isinstance(tunnel, Tunnel):
            return tunnel
    return None
