"""The choke point: whatever breaks in it, the agent is answered and nothing leaves."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http._events import ResponseData, ResponseEndOfMessage, ResponseHeaders

from policies.model import ContractBroken
from proxy.denial import LAST_RESORT
from proxy.enforcer import Enforcer
from proxy.mitm.handler import Handler
from proxy.mitm.layers import GatedHttpLayer
from proxy.mitm.stream import _STEPS, Stream
from proxy.mitm.wire1 import ReceivedHead, StrictHttp1Client
from tests.kit.gate import Gate, eventually
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.proxy import read_all
from tests.proxy.mitm.conftest import OpenGate

GET = b"GET http://api.test/ok HTTP/1.1\r\nHost: api.test\r\n\r\n"
ANSWER_S = 2.0  # a client is answered within 1 s; the rest is this machine's


class Strange(BaseException):
    """Neither an exception nor a wish to end."""


async def hang(*_: object, **__: object) -> Any:
    await asyncio.Event().wait()


def raising(error: BaseException) -> Callable[..., Any]:
    async def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


async def say_nothing(*_: object, **__: object) -> None:
    """A hook that ends without doing what it is for."""


WAYS: dict[str, Callable[..., Any]] = {
    "raises": raising(RuntimeError("x")),
    "times out": raising(TimeoutError()),
    "is cancelled": raising(asyncio.CancelledError()),
    "breaks a contract": raising(ContractBroken("x")),
    "raises what is no exception": raising(Strange()),
    "hangs": hang,
    "says nothing": say_nothing,
}
DECIDING = ["judge", "next_layer", "tls_start_client", "tls_start_server"]
NOT_DECIDING = ["client_connected", "tls_clienthello"]


def call(gate: Gate) -> bytes:
    """A request in a tunnel with TLS; what came back, b"" where nothing did."""
    try:
        with Http1(gate.secure(timeout_s=ANSWER_S)) as http1:
            return str(http1.ask("/ok", "api.test").status).encode()
    except OSError as error:
        return repr(error).encode() if isinstance(error, TimeoutError) else b""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", DECIDING)
def test_a_hook_that_fails_sends_nothing_upstream(
    name: str,
    way: Callable[..., Any],
    open_gate: OpenGate,
    secure_origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A1 to A4, A17: in each hook that decides something."""
    monkeypatch.setattr(Handler, name, way)
    gate = open_gate(
        secure=secure_origin.port,
        hook_deadline_s=0.4, ledger_deadline_s=0.1, audit_deadline_s=0.2,
    )  # fmt: skip
    answer = call(gate)
    assert answer in (b"", b"403", b"502")
    assert secure_origin.bytes_received == 0
    assert gate.recorder.events
    gate.wait_until_idle()
    assert gate.recorder.open_requests == set()


@pytest.mark.parametrize("way", list(WAYS)[:-1])
@pytest.mark.parametrize("name", NOT_DECIDING)
def test_a_hook_that_decides_nothing_closes_where_it_fails(
    name: str,
    way: str,
    open_gate: OpenGate,
    secure_origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Handler, name, WAYS[way])
    gate = open_gate(
        secure=secure_origin.port,
        hook_deadline_s=0.4, ledger_deadline_s=0.1, audit_deadline_s=0.2,
    )  # fmt: skip
    assert call(gate) in (b"", b"403", b"502")
    assert secure_origin.bytes_received == 0
    gate.wait_until_idle()
    assert gate.recorder.of("malformed")


@pytest.mark.parametrize("way", ["raises", "is cancelled", "hangs"])
def test_a_judgement_that_fails_is_answered_403_once(
    way: str, open_gate: OpenGate, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Enforcer, "_judge", WAYS[way])
    gate = open_gate(
        plain=origin.port, hook_deadline_s=0.4, ledger_deadline_s=0.1, audit_deadline_s=0.2
    )
    began = time.monotonic()
    answer = gate.exchange(GET)
    assert time.monotonic() - began < ANSWER_S
    assert answer.startswith(b"HTTP/1.1 403")
    assert [event["verdict"] for event in gate.recorder.of("decision")] == ["deny"]
    assert origin.connections == 0


@dataclass
class Novel(commands.StartHook):  # type: ignore[no-untyped-call]  # mitmproxy's own are so, too
    """A hook of a mitmproxy that we do not know."""

    nothing: str = ""


def ask_something_new(_self: Stream, _event: Any) -> layer.CommandGenerator[None]:
    yield Novel()


def test_a_hook_nobody_knows_is_a_fault(
    open_gate: OpenGate, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_STEPS, ReceivedHead, ask_something_new)
    gate = open_gate(plain=origin.port)
    assert gate.exchange(GET) in (b"", LAST_RESORT)
    assert origin.connections == 0
    assert gate.recorder.events


# --- layers that crash


def crash(*_: object) -> Any:
    raise NotImplementedError("x")


def in_method(owner: type, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, crash)


def in_step(event: type) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(_STEPS, event, crash)


