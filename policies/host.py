"""Hosts and authorities in canonical form. PURE and total: any text gives a name or a Refusal.

    text -> (browser's host parser: UTS 46, numeric IPv4) -> LDH labels | IPv4 | IPv6

Rule 1: a browser's parser decides what a host *is* (ada-url, WHATWG URL): `0x7f.1`, `2130706433`
        and fullwidth digits are IPv4 addresses here because they are to clients and resolvers.
Rule 2: what comes out is lower-case LDH with verified A-labels, or the one spelling of an address;
        feeding it in again gives the same text.
Rule 3: what is not certain is refused: `%`, NUL, spaces, empty labels, odd `xn--`, most `_`.

Sources: policy.md section 3; threats E7 to E20, B7, B8; RFC 5890 (A-labels), RFC 5952 (IPv6 text).
"""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import ada_url
import idna

from policies.model import Address, Refusal

HOST_CHARS_MAX = 253
_TEXT_CHARS_MAX = 1024  # before mapping: a percent-free IDN is at most a few times its A-label form

# Service labels that real DNS zones use; any other underscore is refused (policy.md section 3).
UNDERSCORE_LABELS = frozenset(
    {"_acme-challenge", "_dmarc", "_domainkey", "_http", "_https", "_tcp", "_udp"}
)

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PLAIN_NAME = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
_LDH = re.compile(_LABEL)
_FORBIDDEN = re.compile(r"[\x00-\x2c/:-@\[-^`{-\x7f]")  # ASCII but letters, digits, `-`, `.`, `_`
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]+)(?::([0-9]{1,6}))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def canonicalise_host(text: str) -> str | Refusal:
    """The one spelling of a host: lower-case A-labels, or an IP literal without brackets.

    `text` may be Unicode, numeric or bracketed; one trailing dot is dropped. IPv6 comes back in
    RFC 5952 form with no dotted part, the same on every Python.
    """
    if len(text) <= HOST_CHARS_MAX and "--" not in text and _PLAIN_NAME.fullmatch(text):
        return text
    return _canonicalise_odd_host(text)


def canonicalise_authority(
    text: str | bytes, default_port: int | None
) -> tuple[str, int] | Refusal:
    """`host`, `host:port` or `[ipv6]:port` as (canonical host, port 1 to 65535).

    Without a port `default_port` counts, and None makes the port mandatory (CONNECT). User
    information, empty hosts, port 0, leading zeros and non-ASCII digits are refused.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("ascii")
        except UnicodeDecodeError:
            return _refuse("authority is not ASCII")
    parts = _AUTHORITY.fullmatch(text)
    if parts is None:
        return _refuse("authority is not host[:port]")
    host = canonicalise_host(parts[1])
    if isinstance(host, Refusal):
        return host
    port = _canonicalise_port(parts[2], default_port)
    return port if isinstance(port, Refusal) else (host, port)


def format_authority(host: str, port: int, scheme: str) -> str:
    """The Host field of a canonical destination; the scheme's default port is left out."""
    name = f"[{host}]" if ":" in host else host
    return name if port == default_port_of(scheme) else f"{name}:{port}"


def default_port_of(scheme: str) -> int:
    """443 for https, 80 for anything else."""
    return 443 if scheme == "https" else 80


def parse_address(host: str) -> Address | None:
    """The address a *canonical* host spells, or None when it is a name. Never raises."""
    if ":" not in host and not host[-1:].isdigit():
        return None
    try:
        return IPv6Address(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        return None


def _canonicalise_port(digits: str | None, default_port: int | None) -> int | Refusal:
    if digits is None:
        return _refuse("authority has no port") if default_port is None else default_port
    if _PORT.fullmatch(digits) is None or int(digits) > 65535:
        return _refuse("port is not a number from 1 to 65535 without leading zeros")
    return int(digits)


@lru_cache(maxsize=1024)  # IDNs are slow to verify and few; the cache is keyed by text alone
def _canonicalise_odd_host(text: str) -> str | Refusal:
    if not 0 < len(text) <= _TEXT_CHARS_MAX:
        return _refuse("host is empty or too long")
    if ":" in text or text.startswith("["):
        return _canonicalise_ipv6(text)
    if _FORBIDDEN.search(text):
        return _refuse("host holds a forbidden character")
    mapped = _map_like_a_browser(text)
    if isinstance(mapped, Refusal):
        return mapped
    name = mapped.removesuffix(".")
    if _IPV4.fullmatch(name):
        return name
    return _check_labels(name)


def _canonicalise_ipv6(text: str) -> str | Refusal:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _IPV6.fullmatch(bare) is None:  # also refuses zone ids
        return _refuse("host is not an IPv6 literal")
    try:
        address = IPv6Address(bare)
    except AddressValueError:
        return _refuse("host is not an IPv6 literal")
    return format_ipv6(address)


def format_ipv6(address: IPv6Address) -> str:
    """RFC 5952 text without a dotted part: Python 3.13 prints mapped addresses differently."""
    groups = [f"{(int(address) >> shift) & 0xFFFF:x}" for shift in range(112, -1, -16)]
    zeros = [len(run) for run in re.findall(r"(?:^|(?<=,))0(?:,0)+(?=,|$)", ",".join(groups))]
    if not zeros:
        return ":".join(groups)
    run_chars = max(zeros)
    run = "0" + ",0" * ((run_chars - 1) // 2)
    head, _, tail = _split_at_run(",".join(groups), run)
    return head.replace(",", ":") + "::" + tail.replace(",", ":")


def _split_at_run(groups: str, run: str) -> tuple[str, str, str]:
    """Cut the first whole-group occurrence of `run` out of comma-joined groups."""
    padded = f",{groups},"
    before, found, after = padded.partition(f",{run},")
    return before.strip(","), found, after.strip(",")


def _map_like_a_browser(text: str) -> str | Refusal:
    try:
        text.encode("utf-8")
        mapped = ada_url.URL(f"http://{text}/").hostname
    except ValueError:  # lone surrogates, and whatever the WHATWG host parser refuses
        return _refuse("host is not a valid domain name")
    if not isinstance(mapped, str) or not mapped.isascii():
        return _refuse("host is not a valid domain name")
    return mapped.lower()


def _check_labels(name: str) -> str | Refusal:
    if not 0 < len(name) <= HOST_CHARS_MAX:
        return _refuse("host is empty or longer than 253 characters")
    labels = name.split(".")
    for label in labels:
        if label in UNDERSCORE_LABELS:
            continue
        if _LDH.fullmatch(label) is None:
            return _refuse("host has a label that is not letters, digits and hyphens")
        if label[2:4] == "--" and not _is_a_label(label):
            return _refuse("host has an invalid internationalised label")
    if labels[-1].isdigit():
        return _refuse("host ends in a number but is not an address")
    return name


def _is_a_label(label: str) -> bool:
    """RFC 5890: decodes to a valid U-label that encodes back to the same text."""
    if not label.startswith("xn--"):
        return False
    try:
        return idna.alabel(idna.ulabel(label)).decode("ascii") == label
    except (idna.IDNAError, ValueError, IndexError, OverflowError):
        return False


def _refuse(detail: str) -> Refusal:
    return Refusal("host-not-canonical", detail)
