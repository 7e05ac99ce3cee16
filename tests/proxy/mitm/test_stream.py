"""One exchange between two wires: nothing is held back, nothing leaves early, all of it is told."""

import asyncio
import json
import socket
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

import proxy.mitm.stream
from policies.reasons import REASONS
from proxy.denial import LAST_RESORT
from proxy.exchange import Exchange
from tests.kit.gate import Gate, eventually
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.proxy import read_all
from tests.proxy.mitm.conftest import OpenGate

ONLY_OK = (
    "  - { id: ok, verdict: allow, match: { host: api.test, path: [/ok, /echo, '/big/*'],"
    " scheme: [http, https], port: [80, 443], methods: [GET, POST], dest_ip: loopback },"
    " with: { max_request: 10kB, max_response: 10kB } }\n"
)


def client(gate: Gate) -> Http1:
    return Http1(gate.connect())


def reason(body: bytes) -> str:
    return str(json.loads(body)["reason"])


def test_a_denial_says_why_and_closes(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port, rules=ONLY_OK)
    with client(gate) as http1:
        answer = http1.ask("http://api.test/no", "api.test")
        assert http1.is_closed()
    told = json.loads(answer.body)
    assert answer.status == told["status"] == 403
    assert told["reason"] == "no-rule-matched"
    assert told["decision"] == gate.recorder.of("decision")[0]["id"]
    assert answer.value("content-type") == "application/problem+json"
    assert origin.connections == 0


def test_a_browser_gets_a_page(open_gate: OpenGate) -> None:
    gate = open_gate(rules=ONLY_OK)
    with client(gate) as http1:
        answer = http1.ask("http://api.test/no", "api.test", headers=["Accept: text/html"])
    assert answer.value("content-type").startswith("text/html")


