"""What an agent with a shell and an afternoon would try: each attack over a real socket, against
the real server, often with an origin that helps the agent."""

import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from tests.kit.certificates import Authority
from tests.kit.http1 import Http1, format_request
from tests.kit.http2 import Http2
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, read_all, write_policy
from tests.kit.rogue import Rogue

API = "api.test.example"
ROGUE = "rogue.test.example"
ROGUE2 = "rogue2.test.example"
MUTE = "mute.test.example"
MEGABYTE = 2**20
RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: [{API}, {ROGUE}, {ROGUE2}, {MUTE}], methods: [GET, HEAD, POST], dest_ip: loopback, body: true }} }}
  - {{ id: plain, verdict: allow, match: {{ host: {API}, scheme: http, port: 80, dest_ip: loopback }} }}
  - {{ id: socket, verdict: allow, match: {{ host: [{API}, {ROGUE}], path: [/ws, "/ws/**"], websocket: true, dest_ip: loopback }} }}
  - {{ id: never, verdict: deny, match: {{ host: "**.test.example", path: "/no/**", port: [80, 443], scheme: [http, https] }} }}
  - {{ id: small, verdict: allow, match: {{ host: {ROGUE2}, path: "/small/*", dest_ip: loopback }}, with: {{ max_response: 1kB }} }}
"""  # noqa: E501  one rule per line reads best


@dataclass
class House:
    """Everything of this module, started once."""

    proxy: Proxy
    origin: Origin
    plain: Origin
    rogue: Rogue
    rogue2: Rogue

    def open(self, host: str = API, **rest: Any) -> Http1:
        """HTTP/1.1 in a tunnel."""
        return Http1(self.proxy.tunnel(host, 443, **rest))

    def open_http2(self, host: str = API) -> "Frames":
        """HTTP/2 in a tunnel."""
        return Frames(self.proxy.tunnel(host, 443, protocols=["h2"]))

    def grows_less_than(self, megabytes: int, attack: Callable[[], None]) -> bool:
        """Whether the server's memory stays in bounds under an attack."""
        before = self.proxy.rss_bytes
        attack()
        return self.proxy.rss_bytes - before < megabytes * MEGABYTE

    def is_alive(self) -> bool:
        """Whether somebody else is served at once."""
        with self.open(timeout_s=5) as client:
            return client.ask("/ok", API).status == 200


