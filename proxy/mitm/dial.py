"""Reaching an upstream: the vetted addresses of a ticket, and nothing that has to be looked up."""

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address

from policies.model import Address, ContractBroken
from policies.reasons import REASONS
from proxy.settings import UpstreamProxy
from proxy.vocabulary import Ticket

_ANSWER_BYTES_MAX = 8192


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection to one of the vetted addresses."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    address: Address


class ViaRefused(OSError):  # noqa: N818  named after the failure
    """The upstream proxy would not connect us."""


async def dial(ticket: Ticket, timeout_s: float, via: UpstreamProxy | None = None) -> Reached:
    """Connect to the first vetted address that answers, within one deadline for all of them.

    Through `via` (`--upstream-proxy`) the vetted address is what its CONNECT names; that it goes
    there is then the word of that proxy.

    Raises:
        TimeoutError, OSError: none could be reached.
        ContractBroken: the peer is not the address that was dialled (threats.md A26).
    """
    last = OSError("no address")
    async with asyncio.timeout(timeout_s):
        for address in ticket.addresses:
            try:
                if via is not None:
                    return await _dial_via(via, address, ticket.dial_port)
                # a literal: no event loop resolves anything for it
                streams = await asyncio.open_connection(str(address), ticket.dial_port)
            except OSError as error:
                last = error
                continue
            peer = streams[1].get_extra_info("peername")
            if ip_address(peer[0].partition("%")[0]) != address:
                streams[1].close()
                raise ContractBroken("the peer is not the vetted address")
            return Reached(*streams, address)
    raise last


async def _dial_via(via: UpstreamProxy, address: Address, port: int) -> Reached:
    """CONNECT to a vetted address through another proxy (RFC 9110 section 9.3.6)."""
    reader, writer = await asyncio.open_connection(via.host, via.port, limit=_ANSWER_BYTES_MAX)
    try:
        literal = f"[{address}]" if address.version == 6 else str(address)
        authority = f"{literal}:{port}".encode("ascii")
        writer.write(b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        if not head.startswith(b"HTTP/1.") or status != [b"200"]:
            raise ViaRefused("the upstream proxy refused the tunnel")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        writer.close()
        raise ViaRefused("the upstream proxy gave no answer") from error
    except BaseException:
        writer.close()
        raise
    return Reached(reader, writer, address)


def explain_failure(error: BaseException) -> str:
    """The reason code of a connection that did not come about."""
    match error:
        case TimeoutError():
            return "upstream-timeout"
        case ContractBroken():
            return "contract-broken"
        case _:
            return "upstream-unreachable"


def name_failure(error: str, *, tls: bool) -> str:
    """The reason code of what the layers say: ours already, or else the TLS layer's own text."""
    if error in REASONS:
        return error
    return "upstream-tls-failed" if tls else "upstream-unreachable"
