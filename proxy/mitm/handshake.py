"""The TLS hooks: whose certificate is shown, and whose is believed.

Both sides take their names from what was judged: the leaf is for the CONNECT host, and the upstream
must prove to be the host of the ticket, whatever the ClientHello said.
"""

import structlog
from mitmproxy.connection import Server
from mitmproxy.proxy.layers import tls

from policies.model import ContractBroken
from proxy.mitm.session import Session

log = structlog.get_logger()


class TlsHooks:
    """The part of a connection's handler that mitmproxy's TLS layers ask."""

    session: Session

    async def tls_clienthello(self, hook: tls.TlsClienthelloHook) -> None:
        """Keep the inspection on, whatever the ClientHello says (D12)."""
        hook.data.ignore_connection = False
        hook.data.establish_server_tls_first = False

    async def tls_start_client(self, hook: tls.TlsStartClientHook) -> None:
        """Our certificate is for the CONNECT host, whatever SNI says."""
        address = hook.data.context.server.address
        if address is None:
            raise ContractBroken("TLS outside a tunnel")
        connection = self.session.terminator.connection(address[0], self.session.now())
        hook.data.ssl_conn = connection
        self.session.client_tls = connection

    async def tls_start_server(self, hook: tls.TlsStartServerHook) -> None:
        """Verify the upstream as the name that was judged."""
        server = hook.data.conn
        if not isinstance(server, Server) or server not in self.session.tickets or not server.sni:
            raise ContractBroken("TLS to an upstream without a ticket")
        hook.data.ssl_conn = self.session.originator.connection(
            server.sni, list(server.alpn_offers)
        )

    async def tls_established(self, _hook: object) -> None:
        """Nothing to do: ALPN was chosen by our contexts."""

    async def tls_failed_client(self, hook: tls.TlsFailedClientHook) -> None:
        """An agent that does not trust our CA, or pins: its own record, never a pass-through."""
        if self.session.tls_fault:
            return  # it was we who could not begin, and that is on record
        log.warning(
            "client-tls-failed",
            client=self.session.client,
            host=(hook.data.context.server.address or ("",))[0],
            remedy="install ca/ca.pem in the agent; `tollkeeper init` prints the variables",
        )
        self.session.record_malformed("the TLS handshake with the client failed", b"")

    async def tls_failed_server(self, hook: tls.TlsFailedServerHook) -> None:
        """The stream answers 502; the cause is for the operator."""
        log.warning("upstream-tls-failed", error=hook.data.conn.error)

    def record_tls_fault(self, hook: tls.TlsStartClientHook | tls.TlsStartServerHook) -> None:
        """A handshake that could not even begin, on the agent's side."""
        if isinstance(hook, tls.TlsStartClientHook):
            self.session.tls_fault = True
            self.session.record_malformed("internal-error", b"")
