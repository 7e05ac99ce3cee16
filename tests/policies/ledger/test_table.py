"""What is written into the SQLite ledger reads back as it was."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budget import LIMIT_MAX, UNITS, Account, Amount, Contract, State, Term, Threshold
from policies.ledger import Book, Standing
from policies.ledger.table import DamagedRow, Reservation, Table
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
HOLDS = st.lists(st.builds(Amount, NAME, UNIT, NUMBER)).map(tuple)


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
        assert table.find_account(one.budget, one.agent, one.session) == one
        assert table.find_accounts(one.agent, one.session) == [one]
        one.spent, one.held, one.first_ms, one.name = spent, held, 7, "another"
        table.update_accounts([one])
        assert list(table.read().accounts.values()) == [one]


@given(NAME, NAME, NAME | st.just(""), HOLDS, HOLDS)
def test_a_reservation_reads_back_as_it_was_written(
    decision_id: str,
    agent: str,
    session: str,
    amounts: tuple[Amount, ...],
    gone: tuple[Amount, ...],
) -> None:
    one = Reservation(decision_id, agent, session, amounts, gone)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        table = Table(connection)
        table.create_schema()
        table.put_reservation(one)
        assert table.find_reservation(decision_id) == one
        assert table.list_reservations(agent) == [one]
        table.put_reservation(one._replace(gone=()))
        table.delete_reservation(decision_id)
        assert table.find_reservation(decision_id) is None


def test_an_update_leaves_the_contract_and_the_other_accounts(table: Table) -> None:
    ones = [account("a", requests=5), account("a", session="s-1"), account("a", "other")]
    for one in ones:
        table.put_account(one)
    table.update_accounts([account("a", steps=1)])
    assert sorted(table.read().accounts) == ["a/coder", "a/coder/s-1", "a/other"]
    assert table.find_account("a", "coder", "") == ones[0]


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
