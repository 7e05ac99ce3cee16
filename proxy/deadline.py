"""Waiting for so long and no longer, and taking an answer that is there although it is late.

`asyncio.timeout` cancels whoever waits, also where the answer has come and only the event loop was
too busy to hand it over: a machine under load would deny what it has long allowed.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def within[T](seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which begins at once.

    Raises:
        TimeoutError: it is not there in time; `work` was cancelled.
        Whatever `work` raises.
    """
    task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
    if not task.done():
        try:
            await asyncio.wait({task}, timeout=seconds)
        except BaseException:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            raise TimeoutError
    return task.result()
