"""Reaching an upstream: the vetted addresses of a ticket, and nothing that has to be looked up."""

import asyncio
from ipaddress import ip_address

from policies.model import ContractBroken
from proxy.vocabulary import Ticket

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(ticket: Ticket, timeout_s: float) -> Streams:
    """Connect to the first vetted address that answers, within one deadline for all of them.

    Raises:
        TimeoutError, OSError: none could be reached.
        ContractBroken: the peer is not the address that was dialled (threats.md A26).
    """
    last = OSError("no address")
    async with asyncio.timeout(timeout_s):
        for address in ticket.addresses:
            try:
                # a literal: no event loop resolves anything for it
                streams = await asyncio.open_connection(str(address), ticket.dial_port)
            except OSError as error:
                last = error
                continue
            peer = streams[1].get_extra_info("peername")
            if ip_address(peer[0].partition("%")[0]) != address:
                streams[1].close()
                raise ContractBroken("the peer is not the vetted address")
            return streams
    raise last


def explain_failure(error: BaseException) -> str:
    """The reason code of a connection that did not come about."""
    match error:
        case TimeoutError():
            return "upstream-timeout"
        case ContractBroken():
            return "contract-broken"
        case _:
            return "upstream-unreachable"
