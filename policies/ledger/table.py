"""The rows of the SQLite ledger: accounts and standings as they lie in the file.

    account      one row for all accounts of an agent in a session, contracts and amounts as JSON
    standing     one row per agent that is no longer active

Rule 1: a row that does not read back is `DamagedRow`, never a guess.
Rule 2: `application_id` and `user_version` say whose file it is and in which form. There is no
        migration: the file is written anew at each start (policies/ledger/sqlite.py).
Rule 3: accounts come in the order of (budget, session), so that every ledger names the same one
        first where several do not suffice.
Rule 4: accounts that were read are kept, and read again once another connection has committed
        (`PRAGMA data_version`, under the write lock) or a transaction of ours has not.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quote
from typing import Any

from policies.budget import Account, Contract, State, Term, Threshold
from policies.ledger import Book, Standing

APPLICATION_ID = 0x546F6C6C  # "Toll"
SCHEMA_VERSION = 2
_KEPT_MAX = 4_096  # sessions whose accounts are kept; beyond them all are read again
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE account (
    agent TEXT, session TEXT, contracts TEXT NOT NULL, amounts TEXT NOT NULL,
    PRIMARY KEY (agent, session)
) STRICT, WITHOUT ROWID;
CREATE TABLE standing (
    agent TEXT PRIMARY KEY, state INTEGER NOT NULL, cause TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
_encode = json.JSONEncoder(separators=(",", ":")).encode
_scan = json.JSONDecoder().raw_decode  # what `loads` does besides costs as much again
_UPDATE = "UPDATE account SET amounts = ? WHERE agent = ? AND session = ?"


class DamagedRow(Exception):  # noqa: N818  named after the failure
    """The file is no ledger of this form, or a row of it does not read back."""


class Table:
    """Statements on one connection; whoever calls them has begun a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.cursor().execute  # one for all: nobody reads two at a time
        self._rows: dict[tuple[str, str], list[Account]] = {}  # by agent and session (rule 4)
        self._found: dict[tuple[str, str], list[Account]] = {}  # what `find_accounts` answered
        self._version = -1  # of the file when they were read

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
        try:
            self._execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            if not self._connection.in_transaction:
                raise
            self.roll_back()  # what a failed commit left open
            self._execute("BEGIN IMMEDIATE")
        version = self._execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self.forget()
            self._version = version

    def commit(self) -> None:
        """Make it count."""
        self._execute("COMMIT")

    def roll_back(self) -> None:
        """Nothing happened. Without a transaction nothing does."""
        self.forget()
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def forget(self) -> None:
        """Read every account again: one that was found may have changed, and not in the file."""
        self._rows.clear()
        self._found.clear()

    def find_accounts(self, agent: str, session: str) -> Sequence[Account]:
        """Those that apply to an agent in a session, in the order of rule 3.

        They are the ones that are kept: whoever changes them calls `update_accounts` or `forget`.
        """
        key = agent, session
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _KEPT_MAX:
                self.forget()
            found = [*self._find_row(agent, "")]
            if session:
                found += self._find_row(agent, session)
            found.sort(key=lambda account: (account.budget, account.session))
            self._found[key] = found
        return found

    def _find_row(self, agent: str, session: str) -> list[Account]:
        found = self._rows.get((agent, session))
        if found is None:
            where = "SELECT contracts, amounts FROM account WHERE agent = ? AND session = ?"
            row = self._execute(where, (agent, session)).fetchone()
            found = [] if row is None else _read_accounts(agent, session, *row)
            self._rows[agent, session] = found
        return found

    def put_account(self, account: Account) -> None:
        """A new account, or all of it anew."""
        agent, session = account.agent, account.session
        others = [one for one in self._find_row(agent, session) if one.budget != account.budget]
        self._write_row(agent, session, [*others, account])

    def update_accounts(self, agent: str, session: str, accounts: Iterable[Account]) -> None:
        """What was spent and is held, and the period; not the contract. `accounts` are all that
        `find_accounts` finds."""
        agents: list[str] = []
        sessions: list[str] = []
        for account in accounts:
            (sessions if account.session else agents).append(_write_standing(account))
        if agents:
            self._execute(_UPDATE, (_enclose(agents), agent, ""))
        if sessions:
            self._execute(_UPDATE, (_enclose(sessions), agent, session))

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
        """Everything."""
        rows = self._execute("SELECT agent, session, contracts, amounts FROM account")
        accounts = [account for row in rows for account in _read_accounts(*row)]
        rows = self._execute("SELECT agent, state, cause FROM standing")
        standings = {agent: _read_standing(state, cause) for agent, state, cause in rows}
        return Book({account.base: account for account in accounts}, standings)

    def fill(self, book: Book) -> None:
        """Write a whole book into a file that has nothing yet."""
        rows: dict[tuple[str, str], list[Account]] = {}
        for account in book.accounts.values():
            rows.setdefault((account.agent, account.session), []).append(account)
        for (agent, session), accounts in rows.items():
            self._write_row(agent, session, accounts)
        for agent, standing in book.standings.items():
            self.put_standing(agent, standing)

    def _write_row(self, agent: str, session: str, accounts: Iterable[Account]) -> None:
        contracts = {account.budget: _write_contract(account.contract) for account in accounts}
        amounts = _enclose([_write_standing(account) for account in accounts])
        self._execute(
            "INSERT OR REPLACE INTO account VALUES (?, ?, ?, ?)",
            (agent, session, _encode(contracts), amounts),
        )
        self.forget()


