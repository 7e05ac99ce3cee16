"""Telling those who wait: one wake-up per loop, nobody is harmed by one who left."""

import asyncio
from concurrent.futures import Future

import pytest

from audit.chain import Head
from audit.folder import LogUnavailable
from audit.waiters import Stored, answer

HEAD = Head(b"f" * 32, 8, b"a" * 64, b"2026-01-31T00:00:00.000000Z")
STORED = Stored(7, "a" * 64, "2026-01-31T00:00:00.000000Z")


async def test_each_waiter_learns_the_record_before_its_head() -> None:
    waiters = [asyncio.get_running_loop().create_future() for _ in range(3)]
    blocking: Future[Stored] = Future()
    waiters[1].cancel()
    answer([*((waiter, HEAD) for waiter in waiters), (blocking, HEAD), (None, HEAD)], None)
    assert await waiters[0] == await waiters[2] == blocking.result(0) == STORED


async def test_a_failure_reaches_everybody_as_an_exception_of_its_own() -> None:
    waiters = [asyncio.get_running_loop().create_future() for _ in range(2)]
    answer([(waiter, HEAD) for waiter in waiters], LogUnavailable("audit-unavailable", "why"))
    found = await asyncio.gather(*waiters, return_exceptions=True)
    assert [str(error) for error in found] == ["why", "why"]
    assert found[0] is not found[1]


def test_a_loop_that_is_gone_is_passed_over() -> None:
    loop = asyncio.new_event_loop()
    waiter: asyncio.Future[Stored] = loop.create_future()
    loop.close()
    blocking: Future[Stored] = Future()
    answer([(waiter, HEAD), (blocking, HEAD)], None)
    assert blocking.result(0) == STORED
    with pytest.raises(asyncio.InvalidStateError):
        waiter.result()
