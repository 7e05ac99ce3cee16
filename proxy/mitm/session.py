"""What the layers of one client connection share: the way to the enforcer, and the tickets under
which it dialled."""

from collections.abc import Callable, MutableMapping
from datetime import datetime
from weakref import WeakKeyDictionary

from mitmproxy.connection import Client, Server
from mitmproxy.proxy.context import Context
from OpenSSL import SSL

from proxy.enforcer import Enforcer
from proxy.exchange import Exchange
from proxy.mitm.pressure import Pressure
from proxy.mitm.tls import Originator, Terminator
from proxy.mitm.window import Lag
from proxy.settings import Settings
from proxy.vocabulary import (
    Failed,
    Ticket,
)


class Session:
    """One per client connection."""

    def __init__(
        self,
        enforcer: Enforcer,
        terminator: Terminator,
        originator: Originator,
        *,
        client: str,
        now: Callable[[], datetime],
        minted: "MintBound",
    ) -> None:
        self.enforcer = enforcer
        self.terminator = terminator
        self.originator = originator
        self.client = client
        self.now = now
        self.minted = minted
        # weak: a layer may still hold a connection that is closed, and bytes for it are dropped,
        # not a breach
        self.tickets: MutableMapping[Server, Ticket] = WeakKeyDictionary()
        self.exchanges: dict[str, Exchange] = {}
        self.client_tls: SSL.Connection | None = None
        self.tls_fault = False  # no TLS towards the agent because of a fault of ours
        self.awaiting_answer = (
            False  # an HTTP/1 request was read and no answer head was written yet
        )
        self.unjudged = False  # a head was read, and nothing was recorded of it yet
        self.ended = False
        self.ended_why = ""  # the reason given to `end`
        self.lag = Lag()
        self.pressure = Pressure()

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.enforcer.settings

    def record_malformed(self, why: str, seen: bytes) -> None:
        """One record for a message no exchange exists for."""
        self.enforcer.record_malformed(self.client, why, seen)

    def end(self, reason: str) -> None:
        """End whatever is still under way, so that every exchange has its outcome."""
        self.ended, self.ended_why = True, reason
        for exchange in list(self.exchanges.values()):
            self.enforcer.advance(exchange, Failed(reason))
        self.exchanges.clear()


class MintBound:
    """How many denied host names an agent may have certificates minted for: explaining must not
    cost us memory."""

    def __init__(self, names_max: int = 64) -> None:
        self._names_max = names_max
        self._names: dict[str, set[str]] = {}

    def admit(self, agent: str, host: str) -> bool:
        """Whether `host` may be explained to `agent`."""
        names = self._names.setdefault(agent, set())
        if host in names:
            return True
        if len(names) >= self._names_max:
            return False
        names.add(host)
        return True


class Caller(Client):
    """mitmproxy's client connection, carrying our session to every layer's context."""

    session: Session


def session_of(context: Context) -> Session:
    """The session of the connection a layer works for."""
    client = context.client
    if not isinstance(client, Caller):
        raise TypeError("not a connection of ours")
    return client.session