def test_a_denial_that_cannot_be_rendered_still_denies(
    open_gate: OpenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A19."""

    def fail(*_: object, **__: object) -> Any:
        raise TypeError("x")

    monkeypatch.setattr(proxy.mitm.stream, "render", fail)
    gate = open_gate(rules=ONLY_OK)
    answer = gate.exchange(b"GET http://api.test/no HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert answer == LAST_RESORT
    assert len(gate.recorder.events) == 1


def test_events_are_not_held_back(open_gate: OpenGate, origin: Origin) -> None:
    """D14: the first event is here while the origin still sends the others."""
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        http1.send("http://api.test/sse", "api.test")
        assert http1.read_head().status == 200
        chunks = http1.chunks()
        assert next(chunks) == b"data: 0\n\n"
        assert gate.recorder.of("outcome") == []
        assert list(chunks) == [b"data: 1\n\n", b"data: 2\n\n"]
    assert len(gate.wait_for("outcome")) == 1


def test_an_upload_is_not_held_back(open_gate: OpenGate, origin: Origin) -> None:
    """The origin has the first chunk while the client still owes the second."""
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        headers = ["Transfer-Encoding: chunked"]
        http1.send("http://api.test/echo", "api.test", method="POST", headers=headers)
        http1.connection.sendall(b"5\r\nfirst\r\n")
        eventually(lambda: b"first" in b"".join(map(bytes, origin.received)), True)
        http1.connection.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
        assert http1.read().body == b"firstsecond"


def test_bytes_are_counted_as_they_are_on_the_wire(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        answer = http1.ask("http://api.test/echo", "api.test", method="POST", body=b"x" * 1000)
        assert answer.status == 200
    (outcome,) = gate.wait_for("outcome")
    assert outcome["bytes_out"] == len(origin.received[0])
    assert outcome["bytes_in"] > 1000


CUTS: dict[str, tuple[str, bytes, list[str], str]] = {
    "an answer too large by its head": ("/big/20000", b"", [], "response-too-large"),
    "a request too large by its head": (
        "/echo", b"", ["Content-Length: 20000"], "request-too-large",
    ),
    "a request too large while it comes": (
        "/echo", b"4e20\r\n" + b"x" * 20_000 + b"\r\n", ["Transfer-Encoding: chunked"],
        "request-too-large",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "raw", "fields", "code"), CUTS.values(), ids=CUTS)
def test_what_is_too_large_is_answered(
    path: str, raw: bytes, fields: list[str], code: str, open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port, rules=ONLY_OK)
    method = "POST" if fields else "GET"
    with client(gate) as http1:
        http1.send(f"http://api.test{path}", "api.test", method=method, headers=fields)
        http1.connection.sendall(raw)
        answer = http1.read()
    assert (answer.status, reason(answer.body)) == (REASONS[code].status, code)


def test_an_answer_that_grows_too_large_is_cut(open_gate: OpenGate, origin: Origin) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    origin.raw_answers["/big/grows"] = head + b"x" * 20_000
    gate = open_gate(plain=origin.port, rules=ONLY_OK)
    answer = gate.exchange(b"GET http://api.test/big/grows HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert not answer.endswith(b"0\r\n\r\n")
    (outcome,) = gate.wait_for("outcome")
    assert (outcome["status"], outcome["cut"]) == (200, "response-too-large")


# --- upstreams that fail


def test_an_upstream_that_is_not_there_is_502(open_gate: OpenGate) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    gate = open_gate(plain=port)
    with client(gate) as http1:
        answer = http1.ask("http://api.test/ok", "api.test")
    assert (answer.status, reason(answer.body)) == (502, "upstream-unreachable")
    assert gate.recorder.of("outcome")[0]["error"] == "upstream-unreachable"


def test_an_upstream_that_is_somebody_else_is_502(open_gate: OpenGate, authority: Any) -> None:
    with Origin(tls=authority.server_context("other.test")) as origin:
        gate = open_gate(secure=origin.port)
        with Http1(gate.secure()) as http1:
            answer = http1.ask("/ok", "api.test")
        assert (answer.status, reason(answer.body)) == (502, "upstream-tls-failed")
        assert origin.bytes_received == 0


def test_an_upstream_that_never_answers_is_504(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port, first_byte_timeout_s=0.1)
    with client(gate) as http1:
        answer = http1.ask("http://api.test/slow/3", "api.test")
    assert (answer.status, reason(answer.body)) == (504, "upstream-timeout")


def test_a_slow_upload_is_no_slow_answer(open_gate: OpenGate, origin: Origin) -> None:
    """The wait for the first byte counts from the end of the request."""
    gate = open_gate(plain=origin.port, first_byte_timeout_s=0.1)
    with client(gate) as http1:
        http1.send("http://api.test/echo", "api.test", method="POST", headers=["Content-Length: 2"])
        http1.connection.sendall(b"a")
        time.sleep(0.25)
        http1.connection.sendall(b"b")
        assert http1.read().body == b"ab"


def test_an_upstream_that_hangs_in_its_handshake_is_given_up(open_gate: OpenGate) -> None:
    """F14: it accepts and then says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        gate = open_gate(secure=listener.getsockname()[1], connect_timeout_s=0.2)
        with Http1(gate.secure()) as http1:
            assert http1.ask("/ok", "api.test").status in (502, 504)
    assert len(gate.wait_for("outcome")) == 1


# --- clients that leave


def test_a_client_that_leaves_before_the_answer_leaves_an_outcome(
    open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        http1.send("http://api.test/slow/1", "api.test")
        eventually(lambda: len(origin.requests), 1)
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "client-gone"
    gate.wait_until_idle()


def test_a_client_that_leaves_while_it_is_judged_sends_nothing_upstream(
    open_gate: OpenGate, origin: Origin
) -> None:
    """A16: allowed, not sent."""
    gate = open_gate(plain=origin.port)
    store = gate.recorder.store

    async def slow_store(event: Any) -> Any:
        await asyncio.sleep(0.15)
        return await store(event)

    gate.recorder.store = slow_store  # type: ignore[method-assign]
    connection = gate.connect()
    connection.sendall(b"GET http://api.test/ok HTTP/1.1\r\nHost: api.test\r\n\r\n")
    connection.close()
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "client-gone"
    gate.wait_until_idle()
    assert origin.requests == []


# --- tunnels that are opened only to say why


def test_a_denied_tunnel_is_explained_inside(open_gate: OpenGate) -> None:
    """SPEC section 3."""
    gate = open_gate(explain=True)
    with Http1(gate.secure("x.test:443")) as http1:
        answer = http1.ask("/secret", "x.test")
        assert http1.is_closed()
    assert (answer.status, reason(answer.body)) == (403, "host-not-allowed")
    decisions = gate.recorder.of("decision")
    assert [(e["stage"], e["verdict"]) for e in decisions] == [
        ("connect", "deny"), ("request", "deny"),
    ]  # fmt: skip


def test_a_denied_tunnel_that_is_not_explained_is_403(open_gate: OpenGate) -> None:
    gate = open_gate(explain=False)
    with pytest.raises(ConnectionError, match="403 Forbidden: host-not-allowed"):
        gate.tunnel("x.test:443")


def test_in_a_tunnel_that_is_explained_nothing_but_tls_is_spoken(open_gate: OpenGate) -> None:
    gate = open_gate(explain=True)
    with gate.tunnel("x.test:443") as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n")
        assert read_all(connection) == b""
    assert len(gate.recorder.of("malformed")) == 1


def test_a_tunnel_that_is_explained_does_not_wait_for_ever(
    open_gate: OpenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy.mitm.stream, "_EXPLAIN_WAIT_S", 0.1)
    gate = open_gate(explain=True)
    with gate.tunnel("x.test:443") as connection:
        assert read_all(connection) == b""


def test_the_number_of_names_that_are_explained_is_bounded(open_gate: OpenGate) -> None:
    gate = open_gate(explain=True)
    gate.master._minted._names_max = 1
    gate.tunnel("x.test:443").close()
    with pytest.raises(ConnectionError, match="403"):
        gate.tunnel("y.test:443")
    gate.tunnel("x.test:443").close()


# --- what must not happen


def test_an_exchange_that_allows_without_a_ticket_sends_nothing(
    open_gate: OpenGate, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build of the issue: its decision is patched to allow, and there is no ticket."""
    forward = Exchange._forward

    def without_ticket(self: Exchange, _ticket: object) -> Any:
        real: Any = forward(self, _ticket)  # type: ignore[arg-type]
        return replace(real, ticket=None)

    monkeypatch.setattr(Exchange, "_forward", without_ticket)
    gate = open_gate(plain=origin.port)
    answer = gate.exchange(b"GET http://api.test/ok HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403")
    assert origin.connections == 0
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "contract-broken"
