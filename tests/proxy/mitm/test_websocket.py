"""WebSockets end to end: a client library, the gate, an origin that notes every frame."""

import base64
import os
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

from tests.kit.gate import Gate, eventually
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.serial import SerialSocket
from tests.proxy.mitm.conftest import OpenGate

RULE = (
    "  - {{ id: ws, verdict: allow, match: {{ host: api.test, path: /ws, scheme: [http, https],"
    " port: [80, 443], websocket: true, dest_ip: loopback }}{more} }}\n"
)
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def dial(gate: Gate, *, secure: bool = True, path: str = "/ws", **options: Any) -> ClientConnection:
    """A client in a tunnel, with TLS or without."""
    if secure:
        connection: Any = SerialSocket(gate.secure())
    else:
        connection = gate.tunnel("api.test:80")
    settings = {"compression": None, "ping_interval": None, "proxy": None} | options
    return connect(f"ws://api.test{path}" if not secure else f"ws://api.test:443{path}",
                   sock=connection, **settings)  # fmt: skip


def closes(origin: Origin) -> list[bytes]:
    """What came in close frames."""
    return [data for opcode, data in origin.frames if opcode & 0x0F == CLOSE]


@pytest.fixture
def gate(open_gate: OpenGate, origin: Origin, secure_origin: Origin) -> Gate:
    return open_gate(plain=origin.port, secure=secure_origin.port, rules=RULE.format(more=""))


@pytest.mark.parametrize("secure", [True, False], ids=["wss", "ws"])
def test_messages_go_both_ways(
    gate: Gate, origin: Origin, secure_origin: Origin, secure: bool
) -> None:
    with dial(gate, secure=secure) as socket:
        for message in ("hello", b"\x00\xff", "é" * 500, b"x" * 70_000, ""):
            socket.send(message)
            assert socket.recv(5) == message
    (outcome,) = gate.wait_for("outcome")
    assert outcome["status"] == 101
    assert outcome["bytes_out"] > 71_000
    assert outcome["bytes_in"] > 71_000
    assert "error" not in outcome
    used = secure_origin if secure else origin
    eventually(lambda: closes(used), [b"\x03\xe8"])


def test_one_decision_covers_the_connection(gate: Gate) -> None:
    with dial(gate) as socket:
        for _ in range(20):
            socket.send("x")
            socket.recv(5)
        assert len(gate.recorder.of("decision")) == 2  # CONNECT and the handshake
    assert len(gate.wait_for("outcome")) == 1


def test_fragments_pass_as_they_come(gate: Gate) -> None:
    with dial(gate) as socket:
        socket.send(iter(["a", "b", "c"]))
        assert "".join(map(str, socket.recv_streaming())) == "abc"
    (outcome,) = gate.wait_for("outcome")
    assert outcome["status"] == 101


def test_pings_stay_here(gate: Gate, secure_origin: Origin) -> None:
    """D7: their payload would be a channel that nobody meters."""
    with dial(gate) as socket:
        pong = socket.ping(b"c2VjcmV0")
        assert pong.wait(5)
        socket.pong(b"c2VjcmV0")
        socket.send("x")
        socket.recv(5)
    assert b"c2VjcmV0" not in secure_origin.received[0]
    assert all(opcode & 0x0F != PING for opcode, _ in secure_origin.frames)


def test_the_code_of_a_close_crosses_and_its_reason_does_not(
    gate: Gate, secure_origin: Origin
) -> None:
    with dial(gate) as socket:
        socket.close(4001, "c2VjcmV0")
    gate.wait_for("outcome")
    eventually(lambda: closes(secure_origin), [Close(4001, "").serialize()])


def test_no_extension_is_offered_upstream(gate: Gate, secure_origin: Origin) -> None:
    """D9: compressed frames would hide what is counted."""
    with dial(gate, compression="deflate") as socket:
        assert socket.protocol.extensions == []
        socket.send("x")
        assert socket.recv(5) == "x"
    assert secure_origin.requests[0].values("sec-websocket-extensions") == []


def test_a_handshake_that_no_rule_allows_is_denied(gate: Gate, secure_origin: Origin) -> None:
    with pytest.raises(InvalidStatus) as refused, dial(gate, path="/other"):
        pass
    assert refused.value.response.status_code == 403
    assert secure_origin.connections == 0


