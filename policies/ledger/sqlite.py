"""The ledger in one SQLite file, which several processes of one state directory can share.

    await reserve -> queue -> ledger thread: same file? -> BEGIN IMMEDIATE -> accounts -> budget.py
                                                               -> rows -> COMMIT -> caller

Rule 1: the file is a cache of the log. `open_ledger` writes it anew at each start, so nothing it
        holds has to outlive the machine: `synchronous` is OFF, and no request waits for its disk
        (the log's writer has waited already). What a killed process committed is in the system's
        page cache; what a power cut spoils is replaced at the next start.
Rule 2: accounts are what the file says under SQLite's write lock: those the process has kept only
        while nobody else wrote (policies/ledger/table.py). Reservations are the process's own, by
        decision id; what one that died held stays held until a start folds the log.
Rule 3: one thread, first come first served. A call begins within half the deadline or not at all,
        and waits for a lock for less than the other half. Whoever cancels a reserve settles with
        nothing, and that runs behind it.
Rule 4: while it runs no settlement is dropped. One that could not be booked is owed, and goes in
        front of the next transaction that works. Behind a restart the log knows of it.
Rule 5: whatever SQLite refuses is `LedgerUnavailable`. A lock, a full or read-only disk and a
        file that was moved away pass; after a corrupt file only a restart helps.

The rows are in policies/ledger/table.py.
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple

from policies import budget
from policies.budget import Account, Amount, Extension, Hold, Order, Shortfall
from policies.ledger import Book, Change, LedgerUnavailable, PutAccount, PutStanding, Standing
from policies.ledger.table import DamagedRow, Table
from policies.model import ContractBroken

type Found = Literal["", "missing", "older", "newer", "different", "unreadable"]

WAITING_MAX = 1_000
_CLOSED = "it is closed"
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_SIDES = ("-wal", "-shm", "-journal")


class _Call(NamedTuple):
    """One call; its caller waits on an event loop of its own."""

    work: Callable[[], object]
    future: asyncio.Future[object]
    loop: asyncio.AbstractEventLoop
    begin_by_s: float  # monotonic
    owes: tuple[str, Sequence[Amount]] | None  # a settlement, which has to run however late


class _Reservation(NamedTuple):
    """What one decision holds (see `budget.settle`), and on whose accounts."""

    agent: str
    session: str
    amounts: tuple[Amount, ...]
    gone: tuple[Amount, ...] = ()


class SqliteLedger:
    """See the module, and `policies.ledger.Ledger`. Made by `open_ledger`."""

    def __init__(self, path: Path, *, deadline_s: float, waiting_max: int = WAITING_MAX) -> None:
        """Open a ledger that is there, and start the thread.

        Raises:
            LedgerUnavailable: it is not there, or not a ledger.
        """
        self._path = path
        self._half_s = deadline_s / 2
        self._waiting_max = waiting_max
        self._owed: dict[str, Sequence[Amount]] = {}
        self._open: dict[str, _Reservation] = {}
        self._staged: dict[str, _Reservation | None] = {}  # ... once the transaction commits
        self._refusal = ""  # why it answers nobody until a restart
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        try:
            self._identity = _identify(path)
            self._connection = _connect(path, busy_s=0.8 * self._half_s)
        except (OSError, sqlite3.Error) as error:
            raise _unavailable(path, error) from error
        self._table = Table(self._connection)
        try:
            self._table.check_schema()
            self._connection.execute("PRAGMA synchronous = OFF")
        except (sqlite3.Error, DamagedRow) as error:
            self._connection.close()
            raise _unavailable(path, error) from error
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        """How many reservations are open."""
        return len(self._open)

    async def reserve(self, order: Order | Extension) -> Hold | Shortfall:
        """See `Ledger.reserve`."""
        if isinstance(order, Extension):
            return await self._ask(lambda: self._extend(order))
        return await self._ask(lambda: self._reserve(order))

    async def settle(self, decision_id: str, spent: Sequence[Amount]) -> tuple[Account, ...]:
        """See `Ledger.settle`. What fails stays owed (rule 4)."""
        spent = tuple(spent)
        return await self._ask(lambda: self._settle(decision_id, spent), (decision_id, spent))

    async def change(self, change: Change) -> None:
        """See `Ledger.change`."""
        await self._ask(lambda: self._change(change))

    async def read(self) -> Book:
        """See `Ledger.read`."""
        return await self._ask(self._table.read)

    def close(self) -> None:
        """Answer whoever waits, then let go of the file. A second time does nothing."""
        self._refusal = self._refusal or _CLOSED
        self._queue.put(None)
        self._thread.join()

    async def _ask[T](
        self, work: Callable[[], T], owes: tuple[str, Sequence[Amount]] | None = None
    ) -> T:
        if self._refusal:
            raise _unavailable(self._path, self._refusal)
        if owes is None and self._queue.qsize() >= self._waiting_max:
            raise _unavailable(self._path, f"{self._waiting_max} calls are waiting")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        begin_by_s = time.monotonic() + self._half_s
        self._queue.put(_Call(work, future, loop, begin_by_s, owes))  # type: ignore[arg-type]  # T
        return await future

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            result: object = None
            failure: Exception | None = None
            try:
                result = self._serve(call)
            except Exception as error:  # noqa: BLE001  whoever asked hears of it
                failure = error
            try:
                call.loop.call_soon_threadsafe(_answer, call.future, result, failure)
            except RuntimeError:  # its event loop is closed: nobody waits any more
                continue
        with suppress(sqlite3.Error):
            self._connection.close()

    def _serve(self, call: _Call) -> object:
        if call.owes is None:
            if call.future.cancelled() or time.monotonic() > call.begin_by_s:
                raise _unavailable(self._path, "calls before this one took too long")
            return self._transact(call.work)
        decision_id, spent = call.owes
        self._owed.pop(decision_id, None)  # it is tried again here
        try:
            return self._transact(call.work)
        except LedgerUnavailable:
            self._owed[decision_id] = spent
            raise

    def _transact(self, work: Callable[[], object]) -> object:
        if self._refusal and self._refusal != _CLOSED:
            raise _unavailable(self._path, self._refusal)
        try:
            if _identify(self._path) != self._identity:
                raise FileNotFoundError("another file is in its place")
            result = self._commit(work)
        except (OSError, sqlite3.Error, DamagedRow) as error:
            if isinstance(error, DamagedRow) or _code_of(error) in _CORRUPT:
                self._refusal = f"{error}; a restart writes it anew"
            raise _unavailable(self._path, error) from error
        if self._owed:
            self._owed.clear()
        return result

    def _commit(self, work: Callable[[], object]) -> object:
        """What is owed and then the work: all of it or nothing, reservations included."""
        table, staged = self._table, self._staged
        try:
            table.begin()
            if self._owed:
                self._pay()
            result = work()
            table.commit()
        except BaseException:
            staged.clear()
            with suppress(sqlite3.Error):  # `begin` tries again
                table.roll_back()
            raise
        for decision_id, reservation in staged.items():
            if reservation is None:
                self._open.pop(decision_id, None)
            else:
                self._open[decision_id] = reservation
        staged.clear()
        return result

    def _pay(self) -> None:
        for decision_id, spent in self._owed.items():
            try:
                self._settle(decision_id, spent)
            except ContractBroken:  # whoever asked first would have heard of it
                self._table.forget()

    def _find(self, decision_id: str) -> _Reservation | None:
        if decision_id in self._staged:
            return self._staged[decision_id]
        return self._open.get(decision_id)

    def _reserve(self, order: Order) -> Hold | Shortfall:
        agent, session = order.agent, order.session
        if self._find(order.decision_id) is not None:
            raise ContractBroken("I3: a decision reserves once")
        accounts = self._table.find_accounts(agent, session)
        hold = budget.reserve(accounts, order)
        if isinstance(hold, Hold):
            self._staged[order.decision_id] = _Reservation(agent, session, hold.amounts)
        if isinstance(hold, Hold) or hold.closed:
            self._table.update_accounts(agent, session, accounts)
        return hold

    def _extend(self, extension: Extension) -> Hold | Shortfall:
        known = self._find(extension.decision_id)
        if known is None:
            raise ContractBroken("I3: an extension of what is not reserved")
        agent, session = known.agent, known.session
        accounts = self._table.find_accounts(agent, session)
        hold = budget.extend(accounts, extension)
        if isinstance(hold, Hold):
            joined = budget.join(known.amounts, hold.amounts)
            self._staged[extension.decision_id] = known._replace(amounts=joined)
        if isinstance(hold, Hold) or hold.closed:
            self._table.update_accounts(agent, session, accounts)
        return hold

    def _settle(self, decision_id: str, spent: Sequence[Amount]) -> tuple[Account, ...]:
        known = self._find(decision_id)
        if known is None:
            if spent:
                raise ContractBroken("I3: a reservation settles exactly once")
            return ()
        agent, session, amounts, gone = known
        accounts = self._table.find_accounts(agent, session)
        budget.settle(accounts, amounts, spent, gone)
        self._table.update_accounts(agent, session, accounts)
        self._staged[decision_id] = None
        return tuple([budget.copy(account) for account in accounts])

    def _change(self, change: Change) -> None:
        match change:
            case PutAccount(given):
                self._put_account(given)
            case PutStanding(agent, standing):
                if standing.state < self._table.find_standing(agent).state:
                    raise ContractBroken("I4: a state moves left")
                self._table.put_standing(agent, standing)

    def _put_account(self, given: Account) -> None:
        found = self._table.find_accounts(given.agent, given.session)
        before = next((one for one in found if one.base == given.base), None)
        after = budget.put(before, given)
        self._table.put_account(after)
        if before is None or before.name == after.name:
            return
        for decision_id, known in {**self._open, **self._staged}.items():
            held = known.amounts if known is not None else ()
            gone = [one for one in held if one.account == before.name]
            if known is not None and gone:
                kept = tuple([one for one in held if one.account != before.name])
                self._staged[decision_id] = known._replace(amounts=kept, gone=(*known.gone, *gone))


def open_ledger(
    path: Path, truth: Book, *, deadline_s: float, waiting_max: int = WAITING_MAX
) -> tuple[SqliteLedger, Found]:
    """A ledger that holds exactly `truth`, and how the file that was there differed from it.

    `older`: nothing in it was more than in truth. `newer`: nothing was less. The file is always
    written anew, beside the old one and renamed over it, with mode 0600: so no `-wal` that belongs
    to another file is ever read into it. Blocks.

    Raises:
        LedgerUnavailable: another process holds the lock, or nothing can be written there.
    """
    try:
        with _locked(path, busy_s=deadline_s / 2) as known:
            found = _compare(known, truth) if isinstance(known, Book) else known
            _write_anew(path, truth)
        for side in _SIDES:
            Path(f"{path}{side}").unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise _unavailable(path, error) from error
    return SqliteLedger(path, deadline_s=deadline_s, waiting_max=waiting_max), found


@contextmanager
def _locked(path: Path, busy_s: float) -> Iterator[Book | Literal["missing", "unreadable"]]:
    """What the file says that is there, while its lock is ours."""
    if not path.exists():
        yield "missing"
        return
    known: Book | Literal["unreadable"] = "unreadable"
    with closing(_connect(path, busy_s)) as connection:
        table = Table(connection)
        try:
            table.begin()
            table.check_schema()
            known = table.read()
        except (sqlite3.Error, DamagedRow) as error:
            if _code_of(error) in _LOCKED:
                raise
        yield known


def _write_anew(path: Path, truth: Book) -> None:
    beside = Path(f"{path}.new")
    for side in ("", *_SIDES):
        Path(f"{beside}{side}").unlink(missing_ok=True)
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
    try:
        with closing(_connect(beside, busy_s=0)) as connection:
            table = Table(connection)
            table.create_schema()
            table.begin()
            table.fill(truth)
            table.commit()
            connection.execute("PRAGMA journal_mode = WAL")  # stays with the file
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _compare(known: Book, truth: Book) -> Found:
    if _write_out(known) == _write_out(truth):
        return ""
    signs = _compare_accounts(known, truth)
    for agent in known.standings.keys() | truth.standings.keys():
        mine, theirs = (book.standings.get(agent, Standing()).state for book in (known, truth))
        signs.add((mine > theirs) - (mine < theirs))
    if 1 not in signs:
        return "older"
    return "different" if -1 in signs else "newer"


def _compare_accounts(known: Book, truth: Book) -> set[int]:
    """Of everything that was spent: -1 where less is known, 1 where more is."""
    signs = set()
    for base in known.accounts.keys() | truth.accounts.keys():
        one, other = known.accounts.get(base), truth.accounts.get(base)
        mine = (one.from_ms, one.spent) if one else (0, {})
        theirs = (other.from_ms, other.spent) if other else (0, {})
        if one and other and mine[0] != theirs[0]:
            signs.add(1 if mine[0] > theirs[0] else -1)
            continue
        for unit in mine[1].keys() | theirs[1].keys():
            left, right = mine[1].get(unit, 0), theirs[1].get(unit, 0)
            signs.add((left > right) - (left < right))
    return signs


def _write_out(book: Book) -> object:
    """What two books have to agree on. Not the first moment of a period: a request that was never
    allowed in the end can have set it."""
    accounts = {
        base: (account.contract, account.name, account.spent, account.held)
        for base, account in book.accounts.items()
    }
    return accounts, book.standings


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    """Never makes a file."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(
        uri, uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False
    )


def _identify(path: Path) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116  Path.stat costs twice as much
    return found.st_dev, found.st_ino


def _code_of(error: Exception) -> int:
    """SQLite's primary code; 0 where it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _unavailable(path: Path, why: object) -> LedgerUnavailable:
    return LedgerUnavailable(f"ledger `{path}`: {why}")


def _answer(future: asyncio.Future[object], result: object, failure: Exception | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
