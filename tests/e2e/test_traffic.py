"""Traffic as it is: streams, large bodies, keep-alive, pipelining, HTTP/2, WebSocket.

One server for the whole module. What it allows is in RULES; everything else is denied.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.kit.certificates import Authority
from tests.kit.http1 import Http1, format_request
from tests.kit.http2 import Http2, Http2Origin
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, wait_until, write_policy

API, FAST = "api.test.example", "fast.test.example"
MEGABYTE = 1_000_000
RULES = f"""
  - id: api
    verdict: allow
    match: {{ host: {API}, path: ["/ok/*", /sse, /echo, /sink, "/big/*", "/status/*", "/drip/*", "/slow/*"], methods: [GET, HEAD, POST], dest_ip: loopback }}
  - {{ id: fast, verdict: allow, match: {{ host: {FAST}, path: ["/ok/*", /echo, /rpc, "/big/*", "/slow/*"], methods: [GET, POST], dest_ip: loopback }} }}
  - {{ id: talk, verdict: allow, match: {{ host: {API}, path: /ws, websocket: true, dest_ip: loopback }} }}
  - {{ id: plain, verdict: allow, match: {{ host: {API}, scheme: http, port: 80, path: ["/ok/*", /echo], methods: [GET, POST], dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best


@dataclass
class House:
    """Everything of this module, started once."""

    proxy: Proxy
    origin: Origin  # HTTP/1.1 over TLS
    fast: Http2Origin
    plain: Origin
    opened: list[socket.socket] = field(default_factory=list)

    def http1(self, host: str = API, timeout_s: float = 15.0) -> Http1:
        """A client inside a tunnel."""
        connection = self.proxy.tunnel(host, 443, timeout_s=timeout_s)
        self.opened.append(connection)
        return Http1(connection)

    def http2(self, host: str = API) -> Http2:
        """The same, HTTP/2."""
        connection = self.proxy.tunnel(host, 443, protocols=["h2"], timeout_s=15.0)
        self.opened.append(connection)
        assert connection.selected_alpn_protocol() == "h2"
        return Http2(connection)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("traffic")
    authority = Authority(folder / "origin")
    policy = write_policy(folder / "policies.yaml", RULES)
    fast_tls = authority.server_context(FAST, protocols=("h2",))
    with (
        Origin(tls=authority.server_context(API)) as origin,
        Origin() as plain,
        Http2Origin(tls=fast_tls) as fast,
    ):
        pins = [
            f"{API}:443:127.0.0.1:{origin.port}",
            f"{API}:80:127.0.0.1:{plain.port}",
            f"{FAST}:443:127.0.0.1:{fast.port}",
        ]
        with Proxy(folder, policy, resolve=pins, upstream_ca=authority.pem) as proxy:
            yield House(proxy, origin, fast, plain)


@pytest.fixture(autouse=True)
def close_connections(house: House) -> Iterator[None]:
    yield
    while house.opened:
        house.opened.pop().close()


def decisions(house: House, path: str) -> list[dict[str, Any]]:
    """The decisions about one path, in order."""
    found = house.proxy.records("decision")
    return [event for event in found if event["target"].get("path") == path]


def outcome_of(house: House, decision: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a decision, which comes a moment after the answer."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        outcomes = house.proxy.records("outcome")
        found[:] = [event for event in outcomes if event["ref"] == decision["id"]]
        return bool(found)

    assert wait_until(look), f"no outcome of {decision}"
    return found[0]


# --- streams


def test_events_of_a_stream_are_passed_on_as_they_come(house: House) -> None:
    """Three events 0.2 s apart: the first is there before the last was made."""
    with house.http1() as client:
        client.send("/sse", API)
        assert client.read_head().value("content-type") == "text/event-stream"
        came = [(time.monotonic(), chunk) for chunk in client.chunks()]
    assert [chunk for _, chunk in came] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert came[-1][0] - came[0][0] > 0.25


def test_events_are_passed_on_over_http2(house: House) -> None:
    client = house.http2()
    answer = client.ask("/sse", API)
    assert answer.status == 200
    assert answer.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_a_large_download_is_not_collected_in_memory(house: House) -> None:
    house.http1().ask("/ok/warm", API)
    before = house.proxy.rss_bytes
    largest = 0
    with house.http1(timeout_s=60.0) as client:
        client.send(f"/big/{40 * MEGABYTE}", API)
        left = int(client.read_head().value("content-length"))
        while left:
            left -= len(client.exactly(min(left, MEGABYTE)))
            largest = max(largest, house.proxy.rss_bytes)
    assert largest - before < 16 * MEGABYTE


def test_a_large_upload_is_not_collected_in_memory(house: House) -> None:
    house.http1().ask("/ok/warm", API)
    before = house.proxy.rss_bytes
    largest = 0
    block = b"u" * MEGABYTE
    with house.http1(timeout_s=60.0) as client:
        head = format_request("/sink", API, "POST", [f"Content-Length: {40 * MEGABYTE}"])
        client.connection.sendall(head)
        for _ in range(40):
            client.connection.sendall(block)
            largest = max(largest, house.proxy.rss_bytes)
        assert client.read().status == 200
    assert len(house.origin.requests[-1].body) == 40 * MEGABYTE
    assert largest - before < 16 * MEGABYTE


@pytest.mark.parametrize("host", [API, FAST], ids=["h2 to h1", "h2 to h2"])
def test_a_large_answer_over_http2_arrives_whole(house: House, host: str) -> None:
    """Its reader is slower than the origin: that one is held up, nothing is cut or collected."""
    house.http2(host).ask("/ok/warm", host)
    before = house.proxy.rss_bytes
    answer = house.http2(host).ask(f"/big/{30 * MEGABYTE}", host, timeout_s=60.0)
    assert (answer.status, len(answer.body)) == (200, 30 * MEGABYTE)
    assert house.proxy.rss_bytes - before < 16 * MEGABYTE


@pytest.mark.parametrize("host", [API, FAST], ids=["h2 to h1", "h2 to h2"])
def test_many_large_answers_at_once_arrive_whole(house: House, host: str) -> None:
    client = house.http2(host)
    streams = [client.send(f"/big/{2 * MEGABYTE}", host) for _ in range(16)]
    answers = client.read(*streams, timeout_s=60.0)
    assert {(answer.status, len(answer.body)) for answer in answers} == {(200, 2 * MEGABYTE)}


@pytest.mark.parametrize("host", [API, FAST], ids=["h2 to h1", "h2 to h2"])
def test_a_stream_that_is_not_read_holds_up_no_other(house: House, host: str) -> None:
    client = house.http2(host)
    client.ask("/ok/warm", host)
    before = house.proxy.rss_bytes
    unread = client.send(f"/big/{60 * MEGABYTE}", host)
    client.unread.add(unread)
    for number in range(20):
        assert client.ask(f"/ok/beside-{number}", host).status == 200
    assert len(client.ask(f"/big/{3 * MEGABYTE}", host, timeout_s=30.0).body) == 3 * MEGABYTE
    time.sleep(0.3)
    assert house.proxy.rss_bytes - before < 16 * MEGABYTE


def test_a_slow_reader_does_not_make_the_proxy_collect(house: House) -> None:
    """The client stops reading: the origin must be held up, not the proxy filled."""
    house.http1().ask("/ok/warm", API)
    before = house.proxy.rss_bytes
    with house.http1() as client:
        client.send(f"/big/{60 * MEGABYTE}", API)
        client.read_head()
        time.sleep(1.5)
        assert house.proxy.rss_bytes - before < 16 * MEGABYTE


# --- bodies


def test_a_chunked_upload_arrives_as_sent(house: House) -> None:
    with house.http1() as client:
        client.connection.sendall(
            format_request("/echo", API, "POST", ["Transfer-Encoding: chunked"])
        )
        for part in (b"one ", b"two ", b"three"):
            client.connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        client.connection.sendall(b"0\r\n\r\n")
        assert client.read().body == b"one two three"
        assert client.ask("/ok/next", API).status == 200


def test_an_upload_that_was_announced_is_asked_for(house: House) -> None:
    """`Expect: 100-continue`: a 100 for an allowed request, and only then the body."""
    with house.http1() as client:
        expect = ["Expect: 100-continue", "Content-Length: 4"]
        client.connection.sendall(format_request("/echo", API, "POST", expect))
        assert client.read_head().status == 100
        client.connection.sendall(b"body")
        assert client.read().body == b"body"


def test_a_denied_upload_is_not_asked_for(house: House) -> None:
    with house.http1() as client:
        expect = ["Expect: 100-continue", "Content-Length: 4"]
        client.connection.sendall(format_request("/denied/upload", API, "POST", expect))
        assert client.read().status == 403


def test_a_denied_upload_is_answered_before_it_was_sent(house: House) -> None:
    """The 403 comes at once, though most of the announced body is still missing."""
    with house.http1() as client:
        length = [f"Content-Length: {50 * MEGABYTE}"]
        client.connection.sendall(format_request("/denied/large", API, "POST", length))
        client.connection.sendall(b"u" * 1000)
        answer = client.read()
        assert (answer.status, answer.value("connection")) == (403, "close")


def test_a_denied_upload_over_http2_is_answered_and_then_ended(house: House) -> None:
    """Clients that stop get their 403 undisturbed; one that goes on for megabytes is reset."""
    client = house.http2()
    before = len(house.origin.requests)
    stream = client.begin("/denied/endless", API)
    (answer,) = client.read(stream)
    assert answer.status == 403
    assert client.upload(stream, b"u" * 16_384, times=1000) < 600
    assert client.ask("/ok/beside", API).status == 200
    assert len(house.origin.requests) == before + 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/ok/head", 200), ("GET", "/status/204", 204), ("GET", "/status/304", 304)],
)
def test_answers_without_a_body_end_at_their_head(
    house: House, method: str, path: str, status: int
) -> None:
    with house.http1() as client:
        answer = client.ask(path, API, method=method)
        assert (answer.status, answer.body) == (status, b"")
        assert client.ask("/ok/behind", API).status == 200
    answer = house.http2().ask(path, API, method=method)
    assert (answer.status, answer.body) == (status, b"")


# --- many requests on one connection


def test_allow_then_deny_on_one_connection(house: House) -> None:
    """F8: a warm connection to the origin helps no request that is denied."""
    with house.http1() as client:
        assert client.ask("/ok/f8", API).status == 200
        assert client.ask("/ok/f8-again", API).status == 200
        before = len(house.origin.requests), house.origin.bytes_received
        assert client.ask("/denied/f8", API).status == 403
        assert client.is_closed()
    assert (len(house.origin.requests), house.origin.bytes_received) == before
    assert [event["verdict"] for event in decisions(house, "/denied/f8")] == ["deny"]


def test_requests_in_a_row_use_one_upstream_connection(house: House) -> None:
    before = house.origin.connections
    with house.http1() as client:
        for number in range(5):
            assert client.ask(f"/ok/row-{number}", API).status == 200
    assert house.origin.connections == before + 1


def test_pipelined_requests_are_two_requests(house: House) -> None:
    """C21: two requests in one packet: two records, two answers, in order."""
    with house.http1() as client:
        both = format_request("/ok/pipe-1", API) + format_request("/ok/pipe-2", API)
        client.connection.sendall(both)
        assert client.read().body == b'{"path": "/ok/pipe-1"}'
        assert client.read().body == b'{"path": "/ok/pipe-2"}'
    for path in ("/ok/pipe-1", "/ok/pipe-2"):
        assert [event["verdict"] for event in decisions(house, path)] == ["allow"]


def test_a_pipelined_request_behind_a_denied_one_is_not_judged(house: House) -> None:
    with house.http1() as client:
        both = format_request("/denied/pipe", API) + format_request("/ok/pipe-behind", API)
        client.connection.sendall(both)
        assert client.read().status == 403
        assert client.is_closed()
    assert not [seen for seen in house.origin.lines if "pipe-behind" in seen]


def test_plain_http_is_judged_by_its_own_rules(house: House) -> None:
    with Http1(house.proxy.connect(15.0)) as client:
        assert client.ask(f"http://{API}/ok/plain", API).status == 200
        answer = client.ask(f"http://{API}/echo", API, method="POST", body=b"plain")
        assert answer.body == b"plain"
        assert client.ask(f"http://{API}/sse", API).status == 403
    lines = [line for line in house.plain.lines if line.startswith("GET")]
    assert lines == ["GET /ok/plain HTTP/1.1"]


# --- HTTP/2


@pytest.mark.parametrize("host", [API, FAST], ids=["h2 to h1", "h2 to h2"])
def test_one_denied_stream_leaves_the_others_alone(house: House, host: str) -> None:
    client = house.http2(host)
    paths = ["/slow/0.3", "/ok/many-1", "/denied/many", "/ok/many-2", "/ok/many-3"]
    streams = [client.send(path, host) for path in paths]
    answers = client.read(*streams)
    assert [answer.status for answer in answers] == [200, 200, 403, 200, 200]
    assert b'"reason":"no-rule-matched"' in answers[2].body
    assert client.ask("/ok/later", host).status == 200


def test_streams_to_an_http2_origin_share_its_connection(house: House) -> None:
    client = house.http2(FAST)
    assert client.ask("/ok/first", FAST).value("x-origin") == "h2"
    before = house.fast.connections
    streams = [client.send(f"/ok/{number}", FAST) for number in range(10)]
    assert {answer.status for answer in client.read(*streams)} == {200}
    assert house.fast.connections == before


def test_a_call_with_trailers_is_passed_on_like_grpc_needs_it(house: House) -> None:
    client = house.http2(FAST)
    headers = [("content-type", "application/grpc"), ("te", "trailers")]
    answer = client.ask("/rpc", FAST, method="POST", headers=headers, body=b"\0\0\0\0\1x")
    assert answer.status == 200
    assert answer.body == b"\0\0\0\0\1x"
    assert dict(answer.trailers) == {"grpc-status": "0", "grpc-message": "fine"}


def test_an_upload_over_http2_arrives_whole(house: House) -> None:
    """As much as the first window takes, which is all that this client knows to send."""
    for host in (API, FAST):
        body = bytes(range(256)) * 200
        answer = house.http2(host).ask("/echo", host, method="POST", body=body)
        assert answer.body == body


# --- WebSocket


def converse(house: House, talk: Callable[[ClientConnection], Any], *, path: str = "/ws") -> None:
    """Open a WebSocket through the proxy and run `talk` on it."""

    async def run() -> None:
        context = ssl.create_default_context(cafile=str(house.proxy.ca))
        async with (
            asyncio.timeout(30),
            websockets.connect(
                f"wss://{API}{path}", ssl=context, proxy=house.proxy.url, max_size=None
            ) as client,
        ):
            await talk(client)

    asyncio.run(run())


def test_a_websocket_echoes_text_and_bytes(house: House) -> None:
    async def talk(client: ClientConnection) -> None:
        await client.send("grüße")
        assert await client.recv() == "grüße"
        for size in (0, 125, 126, 65_535, 65_536, 900_000):
            await client.send(b"w" * size)
            assert await client.recv() == b"w" * size

    converse(house, talk)
    handshake = decisions(house, "/ws")[-1]
    outcome = outcome_of(house, handshake)
    assert handshake["verdict"] == "allow"
    assert outcome["status"] == 101
    assert outcome["bytes_out"] > 1_000_000 < outcome["bytes_in"]


def test_pings_of_a_client_end_at_the_proxy(house: House) -> None:
    """A ping could carry anything past every rule: it is answered, not passed on."""

    async def talk(client: ClientConnection) -> None:
        await (await client.ping(b"covert"))
        await client.send("overt")
        assert await client.recv() == "overt"

    converse(house, talk)
    payloads = [payload for _, payload in house.origin.frames]
    assert b"overt" in payloads
    assert b"covert" not in payloads


def test_a_websocket_needs_a_rule_of_its_own(house: House) -> None:
    async def talk(client: ClientConnection) -> None:
        await client.send("never")

    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        converse(house, talk, path="/ok/upgrade")
    assert refused.value.response.status_code == 403


# --- what is recorded


def test_every_allowed_request_has_its_outcome_with_sizes(house: House) -> None:
    with house.http1() as client:
        body = b"m" * 5000
        assert client.ask("/echo", API, method="POST", body=body).body == body
    [*_, last] = decisions(house, "/echo")
    outcome = outcome_of(house, last)
    assert outcome["status"] == 200
    assert 5000 < outcome["bytes_out"] < 5500
    assert 5000 < outcome["bytes_in"] < 5500
    assert "error" not in outcome


def test_a_client_that_leaves_is_an_outcome(house: House) -> None:
    client = house.http1()
    client.send("/drip/0.05", API)
    client.read_head()
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.connection.close()
    outcome = outcome_of(house, decisions(house, "/drip/0.05")[-1])
    assert (outcome["status"], outcome["error"]) == (200, "client-gone")


def test_all_of_it_verifies(house: House) -> None:
    with ExitStack() as stack:
        for number in range(10):
            client = stack.enter_context(house.http1())
            client.send(f"/ok/verify-{number}", API)
    assert house.proxy.verify("--allow-open").returncode == 0