CRASHES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], bool]] = {
    # where, and whether the request had left by then
    "the HTTP layer": (in_method(GatedHttpLayer, "make_stream"), False),
    "a stream": (in_step(ReceivedHead), False),
    "with the verdict": (in_method(Layer, "_Layer__continue"), False),
    "after the verdict": (in_method(Stream, "_forward"), False),
    "getting a connection": (in_method(GatedHttpLayer, "get_connection"), False),
    "writing the head": (in_method(StrictHttp1Client, "send"), False),
    "with the answer": (in_step(ResponseHeaders), True),
    "with the body of the answer": (in_step(ResponseData), True),
    "at the end of the answer": (in_step(ResponseEndOfMessage), True),
}


@pytest.mark.parametrize(("break_it", "left"), CRASHES.values(), ids=CRASHES)
def test_a_layer_that_crashes_closes_both_sides(
    break_it: Callable[[pytest.MonkeyPatch], None],
    left: bool,
    open_gate: OpenGate,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A11, I10: mitmproxy would log it, and let the client hang until the idle timeout."""
    gate = open_gate(plain=origin.port)
    with gate.connect(ANSWER_S) as connection:
        eventually(lambda: gate.master.connections_open, 1)
        break_it(monkeypatch)
        connection.sendall(GET)
        answer = read_all(connection)
    gate.wait_until_idle()
    assert answer.startswith(b"HTTP/1.1 ")
    assert gate.recorder.open_requests == set()
    assert gate.recorder.events
    if not left:
        assert answer == LAST_RESORT
        assert origin.requests == []


# --- what goes to an upstream


def handler_of(gate: Gate) -> Handler:
    eventually(lambda: gate.master.connections_open, 1)
    (handler,) = gate.master._handlers.values()
    return handler


def test_bytes_for_a_connection_without_a_ticket_end_everything(
    open_gate: OpenGate, origin: Origin
) -> None:
    """L1, the last belt: whoever wants to send them, and however the connection was made."""
    gate = open_gate(plain=origin.port)
    connection = gate.connect()
    handler = handler_of(gate)
    server = Server(address=("127.0.0.1", origin.port))

    async def send() -> None:
        with pytest.raises(ContractBroken, match="without a ticket"):
            handler._carry_out(commands.SendData(server, b"GET / HTTP/1.1\r\n\r\n"))

    gate.run(send())
    connection.close()
    assert origin.connections == 0


def test_no_connection_is_opened_without_a_ticket(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    connection = gate.connect()
    handler = handler_of(gate)
    server = Server(address=("127.0.0.1", origin.port))

    async def open_it() -> str | None:
        await handler.open_connection(commands.OpenConnection(server))
        return server.error

    assert gate.run(open_it()) == "contract-broken"
    connection.close()
    assert origin.connections == 0


def test_a_command_nobody_knows_ends_everything(open_gate: OpenGate) -> None:
    gate = open_gate()
    connection = gate.connect()
    handler = handler_of(gate)

    class Odd(commands.Command):
        pass

    async def send() -> None:
        with pytest.raises(ContractBroken, match="unexpected command Odd"):
            handler._carry_out(Odd())

    gate.run(send())
    connection.close()


def test_an_event_in_the_middle_of_an_event_waits_for_its_turn(open_gate: OpenGate) -> None:
    """Eager tasks come back while their cause is still being carried out."""
    gate = open_gate()
    connection = gate.connect()
    handler = handler_of(gate)
    order: list[str] = []

    class Nested(layer.Layer):
        def _handle_event(self, _event: events.Event) -> layer.CommandGenerator[None]:
            order.append("begin")
            if len(order) < 3:
                handler._pending.append(events.DataReceived(handler.client, b"x"))
            order.append("end")
            yield from ()

    async def feed() -> None:
        handler.layer = Nested(handler.layer.context)
        await handler.server_event(events.DataReceived(handler.client, b"x"))

    gate.run(feed())
    assert order == ["begin", "end"] * 2
    connection.close()


# --- answers arrive


def test_a_denial_arrives_although_the_client_is_still_sending(open_gate: OpenGate) -> None:
    """RFC 9112 section 9.6: closing with unread bytes would reset the answer away."""
    gate = open_gate()
    with gate.connect() as connection:
        head = b"POST http://x.test/ HTTP/1.1\r\nHost: x.test\r\nContent-Length: 3000000\r\n\r\n"
        connection.sendall(head + b"x" * 2_000_000)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 403")
    assert answer.endswith(b"}\n")


def test_pipelined_bytes_behind_a_denial_are_thrown_away(
    open_gate: OpenGate, origin: Origin
) -> None:
    """A21: no look-up, no connection, no record of them."""
    gate = open_gate(plain=origin.port)
    connect = b"CONNECT x.test:443 HTTP/1.1\r\nHost: x.test:443\r\n\r\n"
    answer = gate.exchange(connect + GET)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert len(gate.recorder.events) == 1
    assert origin.connections == 0


def test_no_denial_is_a_success(open_gate: OpenGate) -> None:
    """A20."""
    gate = open_gate()
    for message in (
        b"CONNECT x.test:443 HTTP/1.1\r\nHost: x.test:443\r\n\r\n",
        b"GET http://x.test/ HTTP/1.1\r\nHost: x.test\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: /\r\n\r\n",
    ):
        assert not gate.exchange(message).startswith(b"HTTP/1.1 2")
