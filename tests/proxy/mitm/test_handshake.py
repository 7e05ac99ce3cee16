"""TLS hooks: names come from what was judged, and inspection cannot be talked away."""

import asyncio
import socket
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy.connection import Client, Server

from policies.model import ContractBroken
from proxy.mitm.handshake import TlsHooks
from tests.kit.gate import Gate
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.proxy.mitm.conftest import OpenGate


def hooks(**session: Any) -> TlsHooks:
    made = TlsHooks()
    unused: Any = SimpleNamespace(tickets={}, **session)
    made.session = unused
    return made


def ask(work: Any) -> None:
    asyncio.run(work)


def test_a_client_hello_cannot_switch_inspection_off() -> None:
    """D12."""
    data = SimpleNamespace(ignore_connection=True, establish_server_tls_first=True)
    hook: Any = SimpleNamespace(data=data)
    ask(hooks().tls_clienthello(hook))
    assert not data.ignore_connection
    assert not data.establish_server_tls_first


def test_tls_outside_a_tunnel_is_no_tls_of_ours() -> None:
    server = SimpleNamespace(address=None)
    hook: Any = SimpleNamespace(data=SimpleNamespace(context=SimpleNamespace(server=server)))
    with pytest.raises(ContractBroken, match="outside a tunnel"):
        ask(hooks().tls_start_client(hook))


def test_no_upstream_gets_tls_without_a_ticket() -> None:
    server = Server(address=("api.test", 443))
    server.sni = "api.test"
    client = Client(peername=("192.0.2.1", 1), sockname=("192.0.2.2", 2), timestamp_start=0.0)
    for connection in (server, client):
        hook: Any = SimpleNamespace(data=SimpleNamespace(conn=connection))
        with pytest.raises(ContractBroken, match="without a ticket"):
            ask(hooks().tls_start_server(hook))


def test_no_upstream_gets_tls_without_a_name() -> None:
    server = Server(address=("api.test", 443))
    made = hooks()
    made.session.tickets[server] = SimpleNamespace()  # type: ignore[assignment]  # any will do
    hook: Any = SimpleNamespace(data=SimpleNamespace(conn=server))
    with pytest.raises(ContractBroken, match="without a ticket"):
        ask(made.tls_start_server(hook))


def test_an_agent_that_does_not_trust_us_is_recorded(
    open_gate: OpenGate, secure_origin: Origin
) -> None:
    gate = open_gate(secure=secure_origin.port)
    plain = gate.tunnel()
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(plain, server_hostname="api.test")
    (event,) = gate.wait_for("malformed")
    assert "TLS handshake" in event["why"]
    assert secure_origin.connections == 0


def test_the_certificate_is_the_tunnels_and_other_names_are_refused(
    open_gate: OpenGate, secure_origin: Origin
) -> None:
    """E3: SNI of somebody else gets the tunnel's certificate, and then 403."""
    gate: Gate = open_gate(secure=secure_origin.port)
    secure = gate.secure(sni="other.test")
    shown: Any = secure.getpeercert()
    assert shown["subjectAltName"] == (("DNS", "api.test"),)
    with Http1(secure) as http1:
        answer = http1.ask("/ok", "api.test")
    assert answer.status == 403
    assert b"host-mismatch" in answer.body
    assert secure_origin.connections == 0


def test_the_upstream_is_asked_for_the_name_that_was_judged(
    open_gate: OpenGate, authority: Any
) -> None:
    seen: list[str | None] = []
    context = authority.server_context("api.test")
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    with Origin(tls=context) as origin:
        gate = open_gate(secure=origin.port)
        with Http1(gate.secure()) as http1:
            assert http1.ask("/ok", "api.test").status == 200
    assert seen == ["api.test"]


def test_a_handshake_that_breaks_off_leaves_no_connection(open_gate: OpenGate) -> None:
    gate = open_gate()
    plain: socket.socket = gate.tunnel()
    plain.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    plain.close()
    gate.wait_until_idle()