class Frames:
    """An HTTP/2 client that does what it likes."""

    def __init__(self, connection: ssl.SSLSocket, window: int = 65_535) -> None:
        self.connection = connection
        config = h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings.initial_window_size = window
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.flush()
        self.events: list[Any] = []
        self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def flush(self) -> None:
        self.connection.sendall(self.h2.data_to_send())

    def request(self, host: str, path: str, method: str = "GET", *, end: bool = True) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
        self.h2.send_headers(stream, head, end_stream=end)
        self.flush()
        return stream

    def read(self, timeout_s: float = 2.0) -> list[Any]:
        """Whatever comes until the peer ends or is silent."""
        self.connection.settimeout(timeout_s)
        with contextlib.suppress(TimeoutError):
            while data := self.connection.recv(65_536):
                self.events += self.h2.receive_data(data)
                with contextlib.suppress(OSError):
                    self.flush()
            self.ended = True
        return self.events

    def statuses(self) -> list[int]:
        """Of all answers so far."""
        heads = [e.headers for e in self.events if isinstance(e, h2.events.ResponseReceived)]
        return [int(value) for head in heads for name, value in head if name == b":status"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("red")
    authority = Authority(folder / "origin")
    policy = write_policy(folder / "policies.yaml", RULES)
    with (
        Origin(tls=authority.server_context(API)) as origin,
        Origin() as plain,
        Rogue(authority.server_context(ROGUE)) as rogue,
        Rogue(authority.server_context(ROGUE2, protocols=("h2", "http/1.1"))) as rogue2,
        socket.create_server(("127.0.0.1", 0)) as mute,
    ):
        pins = [
            f"{API}:443:127.0.0.1:{origin.port}",
            f"{API}:80:127.0.0.1:{plain.port}",
            f"{ROGUE}:443:127.0.0.1:{rogue.port}",
            f"{ROGUE2}:443:127.0.0.1:{rogue2.port}",
            f"{MUTE}:443:127.0.0.1:{mute.getsockname()[1]}",
        ]
        with Proxy(folder, policy, resolve=pins, upstream_ca=authority.pem) as proxy:
            yield House(proxy, origin, plain, rogue, rogue2)
        assert proxy.verify().returncode == 0


def push(connection: socket.socket, piece: bytes, times: int, timeout_s: float = 1.5) -> int:
    """Send a piece again and again; how often it went before the peer closed or stopped reading."""
    connection.settimeout(timeout_s)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < times:
            connection.sendall(piece)
            sent += 1
    return sent


def upload(client: Frames, stream: int) -> None:
    """Send until nothing more is taken."""
    client.connection.settimeout(1.5)
    with contextlib.suppress(OSError):
        for _ in range(64 * 64):
            client.h2.send_data(stream, b"a" * 16_384)
            client.flush()
        raise AssertionError("all of it was taken")


# --- memory: what nobody bounds is held for ever


ENDLESS = {
    "the head of a chunk": b"1;",
    "a trailer": b"0\r\n",
}


@pytest.mark.parametrize("start", ENDLESS.values(), ids=ENDLESS)
def test_a_request_body_without_end_is_cut(house: House, start: bytes) -> None:
    head = format_request("/ok", API, "POST", ["Transfer-Encoding: chunked"])
    with house.open() as client:

        def attack() -> None:
            client.connection.sendall(head + start)
            assert push(client.connection, b"a" * MEGABYTE, 64) < 64

        assert house.grows_less_than(24, attack)
    assert house.is_alive()


def test_a_response_body_without_end_is_cut(house: House) -> None:
    def flood(connection: ssl.SSLSocket, _head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        push(connection, b"a" * MEGABYTE, 64)

    house.rogue.scripts["/endless"] = flood

    def attack() -> None:
        with house.open(ROGUE) as client:
            client.send("/endless", ROGUE)
            client.connection.settimeout(5)
            assert b"0\r\n\r\n" not in read_all(client.connection)

    assert house.grows_less_than(24, attack)


def test_what_follows_an_early_answer_is_not_collected(house: House) -> None:
    def flood(connection: ssl.SSLSocket, _head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        push(connection, b"a" * MEGABYTE, 64)

    house.rogue.scripts["/early"] = flood

    def attack() -> None:
        with house.open(ROGUE) as client:
            head = format_request("/early", ROGUE, "POST", ["Content-Length: 10"])
            client.connection.sendall(head + b"x")
            assert client.read().body == b"ok"
            time.sleep(1)

    assert house.grows_less_than(24, attack)


def test_a_body_is_not_collected_while_its_upstream_is_dialled(house: House) -> None:
    with house.open(MUTE) as client:

        def attack() -> None:
            head = format_request("/ok", MUTE, "POST", ["Content-Length: 999999999"])
            client.connection.sendall(head)
            assert push(client.connection, b"a" * MEGABYTE, 64) < 32

        assert house.grows_less_than(24, attack)


def test_a_body_is_not_collected_while_its_upstream_is_dialled_over_http2(house: House) -> None:
    with house.open_http2(MUTE) as client:
        client.read(0.3)
        stream = client.request(MUTE, "/ok", "POST", end=False)
        assert house.grows_less_than(24, lambda: upload(client, stream))


def test_an_upload_is_not_collected_for_an_upstream_that_opens_no_window(house: House) -> None:
    def answer(connection: ssl.SSLSocket) -> None:
        peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        peer.initiate_connection()
        connection.sendall(peer.data_to_send())
        while data := connection.recv(65_536):
            peer.receive_data(data)
            connection.sendall(peer.data_to_send())

    house.rogue2.on_http2 = answer
    with house.open_http2(ROGUE2) as client:
        client.read(0.3)
        stream = client.request(ROGUE2, "/ok", "POST", end=False)
        time.sleep(0.5)
        assert house.grows_less_than(32, lambda: upload(client, stream))


def test_a_client_that_stays_does_not_cost_more_with_every_request(house: House) -> None:
    """Each request of an HTTP/2 client to an HTTP/1 origin has an upstream connection of its
    own."""
    with house.proxy.tunnel(API, 443, protocols=["h2"]) as connection:
        client = Http2(connection)
        for _ in range(50):
            client.ask("/ok", API)

        def attack() -> None:
            for _ in range(400):
                assert client.ask("/ok", API).status == 200

        assert house.grows_less_than(9, attack)  # 48 KB each it was: 19 MB


def test_broken_tls_records_end_the_connection(house: House) -> None:
    with house.open() as client:
        bare = socket.socket(fileno=os.dup(client.connection.fileno()))
        with bare:
            assert push(bare, b"\x17\x03\x03\x40\x00" + b"x" * MEGABYTE, 32) < 32


# --- time: what one agent can do to the others


def open_raw_tunnel(house: House, timeout_s: float = 5.0) -> socket.socket:
    connection = house.proxy.connect(timeout_s)
    connection.sendall(f"CONNECT {API}:443 HTTP/1.1\r\nHost: {API}:443\r\n\r\n".encode())
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    return connection


def hello_records(count: int, record_bytes: int = 16_000) -> bytes:
    """The start of a ClientHello that says it has 16 MB."""
    record = b"\x16\x03\x01" + struct.pack("!H", record_bytes)
    return (
        record
        + b"\x01\xff\xff\xff".ljust(record_bytes, b"\0")
        + ((record + bytes(record_bytes)) * count)
    )


def test_a_giant_client_hello_is_refused_at_once(house: House) -> None:
    """It was collected and parsed anew for every packet: others waited for 9 seconds."""
    since = len(house.proxy.records("malformed"))
    with open_raw_tunnel(house) as connection:
        push(connection, hello_records(40), 10)
        connection.settimeout(2)
        assert read_all(connection) == b""
    found = house.proxy.wait_for("malformed", since + 1)[since:]
    assert [event["why"] for event in found] == ["the TLS handshake with the client failed"]
    assert "fault" not in house.proxy.stderr


@pytest.mark.parametrize(
    "hello", [b"\x16\x03\x01\x00\x05\x01\x00\x00\x01x", b"\x16\x03\x01\x00\x00"]
)
def test_a_client_hello_that_is_none_is_recorded(house: House, hello: bytes) -> None:
    since = len(house.proxy.records("malformed"))
    with open_raw_tunnel(house) as connection:
        connection.sendall(hello)
        assert read_all(connection) == b""
    assert len(house.proxy.wait_for("malformed", since + 1)) == since + 1
