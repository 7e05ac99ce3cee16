"""Who is calling: a proxy credential or a source range -> Principal, or the reason why not.

    Proxy-Authorization present?  yes: it alone decides   no: the source address decides

Rule 1: a credential that was presented and is wrong is refused; it never falls back to the source
        (policy.md section 2, SPEC section 3). So a revoked agent cannot drop to a wider identity.
Rule 2: an agent that the policy knows by source is never identified by a credential: the range is
        the operator's restriction.
Rule 3: whoever is identified here may still be unknown to the policy; that is the engine's refusal.
Rule 4: every refusal of a credential looks alike until the token itself is proven right.

Basic: RFC 7617. It is sent by every client there is; the hop is loopback or the operator's network.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from typing import Literal, Protocol

from policies.model import Address, Principal
from policies.rule import Agent
from proxy.credentials import CredentialStore, CredentialsUnusable

__all__ = ["CredentialStore", "IdentityRefusal", "identify"]

AUTHORIZATION_BYTES_MAX = 512  # a 64-character id and a token make 140

Reason = Literal[
    "credential-missing",
    "credential-wrong",
    "credential-expired",
    "credential-revoked",
    "internal-error",
]


class KnowsAgents(Protocol):
    """What is needed of a policy set."""

    @property
    def agents(self) -> Mapping[str, Agent]:
        """Every agent of the file, by id."""


@dataclass(frozen=True, slots=True)
class IdentityRefusal:
    """Why the caller is nobody: a code of policies/reasons.py, and a line for the record."""

    reason: Reason
    detail: str = ""


def identify(
    authorization: bytes | None,
    source: str,
    policy_set: KnowsAgents,
    store: CredentialStore,
    now: datetime,
) -> Principal | IdentityRefusal:
    """Identify one request. Total: whatever the client sent gives a principal or a refusal.

    `authorization` is the value of Proxy-Authorization, several joined by a comma (which makes
    them wrong), None when absent. `source` is the peer's address as the socket gives it.
    """
    client, address = _read_source(source)
    if authorization is not None:
        return _by_credential(authorization, client, policy_set, store, now)
    claims = set() if address is None else set(_claim(policy_set.agents, address))
    if len(claims) != 1:  # two claims are AP103; whoever gets that past the check is nobody
        return IdentityRefusal("credential-missing")
    return Principal(agent=claims.pop(), session="", client=client)


def _by_credential(
    authorization: bytes,
    client: str,
    policy_set: KnowsAgents,
    store: CredentialStore,
    now: datetime,
) -> Principal | IdentityRefusal:
    presented = _read_basic(authorization)
    if presented is None:
        return IdentityRefusal("credential-wrong", "not Basic credentials")
    name, token = presented
    try:
        credential = store.match(name, token)
    except CredentialsUnusable as failure:
        return IdentityRefusal("internal-error", str(failure))
    if credential is None:
        return IdentityRefusal("credential-wrong", "unknown agent or token")
    agent = policy_set.agents.get(credential.agent)
    if agent is not None and agent.sources:
        return IdentityRefusal("credential-wrong", "this agent is identified by its source")
    standing = credential.stand(now)
    if standing == "revoked":
        return IdentityRefusal("credential-revoked")
    if standing == "expired":
        return IdentityRefusal("credential-expired")
    return Principal(agent=credential.agent, session=credential.session, client=client)


def _read_basic(value: bytes) -> tuple[str, str] | None:
    """(user name, token) of a Basic credential, or None for anything else."""
    scheme, _, encoded = value.partition(b" ")
    if len(value) > AUTHORIZATION_BYTES_MAX or scheme.lower() != b"basic":
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
    name, colon, token = decoded.partition(":")
    return (name, token) if colon and name and token else None


def _read_source(source: str) -> tuple[str, Address | None]:
    """The peer as recorded and as compared: without its zone, IPv4 out of its IPv6 wrapping."""
    try:
        address = ip_address(source.partition("%")[0])
    except ValueError:
        return "unknown", None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address), address


_Ranges = dict[tuple[int, int], dict[int, list[str]]]

# of the policy that was asked last: a cache, not state; swapped whole, so any thread may read it
_indexed: tuple[Mapping[str, Agent], _Ranges] = ({}, {})


def _claim(agents: Mapping[str, Agent], address: Address) -> list[str]:
    """Ids of the agents whose ranges hold this address: one look per length of prefix."""
    global _indexed
    known, ranges = _indexed
    if known is not agents:
        ranges = _index(agents)
        _indexed = (agents, ranges)
    bits = int(address)
    return [
        name
        for (version, host_bits), networks in ranges.items()
        if version == address.version
        for name in networks.get(bits >> host_bits, ())
    ]


def _index(agents: Mapping[str, Agent]) -> _Ranges:
    ranges: _Ranges = {}
    for agent in agents.values():
        for network in agent.sources:
            host_bits = network.max_prefixlen - network.prefixlen
            networks = ranges.setdefault((network.version, host_bits), {})
            names = networks.setdefault(int(network.network_address) >> host_bits, [])
            if agent.id not in names:
                names.append(agent.id)
    return ranges
