"""Hosts and authorities: policy.md section 3, threats E7 to E20, B7, B8."""

import random
from ipaddress import IPv6Address, ip_address

import ada_url
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.host import (
    canonicalise_authority,
    canonicalise_host,
    default_port_of,
    format_authority,
    format_ipv6,
    parse_address,
)
from policies.model import Refusal

HOSTS = {
    "plain": ("api.github.com", "api.github.com"),
    "case": ("API.GitHub.COM", "api.github.com"),
    "one trailing dot is dropped": ("api.github.com.", "api.github.com"),
    "two trailing dots": ("api.github.com..", None),
    "single label": ("localhost", "localhost"),
    "hex and short form": ("0x7f.1", "127.0.0.1"),
    "one decimal number": ("2130706433", "127.0.0.1"),
    "octal": ("017700000001", "127.0.0.1"),
    "dotted octal": ("0177.0.0.1", "127.0.0.1"),
    "short": ("127.1", "127.0.0.1"),
    "zero": ("0", "0.0.0.0"),
    "ideographic full stops": ("169。254。169。254", "169.254.169.254"),
    "circled digits": ("①②⑦.0.0.1", "127.0.0.1"),
    "fullwidth letters": ("ｅｘａｍｐｌｅ.com", "example.com"),
    "ligature": ("ⅼocalhost", "localhost"),
    "soft hyphen": ("ex\u00adample.com", "example.com"),
    "zero width joiner between Latin letters": ("a\u200db.com", None),
    "U-label": ("münchen.de", "xn--mnchen-3ya.de"),
    "A-label": ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
    "A-label in upper case": ("XN--MNCHEN-3YA.DE", "xn--mnchen-3ya.de"),
    "A-label that decodes to nothing": ("xn--a.com", None),
    "A-label of plain ASCII": ("xn--localhost-.com", None),
    "hyphens in the third and fourth place": ("ab--cd.com", None),
    "IPv6": ("[::1]", "::1"),
    "IPv6 without brackets": ("::1", "::1"),
    "long IPv6": ("[2001:DB8:0:0:0:0:0:1]", "2001:db8::1"),
    "mapped IPv6, one spelling": ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
    "zone id": ("fe80::1%25lo", None),
    "zone id in brackets": ("[fe80::1%lo]", None),
    "bracketed name": ("[a.com]", None),
    "octet too large": ("256.1.1.1", None),
    "five numbers": ("1.2.3.4.5", None),
    "name that ends in a number": ("a.b.0x1", None),
    "empty": ("", None),
    "dot": (".", None),
    "empty label": ("a..com", None),
    "leading dot": (".a.com", None),
    "percent": ("a%2ecom", None),
    "NUL": ("a\x00.com", None),
    "tab": ("a\t.com", None),
    "space": ("a b.com", None),
    "underscore": ("a_b.com", None),
    "underscore of a known service label": ("_dmarc.a.com", "_dmarc.a.com"),
    "leading hyphen": ("-a.com", None),
    "wildcard": ("*.a.com", None),
    "user": ("u@a.com", None),
    "fullwidth slash": ("a／b.com", None),
    "fullwidth at sign": ("u＠a.com", None),
    "label of 63": ("a" * 63 + ".com", "a" * 63 + ".com"),
    "label of 64": ("a" * 64 + ".com", None),
    "name of 253": (".".join(["a" * 49] * 5) + ".abc", ".".join(["a" * 49] * 5) + ".abc"),
    "name of 253 in upper case": (
        ".".join(["A" * 49] * 5) + ".abc",
        ".".join(["a" * 49] * 5) + ".abc",
    ),
    "name of 254 in upper case": (".".join(["A" * 49] * 5) + ".abcd", None),
    "IPv6 with half its brackets": ("f::1]", None),
    "IPv6 with the other half": ("[::1f", None),
    "name of 254": (".".join(["a" * 49] * 5) + ".abcd", None),
    "very long": ("a." * 5000, None),
    "lone surrogate": ("\udc80.com", None),
}


