"""Who waits for a record to become durable, and how they are told.

Rule 1: one wake-up per event loop and group, however many wait there.
Rule 2: a waiter that was cancelled, or whose loop is gone, is passed over: its record stands.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future as BlockingFuture
from contextlib import suppress
from dataclasses import dataclass

from audit.chain import Head
from audit.folder import LogUnavailable


@dataclass(frozen=True, slots=True)
class Stored:
    """A durable record: its number, its hash (64 hex) and its time."""

    seq: int
    hash: str
    ts: str


type Waiter = asyncio.Future[Stored] | BlockingFuture[Stored]
type _Pairs = list[tuple[asyncio.Future[Stored], Head]]


def answer(waiters: Iterable[tuple[Waiter | None, Head]], failure: LogUnavailable | None) -> None:
    """Tell every waiter that its record (the one before the head) is durable, or is not."""
    loops: dict[asyncio.AbstractEventLoop, _Pairs] = {}
    for waiter, head in waiters:
        if isinstance(waiter, BlockingFuture):
            _resolve(waiter, head, failure)
        elif waiter is not None:
            loops.setdefault(waiter.get_loop(), []).append((waiter, head))
    for loop, pairs in loops.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve_all, pairs, failure)


def _resolve_all(pairs: _Pairs, failure: LogUnavailable | None) -> None:
    for waiter, head in pairs:
        if not waiter.done():  # cancelled meanwhile
            _resolve(waiter, head, failure)


def _resolve(waiter: Waiter, head: Head, failure: LogUnavailable | None) -> None:
    if failure is None:
        waiter.set_result(Stored(head.seq - 1, head.prev.decode(), head.ts.decode()))
    else:
        waiter.set_exception(LogUnavailable(failure.code, str(failure)))
