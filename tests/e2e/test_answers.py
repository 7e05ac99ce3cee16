"""What an agent is told: limits, guards, the upstream's troubles, and the forms of a denial."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kit.certificates import Authority
from tests.kit.http1 import Answer, Http1, format_request
from tests.kit.http2 import Http2
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, wait_until, write_policy

API = "api.test.example"
RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: {API}, path: "/ok/**", methods: [GET, POST], dest_ip: loopback }} }}
  - {{ id: paced, verdict: allow, match: {{ host: {API}, path: "/paced/*", dest_ip: loopback }}, with: {{ rate: pace }} }}
  - {{ id: small-in, verdict: allow, match: {{ host: {API}, path: /echo, methods: POST, dest_ip: loopback }}, with: {{ max_request: 1kB }} }}
  - {{ id: small-out, verdict: allow, match: {{ host: {API}, path: ["/big/*", "/drip/*"], dest_ip: loopback }}, with: {{ max_response: 10kB }} }}
  - {{ id: odd, verdict: allow, match: {{ host: {API}, path: ["/odd/*", /hints], dest_ip: loopback }} }}
  - {{ id: closed, verdict: allow, match: {{ host: closed.test.example }} }}
  - {{ id: local-range, verdict: allow, match: {{ host: linked.test.example, dest_ip: [link_local, loopback] }} }}
  - {{ id: mixed, verdict: allow, match: {{ host: mixed.test.example }} }}
  - {{ id: nowhere, verdict: allow, match: {{ host: nowhere.invalid }} }}
  - {{ id: troubled, verdict: allow, match: {{ host: [down.test.example, untrusted.test.example, misnamed.test.example, mute.test.example], dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best
HEAD = "rates: { pace: { each: agent, allow: 2, per: 1m } }\n"


class Mute:
    """Accepts connections and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()
        for connection in self.accepted:
            connection.close()


@dataclass
class House:
    """Everything of this module, started once."""

    proxy: Proxy
    origin: Origin

    def ask(self, path: str, host: str = API, *, timeout_s: float = 15.0, **rest: Any) -> Answer:
        """One request in a tunnel of its own."""
        with Http1(self.proxy.tunnel(host, 443, timeout_s=timeout_s)) as client:
            return client.ask(path, host, **rest)

    def decision(self, answer: Answer) -> dict[str, Any]:
        """The record that a denial names."""
        wanted = json.loads(answer.body)["decision"]
        (found,) = [event for event in self.proxy.records("decision") if event["id"] == wanted]
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("answers")
    authority, stranger = Authority(folder / "origin"), Authority(folder / "stranger")
    policy = write_policy(folder / "policies.yaml", RULES, head=HEAD)
    mute = Mute()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        down = taken.getsockname()[1]
    with (
        Origin(tls=authority.server_context(API)) as origin,
        Origin(tls=stranger.server_context("untrusted.test.example")) as untrusted,
    ):
        pins = [
            f"{API}:443:127.0.0.1:{origin.port}",
            f"closed.test.example:443:127.0.0.1:{origin.port}",
            f"linked.test.example:443:169.254.169.254:{origin.port}",
            f"mixed.test.example:443:127.0.0.1:{origin.port}",
            f"mixed.test.example:443:203.0.113.9:{origin.port}",
            f"down.test.example:443:127.0.0.1:{down}",
            f"untrusted.test.example:443:127.0.0.1:{untrusted.port}",
            f"misnamed.test.example:443:127.0.0.1:{origin.port}",
            f"mute.test.example:443:127.0.0.1:{mute.port}",
        ]
        with Proxy(folder, policy, resolve=pins, upstream_ca=authority.pem) as proxy:
            yield House(proxy, origin)
    mute.close()


def reason_of(answer: Answer) -> str:
    """The reason of a problem document, which must be whole."""
    found = json.loads(answer.body)
    assert answer.value("content-type") == "application/problem+json"
    assert found["type"] == f"urn:tollkeeper:reason:{found['reason']}"
    assert found["status"] == answer.status
    assert found["title"]
    assert found["detail"]
    assert f'details="{found["reason"]}"' in answer.value("proxy-status")
    return str(found["reason"])


# --- limits


