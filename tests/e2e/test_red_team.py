"""What an agent with a shell and an afternoon would try: each attack over a real socket, against
the real server, often with an origin that helps the agent."""

import contextlib
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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
from tests.kit.proxy import Proxy, read_all, wait_until, write_policy
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
        connection.settimeout(3)  # then it leaves
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


# --- counting: what nobody meters is a channel


def answer_http2(head: list[tuple[str, str]], body: bytes, trailers: list[tuple[str, str]]) -> Any:
    """An HTTP/2 origin with one answer for everything."""

    def answer(connection: ssl.SSLSocket) -> None:
        config = h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        peer = h2.connection.H2Connection(config)
        peer.initiate_connection()
        connection.sendall(peer.data_to_send())
        while data := connection.recv(65_536):
            for event in peer.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    peer.send_headers(event.stream_id, head)
                    peer.send_data(event.stream_id, body)
                    peer.send_headers(event.stream_id, trailers, end_stream=True)
            connection.sendall(peer.data_to_send())

    return answer


def test_trailers_are_counted_and_their_fields_are_judged(house: House) -> None:
    trailers = [("grpc-status", "0"), ("alt-svc", "h3=':443'"), ("proxy-authenticate", "Basic")]
    house.rogue2.on_http2 = answer_http2([(":status", "200")], b"ok", trailers)
    with house.open_http2(ROGUE2) as client:
        client.request(ROGUE2, "/small/trailers")
        found = [e for e in client.read(1) if isinstance(e, h2.events.TrailersReceived)]
        assert [e.headers for e in found] == [[(b"grpc-status", b"0")]]
    outcome = outcome_of(house, "/small/trailers")
    assert outcome["bytes_in"] == len("HTTP/1.1 200 \r\n\r\nokgrpc-status: 0\r\n")


def test_trailers_do_not_evade_the_limit_of_an_answer(house: House) -> None:
    house.rogue2.on_http2 = answer_http2([(":status", "200")], b"ok", [("x", "y" * 2000)])
    with house.open_http2(ROGUE2) as client:
        client.request(ROGUE2, "/small/long-trailers")
        kinds = {type(event) for event in client.read(1)}
    assert h2.events.StreamReset in kinds
    assert h2.events.TrailersReceived not in kinds
    assert outcome_of(house, "/small/long-trailers")["cut"] == "response-too-large"


def outcome_of(house: House, path: str) -> dict[str, Any]:
    """The only outcome of the only request for `path`."""
    (decision,) = [e for e in house.proxy.records("decision") if e["target"].get("path") == path]

    def find() -> list[dict[str, Any]]:
        return [e for e in house.proxy.records("outcome") if e["ref"] == decision["id"]]

    assert wait_until(find)
    (outcome,) = find()
    return outcome


SOCKET_FIELDS = [
    "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
]  # fmt: skip


def test_empty_fragments_of_a_websocket_end_at_the_proxy(house: House) -> None:
    """Their number and order would tell anything, and weigh nothing."""
    since = len(house.origin.frames)
    empty = b"\x00\x80" + bytes(4)
    with house.open() as client:
        assert client.ask("/ws", API, headers=SOCKET_FIELDS).status == 101
        client.connection.sendall(
            b"\x01\x82" + bytes(4) + b"hi" + empty * 500 + b"\x80\x80" + bytes(4)
        )
        assert wait_until(lambda: len(house.origin.frames) >= since + 2)
    assert house.origin.frames[since : since + 2] == [(0x01, b"hi"), (0x80, b"")]


# --- what an operator sees


def test_a_head_that_is_none_is_shown_in_its_record(house: House) -> None:
    """It was taken from an empty buffer: 0 bytes, and no word of what had come."""
    house.proxy.exchange(b"G\x1b[2J /shown HTTP/1.1\r\nCookie: secret\r\n\r\n")
    assert wait_until(lambda: "/shown" in str(house.proxy.records("malformed")))
    assert "secret" not in str(house.proxy.records("malformed"))


def test_a_denied_tunnel_is_explained_once_over_http2_too(house: House) -> None:
    with house.open_http2("denied.example") as client:
        client.request("denied.example", "/first")
        client.read(3)
        assert client.statuses() == [403]
        assert client.ended