@pytest.mark.parametrize(("text", "expected"), HOSTS.values(), ids=HOSTS)
def test_host_is_what_a_browser_would_dial_or_refused(text: str, expected: str | None) -> None:
    host = canonicalise_host(text)
    if expected is None:
        assert isinstance(host, Refusal)
        assert host.reason == "host-not-canonical"
    else:
        assert host == expected


def test_ten_thousand_random_hosts_raise_nothing_and_are_stable() -> None:
    rng = random.Random(20261121)
    alphabet = "abcXYZ019.-_%:[]@/\\ \t\x00*~xn--äß。①\u200d\u00ad\udc80😀"
    for _ in range(10_000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        host = canonicalise_host(text)
        if isinstance(host, str):
            assert host.isascii()
            assert canonicalise_host(host) == host


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_host_is_total_and_idempotent(text: str) -> None:
    host = canonicalise_host(text)
    assert isinstance(host, Refusal) or canonicalise_host(host) == host


AUTHORITIES = {
    "default port": ("a.com", 443, ("a.com", 443)),
    "named port": ("a.com:8443", 443, ("a.com", 8443)),
    "IPv6 with port": ("[::1]:80", None, ("::1", 80)),
    "bytes": (b"A.com:80", None, ("a.com", 80)),
    "CONNECT needs a port": ("a.com", None, None),
    "port zero": ("a.com:0", 443, None),
    "leading zero": ("a.com:080", 443, None),
    "port too large": ("a.com:65536", 443, None),
    "largest port": ("a.com:65535", 443, ("a.com", 65535)),
    "empty port": ("a.com:", 443, None),
    "Arabic digits": ("a.com:٨٠", 443, None),
    "sign": ("a.com:+80", 443, None),
    "user": ("u:p@a.com:80", 443, None),
    "backslash before at": ("a.com\\@b.com", 443, None),
    "question mark before at": ("a.com?@b.com", 443, None),
    "fragment before at": ("a.com#@b.com", 443, None),
    "slash": ("/", 443, None),
    "star": ("*", 443, None),
    "empty": ("", 443, None),
    "only a port": (":443", 443, None),
    "bare IPv6 is ambiguous": ("::1:80", 443, None),
    "non-ASCII bytes": (b"\xc3\xa9.com", 443, None),
    "trailing newline": ("a.com\n", 443, None),
}


@pytest.mark.parametrize(("text", "port", "expected"), AUTHORITIES.values(), ids=AUTHORITIES)
def test_authority_is_host_and_port_or_refused(
    text: str | bytes, port: int | None, expected: tuple[str, int] | None
) -> None:
    found = canonicalise_authority(text, port)
    assert isinstance(found, Refusal) if expected is None else found == expected


@given(st.lists(st.sampled_from([0, 0, 0, 1, 0xABCD, 0xFFFF]), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_ipv6_has_the_text_that_browsers_write(groups: list[int]) -> None:
    address = IPv6Address(sum(group << (16 * place) for place, group in enumerate(groups)))
    assert f"[{format_ipv6(address)}]" == ada_url.URL(f"http://[{address}]/").hostname


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:7f00:1"])
def test_a_literal_is_its_address(host: str) -> None:
    assert parse_address(host) == ip_address(host)


@pytest.mark.parametrize("host", ["a.com", "a1", "x.1", "::g"])
def test_a_name_is_no_address(host: str) -> None:
    assert parse_address(host) is None


def test_an_authority_is_written_with_brackets_and_without_the_default_port() -> None:
    assert format_authority("a.com", 443, "https") == "a.com"
    assert format_authority("a.com", 443, "http") == "a.com:443"
    assert format_authority("::1", 8080, "http") == "[::1]:8080"
    assert default_port_of("http") == 80
