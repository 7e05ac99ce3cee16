"""The rows of the SQLite ledger: accounts, reservations and standings as they lie in the file.

    account      one row per account, contract and amounts as JSON
    reservation  one row per open reservation, what it holds in the order of the holds
    standing     one row per agent that is no longer active

Rule 1: a row that does not read back is `DamagedRow`, never a guess.
Rule 2: `application_id` and `user_version` say whose file it is and in which form. There is no
        migration: the file is written anew at each start (policies/ledger/sqlite.py).
Rule 3: accounts come in the order of (budget, session), so that every ledger names the same one
        first where several do not suffice.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from policies.budget import Account, Amount, Contract, State, Term, Threshold
from policies.ledger import Book, Standing

APPLICATION_ID = 0x546F6C6C  # "Toll"
SCHEMA_VERSION = 1
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE account (
    agent TEXT, session TEXT, budget TEXT, name TEXT NOT NULL, contract TEXT NOT NULL,
    from_ms INTEGER NOT NULL, first_ms INTEGER NOT NULL, amounts TEXT NOT NULL,
    PRIMARY KEY (agent, budget, session)
) STRICT, WITHOUT ROWID;
CREATE TABLE reservation (
    decision TEXT PRIMARY KEY, agent TEXT NOT NULL, session TEXT NOT NULL,
    amounts TEXT NOT NULL, gone TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE standing (
    agent TEXT PRIMARY KEY, state INTEGER NOT NULL, cause TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
_ACCOUNT = "SELECT budget, agent, session, contract, from_ms, first_ms, amounts, name FROM account"
_encode = json.JSONEncoder(separators=(",", ":")).encode
_NOTHING = "[]"
_scan = json.JSONDecoder().raw_decode  # what `loads` does besides costs as much again


class DamagedRow(Exception):  # noqa: N818  named after the failure
    """The file is no ledger of this form, or a row of it does not read back."""


class Reservation(NamedTuple):
    """What one decision holds (see `budget.settle`), and on whose accounts."""

    decision_id: str
    agent: str
    session: str
    amounts: tuple[Amount, ...]
    gone: tuple[Amount, ...] = ()


class Table:
    """Statements on one connection; whoever calls them has begun a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute

    def create_schema(self) -> None:
        """Into an empty file."""
        self._connection.executescript(_SCHEMA)

    def check_schema(self) -> None:
        """Raises `DamagedRow` where the file is somebody else's, or of another version."""
        found = [
            self._execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        ]
        if found != [APPLICATION_ID, SCHEMA_VERSION]:
            raise DamagedRow("not a ledger of this version")

    def begin(self) -> None:
        """Take the write lock."""
        self.roll_back()  # what a failed commit left open
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make it count."""
        self._execute("COMMIT")

    def roll_back(self) -> None:
        """Nothing happened. Without a transaction nothing does."""
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def find_accounts(self, agent: str, session: str) -> list[Account]:
        """Those that apply to an agent in a session, in the order of rule 3."""
        where = " WHERE agent = ? AND session IN ('', ?) ORDER BY budget, session"
        return [_read_account(row) for row in self._execute(_ACCOUNT + where, (agent, session))]

    def find_account(self, budget: str, agent: str, session: str) -> Account | None:
        """One account."""
        where = " WHERE budget = ? AND agent = ? AND session = ?"
        row = self._execute(_ACCOUNT + where, (budget, agent, session)).fetchone()
        return None if row is None else _read_account(row)

    def put_account(self, account: Account) -> None:
        """A new account, or all of it anew."""
        self._execute(
            "INSERT OR REPLACE INTO account (name, from_ms, first_ms, amounts, agent, budget,"
            " session, contract) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*_write_standing(account), _encode_contract(account.contract)),
        )

    def update_accounts(self, accounts: Iterable[Account]) -> None:
        """What was spent and is held, and the period; not the contract."""
        self._connection.executemany(
            "UPDATE account SET name = ?, from_ms = ?, first_ms = ?, amounts = ?"
            " WHERE agent = ? AND budget = ? AND session = ?",
            [_write_standing(account) for account in accounts],
        )

    def find_reservation(self, decision_id: str) -> Reservation | None:
        """The open one of that decision."""
        found = self._execute(
            "SELECT agent, session, amounts, gone FROM reservation WHERE decision = ?",
            (decision_id,),
        ).fetchone()
        return None if found is None else _read_reservation(decision_id, *found)

    def list_reservations(self, agent: str) -> list[Reservation]:
        """All open ones of an agent."""
        rows = self._execute(
            "SELECT decision, agent, session, amounts, gone FROM reservation WHERE agent = ?",
            (agent,),
        )
        return [_read_reservation(*row) for row in rows]

    def put_reservation(self, reservation: Reservation) -> None:
        """A new one, or all of it anew."""
        decision_id, agent, session, amounts, gone = reservation
        self._execute(
            "INSERT OR REPLACE INTO reservation VALUES (?, ?, ?, ?, ?)",
            (decision_id, agent, session, _encode(amounts), _encode(gone) if gone else _NOTHING),
        )

    def delete_reservation(self, decision_id: str) -> None:
        """It has settled."""
        self._execute("DELETE FROM reservation WHERE decision = ?", (decision_id,))

    def find_standing(self, agent: str) -> Standing:
        """Of any agent."""
        found = self._execute("SELECT state, cause FROM standing WHERE agent = ?", (agent,))
        row = found.fetchone()
        return Standing() if row is None else _read_standing(*row)

    def put_standing(self, agent: str, standing: Standing) -> None:
        """A new one, or in place of the one before."""
        self._execute(
            "INSERT OR REPLACE INTO standing VALUES (?, ?, ?)",
            (agent, standing.state, standing.cause),
        )

    def read(self) -> Book:
        """Everything but the reservations."""
        accounts = [_read_account(row) for row in self._execute(_ACCOUNT)]
        rows = self._execute("SELECT agent, state, cause FROM standing")
        standings = {agent: _read_standing(state, cause) for agent, state, cause in rows}
        return Book({account.base: account for account in accounts}, standings)

    def fill(self, book: Book) -> None:
        """Write a whole book into a file that has nothing yet."""
        for account in book.accounts.values():
            self.put_account(account)
        for agent, standing in book.standings.items():
            self.put_standing(agent, standing)


type _Key = tuple[str, int, int, str, str, str, str]


def _write_standing(account: Account) -> _Key:
    amounts = f"[{_write_units(account.spent)},{_write_units(account.held)}]"
    key = account.agent, account.budget, account.session
    return account.name, account.from_ms, account.first_ms, amounts, *key


def _write_units(amounts: Mapping[str, int]) -> str:
    """As JSON; unit names need no escape. The encoder would cost four times as much."""
    return "{" + ",".join([f'"{unit}":{amount}' for unit, amount in amounts.items()]) + "}"


def _read_account(row: tuple[str, str, str, str, int, int, str, str]) -> Account:
    budget, agent, session, contract, from_ms, first_ms, amounts, name = row
    try:
        spent, held = _decode(amounts)
        terms = _decode_contract(contract)
        return Account(
            budget, agent, session, terms, from_ms, first_ms, dict(spent), dict(held), name
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedRow(f"account `{name}` does not read back: {error}") from error


def _read_reservation(
    decision_id: str, agent: str, session: str, amounts: str, gone: str
) -> Reservation:
    try:
        held = tuple([Amount(*one) for one in _decode(amounts)])
        counted = () if gone == _NOTHING else tuple([Amount(*one) for one in _decode(gone)])
    except (ValueError, TypeError) as error:
        raise DamagedRow(f"reservation `{decision_id}` does not read back: {error}") from error
    return Reservation(decision_id, agent, session, held, counted)


def _read_standing(state: int, cause: str) -> Standing:
    try:
        return Standing(State(state), cause)
    except ValueError as error:
        raise DamagedRow(f"a standing does not read back: {error}") from error


def _encode_contract(contract: Contract) -> str:
    terms = {unit: (term.limit, term.filed) for unit, term in contract.terms.items()}
    at = [(threshold.reached_percent, threshold.do) for threshold in contract.at]
    return _encode((terms, contract.window_ms, at))


@lru_cache(maxsize=4_096)
def _decode_contract(text: str) -> Contract:
    terms, window_ms, at = _decode(text)
    return Contract(
        {unit: Term(limit, filed) for unit, (limit, filed) in terms.items()},
        window_ms,
        tuple([Threshold(percent, do) for percent, do in at]),
    )


def _decode(text: str) -> Any:  # whoever unpacks it checks the shape
    value, end = _scan(text)
    if end != len(text):
        raise ValueError("something behind the end")
    return value