def test_text_of_an_agent_moves_no_cursor(house: House) -> None:
    house.proxy.exchange(
        "CONNECT \x9b31mevil\x85:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1")
    )
    assert wait_until(lambda: "31mevil" in house.proxy.stderr)
    assert house.proxy.stderr.replace("\n", "").isprintable()


# --- names and limits


OTHER_NAMES = {
    "SNI of another allowed host": (API, ROGUE, API),
    "SNI and Host of another allowed host": (API, ROGUE, ROGUE),
    "Host of another allowed host": (API, API, ROGUE),
    "a port with a leading zero": (API, API, f"{API}:0443"),
    "an empty port": (API, API, f"{API}:"),
    "two dots": (API, API, f"{API}.."),
    "user information": (API, API, f"x@{API}"),
}


@pytest.mark.parametrize(("tunnel", "sni", "host"), OTHER_NAMES.values(), ids=OTHER_NAMES)
def test_names_that_differ_are_refused(house: House, tunnel: str, sni: str, host: str) -> None:
    heads = len(house.origin.requests), len(house.rogue.heads)
    with house.open(tunnel, sni=sni) as client:
        assert client.ask("/ok", host).status == 403
    assert (len(house.origin.requests), len(house.rogue.heads)) == heads


@pytest.mark.parametrize(("tunnel", "sni", "host"), [
    (f"{API}.", API, API), (API, API.upper(), API.upper()), (API, f"{API}.", f"{API}.:443"),
])  # fmt: skip
def test_spellings_of_one_name_are_one_name(house: House, tunnel: str, sni: str, host: str) -> None:
    with house.open(tunnel, sni=sni) as client:
        assert client.ask("/ok", host).status == 200
    assert house.origin.requests[-1].values("host") == [API]


def test_more_connections_than_there_is_room_for(house: House) -> None:
    """Those that came first are served on, and later ones are told."""
    with contextlib.ExitStack() as stack, house.open() as early:
        assert early.ask("/ok", API).status == 200
        for _ in range(1100):
            stack.enter_context(house.proxy.connect())
        assert house.proxy.exchange(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 403 ")
        assert early.ask("/ok", API).status == 200
    assert wait_until(lambda: details(house)["connections"] == "0")
    assert house.is_alive()


def details(house: House) -> dict[str, str]:
    found: dict[str, str] = json.loads(house.proxy.scrape("/readyz")[1])["details"]
    return found


# --- nothing is left behind


def leave_oddly(house: House, number: int) -> None:
    """One connection of a client that gives up in the middle of something."""
    match number % 5:
        case 0:
            connection: socket.socket = house.proxy.connect()
            connection.sendall(b"\x16\x03\x01\xff" * 9)
        case 1:
            connection = house.open().connection
            connection.sendall(format_request("/echo", API, "POST", ["Content-Length: 9"]) + b"x")
        case 2:
            client = house.open_http2()
            client.request(API, "/drip/0.05")
            connection = client.connection
        case 3:
            connection = house.open().connection
            connection.sendall(format_request("/slow/1", API))
        case _:
            connection = house.open().connection
            connection.sendall(format_request("/big/3000000", API))
    time.sleep(number % 7 * 0.005)
    if number % 2:
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # a reset
    connection.close()


def test_odd_connections_leave_nothing_behind_but_records(house: House) -> None:
    descriptors = Path(f"/proc/{house.proxy.process.pid}/fd")
    house.is_alive()
    assert wait_until(lambda: details(house)["connections"] == "0")
    before = len(list(descriptors.iterdir()))
    for number in range(150):
        leave_oddly(house, number)
    assert wait_until(
        lambda: details(house)["exchanges"] == details(house)["connections"] == "0", 15
    )
    assert len(list(descriptors.iterdir())) <= before + 1
    assert "fault" not in house.proxy.stderr


def test_every_allowed_request_of_all_this_has_exactly_one_outcome(house: House) -> None:
    assert wait_until(lambda: details(house)["exchanges"] == "0", 25)
    allowed = [
        event["id"]
        for event in house.proxy.records("decision")
        if (event["verdict"], event["stage"]) == ("allow", "request")
    ]
    assert sorted(allowed) == sorted(event["ref"] for event in house.proxy.records("outcome"))
    assert "fault" not in house.proxy.stderr
