"""What the layers of one connection share."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy.connection import Client

from proxy.enforcer import Admitted
from proxy.mitm.session import Caller, MintBound, Session, session_of
from tests.kit.enforcement import NOW, Message, furnish


def session(**parts: Any) -> tuple[Session, Any]:
    enforcer, recorder = furnish(**parts)
    unused: Any = None
    made = Session(
        enforcer, unused, unused, client="192.0.2.1", now=lambda: NOW, minted=MintBound()
    )
    return made, recorder


def test_ending_a_session_ends_each_of_its_exchanges_once() -> None:
    made, recorder = session()

    async def main() -> None:
        for path in ("/ok/1", "/ok/2"):
            call = Message(path).call()
            verdict = await made.enforcer.judge(made.enforcer.open(call), call)
            assert isinstance(verdict, Admitted)
            made.exchanges[verdict.exchange.id] = verdict.exchange
        made.end("client-gone")
        made.end("draining")
        await made.enforcer.bookkeeper.flush()

    asyncio.run(main())
    assert [event["error"] for event in recorder.of("outcome")] == ["client-gone"] * 2
    assert made.exchanges == {}
    assert made.ended
    assert made.enforcer.open_exchanges == 0


def test_a_malformed_message_is_recorded_with_its_client() -> None:
    made, recorder = session()
    made.record_malformed("why", b"what")
    assert recorder.events[0]["client"] == "192.0.2.1"


def test_each_agent_is_explained_so_many_hosts_and_no_more() -> None:
    """A denied agent must not make us mint certificates without end."""
    bound = MintBound(names_max=2)
    assert [bound.admit("a", host) for host in ("x", "y", "z", "x")] == [True, True, False, True]
    assert bound.admit("b", "z")


def test_a_connection_that_is_not_ours_has_no_session() -> None:
    client = Client(peername=("192.0.2.1", 1), sockname=("192.0.2.2", 2), timestamp_start=0.0)
    context: Any = SimpleNamespace(client=client)
    with pytest.raises(TypeError):
        session_of(context)


def test_a_connection_of_ours_carries_its_session() -> None:
    made, _ = session()
    client = Caller(peername=("192.0.2.1", 1), sockname=("192.0.2.2", 2), timestamp_start=0.0)
    client.session = made
    context: Any = SimpleNamespace(client=client)
    assert session_of(context) is made


def test_a_ticket_is_kept_as_long_as_its_connection() -> None:
    import gc

    from mitmproxy.connection import Server

    made, _ = session()
    server = Server(address=("api.test", 443))
    made.tickets[server] = SimpleNamespace()  # type: ignore[assignment]  # any value will do
    assert server in made.tickets
    del server
    gc.collect()
    assert len(made.tickets) == 0