def _write_standing(account: Account) -> str:
    """As JSON, put together by hand: this is most of what a transaction costs outside SQLite."""
    begin = _begin_standing(account.budget, account.name)
    spent, held = _write_units(account.spent), _write_units(account.held)
    return f"{begin}{account.from_ms},{account.first_ms},{spent},{held}]"


@lru_cache(maxsize=4_096)
def _begin_standing(budget: str, name: str) -> str:
    return f"{_quote(budget)}:[{_quote(name)},"


def _write_units(amounts: Mapping[str, int]) -> str:
    """Unit names need no escape."""
    if not amounts:
        return "{}"
    return "{" + ",".join([f'"{unit}":{amount}' for unit, amount in amounts.items()]) + "}"


def _enclose(parts: Iterable[str]) -> str:
    return "{" + ",".join(parts) + "}"


def _read_accounts(agent: str, session: str, contracts: str, amounts: str) -> list[Account]:
    found = []
    try:
        terms, standings = _decode_contracts(contracts), _decode(amounts)
        if terms.keys() != standings.keys():
            raise ValueError("other budgets")
        for budget, (name, from_ms, first_ms, spent, held) in standings.items():
            who = budget, agent, session, terms[budget]
            found.append(Account(*who, from_ms, first_ms, dict(spent), dict(held), name))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        where = f"{agent}/{session}" if session else agent
        raise DamagedRow(f"accounts of `{where}` do not read back: {error}") from error
    return found


def _read_standing(state: int, cause: str) -> Standing:
    try:
        return Standing(State(state), cause)
    except ValueError as error:
        raise DamagedRow(f"a standing does not read back: {error}") from error


def _write_contract(contract: Contract) -> object:
    terms = {unit: (term.limit, term.filed) for unit, term in contract.terms.items()}
    at = [(threshold.reached_percent, threshold.do) for threshold in contract.at]
    return terms, contract.window_ms, at


@lru_cache(maxsize=4_096)
def _decode_contracts(text: str) -> Mapping[str, Contract]:
    return {
        budget: Contract(
            {unit: Term(limit, filed) for unit, (limit, filed) in terms.items()},
            window_ms,
            tuple([Threshold(percent, do) for percent, do in at]),
        )
        for budget, (terms, window_ms, at) in _decode(text).items()
    }


def _decode(text: str) -> Any:  # whoever unpacks it checks the shape
    value, end = _scan(text)
    if end != len(text):
        raise ValueError("something behind the end")
    return value