def test_a_rate_that_is_used_up_is_429_and_says_when(house: House) -> None:
    answers = [house.ask(f"/paced/{number}") for number in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    late = answers[-1]
    assert reason_of(late) == "rate-limited"
    assert 1 <= int(late.value("retry-after")) <= 60
    assert json.loads(late.body)["retryable"] is True
    assert json.loads(late.body)["rule"] == "paced"
    assert not [line for line in house.origin.lines if "/paced/3" in line]


def test_a_request_that_says_it_is_too_large_never_leaves(house: House) -> None:
    before = len(house.origin.requests)
    answer = house.ask("/echo", method="POST", body=b"l" * 1001)
    assert (answer.status, reason_of(answer)) == (403, "request-too-large")
    assert house.ask("/echo", method="POST", body=b"l" * 1000).status == 200
    assert len(house.origin.requests) == before + 1


def test_a_request_that_becomes_too_large_is_cut(house: House) -> None:
    with Http1(house.proxy.tunnel(API, 443)) as client:
        chunked = ["Transfer-Encoding: chunked"]
        client.connection.sendall(format_request("/echo", API, "POST", chunked))
        client.connection.sendall(b"320\r\n" + b"c" * 800 + b"\r\n")
        time.sleep(0.1)
        client.connection.sendall(b"320\r\n" + b"d" * 800 + b"\r\n")
        answer = client.read()
        assert (answer.status, reason_of(answer)) == (403, "request-too-large")
        assert client.is_closed()
    outcomes = house.proxy.wait_for("outcome")
    assert wait_until(
        lambda: house.proxy.records("outcome")[-1].get("cut") == "request-too-large"
    ), outcomes
    assert b"d" * 10 not in b"".join(bytes(log) for log in house.origin.received)


def test_an_answer_that_says_it_is_too_large_is_not_passed_on(house: House) -> None:
    answer = house.ask("/big/10001")
    assert (answer.status, reason_of(answer)) == (403, "response-too-large")
    assert len(house.ask("/big/10000").body) == 10_000


def test_an_answer_that_becomes_too_large_is_cut(house: House) -> None:
    with Http1(house.proxy.tunnel(API, 443)) as client:
        client.send("/drip/0.0001", API)
        assert client.read_head().status == 200
        chunks: list[bytes] = []
        with pytest.raises(OSError):
            chunks.extend(client.chunks())
        came = client.received_bytes
    assert 1000 < came < 25_000  # chunks of 5 bytes, framed
    assert wait_until(
        lambda: [
            event
            for event in house.proxy.records("outcome")
            if event.get("cut") == "response-too-large" and event["status"] == 200
        ]
    )


# --- where it may go


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("closed.test.example", "address-not-public"),  # on loopback, and its rule opens no range
        ("linked.test.example", "address-not-public"),  # link_local is not the metadata address
        ("mixed.test.example", "address-not-public"),  # a good answer does not redeem a bad one
        ("127.0.0.1", "host-not-allowed"),
        ("169.254.169.254", "host-not-allowed"),
        ("10.1.2.3", "host-not-allowed"),
    ],
)
def test_an_address_that_no_rule_opens_is_refused(house: House, host: str, reason: str) -> None:
    before = house.origin.connections
    with Http1(house.proxy.tunnel(host, 443, sni=host)) as client:
        answer = client.ask("/", host)
    assert (answer.status, reason_of(answer)) == (403, reason)
    assert house.origin.connections == before
    assert "127.0.0.1" not in answer.body.decode()


# --- the upstream's troubles


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("nowhere.invalid", "dns-failed"),
        ("down.test.example", "upstream-unreachable"),
        ("untrusted.test.example", "upstream-tls-failed"),
        ("misnamed.test.example", "upstream-tls-failed"),
    ],
)
def test_what_the_upstream_lacks_is_502(house: House, host: str, reason: str) -> None:
    answer = house.ask("/", host)
    assert (answer.status, reason_of(answer)) == (502, reason)
    assert house.origin.lines.count("GET / HTTP/1.1") == 0
    for word in ("127.0.0.1", "OpenSSL", "mitmproxy", "errno", "certificate verify"):
        assert word not in answer.body.decode()


def test_an_upstream_that_hangs_in_the_handshake_is_given_up(house: House) -> None:
    """Its deadline is the one for connecting: 10 s."""
    started = time.monotonic()
    answer = house.ask("/", "mute.test.example", timeout_s=30.0)
    assert answer.status in (502, 504)
    assert reason_of(answer) in ("upstream-timeout", "upstream-tls-failed")
    assert 8 < time.monotonic() - started < 16


ODD = {
    "/odd/407": b"HTTP/1.1 407 Pay\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    "/odd/101": b"HTTP/1.1 101 Up\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nraw",
    "/odd/twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "/odd/nonsense": b"SMTP ready\r\n\r\n",
}


@pytest.mark.parametrize("path", ODD)
def test_an_answer_that_breaks_the_rules_is_502(house: House, path: str) -> None:
    house.origin.raw_answers[path] = ODD[path]
    answer = house.ask(path)
    assert answer.status == 502
    assert reason_of(answer) in ("upstream-protocol", "upgrade-unapproved")


