"""Who must wait, and which timers are over."""

import asyncio

from mitmproxy.proxy import commands

from proxy.mitm.pressure import Hasten, Pause, Pressure, Timers


async def is_open(pressure: Pressure | Pause) -> bool:
    """Whether `wait` comes back at once."""
    try:
        async with asyncio.timeout(0.01):
            await pressure.wait()
    except TimeoutError:
        return False
    return True


def test_reading_goes_on_when_the_last_part_has_room() -> None:
    async def run() -> list[bool]:
        pressure = Pressure()
        seen = [await is_open(pressure)]
        for part, full in (("a", True), ("b", True), ("a", False), ("c", False), ("b", False)):
            pressure.report(part, full=full)
            seen.append(await is_open(pressure))
        return seen

    assert asyncio.run(run()) == [True, False, False, False, False, True]


def test_reading_goes_on_when_the_last_question_is_answered() -> None:
    async def run() -> list[tuple[bool, bool]]:
        pause = Pause()
        seen = [(bool(pause), await is_open(pause))]
        for step in (pause.begin, pause.begin, pause.end, pause.end, pause.begin):
            step()
            seen.append((bool(pause), await is_open(pause)))
        return seen

    no, yes = (False, True), (True, False)
    assert asyncio.run(run()) == [no, yes, yes, yes, no, yes]


def test_a_timer_that_is_ended_does_not_run_on() -> None:
    async def run() -> tuple[bool, bool, int, bool]:
        running: set[asyncio.Task[None]] = set()
        timers = Timers(running)
        wakeup = Hasten(commands.RequestWakeup(60)).wakeup
        task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
        timers.keep(wakeup, task)
        assert running == {task}
        first, second = timers.end(wakeup), timers.end(wakeup)
        await asyncio.sleep(0)
        return first, second, len(running), task.cancelled()

    assert asyncio.run(run()) == (True, False, 0, True)


def test_a_timer_that_came_is_not_ended_again() -> None:
    async def run() -> bool:
        timers = Timers(set())
        wakeup = commands.RequestWakeup(0)
        timers.keep(wakeup, asyncio.get_running_loop().create_task(asyncio.sleep(0)))
        await asyncio.sleep(0.01)
        return timers.end(wakeup)

    assert asyncio.run(run()) is False
