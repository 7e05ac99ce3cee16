"""The self-test passes on the real gate, and fails on every gate that was broken on purpose."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import proxy.enforcer
import proxy.exchange
import proxy.mitm.choice
import proxy.mitm.handler
import proxy.mitm.selftest
import proxy.mitm.stream
import proxy.mitm.wire1
from policies.canonical import canonicalise_request
from policies.model import Decision, Request, Verdict
from proxy.call import Call
from proxy.enforcer import Admitted, Enforcer, Refused
from proxy.exchange import Exchange
from proxy.mitm.ca import LeafMint, create_ca
from proxy.mitm.options import OptionsTampered, freeze_options
from proxy.mitm.selftest import SelfTestFailed, list_vectors, prove_gate
from proxy.mitm.stream import Stream
from proxy.mitm.tls import Terminator
from proxy.mitm.wire1 import StrictHttp1Server
from proxy.response import Answer, prepare_answer
from proxy.settings import Settings
from proxy.vocabulary import Ticket

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def terminator(tmp_path_factory: pytest.TempPathFactory) -> Terminator:
    folder = tmp_path_factory.mktemp("ca")
    create_ca(folder, datetime.now(UTC))  # noqa: TID251  valid from now on
    return Terminator(LeafMint.load(folder), http2=True)


def prove(terminator: Terminator, **changes: Any) -> int:
    options: Any = freeze_options(idle_timeout_s=60, http2=True)
    options.update(**changes)
    return asyncio.run(prove_gate(Settings(), terminator, options, http2=True))


def test_the_gate_as_it_is_passes_every_vector(terminator: Terminator) -> None:
    assert prove(terminator) == len(list_vectors(1)) >= 20


def test_http2_may_be_off(terminator: Terminator) -> None:
    options = freeze_options(idle_timeout_s=60, http2=False)
    assert asyncio.run(prove_gate(Settings(), terminator, options, http2=False))


def test_an_option_that_was_flipped_keeps_the_port_closed(terminator: Terminator) -> None:
    with pytest.raises(OptionsTampered, match="ssl_insecure"):
        prove(terminator, ssl_insecure=True)


def test_nothing_is_written_into_a_folder(terminator: Terminator, tmp_path: Path) -> None:
    settings = Settings(state=tmp_path / "state")
    options = freeze_options(idle_timeout_s=60, http2=True)
    asyncio.run(prove_gate(settings, terminator, options, http2=True))
    assert list(tmp_path.iterdir()) == []


# --- one belt broken

ALLOW = Decision(Verdict.ALLOW, "allowed", ("reach-origin",), "0" * 64)


def allow(*_args: object, **_keywords: object) -> Decision:
    return ALLOW


def decide_yes(patch: Patch) -> None:
    """The engine allows everything."""
    patch.setattr(proxy.exchange, "decide", allow)


def screen_yes(patch: Patch) -> None:
    """Every tunnel is allowed."""
    patch.setattr(proxy.exchange, "screen", allow)


def record_nothing(patch: Patch) -> None:
    """Nothing is stored."""

    async def skip(*_: object) -> None:
        return

    patch.setattr(Enforcer, "_store", skip)


def forgive_faults(patch: Patch) -> None:
    """A decision that raises counts as an allow of nothing in particular."""

    async def judge(self: Any, exchange: Exchange, call: Call) -> Admitted | Refused:
        changed = replace(call, head=replace(call.head, target=_lift(call.head.target)))
        return await Enforcer.judge(self, exchange, changed)

    patch.setattr(proxy.mitm.selftest._ProbedEnforcer, "judge", judge)


def _lift(target: bytes) -> bytes:
    return target.replace(b"/fault", b"/ok")


def let_origins_switch(patch: Patch) -> None:
    """101 is passed on whatever was asked for."""
    prepare = prepare_answer

    def lenient(status: int, headers: Any, **keywords: Any) -> Answer | str:
        if status == 101:
            return Answer(101, headers, bodiless=True)
        return prepare(status, headers, **keywords)

    patch.setattr(proxy.mitm.stream, "prepare_answer", lenient)


def ignore_names(patch: Patch) -> None:
    """Host need not be the one that is judged."""

    def lenient(head: Any, **keywords: Any) -> Any:
        place = head.target.partition(b"://")[2].partition(b"/")[0]
        fields = tuple(
            (name, place if name.lower() == b"host" and place else value)
            for name, value in head.headers
        )
        return canonicalise_request(replace(head, headers=fields), **keywords)

    patch.setattr("proxy.call.canonicalise_request", lenient)


def hold_denials_back(patch: Patch) -> None:
    """A denial waits for the body, as it would in mitmproxy itself."""
    send = StrictHttp1Server.send

    def slow(self: StrictHttp1Server, event: Any) -> Any:
        fields = self.request.headers.fields if self.request is not None else ()
        has_body = any(name.lower() == b"content-length" for name, _ in fields)
        if has_body and isinstance(event, proxy.mitm.wire1.Refusal):
            return
        yield from send(self, event)

    patch.setattr(StrictHttp1Server, "send", slow)
    patch.setattr(proxy.mitm.selftest, "_ANSWER_S", 0.3)


def answer_garbage_with_silence(patch: Patch) -> None:
    """What cannot be parsed leaves no record."""
    patch.setattr(Enforcer, "record_malformed", lambda *_: None)


def take_any_head(patch: Patch) -> None:
    """Mixed case methods are read as if they were written properly."""

    def lenient(head: Any, **keywords: Any) -> Any:
        return canonicalise_request(replace(head, method=head.method.upper()), **keywords)

    patch.setattr("proxy.call.canonicalise_request", lenient)


ONE_BELT: dict[str, tuple[Callable[[Patch], None], str]] = {
    "the engine allows everything": (decide_yes, "a path no rule allows"),
    "every tunnel is allowed": (screen_yes, "D5"),
    "nothing is recorded": (record_nothing, "no record"),
    "a fault is an allow": (forgive_faults, "A1"),
    "origins may switch protocols": (let_origins_switch, "D3"),
    "Host is not compared": (ignore_names, "E1"),
    "a denial waits for the body": (hold_denials_back, "A9"),
    "garbage is not recorded": (answer_garbage_with_silence, "A13"),
    "methods are mended": (take_any_head, "C25"),
}


@pytest.mark.parametrize(("break_it", "named"), ONE_BELT.values(), ids=ONE_BELT)
def test_a_gate_that_is_broken_does_not_open(
    break_it: Callable[[Patch], None], named: str, terminator: Terminator, monkeypatch: Patch
) -> None:
    break_it(monkeypatch)
    with pytest.raises(SelfTestFailed, match=named):
        prove(terminator)


# --- the ticket: several belts, and the self-test fails once all of them are off


def forge_tickets(patch: Patch) -> None:
    """The stream makes itself the ticket that is missing."""
    forward = Stream._forward

    def forging(self: Stream, event: Any, verdict: Admitted) -> Any:
        request = verdict.request
        if verdict.ticket is None and isinstance(request, Request):
            exchange = verdict.exchange
            forged = Ticket(exchange.id, b"", exchange._addresses, exchange._dial_port)
            verdict = replace(verdict, ticket=forged)
        yield from forward(self, event, verdict)

    patch.setattr(Stream, "_forward", forging)


def check_no_ticket(patch: Patch) -> None:
    """The last look before a head leaves is left out."""
    patch.setattr(proxy.mitm.wire1, "check_ticket", lambda _event: None)


@pytest.mark.parametrize("belt", [forge_tickets, check_no_ticket])
def test_one_belt_of_the_ticket_may_break(
    belt: Callable[[Patch], None], terminator: Terminator, monkeypatch: Patch
) -> None:
    belt(monkeypatch)
    assert prove(terminator)


def test_without_any_belt_the_ticket_is_missed(terminator: Terminator, monkeypatch: Patch) -> None:
    forge_tickets(monkeypatch)
    check_no_ticket(monkeypatch)
    with pytest.raises(SelfTestFailed, match="an allow without a ticket"):
        prove(terminator)


def test_a_raw_relay_reaches_nobody_without_a_ticket(
    terminator: Terminator, monkeypatch: Patch
) -> None:
    """D1: were the layer of a tunnel a relay, there would still be nothing to dial under."""
    from mitmproxy.proxy.layers import TCPLayer

    monkeypatch.setattr(
        proxy.mitm.handler, "choose_layer", lambda context, *_: TCPLayer(context, ignore=True)
    )
    assert prove(terminator)


def test_a_raw_relay_that_may_dial_is_noticed(terminator: Terminator, monkeypatch: Patch) -> None:
    from ipaddress import ip_address

    from mitmproxy.proxy.layers import TCPLayer

    from proxy.mitm.session import session_of

    def relay(context: Any, *_: object) -> TCPLayer:
        _, port = context.server.address
        ticket = Ticket("0" * 32, b"", (ip_address("127.0.0.1"),), port)
        session_of(context).tickets[context.server] = ticket
        return TCPLayer(context, ignore=True)

    monkeypatch.setattr(proxy.mitm.handler, "choose_layer", relay)
    with pytest.raises(SelfTestFailed, match="D1"):
        prove(terminator)
