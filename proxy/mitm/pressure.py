"""What keeps one connection from costing memory: who asks its agent to wait, and timers that end
early.

Nothing here is a limit by itself. A part that must hold what it was given (a stream whose upstream
is still being dialled, an HTTP/2 upstream that opens no window) says so, and the handler reads no
further from the agent until there is room again: TCP does the rest (threats I3, I4).
"""

import asyncio
from collections.abc import Hashable, MutableMapping
from weakref import WeakKeyDictionary

from mitmproxy.proxy import commands


class Pressure:
    """Which parts of one agent's connection hold too much of what it sent."""

    def __init__(self) -> None:
        self._full: set[Hashable] = set()
        self._room = asyncio.Event()
        self._room.set()

    def report(self, part: Hashable, *, full: bool) -> None:
        """`part` holds more than it should, or no longer does."""
        if full:
            self._full.add(part)
            self._room.clear()
        elif self._full:
            self._full.discard(part)
            if not self._full:
                self._room.set()

    async def wait(self) -> None:
        """Until nobody holds too much."""
        await self._room.wait()


class Pause:
    """Questions that are open; whoever reads on waits until none is."""

    def __init__(self) -> None:
        self._open = 0
        self._none = asyncio.Event()
        self._none.set()

    def begin(self) -> None:
        """One more is open."""
        self._open += 1
        self._none.clear()

    def end(self) -> None:
        """One is answered."""
        self._open -= 1
        if not self._open:
            self._none.set()

    def __bool__(self) -> bool:
        return self._open > 0

    async def wait(self) -> None:
        """Until all are answered."""
        await self._none.wait()


class Hasten(commands.Command):
    """Deliver a wake-up now: whoever asked for it no longer waits for anything.

    A timer that is left to run holds its whole stream: at 500 requests a second and two minutes
    each, 60,000 of them.
    """

    def __init__(self, wakeup: commands.RequestWakeup) -> None:
        self.wakeup = wakeup


class Timers:
    """The wake-ups of one connection that are still to come. `running` is where their owner keeps
    the tasks."""

    def __init__(self, running: set[asyncio.Task[None]]) -> None:
        self._running = running
        # weak: a task holds its wake-up for as long as it runs, and no longer
        self._tasks: MutableMapping[commands.RequestWakeup, asyncio.Task[None]] = (
            WeakKeyDictionary()
        )

    def keep(self, wakeup: commands.RequestWakeup, task: asyncio.Task[None]) -> None:
        """`task` will deliver `wakeup`."""
        self._tasks[wakeup] = task
        self._running.add(task)

    def end(self, wakeup: commands.RequestWakeup) -> bool:
        """Stop its task; False: it came already."""
        task = self._tasks.pop(wakeup, None)
        if task is None or task.done():
            return False
        self._running.discard(task)
        return task.cancel()
