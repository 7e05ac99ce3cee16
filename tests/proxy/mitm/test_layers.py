"""Which upstream connection a request may use: one that was dialled for what it was judged as."""

from ipaddress import ip_address
from typing import Any

import pytest
from mitmproxy.proxy.layers.http import GetHttpConnection

from proxy.mitm.layers import Dial
from proxy.settings import Pin
from proxy.vocabulary import Ticket
from tests.kit.gate import eventually
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.proxy.mitm.conftest import LOOPBACK, OpenGate


def test_requests_to_one_destination_share_a_connection(
    open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    with Http1(gate.connect()) as http1:
        for _ in range(3):
            assert http1.ask("http://api.test/ok", "api.test").status == 200
    assert origin.connections == 1


def test_two_agents_never_share_a_connection(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with Http1(gate.connect()) as one, Http1(gate.connect()) as other:
        assert one.ask("http://api.test/ok", "api.test").status == 200
        assert other.ask("http://api.test/ok", "api.test").status == 200
    assert origin.connections == 2


def test_a_connection_that_stands_does_not_let_a_denied_request_through(
    open_gate: OpenGate, origin: Origin
) -> None:
    """F8: the verdict is asked for every request, not for every connection."""
    rules = (
        "  - { id: ok, verdict: allow, match: { host: api.test, path: /ok, scheme: http,"
        " port: [80], dest_ip: loopback } }\n"
    )
    gate = open_gate(plain=origin.port, rules=rules)
    with Http1(gate.connect()) as http1:
        assert http1.ask("http://api.test/ok", "api.test").status == 200
        assert http1.ask("http://api.test/no", "api.test").status == 403
    assert origin.lines == ["GET /ok HTTP/1.1"]


def test_on_a_connection_that_stands_its_peer_is_judged(
    open_gate: OpenGate, origin: Origin
) -> None:
    """A second look-up could give another answer; what is reached is what counts."""
    gate = open_gate(plain=origin.port)
    asked: list[str] = []
    resolve = gate.enforcer.resolver.resolve

    async def count(host: str, port: int) -> Any:
        asked.append(host)
        return await resolve(host, port)

    gate.enforcer.resolver.resolve = count  # type: ignore[method-assign]
    with Http1(gate.connect()) as http1:
        for _ in range(3):
            assert http1.ask("http://api.test/ok", "api.test").status == 200
    assert asked == ["api.test"]
    addresses = {event["target"]["ip"] for event in gate.recorder.of("decision")}
    assert addresses == {"127.0.0.1"}


def test_a_connection_that_ended_is_dialled_again(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with Http1(gate.connect()) as http1:
        assert http1.ask("http://api.test/close", "api.test").status == 200
        assert http1.ask("http://api.test/ok", "api.test").status == 200
    assert origin.connections == 2


def test_plain_and_secure_do_not_share(
    open_gate: OpenGate, origin: Origin, secure_origin: Origin
) -> None:
    """http on the port of https is another connection."""
    gate = open_gate(plain=origin.port, secure=secure_origin.port)
    with Http1(gate.secure()) as inside, Http1(gate.connect()) as outside:
        assert inside.ask("/ok", "api.test").status == 200
        assert outside.ask("http://api.test/ok", "api.test").status == 200
    assert (origin.connections, secure_origin.connections) == (1, 1)


def test_another_host_is_another_connection_although_it_is_the_same_server(
    open_gate: OpenGate, origin: Origin
) -> None:
    rules = (
        "  - { id: both, verdict: allow, match: { host: [api.test, b.test], scheme: http,"
        " port: [80], dest_ip: loopback } }\n"
    )
    gate = open_gate(plain=origin.port, rules=rules)
    pins = gate.enforcer.resolver._pins
    pins["b.test", 80] = [Pin("b.test", 80, LOOPBACK, origin.port)]
    with Http1(gate.connect()) as http1:
        assert http1.ask("http://api.test/ok", "api.test").status == 200
        assert http1.ask("http://b.test/ok", "b.test").status == 200
    eventually(lambda: origin.connections, 2)


@pytest.mark.parametrize("ticketed", [False, True])
def test_a_command_to_connect_is_known_by_itself(ticketed: bool) -> None:
    """Two requests of one destination are two commands, with a ticket each."""
    ticket = Ticket("0" * 32, b"", (ip_address("192.0.2.1"),), 443) if ticketed else None
    one, other = (Dial(("a", 443), True, None, "tcp", ticket) for _ in range(2))
    assert hash(one) != hash(other)
    assert isinstance(one, GetHttpConnection)
