"""Who waits for a record to become durable, and how they are told.

Rule 1: one wake-up per event loop and group, however many wait there.
Rule 2: a waiter that was cancelled, or whose loop is gone, is passed over: its record stands.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future as BlockingFuture
from contextlib import suppress
from typing import NamedTuple

from audit.chain import Head
from audit.folder import LogUnavailable


class Stored(NamedTuple):
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
        if waiter is None:
            continue
        if isinstance(waiter, BlockingFuture):
            _resolve(waiter, head, failure)
            continue
        loop = waiter.get_loop()
        pairs = loops.get(loop)
        if pairs is None:
            pairs = loops[loop] = []
        pairs.append((waiter, head))
    for loop, pairs in loops.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve_all, pairs, failure)


def _resolve_all(pairs: _Pairs, failure: LogUnavailable | None) -> None:
    for waiter, head in pairs:
        if waiter.done():  # cancelled meanwhile
            continue
        if failure is None:
            waiter.set_result(_stored(head))
        else:
            waiter.set_exception(LogUnavailable(failure.code, str(failure)))


def _resolve(waiter: BlockingFuture[Stored], head: Head, failure: LogUnavailable | None) -> None:
    if failure is None:
        waiter.set_result(_stored(head))
    else:
        waiter.set_exception(LogUnavailable(failure.code, str(failure)))


def _stored(head: Head) -> Stored:
    _, seq, prev, ts = head
    return Stored(seq - 1, prev.decode(), ts.decode())
