"""Where to: a name is resolved once, and whatever comes out is vetted and dialled, nothing else.

    host, port --pinned? literal? ask--> Resolved | DnsFailed --vet all (policies)--> dial one

Rule 1: one lookup per decision. Nobody asks a second time, so no second answer can differ (F1).
Rule 2: answers are bounded in number and in time; a lookup that hangs costs one thread, no loop.
Rule 3: `socket.getaddrinfo` runs in threads of ours. The event loop's own is not used: some loops
        ignore an overridden one (A26), and their pool would be shared with the disk.
Rule 4: this file judges no address. `is_own` only says which are this very proxy (F7).

Order of answers: as the system gives them (RFC 6724), pins as they were given.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Literal

from policies.model import Address
from proxy.dns import DnsClient
from proxy.settings import Endpoint, Pin

ANSWERS_MAX = 16  # more than any sane name has; each one is vetted and recorded
LOOKUPS_MAX = 64  # at once; a hung resolver holds one thread each

Lookup = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Answers to vet, all of them, before one is dialled."""

    addresses: tuple[Address, ...]  # at least one, at most ANSWERS_MAX, no duplicates
    dial_port: int  # differs from the asked port only where it is pinned; rules judge the asked one


@dataclass(frozen=True, slots=True)
class DnsFailed:
    """No usable answer: the client gets 502 `dns-failed`, the record this reason."""

    why: Literal["not-found", "timeout", "server-failure", "overloaded"]


def look_up(host: str) -> list[str]:
    """Ask the system (hosts file, DNS, search rules); blocks. Addresses in the system's order.

    Raises:
        OSError, ValueError: no answer; a name that cannot be asked.
    """
    # bytes: given text, Python would apply IDNA 2003 to a name that is canonical already
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


class Resolver:
    """Pinned answers first, then IP literals, then one lookup. Belongs to one event loop."""

    def __init__(
        self,
        pins: Iterable[Pin] = (),
        *,
        dns: Endpoint | None = None,  # ask this server instead of the system
        timeout_s: float = 5.0,
        lookup: Lookup | None = None,  # ask this instead of both
    ) -> None:
        self._pins: dict[tuple[str, int], list[Pin]] = {}
        for pin in pins:
            self._pins.setdefault((pin.host, pin.port), []).append(pin)
        self._timeout_s = timeout_s
        server = DnsClient(dns, timeout_s=0.9 * timeout_s).look_up if dns else look_up
        self._lookup = lookup or server
        self._running = 0  # lookups in threads, abandoned ones included

    async def resolve(self, host: str, port: int) -> Resolved | DnsFailed:
        """All answers for a canonical host (policies/canonical.py); an IP literal has no brackets.

        Never raises for what a name or a resolver does; cancelling it abandons the lookup.
        """
        pins = self._pins.get((host, port))
        if pins:
            return _bound([pin.address for pin in pins], pins[0].dial_port)
        literal = _parse(host)
        if literal is not None:
            return Resolved((literal,), port)
        if self._running >= LOOKUPS_MAX:
            return DnsFailed("overloaded")
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._start(host)
        except TimeoutError:
            return DnsFailed("timeout")
        except socket.gaierror as failure:
            return DnsFailed("not-found" if failure.errno in _NOT_FOUND else "server-failure")
        except (OSError, ValueError):
            return DnsFailed("server-failure")
        except RuntimeError:  # no thread could be started
            return DnsFailed("overloaded")
        addresses = [address for text in found if (address := _parse(text.partition("%")[0]))]
        return _bound(addresses, port)

    def _start(self, host: str) -> asyncio.Future[list[str]]:
        """Run the lookup in a thread of its own: a daemon, so that it never delays our exit."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def finish(found: list[str] | BaseException) -> None:
            self._running -= 1
            if answer.done():  # too late: timed out or cancelled
                return
            if isinstance(found, BaseException):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def run() -> None:
            found: list[str] | BaseException
            try:
                found = self._lookup(host)
            except BaseException as failure:  # noqa: BLE001  it is raised again in the loop
                found = failure
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, found)

        threading.Thread(target=run, name="resolve", daemon=True).start()
        self._running += 1
        return answer


_NOT_FOUND = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def is_own(address: Address, port: int, listeners: Iterable[Endpoint]) -> bool:
    """Would dialling this reach one of our own listening sockets? (F7: a loop launders identity.)

    A wildcard listener owns every address of this machine; so does a loopback listener own every
    loopback address, which is wider than the truth and never wrong to refuse.
    """
    target = _unwrap(address)
    for listener in listeners:
        if port != listener.port:
            continue
        own = _unwrap(listener.address)
        if target == own or target.is_unspecified or (own.is_loopback and target.is_loopback):
            return True
        if own.is_unspecified and (target.is_loopback or _is_local(target)):
            return True
    return False


def _is_local(address: Address) -> bool:
    """An address is this machine's when it is its own source. A UDP connect sends nothing."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return _parse(str(probe.getsockname()[0]).partition("%")[0]) == address
    except OSError:
        return False


def _bound(addresses: list[Address], dial_port: int) -> Resolved | DnsFailed:
    unique = tuple(dict.fromkeys(addresses))[:ANSWERS_MAX]
    return Resolved(unique, dial_port) if unique else DnsFailed("not-found")


def _parse(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _unwrap(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
