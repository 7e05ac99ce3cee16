"""TLS layers that end: a hello has a size, a handshake a deadline, a broken record is the last."""

import os
import socket
import struct

import pytest

from proxy.mitm.tls_layers import HELLO_BYTES_MAX
from tests.kit.gate import Gate
from tests.kit.origin import Origin
from tests.kit.proxy import read_all
from tests.proxy.mitm.conftest import OpenGate


def format_hello(length: int) -> bytes:
    """The start of a ClientHello of `length` bytes, without its last one, in small records."""
    body = b"\x01" + struct.pack("!I", length)[1:] + bytes(length - 1)
    parts = (body[at : at + 1024] for at in range(0, len(body), 1024))
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(part)) + part for part in parts)


def reasons(gate: Gate) -> list[str]:
    """Why messages were refused."""
    return [event["why"] for event in gate.wait_for("malformed")]


def test_a_hello_beyond_any_size_is_refused(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(secure=origin.port)
    with gate.tunnel() as connection:
        connection.sendall(format_hello(HELLO_BYTES_MAX + 1))
        assert read_all(connection) == b""
    assert reasons(gate) == ["the TLS handshake with the client failed"]


@pytest.mark.parametrize("sent_bytes", [3, 600, HELLO_BYTES_MAX - 2000])
def test_a_handshake_that_is_not_finished_in_time_ends(
    open_gate: OpenGate, origin: Origin, sent_bytes: int
) -> None:
    gate = open_gate(secure=origin.port, header_timeout_s=0.3)
    with gate.tunnel() as connection:
        connection.sendall(format_hello(HELLO_BYTES_MAX - 1000)[:sent_bytes])
        assert read_all(connection) == b""
    assert reasons(gate) == ["the TLS handshake with the client failed"]
    gate.wait_until_idle()


def test_a_handshake_in_time_is_never_cut(open_gate: OpenGate, secure_origin: Origin) -> None:
    gate = open_gate(secure=secure_origin.port, header_timeout_s=0.3)
    with gate.secure() as connection:
        connection.settimeout(0.8)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.sendall(b"GET /ok HTTP/1.1\r\nHost: api.test\r\n\r\n")
        connection.settimeout(5)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_slow_head_inside_a_tunnel_is_answered(open_gate: OpenGate, origin: Origin) -> None:
    """Timers of what is inside a CONNECT were swallowed on their way in."""
    gate = open_gate(secure=origin.port, header_timeout_s=0.3)
    with gate.secure() as connection:
        connection.sendall(b"GET /ok HT")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_an_upstream_that_does_not_answer_inside_a_tunnel_is_given_up(
    open_gate: OpenGate, secure_origin: Origin
) -> None:
    """F14; swallowed as well."""
    gate = open_gate(secure=secure_origin.port, first_byte_timeout_s=0.3)
    with gate.secure() as connection:
        connection.sendall(b"GET /slow/4 HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 504 ")
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "upstream-timeout"


def test_a_broken_record_is_the_last(open_gate: OpenGate, origin: Origin) -> None:
    """OpenSSL keeps what comes behind one, and nobody ever reads it."""
    gate = open_gate(secure=origin.port)
    secure = gate.secure()
    with secure, socket.socket(fileno=os.dup(secure.fileno())) as bare:
        bare.settimeout(5)
        bare.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert read_all(bare) != b"x"
        gate.wait_until_idle()
