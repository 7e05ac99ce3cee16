"""A SQLite ledger on its file, a lock of somebody else, and what a caller sees."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from policies.ledger import Book, LedgerUnavailable
from policies.ledger.sqlite import SqliteLedger, open_ledger
from tests.kit.ledgers import account, book, held, order

DEADLINE_S = 0.4
BOOK = book(account(requests=1_000, bytes_in=1_000))
SIDES = ("-wal", "-shm")


@contextmanager
def opened(
    path: Path, given: Book = BOOK, deadline_s: float = DEADLINE_S, waiting_max: int = 1_000
) -> Iterator[SqliteLedger]:
    ledger, _ = open_ledger(path, given, deadline_s=deadline_s, waiting_max=waiting_max)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection holds the write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


async def refused(ledger: SqliteLedger, decision_id: str = "d-x") -> str:
    """The text of the refusal, which has to come within the deadline."""
    began_s = time.monotonic()
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.reserve(order(decision_id, requests=1))
    assert time.monotonic() - began_s < DEADLINE_S + 0.6  # the machine may be busy
    return str(caught.value)


async def works(ledger: SqliteLedger, decision_id: str = "d-y") -> bool:
    """A request is reserved and settled."""
    hold = held(await ledger.reserve(order(decision_id, requests=1)))
    (after,) = await ledger.settle(decision_id, hold.amounts)
    return after.spent["requests"] > 0
