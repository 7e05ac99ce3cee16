"""What is spoken inside a tunnel: TLS, HTTP, or nothing that is passed on."""

import socket

import pytest

from tests.kit.gate import Gate
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.proxy import read_all
from tests.proxy.mitm.conftest import OpenGate

FOREIGN: dict[str, bytes] = {
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "zeros": b"\0" * 64,
    "a database's hello": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "lower case": b"get / HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "one word and no end": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "an SSL 2 hello": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
    "an empty line": b"\r\n\r\n",
}


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("first", FOREIGN.values(), ids=FOREIGN)
def test_what_is_neither_tls_nor_http_is_closed_and_recorded(
    first: bytes, port: int, open_gate: OpenGate, origin: Origin
) -> None:
    """D1, D2."""
    gate = open_gate(plain=origin.port, secure=origin.port)
    with gate.tunnel(f"api.test:{port}") as connection:
        connection.sendall(first)
        answer = read_all(connection)
    assert not answer.startswith(b"HTTP/1.1 2")
    assert len(gate.wait_for("malformed")) == 1
    assert origin.connections == 0
    gate.wait_until_idle()


def test_http_in_a_tunnel_is_judged_like_any_other(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    http1 = Http1(gate.tunnel("api.test:80"))
    assert http1.ask("/ok", "api.test").status == 200
    assert origin.lines == ["GET /ok HTTP/1.1"]
    assert [event["stage"] for event in gate.recorder.of("decision")] == ["connect", "request"]


def test_a_method_may_come_letter_by_letter(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    http1 = Http1(gate.tunnel("api.test:80"))
    for byte in b"GET /ok HTTP/1.1\r\nHost: api.test\r\n\r\n":
        http1.connection.sendall(bytes([byte]))
    assert http1.read().status == 200


def test_a_tunnel_in_a_tunnel_is_refused(open_gate: OpenGate, origin: Origin) -> None:
    """D11."""
    gate = open_gate(plain=origin.port)
    http1 = Http1(gate.tunnel("api.test:80"))
    http1.connection.sendall(b"CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n\r\n")
    assert http1.read().status in (400, 403)
    assert origin.connections == 0
    assert len(gate.recorder.events) == 2


def test_tls_in_tls_is_closed(open_gate: OpenGate, secure_origin: Origin) -> None:
    """D10."""
    gate = open_gate(secure=secure_origin.port)
    with gate.secure() as connection:
        connection.sendall(b"\x16\x03\x01\x00\x05hello" + b"\0" * 40)
        answer = read_all(connection)
    assert not answer.startswith(b"HTTP/1.1 2")
    assert len(gate.recorder.of("malformed")) == 1
    assert secure_origin.connections == 0


@pytest.mark.parametrize("protocols", [("foo",), ("http/1.1",), ()])
def test_bytes_inside_tls_are_http_or_nothing(
    protocols: tuple[str, ...], open_gate: OpenGate, secure_origin: Origin
) -> None:
    """D2: whatever was negotiated."""
    gate = open_gate(secure=secure_origin.port)
    with gate.secure(protocols=protocols or ("http/1.1",)) as connection:
        connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
        read_all(connection)
    assert len(gate.recorder.of("malformed")) == 1
    assert secure_origin.connections == 0


def test_a_tunnel_to_port_53_is_no_dns(open_gate: OpenGate, origin: Origin) -> None:
    """D5: were a rule to allow it, still nothing but TLS or HTTP would pass."""
    rules = (
        "  - { id: dns, verdict: allow,"
        " match: { host: 127.0.0.1, port: [53], scheme: [http, https], dest_ip: loopback } }\n"
    )
    gate = open_gate(plain=origin.port, rules=rules)
    with gate.tunnel("127.0.0.1:53") as connection:
        connection.sendall(b"\x00\x1d\xab\xcd\x01\x00\x00\x01" + b"\0" * 21)
        assert read_all(connection) == b""
    assert len(gate.recorder.of("malformed")) == 1


def test_a_tunnel_that_says_nothing_costs_nothing(open_gate: OpenGate, origin: Origin) -> None:
    gate: Gate = open_gate(plain=origin.port)
    connection: socket.socket = gate.tunnel("api.test:80")
    connection.close()
    gate.wait_until_idle()
    assert [event["kind"] for event in gate.recorder.events] == ["decision"]
    assert origin.connections == 0
