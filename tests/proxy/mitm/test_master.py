"""Connections: accepted, bounded, counted, drained."""

import threading
import time
from typing import Any

import pytest

from proxy.denial import OVERLOADED
from proxy.mitm.options import OptionsTampered
from tests.kit.gate import Gate, eventually
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.proxy import read_all
from tests.proxy.mitm.conftest import OpenGate


def test_connections_are_counted(open_gate: OpenGate) -> None:
    gate = open_gate()
    held = [gate.connect() for _ in range(3)]
    eventually(lambda: gate.master.connections_open, 3)
    for connection in held:
        connection.close()
    eventually(lambda: gate.master.connections_open, 0)


def test_more_connections_than_allowed_are_turned_away(open_gate: OpenGate, origin: Origin) -> None:
    """B9: what is over the limit gets an answer and a record, and what is under it still works."""
    gate = open_gate(plain=origin.port, connections_max=2)
    held = [Http1(gate.connect()) for _ in range(2)]
    eventually(lambda: gate.master.connections_open, 2)
    with gate.connect() as connection:
        assert read_all(connection) == OVERLOADED
    assert gate.wait_for("malformed")[0]["why"] == "overloaded"
    assert held[0].ask("http://api.test/ok", "api.test").status == 200
    for http1 in held:
        http1.connection.close()
    eventually(lambda: gate.master.connections_open, 0)
    with Http1(gate.connect()) as http1:
        assert http1.ask("http://api.test/ok", "api.test").status == 200


def test_options_that_were_flipped_keep_the_port_closed(open_gate: OpenGate) -> None:
    gate = open_gate()
    options: Any = gate.options
    options.update(rawtcp=True)
    with pytest.raises(OptionsTampered, match="rawtcp"):
        gate.run(gate.master.listen(("127.0.0.1", 0)))


def test_options_that_are_flipped_later_seal_the_port(
    open_gate: OpenGate, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J1: looked at again and again."""
    monkeypatch.setattr("proxy.mitm.master._COMPARE_S", 0.02)
    gate = open_gate(plain=origin.port)
    options: Any = gate.options
    options.update(ssl_insecure=True)
    eventually(lambda: bool(gate.master.sealed), True)
    with gate.connect() as connection:
        assert read_all(connection) == OVERLOADED
    assert origin.connections == 0


def drain(gate: Gate, timeout_s: float) -> threading.Thread:
    thread = threading.Thread(target=lambda: gate.run(gate.master.drain(timeout_s)))
    thread.start()
    return thread


def test_draining_lets_a_request_finish_and_takes_no_new_one(
    open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    with Http1(gate.connect()) as http1:
        http1.send("http://api.test/slow/0.3", "api.test")
        eventually(lambda: len(origin.requests), 1)
        thread = drain(gate, 5.0)
        eventually(lambda: gate.master._server and gate.master._server.is_serving(), False)
        with pytest.raises(OSError, match="refused"):
            gate.connect()
        assert http1.read().status == 200
        thread.join(5)
    assert [event["status"] for event in gate.wait_for("outcome")] == [200]


def test_draining_ends_idle_connections_at_once(open_gate: OpenGate) -> None:
    gate = open_gate()
    connection = gate.connect()
    eventually(lambda: gate.master.connections_open, 1)
    began = time.monotonic()
    drain(gate, 30.0).join(5)
    assert time.monotonic() - began < 5
    assert read_all(connection) == b""


def test_draining_cuts_what_takes_too_long(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with Http1(gate.connect()) as http1:
        http1.send("http://api.test/slow/20", "api.test")
        eventually(lambda: len(origin.requests), 1)
        drain(gate, 0.1).join(5)
        answer = read_all(http1.connection)
    assert not answer.startswith(b"HTTP/1.1 2")
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == "draining"
    assert gate.enforcer.open_exchanges == 0


def test_what_is_cut_is_chosen_and_counted(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with Http1(gate.connect()) as one, Http1(gate.connect()) as other:
        for http1, path in ((one, "/slow/20"), (other, "/slow/0.2")):
            http1.send(f"http://api.test{path}", "api.test")
        eventually(lambda: len(origin.requests), 2)

        async def cut() -> int:
            return gate.master.cut(
                lambda handler: any(
                    exchange.target.path == "/slow/20"
                    for exchange in handler.session.exchanges.values()
                ),
                "policy-changed",
            )

        assert gate.run(cut()) == 1
        assert other.read().status == 200
    errors = [event.get("error") for event in gate.wait_for("outcome", 2)]
    assert sorted(map(str, errors)) == ["None", "policy-changed"]


def test_an_idle_connection_ends_by_itself(open_gate: OpenGate) -> None:
    gate = open_gate(idle_timeout_s=1)
    with gate.connect() as connection:
        assert read_all(connection) == b""
    gate.wait_until_idle()
