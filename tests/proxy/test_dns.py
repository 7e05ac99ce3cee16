"""The stub resolver against a real server on loopback, and its reader against every byte."""

import contextlib
import resource
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.destination import DnsFailed, Resolved, Resolver
from proxy.dns import AAAA, ALIASES_MAX, RECORDS_MAX, A, Answer, DnsClient, Query, ask, read_answer
from proxy.settings import Endpoint
from tests.kit.name_server import (
    NameServer,
    encode_address,
    encode_alias,
    encode_name,
    encode_reply,
    read_question,
)

TABLE = {
    "api.example.com": ["192.0.2.1", "192.0.2.2", "2001:db8::1"],
    "v6.example.com": ["2001:db8::6"],
    "none.example.com": [],
}


def stay_silent(query: bytes) -> list[bytes]:
    return []


def look_up(server: NameServer, host: str, timeout_s: float = 2.0) -> list[str]:
    return DnsClient(server.endpoint, timeout_s=timeout_s).look_up(host)


def test_addresses_of_both_families_come_ipv4_first() -> None:
    with NameServer(TABLE) as server:
        assert look_up(server, "api.example.com") == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
        assert look_up(server, "v6.example.com") == ["2001:db8::6"]
        assert set(server.asked) == {"api.example.com", "v6.example.com"}


@pytest.mark.parametrize("host", ["nowhere.example.com", "none.example.com"])
def test_a_name_without_addresses_is_not_found(host: str) -> None:
    with NameServer(TABLE) as server, pytest.raises(socket.gaierror) as failure:
        look_up(server, host)
    assert failure.value.errno == socket.EAI_NONAME


def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    with NameServer(TABLE, lambda query: [encode_reply(query, [], flags=0x0200)]) as server:
        assert look_up(server, "api.example.com") == TABLE["api.example.com"]


@pytest.mark.parametrize("code", [1, 2, 4, 5, 9])
def test_a_server_that_fails_is_no_missing_name(code: int) -> None:
    with (
        NameServer({}, lambda query: [encode_reply(query, [], code=code)]) as server,
        pytest.raises(socket.gaierror) as failure,
    ):
        look_up(server, "api.example.com")
    assert failure.value.errno == socket.EAI_AGAIN


def test_a_silent_server_is_a_timeout_after_three_attempts() -> None:
    with NameServer({}, stay_silent) as server:
        with pytest.raises(TimeoutError):
            look_up(server, "api.example.com", timeout_s=0.15)
        assert len(server.asked) == 6


def test_a_lost_question_is_asked_again() -> None:
    seen: list[bytes] = []

    def lossy(query: bytes) -> list[bytes]:
        seen.append(query)
        return [] if len(seen) <= 2 else [encode_reply(query, [encode_address("192.0.2.1")])]

    with NameServer({}, lossy) as server:
        assert look_up(server, "api.example.com", timeout_s=0.6) == ["192.0.2.1"]


def test_a_family_that_never_answers_does_not_hide_the_other() -> None:
    def half(query: bytes) -> list[bytes]:
        found = [encode_address("192.0.2.1")]
        return [encode_reply(query, found)] if read_question(query)[1] == A else []

    with NameServer({}, half) as server:
        assert look_up(server, "api.example.com", timeout_s=0.3) == ["192.0.2.1"]


def test_forged_answers_are_ignored() -> None:
    def forge(query: bytes) -> list[bytes]:
        if read_question(query)[1] != A:
            return [encode_reply(query, [])]
        evil = [encode_address("203.0.113.66")]
        other = query[:12] + encode_name("evil.example.com") + struct.pack("!2H", A, 1)
        number = struct.pack("!H", struct.unpack("!H", query[:2])[0] ^ 1)
        return [
            b"",
            b"garbage",
            encode_reply(number + query[2:], evil),  # another id
            encode_reply(other, evil),  # another question
            query,  # a question is no answer
            encode_reply(query, evil)[:-1],  # cut
            encode_reply(query, [encode_address("203.0.113.66", encode_name("evil.example"))]),
        ]

    with NameServer({}, forge) as server, pytest.raises(socket.gaierror):
        look_up(server, "api.example.com", timeout_s=0.3)


