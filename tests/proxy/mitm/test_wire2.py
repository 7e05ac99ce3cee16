"""HTTP/2: strict heads, bounded buffers, and every violation on record."""

import ssl
from collections.abc import Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from proxy.mitm.wire2 import bound_header_table, split_head
from tests.kit.certificates import Authority
from tests.kit.gate import Gate
from tests.kit.http2 import Http2, Http2Origin
from tests.kit.origin import Origin
from tests.proxy.mitm.conftest import OpenGate

GOOD = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
BAD_HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    "nothing": [],
    "no method": GOOD[1:],
    "no authority": [*GOOD[:2], GOOD[3]],
    "a pseudo field twice": [*GOOD, (b":path", b"/x")],
    "a pseudo field nobody knows": [*GOOD, (b":status", b"200")],
    "extended CONNECT": [*GOOD, (b":protocol", b"websocket")],
    "plain CONNECT": [(b":method", b"CONNECT"), (b":authority", b"a:443")],
    "a pseudo field behind a field": [*GOOD[:3], (b"x", b"1"), GOOD[3]],
}


def test_a_head_is_split_into_its_parts() -> None:
    fields = [(b"x", b"1"), (b"x", b"2")]
    assert split_head([*GOOD, *fields]) == (dict(GOOD), fields)


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_with_other_pseudo_fields_is_none(head: list[tuple[bytes, bytes]]) -> None:
    """C7, C8."""
    assert isinstance(split_head(head), str)


def open_http2(gate: Gate) -> Http2:
    connection = gate.secure(protocols=("h2",))
    assert connection.selected_alpn_protocol() == "h2"
    return Http2(connection)


@pytest.fixture
def http2_origin(authority: Authority) -> Iterator[Http2Origin]:
    with Http2Origin(authority.server_context("api.test", protocols=("h2",))) as made:
        yield made


def test_an_agent_with_http2_reaches_an_origin_without(
    open_gate: OpenGate, secure_origin: Origin
) -> None:
    gate = open_gate(secure=secure_origin.port)
    http2 = open_http2(gate)
    assert http2.ask("/ok", "api.test").status == 200
    assert http2.ask("/echo", "api.test", method="POST", body=b"hello").body == b"hello"
    assert secure_origin.lines == ["GET /ok HTTP/1.1", "POST /echo HTTP/1.1"]
    http2.connection.close()
    assert len(gate.wait_for("outcome", 2)) == 2


def test_an_agent_with_http2_reaches_an_origin_with(
    open_gate: OpenGate, http2_origin: Http2Origin
) -> None:
    gate = open_gate(secure=http2_origin.port)
    http2 = open_http2(gate)
    streams = [http2.send(f"/{n}", "api.test") for n in range(5)]
    assert [answer.status for answer in http2.read(*streams)] == [200] * 5
    answer = http2.ask("/rpc", "api.test", method="POST", body=b"call")
    assert answer.body == b"call"
    assert ("grpc-status", "0") in answer.trailers
    assert http2.ask("/big/300000", "api.test").body == b"b" * 300_000
    assert http2_origin.connections == 1
    http2.connection.close()


def test_a_denied_stream_leaves_the_others_alone(
    open_gate: OpenGate, http2_origin: Http2Origin
) -> None:
    rules = (
        "  - { id: ok, verdict: allow, match: { host: api.test, path: /ok, dest_ip: loopback } }\n"
    )
    gate = open_gate(secure=http2_origin.port, rules=rules)
    http2 = open_http2(gate)
    streams = [http2.send("/ok", "api.test"), http2.send("/no", "api.test")]
    streams.append(http2.send("/ok", "api.test"))
    answers = http2.read(*streams)
    assert [answer.status for answer in answers] == [200, 403, 200]
    assert b'"reason":"no-rule-matched"' in answers[1].body
    assert answers[1].value("proxy-status").startswith("tollkeeper;")
    assert [path for _, path, *_ in http2_origin.requests] == ["/ok", "/ok"]
    http2.connection.close()


def test_a_denied_upload_is_answered_before_it_ends(
    open_gate: OpenGate, http2_origin: Http2Origin
) -> None:
    """A9: the rest of the body is reset, not read."""
    rules = (
        "  - { id: ok, verdict: allow, match: { host: api.test, path: /ok, dest_ip: loopback } }\n"
    )
    gate = open_gate(secure=http2_origin.port, rules=rules)
    raw = Raw(gate)
    raw.request({":method": "POST", ":path": "/no"}, end=False)
    assert raw.status() == 403
    assert http2_origin.connections == 0


SMUGGLED: dict[str, tuple[str, str]] = {
    "C4 a space in the method": (":method", "GET /admin HTTP/1.1 x"),
    "C4 a space in the path": (":path", "/ok HTTP/1.1 x"),
    "C6 an absolute path": (":path", "http://evil.test/x"),
    "C6 a path without a slash": (":path", "x"),
    "another authority": (":authority", "evil.test"),
}


@pytest.mark.parametrize(("name", "value"), SMUGGLED.values(), ids=SMUGGLED)
def test_what_would_smuggle_is_refused_and_recorded(
    name: str, value: str, open_gate: OpenGate, http2_origin: Http2Origin
) -> None:
    gate = open_gate(secure=http2_origin.port)
    before = len(gate.recorder.events) + 1  # the CONNECT
    raw = Raw(gate)
    raw.request({name: value})
    assert raw.status() in (0, 400, 403)
    assert len(gate.recorder.events) == before + 1
    assert http2_origin.requests == []
    assert http2_origin.connections == 0


