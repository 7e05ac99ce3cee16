"""mitmproxy's TLS layers with an end: of the handshake with an agent, and after a broken record.

Rule 1: a ClientHello has a size. mitmproxy collects up to 16 MB of one and parses all of it again
        for every packet: one agent keeps the event loop busy for everyone. Real ones have 2 KB.
Rule 2: a handshake has a deadline; unfinished, it holds a descriptor for nothing (threats.md I1).
Rule 3: after a record that breaks TLS the connection ends. mitmproxy goes on, and OpenSSL keeps
        whatever still comes and is never read.
"""

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelState

from proxy.mitm.session import session_of

HELLO_BYTES_MAX = 16 * 1024


class _EndingTls(TLSLayer):
    def receive_data(self, data: bytes) -> CommandGenerator[None]:
        """As mitmproxy's; it only logs an error, and the connection is over."""
        if self.tls is None or self.tunnel_state is TunnelState.CLOSED:
            return  # what was on its way when the handshake failed
        broken = False
        for command in super().receive_data(data):
            broken |= isinstance(command, commands.Log) and command.message.startswith("TLS Error")
            yield command
        if broken:
            yield commands.CloseConnection(self.tunnel_connection)


class AgentTls(_EndingTls, ClientTLSLayer):
    """Towards the agent."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._session = session_of(context)
        self._deadline: commands.RequestWakeup | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self._deadline:
            if self.tunnel_state is TunnelState.ESTABLISHING:
                yield from self._give_up("the handshake took too long")
            return
        if isinstance(event, events.Start):
            self._deadline = commands.RequestWakeup(self._session.settings.header_timeout_s)
            yield self._deadline
        yield from super()._handle_event(event)

    def receive_handshake_data(self, data: bytes) -> CommandGenerator[tuple[bool, str | None]]:
        """As mitmproxy's, up to the limit."""
        if not self.client_hello_parsed and len(self.recv_buffer) + len(data) > HELLO_BYTES_MAX:
            return False, "the ClientHello is too large"
        return (yield from super().receive_handshake_data(data))

    def _give_up(self, why: str) -> CommandGenerator[None]:
        yield from self.on_handshake_error(why)
        yield from self._handshake_finished(why)


class OriginTls(_EndingTls, ServerTLSLayer):
    """Towards the upstream."""