def test_an_interim_answer_is_not_taken_for_the_final_one(house: House) -> None:
    answer = house.ask("/hints")
    assert (answer.status, answer.body) == (200, b'{"path": "/hints"}')


def test_fields_that_would_lead_round_us_are_taken_out(house: House) -> None:
    house.origin.raw_answers["/odd/fields"] = (
        b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAlt-Svc: h3=":443"\r\nX-Kept: yes\r\n'
        b"Proxy-Authenticate: Basic\r\nProxy-Connection: close\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
        b"\r\nok"
    )  # fmt: skip
    answer = house.ask("/odd/fields")
    names = {name.lower() for name, _ in answer.headers}
    assert (answer.status, answer.body, answer.value("x-kept")) == (200, b"ok", "yes")
    assert not names & {"alt-svc", "proxy-authenticate", "proxy-connection", "x-hop"}


# --- forms


def test_a_browser_gets_a_page(house: House) -> None:
    accept = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = house.ask("/denied", headers=[accept])
    assert (answer.status, answer.value("content-type")) == (403, "text/html; charset=utf-8")
    assert b"no-rule-matched" in answer.body
    assert b"<h1>403 No rule allows this request</h1>" in answer.body


def test_a_grpc_caller_gets_its_status(house: House) -> None:
    with house.proxy.tunnel(API, 443, protocols=["h2"]) as connection:
        client = Http2(connection)
        headers = [("content-type", "application/grpc"), ("te", "trailers")]
        answer = client.ask("/denied/rpc", API, method="POST", headers=headers, body=b"\0" * 5)
    assert (answer.status, answer.value("grpc-status")) == (403, "7")
    assert answer.value("content-type") == "application/grpc"
    assert "no-rule-matched" in answer.value("grpc-message")


def test_a_denial_names_its_record_and_nothing_else(house: House) -> None:
    answer = house.ask("/denied/deep?token=abc")
    assert reason_of(answer) == "no-rule-matched"
    record = house.decision(answer)
    assert (record["verdict"], record["reason"]) == ("deny", "no-rule-matched")
    assert record["target"]["path"] == "/denied/deep"
    assert record["target"]["query_keys"] == ["token"]
    shown = (answer.body + str(answer.headers).encode()).decode()
    for word in (API, "127.0.0.1", "mitmproxy", "token", "small-out", "Python", "deep"):
        assert word not in shown


def test_unparsable_bytes_are_400_and_recorded(house: House) -> None:
    before = len(house.proxy.records("malformed"))
    answer = house.proxy.exchange(b"NOT HTTP AT ALL\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"mitmproxy" not in answer
    assert len(house.proxy.wait_for("malformed", before + 1)) == before + 1


# --- CONNECT that no rule could allow


def test_a_denied_tunnel_is_explained_inside(house: House) -> None:
    """The one 2xx on a denial: TLS is answered, the first request gets the full 403."""
    with Http1(house.proxy.tunnel("other.test.example", 443)) as client:
        answer = client.ask("/x", "other.test.example")
        assert (answer.status, reason_of(answer)) == (403, "host-not-allowed")
        assert client.is_closed()
    stages = [
        (event["stage"], event["verdict"])
        for event in house.proxy.records("decision")
        if event["target"].get("host") == "other.test.example"
    ]
    assert stages == [("connect", "deny"), ("request", "deny")]


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_anything_but_tls_in_an_explained_tunnel_is_closed(house: House, first: bytes) -> None:
    with house.proxy.connect(timeout_s=6.0) as connection:
        connection.sendall(b"CONNECT stranger.test.example:443 HTTP/1.1\r\nHost: s\r\n\r\n")
        client = Http1(connection)
        assert client.read_head().status == 200
        started = time.monotonic()
        connection.sendall(first)
        assert client.is_closed()
        assert time.monotonic() - started < 4


def test_without_explanations_the_tunnel_is_refused_at_once(
    house: House, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("terse")
    head = "defaults: { explain_denials: false }\n"
    policy = write_policy(folder / "policies.yaml", RULES, head=HEAD + head)
    with Proxy(folder, policy) as proxy, Http1(proxy.connect()) as client:
        answer = client.ask("other.test.example:443", "other.test.example:443", method="CONNECT")
        assert answer.status == 403
        assert answer.reason == "Forbidden: host-not-allowed"
        assert reason_of(answer) == "host-not-allowed"
        assert client.is_closed()
        (record,) = proxy.records("decision")
        assert (record["stage"], record["verdict"]) == ("connect", "deny")