FIELDS: dict[str, tuple[str, str]] = {
    "C1 a whole request in a value": ("x", "1\r\n\r\nDELETE / HTTP/1.1\r\n\r\n"),
    "C3 a lone CR": ("x", "a\rb"),
    "C3 NUL": ("x", "a\0b"),
    "C5 a second host": ("host", "evil.test"),
    "C8 connection": ("connection", "close"),
    "C8 te": ("te", "gzip"),
    "C8 upgrade": ("upgrade", "h2c"),
    "C8 transfer-encoding": ("transfer-encoding", "chunked"),
    "C8 upper case": ("X-Upper", "1"),
}


@pytest.mark.parametrize(("name", "value"), FIELDS.values(), ids=FIELDS)
def test_fields_that_have_no_place_are_refused_and_recorded(
    name: str, value: str, open_gate: OpenGate, http2_origin: Http2Origin
) -> None:
    gate = open_gate(secure=http2_origin.port)
    raw = Raw(gate)
    raw.request({}, [(name, value)])
    assert raw.status() in (0, 400, 403)
    assert len(gate.recorder.events) == 2
    assert http2_origin.requests == []


def test_bytes_that_are_no_frames_are_recorded(open_gate: OpenGate) -> None:
    """A13: mitmproxy would only log it."""
    gate = open_gate()
    connection = gate.secure(protocols=("h2",))
    connection.sendall(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    while connection.recv(65_536):
        pass
    (event,) = gate.wait_for("malformed")
    assert event["why"].startswith("HTTP/2:")


def test_a_rapid_reset_ends_the_connection(open_gate: OpenGate, http2_origin: Http2Origin) -> None:
    """I5, CVE-2023-44487."""
    gate = open_gate(secure=http2_origin.port)
    raw = Raw(gate)
    with_end = raw.hurry(400)
    assert with_end
    assert any("too many resets" in event["why"] for event in gate.wait_for("malformed"))
    assert len(gate.recorder.of("decision")) < 400


def test_trailers_of_a_request_are_refused(open_gate: OpenGate, http2_origin: Http2Origin) -> None:
    gate = open_gate(secure=http2_origin.port)
    raw = Raw(gate)
    stream = raw.request({":method": "POST", ":path": "/echo"}, end=False)
    raw.h2.send_data(stream, b"x")
    raw.h2.send_headers(stream, [("x-secret", "1")], end_stream=True)
    raw.flush()
    assert raw.status() in (0, 400, 403)
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "trailer-refused"


def test_a_client_that_opens_no_window_makes_us_hold_only_so_much(
    open_gate: OpenGate, http2_origin: Http2Origin
) -> None:
    gate = open_gate(secure=http2_origin.port, h2_buffer_bytes_max=100_000)
    raw = Raw(gate, window=0)
    raw.request({":path": "/big/3000000"})
    (outcome,) = gate.wait_for("outcome", timeout_s=10)
    assert outcome["error"] == "client-too-slow" or outcome["error"] == "client-gone"
    assert outcome["bytes_in"] < 3_000_000


PSEUDO = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ([(b"x%d" % number, b"") for number in range(100)], True),
        ([(b"x%d" % number, b"") for number in range(101)], False),
        ([(b"cookie", b"a=%d" % number) for number in range(300)], True),
        ([(b"x", b"y" * 30_000)], True),
        ([(b"x", b"y" * 32_768)], False),
    ],
    ids=["100 fields", "101 fields", "one cookie in crumbs", "30 KB", "32 KB and a name"],
)
def test_heads_have_the_limits_of_http_1(fields: list[tuple[bytes, bytes]], passes: bool) -> None:
    head = split_head([*PSEUDO, *fields], bytes_max=32_768, count_max=100)
    assert (head != "head-too-large") is passes


def test_a_peer_does_not_choose_how_much_we_remember_for_it() -> None:
    """hpack searches its table entry by entry; its size was whatever the peer said."""
    connection = BufferedH2Connection(h2.config.H2Configuration(client_side=False))
    for size in (2**31 - 1, 100, 2**31 - 1, 50, 2**31 - 1):
        connection.encoder.header_table_size = size
        bound_header_table(connection)
    assert connection.encoder.header_table_size == 4096
    assert connection.encoder.table_size_changes == [50, 4096]
    bound_header_table(connection)
    assert connection.encoder.table_size_changes == [50, 4096]


class Raw:
    """A client that sends what h2 would refuse to send."""

    def __init__(self, gate: Gate, window: int = 65_535) -> None:
        self.connection = gate.secure(protocols=("h2",))
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings.initial_window_size = window
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.connection.sendall(self.h2.data_to_send())

    def request(self, changes: dict[str, str], fields: Any = (), *, end: bool = True) -> int:
        head = {":method": "GET", ":scheme": "https", ":authority": "api.test", ":path": "/ok"}
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*(head | changes).items(), *fields], end_stream=end)
        self.flush()
        return stream

    def hurry(self, count: int) -> bool:
        """Open and reset streams; whether the other side ended the connection."""
        try:
            for _ in range(count):
                self.h2.reset_stream(self.request({}), 8)
                self.flush()
        except OSError:
            return True
        return self.status() == 0

    def status(self) -> int:
        """Of the first answer; 0 for a reset, a GOAWAY or a closed connection."""
        try:
            while data := self.connection.recv(65_536):
                for event in self.h2.receive_data(data):
                    match event:
                        case h2.events.ResponseReceived():
                            return int(dict(event.headers)[b":status"])
                        case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                            return 0
                self.flush()
        except (OSError, ssl.SSLError):
            return 0
        return 0