def test_descriptors_above_1023_are_no_obstacle() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with NameServer(TABLE) as server, contextlib.ExitStack() as held:
            for _ in range(1100):
                held.enter_context(Path("/dev/null").open())
            assert look_up(server, "v6.example.com") == ["2001:db8::6"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_unreachable_server_is_an_error_of_the_system() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        closed = Endpoint(ip_address("127.0.0.1"), taken.getsockname()[1])
    with pytest.raises(OSError, match="refused"):
        DnsClient(closed, timeout_s=0.3).look_up("api.example.com")


@pytest.mark.parametrize("host", ["", "a..b", ".a", "a" * 64, ".".join(["a" * 60] * 5), "bücher"])
def test_a_name_that_dns_cannot_carry_is_not_asked(host: str) -> None:
    with NameServer(TABLE) as server:
        with pytest.raises(ValueError):
            look_up(server, host)
        assert server.asked == []


QUERY = Query(0x1234, (b"api", b"example", b"com"), A)
POINTER = b"\xc0\x0c"
ALIAS = encode_name("edge.example.net")


def reply(*records: bytes, flags: int = 0) -> bytes:
    return encode_reply(QUERY.encode(), list(records), flags=flags)


def chain(length: int) -> list[bytes]:
    names = [f"n{number}.example.net" for number in range(length)]
    owners = [POINTER, *map(encode_name, names)]
    aliases = [encode_alias(owner, name) for owner, name in zip(owners, names, strict=False)]
    return [*aliases, encode_address("192.0.2.1", owners[-1])]


ANSWERS = {
    "plain": (reply(encode_address("192.0.2.1")), ["192.0.2.1"]),
    "a question in another case": (
        reply(encode_address("192.0.2.1")).replace(b"example", b"eXaMpLe"),
        ["192.0.2.1"],
    ),
    "an alias": (
        reply(encode_alias(POINTER, "edge.example.net"), encode_address("192.0.2.1", ALIAS)),
        ["192.0.2.1"],
    ),
    "an alias behind its target": (
        reply(encode_address("192.0.2.1", ALIAS), encode_alias(POINTER, "edge.example.net")),
        ["192.0.2.1"],
    ),
    "the longest chain": (reply(*chain(ALIASES_MAX)), ["192.0.2.1"]),
    "an alias to nowhere": (reply(encode_alias(POINTER, "edge.example.net")), []),
    "an address of the other family": (reply(encode_address("2001:db8::1")), []),
    "an address of another name": (reply(encode_address("192.0.2.1", ALIAS)), []),
    "one label with a dot in it": (
        reply(encode_address("192.0.2.1", b"\x0bapi.example\x03com\0")),
        [],
    ),
    "nothing": (reply(), []),
}


@pytest.mark.parametrize(("message", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_read(message: bytes, expected: list[str]) -> None:
    assert read_answer(message, QUERY) == Answer(tuple(map(ip_address, expected)))


NOT_ANSWERS = {
    "empty": b"",
    "a header only": reply()[:12],
    "another operation": reply(flags=0x0800),
    "a record cut off": reply(encode_address("192.0.2.1"))[:-1],
    "a pointer to itself": reply(encode_address("192.0.2.1", b"\xc0\x21")),
    "a pointer ahead": reply(encode_address("192.0.2.1", b"\xc0\xff")),
    "a circle of aliases": reply(
        encode_alias(POINTER, "a.example"),
        encode_alias(encode_name("a.example"), "api.example.com"),
    ),
    "a chain too long": reply(*chain(ALIASES_MAX + 1)),
    "a label with odd bits": reply(encode_address("192.0.2.1", b"\x80\x0c")),
    "an address of three bytes": reply(POINTER + struct.pack("!2HIH", A, 1, 60, 3) + b"\1\2\3"),
    "a name too long": reply(encode_address("192.0.2.1", (b"\x3f" + b"a" * 63) * 4 + b"\0")),
}


@pytest.mark.parametrize("message", NOT_ANSWERS.values(), ids=NOT_ANSWERS)
def test_what_is_no_answer_is_ignored(message: bytes) -> None:
    assert read_answer(message, QUERY) is None


def test_answers_are_bounded() -> None:
    many = reply(*(encode_address(f"192.0.2.{number}") for number in range(200)))
    answer = read_answer(many, QUERY)
    assert answer is not None
    assert len(answer.addresses) == RECORDS_MAX


@given(st.binary(max_size=80), st.integers(0, 300), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_come_nothing_raises(data: bytes, at: int, byte: int) -> None:
    read_answer(data, QUERY)
    read_answer(reply() + data, QUERY)
    changed = bytearray(reply(*chain(3)))
    changed[at % len(changed)] = byte
    read_answer(bytes(changed), QUERY)


def test_ids_are_random() -> None:
    assert len({ask("api.example.com", AAAA).id for _ in range(50)}) > 40


async def test_the_resolver_asks_the_given_server_once_per_decision() -> None:
    with NameServer(TABLE) as server:
        resolver = Resolver(dns=server.endpoint, timeout_s=2)
        answer = await resolver.resolve("v6.example.com", 443)
        assert answer == Resolved((ip_address("2001:db8::6"),), 443)
        assert await resolver.resolve("nowhere.example.com", 443) == DnsFailed("not-found")
        server.table["v6.example.com"] = ["127.0.0.1"]  # f1: what a rebinding server does
        assert await resolver.resolve("v6.example.com", 443) == Resolved(
            (ip_address("127.0.0.1"),), 443
        )


async def test_a_silent_server_is_a_timeout_for_the_resolver() -> None:
    with NameServer({}, stay_silent) as server:
        resolver = Resolver(dns=server.endpoint, timeout_s=0.2)
        assert await resolver.resolve("api.example.com", 443) == DnsFailed("timeout")
