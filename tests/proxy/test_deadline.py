"""A deadline that takes what is there."""

import asyncio
import time

import pytest

from proxy.deadline import within


async def give(value: int, after_s: float = 0.0) -> int:
    if after_s:
        await asyncio.sleep(after_s)
    return value


async def test_what_is_there_at_once_costs_no_turn_of_the_loop() -> None:
    turned: list[int] = []
    asyncio.get_running_loop().call_soon(turned.append, 1)
    assert await within(1.0, give(7)) == 7
    assert turned == []


async def test_what_comes_in_time_is_given() -> None:
    assert await within(5.0, give(7, 0.01)) == 7


async def test_what_does_not_come_is_cancelled() -> None:
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await within(0.01, hang())
    await asyncio.wait_for(ended.wait(), 5)


async def test_an_answer_that_a_busy_loop_hands_over_late_is_taken() -> None:
    """With `asyncio.timeout` this is a TimeoutError."""
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ask() -> int:
        return await answer

    loop = asyncio.get_running_loop()

    def answer_late() -> None:
        time.sleep(0.05)
        answer.set_result(7)

    loop.call_soon(answer_late)
    assert await within(0.02, ask()) == 7


async def test_failures_are_passed_on() -> None:
    async def fail() -> None:
        raise LookupError("x")

    with pytest.raises(LookupError):
        await within(1.0, fail())


async def test_whoever_waits_may_be_cancelled_and_the_work_ends_with_it() -> None:
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.get_running_loop().create_task(within(60.0, hang()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), 5)
