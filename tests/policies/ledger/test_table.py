"""What is written into the SQLite ledger reads back as it was."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budget import LIMIT_MAX, UNITS, Account, Contract, State, Term, Threshold
from policies.ledger import Book, Standing
from policies.ledger.table import DamagedRow, Table
from tests.kit.ledgers import DAY_MS, account

NUMBER = st.integers(0, LIMIT_MAX)
UNIT = st.sampled_from(UNITS)
AMOUNTS = st.dictionaries(UNIT, NUMBER)
CONTRACTS = st.builds(
    Contract,
    st.dictionaries(UNIT, st.builds(Term, NUMBER, st.none() | NUMBER)),
    st.integers(0, 10 * DAY_MS),
    st.lists(
        st.builds(Threshold, st.integers(1, 100), st.sampled_from(["warn", "quarantine", "halt"]))
    ).map(tuple),
)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ACCOUNTS = st.builds(
    Account, NAME, NAME, NAME | st.just(""), CONTRACTS, NUMBER, NUMBER, AMOUNTS, AMOUNTS, NAME
)


@pytest.fixture
def table() -> Iterator[Table]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        made = Table(connection)
        made.create_schema()
        yield made


@given(ACCOUNTS, AMOUNTS, AMOUNTS)
def test_an_account_reads_back_as_it_was_written(
    one: Account, spent: dict[str, int], held: dict[str, int]
) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        table = Table(connection)
        table.create_schema()
        table.put_account(one)
        (found,) = table.find_accounts(one.agent, one.session)
        assert found == one
        found.spent, found.held, found.first_ms, found.name = spent, held, 7, "another"
        table.update_accounts(one.agent, one.session, [found])
        assert list(table.read().accounts.values()) == [found]
        table.forget()
        assert table.find_accounts(one.agent, one.session) == [found]


def test_an_update_leaves_the_contract_and_the_other_accounts(table: Table) -> None:
    ones = [account("a", requests=5), account("a", session="s-1"), account("a", "other")]
    ones.append(account("a", session="s-2"))
    for one in ones:
        table.put_account(one)
    changed = [account("a", steps=1), account("a", session="s-1", steps=1)]
    for one in changed:
        one.spent["steps"] = 7
    table.update_accounts("coder", "s-1", changed)
    accounts = table.read().accounts
    assert sorted(accounts) == ["a/coder", "a/coder/s-1", "a/coder/s-2", "a/other"]
    assert [one.spent for _, one in sorted(accounts.items())] == [{"steps": 7}] * 2 + [{}] * 2
    assert accounts["a/coder"].contract == ones[0].contract


def test_accounts_come_by_budget_and_then_by_session(table: Table) -> None:
    for one in (account("b"), account("a-b"), account("a", session="s-1"), account("a")):
        table.put_account(one)
    found = table.find_accounts("coder", "s-1")
    assert [one.base for one in found] == ["a/coder", "a/coder/s-1", "a-b/coder", "b/coder"]
    assert [one.base for one in table.find_accounts("coder", "")] == [
        *("a/coder", "a-b/coder", "b/coder")
    ]
    assert table.find_accounts("coder", "s-2") == table.find_accounts("coder", "")
    assert table.find_accounts("nobody", "") == []


# What is kept


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Table, Table]]:
    """Two connections to one file."""
    path = tmp_path / "ledger.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        one.execute("PRAGMA journal_mode = WAL")
        tables = Table(one), Table(other)
        tables[0].create_schema()
        tables[0].put_account(account(requests=5))
        yield tables


def spend(table: Table, requests: int) -> None:
    (found,) = table.find_accounts("coder", "")
    found.spent = {"requests": requests}
    table.update_accounts("coder", "", [found])


def test_accounts_are_kept_while_nobody_else_writes(pair: tuple[Table, Table]) -> None:
    table, _ = pair
    table.begin()
    first = table.find_accounts("coder", "s-1")
    spend(table, 1)
    table.commit()
    table.begin()
    assert table.find_accounts("coder", "s-1") is first
    assert table.find_accounts("coder", "")[0] is first[0]
    table.commit()


def test_what_another_connection_wrote_is_read(pair: tuple[Table, Table]) -> None:
    table, other = pair
    for number in range(1, 6):
        for mine in (table, other, other):
            mine.begin()
            before = mine.find_accounts("coder", "")[0].spent.get("requests", 0)
            spend(mine, before + 1)
            mine.commit()
        assert table.read().accounts["daily/coder"].spent == {"requests": 3 * number}
    other.begin()
    other.put_account(account(requests=9))
    other.put_account(account("new", steps=1))
    other.commit()
    table.begin()
    assert [one.budget for one in table.find_accounts("coder", "")] == ["daily", "new"]


def test_what_was_rolled_back_is_not_kept(pair: tuple[Table, Table]) -> None:
    table, _ = pair
    table.begin()
    spend(table, 7)
    table.roll_back()
    table.begin()
    assert table.find_accounts("coder", "")[0].spent == {}
    spend(table, 7)
    table.begin()  # without an end
    assert table.find_accounts("coder", "")[0].spent == {}


def test_an_account_that_is_put_is_found(pair: tuple[Table, Table]) -> None:
    table, _ = pair
    table.begin()
    table.find_accounts("coder", "s-1")
    table.put_account(account("late", session="s-1", requests=1))
    table.put_account(account(requests=8))
    found = table.find_accounts("coder", "s-1")
    assert [(one.budget, one.contract.caps) for one in found] == [
        ("daily", (("requests", 8),)),
        ("late", (("requests", 1),)),
    ]


def test_no_more_sessions_are_kept_than_a_few_thousand(table: Table) -> None:
    table.put_account(account(requests=5))
    first = table.find_accounts("coder", "")[0]
    for number in range(4_095):
        assert table.find_accounts("coder", f"s-{number}")[0] is first
    assert table.find_accounts("coder", "s-last") == [first]
    assert table.find_accounts("coder", "s-last")[0] is not first


def test_a_standing_is_active_until_it_is_put(table: Table) -> None:
    assert table.find_standing("coder") == Standing()
    table.put_standing("coder", Standing(State.WARNED, "a"))
    table.put_standing("coder", Standing(State.HALTED, "b"))
    assert table.find_standing("coder") == Standing(State.HALTED, "b")
    assert table.read().standings == {"coder": Standing(State.HALTED, "b")}


def test_a_book_that_was_filled_in_is_read(table: Table) -> None:
    given_ = Book({"a/coder": account("a", requests=1)}, {"coder": Standing(State.WARNED, "x")})
    table.fill(given_)
    assert table.read() == given_


def test_what_is_begun_counts_when_it_is_committed(table: Table) -> None:
    table.begin()
    table.put_standing("coder", Standing(State.WARNED))
    table.begin()  # a failed one was left open
    assert table.find_standing("coder") == Standing()
    table.put_standing("coder", Standing(State.HALTED))
    table.commit()
    table.roll_back()
    assert table.find_standing("coder").state is State.HALTED


def test_a_file_without_the_mark_is_somebody_elses(table: Table) -> None:
    table.check_schema()
    with (
        closing(sqlite3.connect(":memory:")) as other,
        pytest.raises(DamagedRow, match="not a ledger of this version"),
    ):
        Table(other).check_schema()
