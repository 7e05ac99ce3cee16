"""Address classes: policy.md section 3, threats E11 to E14, F5, F6. One table for every Python."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import AddressRanges, classify, classify_range, compile_ranges, is_public
from policies.rule import DestIp

CLASSES = {
    "8.8.8.8": "public",
    "1.1.1.1": "public",
    "223.255.255.255": "public",
    "0.0.0.0": "reserved",
    "0.1.2.3": "reserved",
    "10.0.0.0": "private",
    "10.255.255.255": "private",
    "11.0.0.0": "public",
    "100.63.255.255": "public",
    "100.64.0.0": "cgnat",
    "100.127.255.255": "cgnat",
    "100.128.0.0": "public",
    "127.0.0.1": "loopback",
    "127.255.255.255": "loopback",
    "128.0.0.0": "public",
    "169.254.0.1": "link_local",
    "169.254.169.254": "metadata",
    "169.254.170.2": "metadata",
    "100.100.100.200": "metadata",
    "192.0.0.192": "metadata",
    "168.63.129.16": "metadata",
    "172.15.255.255": "public",
    "172.16.0.0": "private",
    "172.31.255.255": "private",
    "172.32.0.0": "public",
    "192.0.0.8": "reserved",
    "192.0.2.1": "reserved",
    "192.88.99.1": "reserved",
    "192.168.0.1": "private",
    "198.17.255.255": "public",
    "198.18.0.0": "reserved",
    "198.19.255.255": "reserved",
    "198.51.100.7": "reserved",
    "203.0.113.7": "reserved",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "reserved",
    "::1": "loopback",
    "2606:4700::1111": "public",
    "2001:4860:4860::8888": "public",
    "2001:db8::1": "reserved",
    "2001:2::1": "reserved",
    "2001:20::1": "reserved",
    "3fff::1": "reserved",
    "4000::1": "reserved",
    "100::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private",
    "fdff::1": "private",
    "fd00:ec2::254": "metadata",
    "fd20:ce::254": "metadata",
    "fe80::1": "link_local",
    "fe80::a9fe:a9fe": "metadata",
    "fec0::1": "reserved",
    "ff02::1": "multicast",
    # carriers of IPv4: the mapped form is its address, the others are reserved and what they carry
    "::ffff:8.8.8.8": "public",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "metadata",
    "::127.0.0.1": "reserved loopback",
    "::ffff:0:10.0.0.1": "reserved private",
    "64:ff9b::a00:1": "reserved private",
    "64:ff9b::8.8.8.8": "reserved public",
    "64:ff9b::a9fe:a9fe": "reserved metadata",
    "64:ff9b:1::a00:1": "reserved private",
    "2002:7f00:1::": "reserved loopback",
    "2002:808:808::1": "reserved public",
    "2001:0:7f00:1::": "reserved loopback",
    "2001:0:808:808::f5ff:fffe": "reserved public private",
    "2606:4700::5efe:10.0.0.1": "public reserved private",
    "2606:4700::200:5efe:10.0.0.1": "public reserved private",
    "fe80::5efe:192.168.1.1": "link_local private",
}


@pytest.mark.parametrize(("text", "expected"), CLASSES.items(), ids=CLASSES)
def test_every_address_has_its_classes(text: str, expected: str) -> None:
    address = ip_address(text)
    if text == "2001:0:7f00:1::":  # the client half of this Teredo address is 255.255.255.255
        expected += " reserved"
    assert classify(address) == frozenset(expected.split())
    assert is_public(address) is (expected == "public")


@given(st.ip_addresses())
@settings(max_examples=300, deadline=None)
def test_every_address_has_a_class_and_public_means_nothing_else(address: object) -> None:
    classes = classify(address)  # type: ignore[arg-type]
    assert classes
    assert is_public(address) is (classes == {"public"})  # type: ignore[arg-type]


METADATA = """
169.254.169.254 169.254.169.253 169.254.169.250 169.254.169.123 169.254.170.2 169.254.170.23
169.254.0.23 169.254.10.10 169.254.42.42 100.100.100.200 168.63.129.16 192.0.0.192
fd00:ec2::254 fd00:ec2::253 fd00:ec2::123 fd00:ec2::23 fd20:ce::254 fd00:42::42
fd00:c1::a9fe:a9fe fe80::a9fe:a9fe
"""


@pytest.mark.parametrize("text", METADATA.strip().split())
def test_every_metadata_service_is_known_and_its_neighbours_are_none(text: str) -> None:
    address = ip_address(text)
    assert classify(address) == {"metadata"}
    assert not is_public(address)
    for neighbour in (address - 1, address + 1):
        if str(neighbour) not in METADATA:
            assert "metadata" not in classify(neighbour)


RANGES = {
    "0.0.0.0/0": "public reserved private cgnat loopback link_local multicast",
    "10.0.0.0/8": "private",
    "10.0.0.0/7": "private public",
    "8.0.0.0/7": "public",
    "11.0.0.0/8": "public",
    "126.0.0.0/7": "public loopback",
    "128.0.0.0/8": "public",
    "169.254.0.0/16": "link_local",
    "169.254.169.254/32": "metadata",
    "8.8.8.8/32": "public",
    "fc00::/6": "private reserved link_local multicast",
    "fc00::/7": "private",
    "2001:db8::/32": "reserved",
    "2000::/3": "public reserved",
    "64:ff9b::a00:1/128": "reserved private",
}


@pytest.mark.parametrize(("text", "expected"), RANGES.items(), ids=RANGES)
def test_a_range_has_the_classes_of_all_it_holds(text: str, expected: str) -> None:
    assert classify_range(ip_network(text)) == frozenset(expected.split())


def covers(text: str, *, classes: str = "", networks: str = "") -> bool:
    return ranges(classes, networks).cover(ip_address(text))


def touches(text: str, *, classes: str = "", networks: str = "") -> bool:
    return ranges(classes, networks).touch(ip_address(text))


def ranges(classes: str, networks: str) -> AddressRanges:
    return compile_ranges(
        DestIp(frozenset(classes.split()), tuple(map(ip_network, networks.split())))
    )


def test_an_allow_opens_a_class_or_a_range_and_nothing_beside_it() -> None:
    assert covers("10.1.2.3", classes="private")
    assert covers("10.1.2.3", networks="10.0.0.0/8")
    assert not covers("11.1.2.3", networks="10.0.0.0/8")
    assert not covers("127.0.0.1", classes="private")
    assert not covers("8.8.8.8", classes="private")
    assert covers("8.8.8.8", networks="8.8.8.0/24")
    assert not covers("::1", networks="0.0.0.0/0")


def test_metadata_is_opened_by_its_class_or_its_one_address_only() -> None:
    assert not covers("169.254.169.254", networks="169.254.0.0/16")
    assert not covers("169.254.169.254", networks="169.254.169.254/31")
    assert not covers("169.254.169.254", classes="link_local reserved private")
    assert covers("169.254.169.254", networks="169.254.169.254/32")
    assert covers("169.254.169.254", classes="metadata")
    assert covers("::ffff:169.254.169.254", networks="169.254.169.254/32")
    assert not covers("fd00:ec2::254", networks="fd00::/8")
    assert covers("fd00:ec2::254", networks="fd00:ec2::254/128")
    assert not covers("fd00:ec2::254", classes="private")


def test_a_carrier_is_opened_only_together_with_what_it_carries() -> None:
    assert not covers("64:ff9b::10.0.0.1", classes="private")
    assert not covers("64:ff9b::10.0.0.1", classes="reserved")
    assert covers("64:ff9b::10.0.0.1", classes="reserved private")
    assert covers("64:ff9b::8.8.8.8", networks="64:ff9b::/96")
    assert not covers("64:ff9b::a9fe:a9fe", networks="64:ff9b::/96 169.254.0.0/16")


def test_a_deny_is_touched_by_any_part_of_an_address() -> None:
    assert touches("64:ff9b::10.0.0.1", classes="private")
    assert touches("::ffff:10.0.0.1", networks="10.0.0.0/8")
    assert touches("169.254.169.254", networks="169.254.0.0/16")
    assert not touches("169.254.169.254", classes="link_local")
    assert not touches("8.8.8.8", classes="private loopback")
