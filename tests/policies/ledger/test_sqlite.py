"""The SQLite ledger keeps the contract of every ledger, and says at a start how it
differed from the truth."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from policies.budget import Account, State
from policies.ledger import Book, Ledger, LedgerUnavailable, PutAccount, Standing
from policies.ledger.sqlite import SqliteLedger, open_ledger
from tests.kit.ledger_contract import LedgerContract
from tests.kit.ledgers import DAY_MS, account, book, order
from tests.kit.sqlite_ledger import (
    BOOK,
    DEADLINE_S,
    SIDES,
    locked,
    opened,
    refused,
    works,
)


class TestSqliteLedger(LedgerContract):
    """See the contract."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> Iterator[None]:
        self.path = tmp_path / "ledger.db"
        self.made: list[SqliteLedger] = []
        yield
        for ledger in self.made:
            ledger.close()

    def make(self, given: Book) -> Ledger:
        ledger, _ = open_ledger(self.path, given, deadline_s=60)
        self.made.append(ledger)
        return ledger

    def count_open(self, ledger: Ledger) -> int:
        assert isinstance(ledger, SqliteLedger)
        return ledger.held


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


# The start


def spend(base: str, **spent: int) -> Callable[[Book], None]:
    def edit(given: Book) -> None:
        given.accounts[base].spent.update(spent)

    return edit


def remove(given: Book) -> None:
    del given.accounts["a/coder"]


def tick(given: Book) -> None:
    given.accounts["a/coder"].first_ms = 5


def hold_more(given: Book) -> None:
    given.accounts["a/coder"].held["requests"] = 1


def roll_on(given: Book) -> None:
    old = given.accounts["w/coder"]
    given.accounts["w/coder"] = replace(old, from_ms=old.from_ms + DAY_MS, name="", spent={})


def warn(given: Book) -> None:
    given.standings["coder"] = Standing(State.WARNED, "why")


def both(given: Book) -> None:
    spend("a/coder", requests=3)(given)
    spend("w/coder", requests=9)(given)


STARTS = [
    (lambda _: None, "", ""),
    (tick, "", ""),
    (spend("a/coder", requests=6), "older", "newer"),
    (spend("a/coder", steps=1), "older", "newer"),
    (remove, "newer", "older"),
    (hold_more, "older", "older"),
    (roll_on, "older", "newer"),
    (warn, "older", "newer"),
    (both, "different", "different"),
]


def starting() -> Book:
    given = book(account("a", requests=9), account("w", window_ms=DAY_MS, requests=9))
    for one in given.accounts.values():
        one.spent["requests"] = 5
    return given


@pytest.mark.parametrize(("edit", "before", "after"), STARTS)
async def test_a_start_says_how_the_file_differed_and_makes_it_equal(
    path: Path, edit: Callable[[Book], None], before: str, after: str
) -> None:
    edited = starting()
    edit(edited)
    for old, truth, word in ((starting(), edited, before), (edited, starting(), after)):
        with opened(path, old):
            pass
        ledger, found = open_ledger(path, truth, deadline_s=DEADLINE_S)
        assert found == word
        assert await ledger.read() == truth
        ledger.close()


async def test_what_was_held_before_the_start_is_held_no_more(path: Path) -> None:
    first, _ = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    await first.reserve(order(requests=1))
    second, found = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    assert found == "older"
    assert second.held == 0
    assert "another file" in await refused(first)
    assert await works(second)
    first.close()
    assert await works(second, "d-z")
    second.close()


async def test_what_a_killed_process_held_is_in_the_file_and_the_truth_replaces_it(
    path: Path,
) -> None:
    code = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from policies.budget import Order\n"
        "from policies.ledger.sqlite import SqliteLedger\n"
        "async def main():\n"
        "    ledger = SqliteLedger(Path(sys.argv[1]), deadline_s=10)\n"
        "    await ledger.reserve(Order('d-1', 'coder', '', 1, {'requests': 7}))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    with opened(path):
        pass
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size > 0
    truth = book(account(requests=1_000, bytes_in=1_000))
    truth.accounts["daily/coder"].spent["requests"] = 7  # what has no outcome counts in full
    ledger, found = open_ledger(path, truth, deadline_s=DEADLINE_S)
    assert found == "older"
    assert await ledger.read() == truth
    assert ledger.held == 0
    ledger.close()


def test_a_file_that_is_missing_is_made_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        ledger, found = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    finally:
        os.umask(before)
    assert found == "missing"
    modes = {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    assert modes == {0o600}
    ledger.close()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be one" * 100])
async def test_what_is_no_database_is_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    ledger, found = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    assert found == "unreadable"
    assert await works(ledger)
    ledger.close()


@pytest.mark.parametrize("pragma", ["application_id = 7", "user_version = 1"])
async def test_a_database_of_another_kind_is_replaced(path: Path, pragma: str) -> None:
    with opened(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA {pragma}")
    with pytest.raises(LedgerUnavailable, match="not a ledger"):
        SqliteLedger(path, deadline_s=DEADLINE_S)
    ledger, found = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    assert found == "unreadable"
    assert await works(ledger)
    ledger.close()


def test_a_start_does_not_take_the_file_from_who_has_locked_it(path: Path) -> None:
    with opened(path):
        pass
    with locked(path), pytest.raises(LedgerUnavailable, match="locked"):
        open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    with opened(path):
        pass


def test_a_ledger_is_opened_only_where_there_is_one(path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="No such file"):
        SqliteLedger(path, deadline_s=DEADLINE_S)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        SqliteLedger(path, deadline_s=DEADLINE_S)
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        open_ledger(path, BOOK, deadline_s=DEADLINE_S)


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
async def test_the_wal_of_another_file_is_not_picked_up(path: Path, fate: str) -> None:
    """A server was killed, its ledger removed or put back from a copy, its -wal left behind."""
    with opened(path, starting()):
        pass
    saved = path.read_bytes()
    ledger, _ = open_ledger(path, starting(), deadline_s=DEADLINE_S)
    await ledger.change(PutAccount(account("late", requests=1)))
    sides = {side: Path(f"{path}{side}").read_bytes() for side in SIDES}
    assert sides["-wal"]
    ledger.close()
    path.unlink()
    for side, content in sides.items():
        Path(f"{path}{side}").write_bytes(content)
    if fate == "replaced":
        path.write_bytes(saved)
    fresh, _ = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
    assert await fresh.read() == BOOK
    assert await works(fresh)
    fresh.close()


def test_what_a_start_that_was_killed_left_beside_is_in_nobodys_way(path: Path) -> None:
    target = path.with_name("precious")
    target.write_text("mine")
    path.with_name("ledger.db.new").symlink_to(target)
    path.with_name("ledger.db.new-journal").write_bytes(b"x" * 600)
    with opened(path):
        pass
    assert target.read_text() == "mine"
    assert {one.name for one in path.parent.iterdir()} == {"ledger.db", "precious"}


async def test_a_name_with_odd_characters_is_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "100% ?mode=ro#x"
    folder.mkdir()
    with opened(folder / "ledger.db") as ledger:
        assert await works(ledger)


async def test_an_unreadable_account_is_named_in_the_refusal(path: Path) -> None:
    with opened(path) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE account SET amounts = 'x'")
        assert "accounts of `coder`" in await refused(ledger)
    assert isinstance(BOOK.accounts["daily/coder"], Account)
