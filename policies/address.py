"""What kind of address is this? PURE, from our own table, the same on every Python.

    address -> layers (itself, and every IPv4 address it carries) -> classes -> public or not

Rule 1: `ipaddress.is_global` is not asked: it says yes to NAT64 of 10.0.0.1, fec0::1, multicast.
Rule 2: a mapped address *is* its IPv4 address. Other carriers (compatible, NAT64, 6to4, Teredo,
        ISATAP) are `reserved` and what they carry is judged too; IPv6 nobody assigned is reserved.
Rule 3: metadata services are a class of their own and in no other: a wide CIDR never opens them.

Sources: IANA special-purpose registries (RFC 6890), RFC 4291, 6052, 3056, 4380, 5214; policy.md
section 3; threats E11 to E14, F5, F6.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from policies.model import Address
from policies.rule import DestIp, Network

_IPV4 = {
    "0.0.0.0/0": "public",
    "0.0.0.0/8": "reserved",  # "this host" reaches loopback
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "cgnat",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link_local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",  # IETF protocol assignments
    "192.0.2.0/24": "reserved",  # documentation
    "192.88.99.0/24": "reserved",  # 6to4 relays, deprecated
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "reserved",  # benchmarking
    "198.51.100.0/24": "reserved",  # documentation
    "203.0.113.0/24": "reserved",  # documentation
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",  # future use and broadcast
}
_IPV6 = {
    "::/0": "reserved",  # only 2000::/3 is given out
    "::1/128": "loopback",
    "2000::/3": "public",
    "2001::/23": "reserved",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
    "2001:db8::/32": "reserved",  # documentation
    "2002::/16": "reserved",  # 6to4
    "3fff::/20": "reserved",  # documentation
    "fc00::/7": "private",
    "fe80::/10": "link_local",
    "ff00::/8": "multicast",
}
_METADATA = (
    "169.254.169.254",  # AWS, Azure, Google, OpenStack, DigitalOcean, Hetzner, IBM and others
    "169.254.169.253",  # AWS resolver
    "169.254.169.250",  # Rancher
    "169.254.169.123",  # AWS time
    "169.254.170.2",  # AWS ECS task credentials
    "169.254.170.23",  # AWS EKS pod identity
    "169.254.0.23",  # Tencent
    "169.254.10.10",  # Tencent
    "169.254.42.42",  # Scaleway
    "100.100.100.200",  # Alibaba
    "168.63.129.16",  # Azure host channel, inside public space
    "192.0.0.192",  # Oracle
    "fd00:ec2::254",  # AWS
    "fd00:ec2::253",  # AWS resolver
    "fd00:ec2::123",  # AWS time
    "fd00:ec2::23",  # AWS EKS pod identity
    "fd20:ce::254",  # Google
    "fd00:42::42",  # Scaleway
    "fd00:c1::a9fe:a9fe",  # Oracle
    "fe80::a9fe:a9fe",  # OpenStack
)

_Layer = tuple[int, int]  # (IP version, value)


@dataclass(frozen=True, slots=True)
class AddressRanges:
    """A compiled `dest_ip`: classes by name, ranges as (version, first, last)."""

    classes: frozenset[str]
    ranges: tuple[tuple[int, int, int], ...]

    def cover(self, address: Address) -> bool:
        """For an allow: the address, and whatever it carries, is inside what the rule opens.

        A metadata address is only inside the class `metadata` or a range of that one address.
        """
        first, *carried = _unwrap(address)
        return self._opens(first) and all(
            _classify_layer(layer) == "public" or self._opens(layer) for layer in carried
        )

    def touch(self, address: Address) -> bool:
        """For a deny: the address, or anything it carries, is in a class or a range."""
        return any(
            _classify_layer(layer) in self.classes or self._holds(layer)
            for layer in _unwrap(address)
        )

    def _opens(self, layer: _Layer) -> bool:
        kind = _classify_layer(layer)
        if kind in self.classes:
            return True
        if kind == "metadata":
            return (*layer, layer[1]) in self.ranges
        return self._holds(layer)

    def _holds(self, layer: _Layer) -> bool:
        version, value = layer
        return any(version == v and low <= value <= high for v, low, high in self.ranges)


def compile_ranges(dest_ip: DestIp) -> AddressRanges:
    """The form of `dest_ip` that the engine asks."""
    return AddressRanges(dest_ip.classes, tuple(_bounds(network) for network in dest_ip.networks))


def classify(address: Address) -> frozenset[str]:
    """The classes of an address and of every address it carries.

    One or more of loopback, private, link_local, metadata, cgnat, multicast, reserved, public.
    Only what is exactly {"public"} may be dialled without a rule that names the range.
    """
    return frozenset(_classify_layer(layer) for layer in _unwrap(address))


def classify_range(network: Network) -> frozenset[str]:
    """The classes that a range reaches, metadata only where it is that one address (rule 3)."""
    version, low, high = _bounds(network)
    if low == high:
        return classify(network.network_address)
    starts, kinds = _TABLES[version]
    return frozenset(kinds[bisect_right(starts, low) - 1 : bisect_right(starts, high)])


def is_public(address: Address) -> bool:
    """Whether an address is globally routable through and through."""
    if address.version == 4:
        return _classify_layer((4, int(address))) == "public"
    return all(_classify_layer(layer) == "public" for layer in _unwrap(address))


def _classify_layer(layer: _Layer) -> str:
    if layer in _METADATA_LAYERS:
        return "metadata"
    version, value = layer
    starts, kinds = _TABLES[version]
    return kinds[bisect_right(starts, value) - 1]


def _unwrap(address: Address) -> tuple[_Layer, ...]:
    """The address and every IPv4 address inside it; a mapped one is replaced by what it maps."""
    value = int(address)
    if address.version == 4:
        return ((4, value),)
    if value >> 32 == 0xFFFF:
        return ((4, value & 0xFFFFFFFF),)
    carried = tuple((4, inner) for inner in _carried_ipv4(value))
    if carried and _classify_layer((6, value)) == "public":  # ISATAP under a public prefix
        return ((6, value), _RESERVED_LAYER, *carried)
    return ((6, value), *carried)


def _carried_ipv4(value: int) -> tuple[int, ...]:
    low = value & 0xFFFFFFFF
    top = value >> 32
    if top in (0, 0xFFFF0000, 0x64FF9B << 64) and value > 1:
        return (low,)  # compatible, translated (SIIT), well-known NAT64
    if value >> 80 == 0x64FF9B0001:
        return (low,)  # site NAT64
    if value >> 112 == 0x2002:
        return ((value >> 80) & 0xFFFFFFFF,)  # 6to4
    if value >> 96 == 0x20010000:
        return ((value >> 64) & 0xFFFFFFFF, low ^ 0xFFFFFFFF)  # Teredo: server, client
    if top & 0xFDFFFFFF == 0x5EFE:
        return (low,)  # ISATAP
    return ()


def _bounds(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), int(network.broadcast_address)


def _flatten(table: dict[str, str]) -> tuple[list[int], list[str]]:
    """Nested prefixes as disjoint ranges: their first addresses, ascending, and their classes."""
    rows = sorted(
        ((_bounds(ip_network(cidr)), kind) for cidr, kind in table.items()),
        key=lambda row: row[0][1] - row[0][2],
    )  # widest first, so that the last row that holds an address is the most specific
    edges = {low for (_, low, _), _ in rows} | {high + 1 for (_, _, high), _ in rows}
    starts = sorted(edges)[:-1]
    kinds = [[kind for (_, low, high), kind in rows if low <= at <= high][-1] for at in starts]
    return starts, kinds


def _layers(addresses: Iterable[str]) -> frozenset[_Layer]:
    parsed: list[IPv4Address | IPv6Address] = [ip_address(text) for text in addresses]
    return frozenset((address.version, int(address)) for address in parsed)


_TABLES = {4: _flatten(_IPV4), 6: _flatten(_IPV6)}
_METADATA_LAYERS = _layers(_METADATA)
_RESERVED_LAYER: _Layer = (4, 0)  # 0.0.0.0 stands for "reserved" where an address has two classes
