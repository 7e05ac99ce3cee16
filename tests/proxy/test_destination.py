"""One lookup, bounded in number and time, under any event loop; and who we are ourselves."""

import asyncio
import socket
import threading
from ipaddress import ip_address
from typing import Any

import pytest
import uvloop

from policies.model import Address
from proxy.destination import ANSWERS_MAX, LOOKUPS_MAX, DnsFailed, Resolved, Resolver, is_own
from proxy.settings import Endpoint, parse_resolve


def at(*texts: str, port: int = 443) -> Resolved:
    return Resolved(tuple(ip_address(text) for text in texts), port)


async def test_a_pinned_answer_is_used_instead_of_a_lookup() -> None:
    def never(host: str) -> list[str]:
        raise AssertionError(host)

    pins = [
        parse_resolve("api.example.com:443:10.0.0.5:8443"),
        parse_resolve("api.example.com:443:[fd00::5]:8443"),
    ]
    resolver = Resolver(pins, lookup=never)
    answer = await resolver.resolve("api.example.com", 443)
    assert answer == at("10.0.0.5", "fd00::5", port=8443)


async def test_a_pin_holds_for_its_port_only() -> None:
    pins = [parse_resolve("api.example.com:443:10.0.0.5")]
    resolver = Resolver(pins, lookup=lambda _: ["192.0.2.7"])
    assert await resolver.resolve("api.example.com", 8443) == at("192.0.2.7", port=8443)


@pytest.mark.parametrize("literal", ["169.254.169.254", "2001:db8::1", "0.0.0.0"])
async def test_f5_an_ip_literal_is_its_own_answer_and_goes_through_the_same_gate(
    literal: str,
) -> None:
    assert await Resolver().resolve(literal, 443) == at(literal)


async def test_the_system_is_asked() -> None:
    answer = await Resolver().resolve("localhost", 80)
    assert isinstance(answer, Resolved)
    assert all(address.is_loopback for address in answer.addresses)
    assert answer.dial_port == 80


def test_a26_the_lookup_is_ours_under_uvloop_too() -> None:
    asked: list[str] = []

    def look_up(host: str) -> list[str]:
        asked.append(f"{host} in {threading.current_thread().name}")
        return ["192.0.2.1"]

    async def main() -> Any:
        return await Resolver(lookup=look_up).resolve("api.example.com", 443)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == at("192.0.2.1")
    assert asked == ["api.example.com in resolve"]


async def test_f1_each_decision_looks_up_exactly_once() -> None:
    answers = iter([["192.0.2.1"], ["127.0.0.1"]])
    resolver = Resolver(lookup=lambda _: next(answers))
    assert await resolver.resolve("rebind.example.com", 443) == at("192.0.2.1")
    assert await resolver.resolve("rebind.example.com", 443) == at("127.0.0.1")


async def test_answers_keep_their_order_and_lose_duplicates_and_zones() -> None:
    found = ["192.0.2.2", "2001:db8::1", "192.0.2.2", "fe80::1%lo", "not an address"]
    answer = await Resolver(lookup=lambda _: found).resolve("a.example.com", 443)
    assert answer == at("192.0.2.2", "2001:db8::1", "fe80::1")


async def test_answers_are_bounded() -> None:
    found = [f"192.0.2.{n}" for n in range(200)]
    answer = await Resolver(lookup=lambda _: found).resolve("many.example.com", 443)
    assert isinstance(answer, Resolved)
    assert len(answer.addresses) == ANSWERS_MAX


FAILURES = {
    "an unknown name": (socket.gaierror(socket.EAI_NONAME, "x"), "not-found"),
    "a resolver that is down": (socket.gaierror(socket.EAI_AGAIN, "x"), "server-failure"),
    "an error of the system": (OSError("x"), "server-failure"),
    "a name that cannot be asked": (ValueError("embedded null byte"), "server-failure"),
    "a bug's timeout": (TimeoutError(), "timeout"),
}


@pytest.mark.parametrize(("failure", "why"), FAILURES.values(), ids=FAILURES)
async def test_a_failure_is_a_value(failure: Exception, why: str) -> None:
    def look_up(host: str) -> list[str]:
        raise failure

    answer = await Resolver(lookup=look_up).resolve("a.example.com", 443)
    assert isinstance(answer, DnsFailed)
    assert answer.why == why


async def test_no_answer_at_all_is_not_found() -> None:
    answer = await Resolver(lookup=lambda _: []).resolve("a.example.com", 443)
    assert answer == DnsFailed("not-found")


@pytest.mark.parametrize("host", ["a\0b", "b\xfccher.example", "", "a" * 300, "a..b", "%lo"])
async def test_odd_hosts_never_raise(host: str) -> None:
    assert isinstance(await Resolver(timeout_s=3).resolve(host, 443), DnsFailed)


async def test_a_lookup_that_hangs_is_abandoned_at_the_deadline() -> None:
    hold = threading.Event()

    def look_up(host: str) -> list[str]:
        hold.wait(30)
        return ["192.0.2.1"]

    resolver = Resolver(timeout_s=0.02, lookup=look_up)
    try:
        assert await resolver.resolve("slow.example.com", 443) == DnsFailed("timeout")
        many = [resolver.resolve("slow.example.com", 443) for _ in range(LOOKUPS_MAX)]
        causes = [answer.why for answer in await asyncio.gather(*many) if answer != at()]  # type: ignore[union-attr]
        assert causes.count("overloaded") == 1
        assert await resolver.resolve("192.0.2.9", 443) == at("192.0.2.9")  # needs no thread
    finally:
        hold.set()
    async with asyncio.timeout(10):  # the threads end, and their places are free again
        while await resolver.resolve("slow.example.com", 443) == DnsFailed("overloaded"):
            await asyncio.sleep(0.01)


async def test_a_cancelled_lookup_leaves_nothing_behind() -> None:
    hold = threading.Event()
    resolver = Resolver(lookup=lambda _: ["192.0.2.1"] if hold.wait(30) else [])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(resolver.resolve("slow.example.com", 443))
        await asyncio.sleep(0)
        task.cancel()
    hold.set()
    assert task.cancelled()


def listener(address: str) -> Endpoint:
    return Endpoint(ip_address(address), 8080)


OWN = {
    "the same address": ("127.0.0.1", "127.0.0.1", True),
    "another loopback address": ("127.0.0.1", "127.5.5.5", True),
    "the other family's loopback": ("127.0.0.1", "::1", True),
    "unspecified": ("127.0.0.1", "0.0.0.0", True),
    "unspecified in IPv6": ("127.0.0.1", "::", True),
    "mapped": ("127.0.0.1", "::ffff:127.0.0.1", True),
    "a wildcard owns loopback": ("0.0.0.0", "127.0.0.1", True),
    "a wildcard does not own the world": ("0.0.0.0", "192.0.2.1", False),
    "elsewhere": ("127.0.0.1", "192.0.2.1", False),
}


@pytest.mark.parametrize(("listening", "target", "expected"), OWN.values(), ids=OWN)
def test_f7_own_addresses_are_known(listening: str, target: str, expected: bool) -> None:
    assert is_own(ip_address(target), 8080, [listener(listening)]) is expected


def test_another_port_is_not_ours() -> None:
    assert not is_own(ip_address("127.0.0.1"), 8081, [listener("127.0.0.1")])


def test_a_wildcard_owns_every_interface() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has loopback only")
        mine: Address = ip_address(probe.getsockname()[0])
    assert is_own(mine, 8080, [listener("0.0.0.0")])