def test_a_rule_without_websocket_allows_none(open_gate: OpenGate, secure_origin: Origin) -> None:
    gate = open_gate(secure=secure_origin.port)
    with pytest.raises(InvalidStatus) as refused, dial(gate):
        pass
    assert refused.value.response.status_code == 403
    assert secure_origin.connections == 0


@pytest.mark.parametrize(
    ("size", "reason"), [(40, "request-too-large"), (15, "response-too-large")]
)
def test_a_connection_over_its_limit_is_cut(
    open_gate: OpenGate, secure_origin: Origin, size: int, reason: str
) -> None:
    limits = ", with: { max_request: 30B, max_response: 20B }"
    gate = open_gate(secure=secure_origin.port, rules=RULE.format(more=limits))
    with dial(gate) as socket, pytest.raises(ConnectionClosed) as closed:
        _talk(socket, "x" * size)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    (outcome,) = gate.wait_for("outcome")
    assert outcome["cut"] == reason
    assert sum(len(data) for _, data in secure_origin.frames) <= 32


def _talk(socket: ClientConnection, message: str) -> None:
    for _ in range(3):
        socket.send(message)
        socket.recv(5)


HANDSHAKE = [
    "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: " + base64.b64encode(b"0" * 16).decode(),
]  # fmt: skip


def raw_handshake(gate: Gate, *changes: tuple[str, str]) -> Http1:
    fields = [
        next((new for old, new in changes if field.startswith(old)), field) for field in HANDSHAKE
    ]
    http1 = Http1(gate.secure())
    http1.send("/ws", "api.test", headers=[field for field in fields if field])
    return http1


@pytest.mark.parametrize(
    "change",
    [
        ("Sec-WebSocket-Version", "Sec-WebSocket-Version: 12"),
        ("Sec-WebSocket-Version", ""),
        ("Sec-WebSocket-Key", ""),
        ("Upgrade", "Upgrade: h2c"),
        ("Upgrade", "Upgrade: websocket, h2c"),
    ],
    ids=["version 12", "no version", "no key", "another protocol", "two protocols"],
)
def test_what_is_no_handshake_is_no_websocket(
    gate: Gate, secure_origin: Origin, change: tuple[str, str]
) -> None:
    """D4, C18: none of them becomes a tunnel."""
    with raw_handshake(gate, change) as http1:
        assert http1.read().status in (400, 403, 502)
        assert http1.is_closed()
    assert b"pgrade" not in b"".join(map(bytes, secure_origin.received))


@pytest.mark.parametrize(
    "frame",
    [b"\xf1\x80\x00\x00\x00\x00", b"\x81\x01x", b"\x83\x80\x00\x00\x00\x00", b"\x88\x81\0\0\0\0x"],
    ids=["reserved bits", "not masked", "an opcode nobody knows", "a close of one byte"],
)
def test_a_frame_that_is_none_closes_both_sides(
    gate: Gate, secure_origin: Origin, frame: bytes
) -> None:
    with raw_handshake(gate) as http1:
        assert http1.read_head().status == 101
        http1.connection.sendall(frame)
        assert http1.rest()[:1] == b"\x88"
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "malformed"
    assert [opcode & 0x0F for opcode, _ in secure_origin.frames] in ([], [CLOSE])


def test_a_client_that_vanishes_ends_the_upstream_connection(gate: Gate) -> None:
    http1 = raw_handshake(gate)
    assert http1.read_head().status == 101
    http1.connection.close()
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "client-gone"
    gate.wait_until_idle()


def test_a_long_message_is_not_held_until_it_is_whole(gate: Gate, secure_origin: Origin) -> None:
    """D9: the first part is at the origin before the last one was sent."""
    with raw_handshake(gate) as http1:
        assert http1.read_head().status == 101
        mask, body = os.urandom(4), b"p" * 1000
        head = b"\x82\xff" + (10_000_000).to_bytes(8) + mask
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))
        http1.connection.sendall(head + masked)
        frame = http1.exactly(4)  # the echo of the first fragment
        assert frame[0] & 0x80 == 0
    assert gate.wait_for("outcome")[0]["bytes_out"] >= 1000
