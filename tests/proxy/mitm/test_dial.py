"""Reaching an upstream: one of the vetted addresses, or nobody."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from ipaddress import ip_address
from typing import Any

import pytest

from policies.model import ContractBroken
from policies.reasons import REASONS
from proxy.mitm.dial import Reached, ViaRefused, dial, explain_failure, name_failure
from proxy.settings import UpstreamProxy
from proxy.vocabulary import Ticket


def ticket(port: int, *addresses: str) -> Ticket:
    return Ticket("0" * 32, b"", tuple(map(ip_address, addresses)), port)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as made:
        yield made


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def reach(*arguments: Any) -> Reached:
    async def main() -> Reached:
        reached = await dial(*arguments)
        reached.writer.close()
        with suppress(OSError):
            await reached.writer.wait_closed()
        return reached

    return asyncio.run(main())


def test_the_first_address_that_answers_is_reached(listener: socket.socket) -> None:
    """The first one refuses: nobody listens on that address of loopback."""
    reached = reach(ticket(port_of(listener), "127.0.0.9", "127.0.0.1"), 2.0)
    assert reached.address == ip_address("127.0.0.1")


def test_none_that_answers_is_an_error() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = port_of(listener)
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        reach(ticket(port, "127.0.0.1", "127.0.0.2"), 2.0)


def test_a_ticket_without_addresses_reaches_nobody() -> None:
    with pytest.raises(OSError, match="no address"):
        reach(ticket(443), 2.0)


def test_all_addresses_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def hang(host: str, port: int, **_: object) -> Any:
        asked.append((host, port))
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", hang)
    with pytest.raises(TimeoutError):
        reach(ticket(443, "192.0.2.1", "192.0.2.2"), 0.05)
    assert asked == [("192.0.2.1", 443)]


def test_only_literals_are_dialled(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1, A26: no event loop, however it resolves, is asked for a name."""

    def resolve(*_: object, **__: object) -> Any:
        raise RuntimeError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert reach(ticket(port_of(listener), "127.0.0.1"), 2.0)


def test_a_peer_that_is_another_is_noticed(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A26: whatever a loop does with the address, the other end is looked at."""
    open_connection = asyncio.open_connection

    async def stray(_host: str, port: int, **_: object) -> Any:
        return await open_connection("127.0.0.1", port)

    monkeypatch.setattr(asyncio, "open_connection", stray)
    with pytest.raises(ContractBroken, match="not the vetted address"):
        reach(ticket(port_of(listener), "127.0.0.5"), 2.0)


# --- through another proxy


def answer_once(listener: socket.socket, answer: bytes, seen: list[bytes]) -> None:
    def serve() -> None:
        with suppress(OSError), closing(listener.accept()[0]) as connection:
            connection.settimeout(5)
            seen.append(connection.recv(4096))
            connection.sendall(answer)
            if answer:
                connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()


@pytest.mark.parametrize(("address", "literal"), [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "[2001:db8::1]")])  # fmt: skip  # noqa: E501
def test_the_vetted_address_is_what_the_other_proxy_is_told(
    listener: socket.socket, address: str, literal: str
) -> None:
    seen: list[bytes] = []
    answer_once(listener, b"HTTP/1.1 200 Fine\r\n\r\n", seen)
    via = UpstreamProxy("127.0.0.1", port_of(listener))
    reached = reach(ticket(443, address), 2.0, via)
    assert reached.address == ip_address(address)
    assert seen == [f"CONNECT {literal}:443 HTTP/1.1\r\nHost: {literal}:443\r\n\r\n".encode()]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 No\r\n\r\n",
        b"HTTP/1.1 407 Who\r\n\r\n",
        b"HTTP/1.1 201 Made\r\n\r\n",
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 20_000,
    ],
    ids=["403", "407", "201", "nothing", "no HTTP", "too much"],
)
def test_another_proxy_that_does_not_connect_us_reaches_nobody(
    listener: socket.socket, answer: bytes
) -> None:
    answer_once(listener, answer, [])
    with pytest.raises(ViaRefused):
        reach(ticket(443, "192.0.2.1"), 2.0, UpstreamProxy("127.0.0.1", port_of(listener)))


FAILURES: dict[str, tuple[BaseException, str]] = {
    "in time": (TimeoutError(), "upstream-timeout"),
    "refused": (ConnectionRefusedError(), "upstream-unreachable"),
    "by the other proxy": (ViaRefused("x"), "upstream-unreachable"),
    "an invariant": (ContractBroken("x"), "contract-broken"),
    "cancelled": (asyncio.CancelledError(), "upstream-unreachable"),
    "a bug": (RuntimeError("x"), "upstream-unreachable"),
}


@pytest.mark.parametrize(("error", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failure_has_a_documented_reason(error: BaseException, reason: str) -> None:
    assert explain_failure(error) == reason
    assert REASONS[reason].status >= 400


def test_a_failure_has_our_name_or_the_one_that_fits_its_layer() -> None:
    assert name_failure("upstream-timeout", tls=True) == "upstream-timeout"
    assert name_failure("certificate verify failed", tls=True) == "upstream-tls-failed"
    assert name_failure("connection refused", tls=False) == "upstream-unreachable"
    assert {"upstream-tls-failed", "upstream-unreachable"} <= REASONS.keys()
