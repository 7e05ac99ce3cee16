"""Faults of the SQLite ledger while it runs: each denies in time, and ends as documented."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from policies.ledger import LedgerUnavailable
from policies.ledger.sqlite import SqliteLedger, open_ledger
from policies.model import ContractBroken
from tests.kit.ledgers import account, book, held, order
from tests.kit.sqlite_ledger import (
    BOOK,
    DEADLINE_S,
    SIDES,
    locked,
    opened,
    refused,
    works,
)
from tests.kit.volume import fill, read_only, small_volume


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


# Faults while it runs


async def test_a_lock_of_another_process_denies_and_passes(path: Path) -> None:
    with opened(path) as ledger:
        with locked(path):
            assert "locked" in await refused(ledger)
        assert await works(ledger)
        assert ledger.held == 0


async def test_a_lock_that_is_held_for_half_a_second_denies_and_passes(path: Path) -> None:
    """By another process; ten callers wait, and each hears of it within its deadline."""
    code = (
        "import sqlite3, sys, time\n"
        "other = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "other.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "time.sleep(0.5)\n"
        "other.execute('COMMIT')\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with (
        opened(path) as ledger,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        await asyncio.gather(*(refused(ledger, f"d-{number}") for number in range(10)))
        other.wait(10)
        assert await works(ledger)
        assert ledger.held == 0


async def test_a_settlement_under_a_lock_is_owed_and_paid_before_the_next_request(
    path: Path,
) -> None:
    with opened(path) as ledger:
        hold = held(await ledger.reserve(order(requests=3)))
        with locked(path), pytest.raises(LedgerUnavailable):
            await ledger.settle("d-1", hold.amounts)
        assert (await ledger.read()).accounts["daily/coder"].spent == {"requests": 3}
        assert (await ledger.read()).accounts["daily/coder"].held == {}
        with pytest.raises(ContractBroken, match="I3"):
            await ledger.settle("d-1", hold.amounts)


async def test_a_settlement_that_is_owed_can_be_tried_again(path: Path) -> None:
    with opened(path) as ledger:
        hold = held(await ledger.reserve(order(requests=3)))
        with locked(path), pytest.raises(LedgerUnavailable):
            await ledger.settle("d-1", hold.amounts)
        (after,) = await ledger.settle("d-1", hold.amounts)
        assert (after.spent, after.held) == ({"requests": 3}, {})
        assert await works(ledger)


async def test_a_wrong_settlement_that_is_owed_stops_nobody_else(path: Path) -> None:
    with opened(path) as ledger:
        hold = held(await ledger.reserve(order(requests=3)))
        wrong = [hold.amounts[0]._replace(amount=9)]
        with locked(path), pytest.raises(LedgerUnavailable):
            await ledger.settle("d-1", wrong)
        assert await works(ledger)
        assert (await ledger.read()).accounts["daily/coder"].held == {"requests": 3}


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_gone_denies_until_it_is_back(path: Path, replaced: bool) -> None:
    away = path.with_name("away.db")
    with opened(path) as ledger:
        assert await works(ledger, "d-1")
        path.rename(away)
        if replaced:
            path.write_bytes(away.read_bytes())
        text = await refused(ledger)
        assert ("another file" if replaced else "No such file") in text
        away.rename(path)
        assert await works(ledger)
        assert (await ledger.read()).accounts["daily/coder"].spent == {"requests": 2}


async def test_a_deleted_file_is_not_made_again(path: Path) -> None:
    with opened(path) as ledger:
        path.unlink()
        await refused(ledger)
        await refused(ledger)
        assert not path.exists()


def damage(path: Path, keep_bytes: int) -> None:
    """Keep the beginning; the rest is noise, and no -wal has another copy."""
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(keep_bytes)
        file.write(b"\xa5" * (size_bytes - keep_bytes))


async def test_a_corrupt_file_denies_until_a_restart_writes_it_anew(path: Path) -> None:
    with opened(path):
        pass
    damage(path, keep_bytes=4_096)
    ledger = SqliteLedger(path, deadline_s=DEADLINE_S)
    try:
        assert "malformed" in await refused(ledger)
        fresh, found = open_ledger(path, BOOK, deadline_s=DEADLINE_S)
        assert found == "unreadable"
        assert "restart" in await refused(ledger)
        with pytest.raises(LedgerUnavailable, match="restart"):
            await ledger.settle("d-1", ())
        assert await works(fresh)
        fresh.close()
    finally:
        ledger.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE account SET amounts = '{'",
        "UPDATE account SET amounts = amounts || ' '",
        "UPDATE account SET amounts = '[1,2]'",
        "UPDATE account SET amounts = '{}'",
        'UPDATE account SET amounts = \'{"daily":["daily/coder",0,0,{}]}\'',
        'UPDATE account SET amounts = \'{"daily":["daily/coder",0,0,{},7]}\'',
        "UPDATE account SET contracts = '[1]'",
        "UPDATE account SET contracts = '{}'",
        'UPDATE account SET contracts = \'{"daily":[{"requests":1},0,[]]}\'',
        "INSERT INTO standing VALUES ('coder', 4, '')",
    ],
)
async def test_a_row_that_does_not_read_back_denies_until_a_restart(
    path: Path, statement: str
) -> None:
    with opened(path) as ledger:
        await ledger.reserve(order(requests=1))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(statement)
        with pytest.raises(LedgerUnavailable, match="read back"):
            await (ledger.read() if "standing" in statement else ledger.reserve(order("d-2")))
        assert "restart" in await refused(ledger)


async def test_a_folder_nobody_may_write_to_denies_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with opened(folder / "ledger.db"):
        pass
    with read_only(folder):
        with pytest.raises(LedgerUnavailable, match="Read-only"):
            open_ledger(folder / "ledger.db", BOOK, deadline_s=DEADLINE_S)
        with pytest.raises(LedgerUnavailable, match="Read-only"):
            open_ledger(folder / "other.db", BOOK, deadline_s=DEADLINE_S)
    with opened(folder / "ledger.db") as ledger:
        assert await works(ledger)


async def test_a_full_disk_denies_and_passes_and_owes_what_it_could_not_book(
    tmp_path: Path,
) -> None:
    with small_volume(tmp_path / "state", 256 * 1024) as folder:
        with opened(folder / "ledger.db") as ledger:
            hold = held(await ledger.reserve(order(requests=1)))
            filler = fill(folder)
            texts = set()
            for number in range(50):
                try:
                    await ledger.reserve(order(f"f-{number}", requests=1))
                except LedgerUnavailable as error:
                    texts.add(str(error))
                    assert await ledger.settle(f"f-{number}", ()) == ()  # that writes nothing
                    break
            assert "full" in "".join(texts)
            with pytest.raises(LedgerUnavailable):
                await ledger.settle("d-1", hold.amounts)
            filler.unlink()
            assert await works(ledger)
            assert (await ledger.read()).accounts["daily/coder"].spent == {"requests": 2}
            assert (await ledger.read()).accounts["daily/coder"].held == {}
            assert ledger.held == 0
            with pytest.raises(ContractBroken):
                await ledger.settle("d-1", hold.amounts)
        fill(folder)
        with pytest.raises(LedgerUnavailable, match=r"full|No space"):
            open_ledger(folder / "ledger.db", BOOK, deadline_s=DEADLINE_S)
        assert not (folder / "ledger.db.new").exists()


# Callers


async def test_a_reserve_that_is_cancelled_is_ended_by_the_void_behind_it(path: Path) -> None:
    with opened(path, deadline_s=20) as ledger:
        tasks = [
            asyncio.ensure_future(ledger.reserve(order(f"d-{number}", requests=1)))
            for number in range(20)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in range(20):
            await ledger.settle(f"d-{number}", ())
        assert ledger.held == 0
        assert (await ledger.read()).accounts["daily/coder"].held == {}


async def test_a_settlement_that_is_cancelled_happens_all_the_same(path: Path) -> None:
    with opened(path, deadline_s=20) as ledger:
        hold = held(await ledger.reserve(order(requests=1)))
        with locked(path):
            task = asyncio.ensure_future(ledger.settle("d-1", hold.amounts))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await ledger.read()).accounts["daily/coder"].spent == {"requests": 1}


async def test_more_callers_than_may_wait_are_refused_but_for_settlements(path: Path) -> None:
    with opened(path, deadline_s=4, waiting_max=3) as ledger:
        hold = held(await ledger.reserve(order(requests=1)))
        with locked(path):
            first = asyncio.ensure_future(ledger.read())
            await asyncio.sleep(0.1)
            waiting = [asyncio.ensure_future(ledger.read()) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(LedgerUnavailable, match="3 calls are waiting"):
                await ledger.read()
            last = asyncio.ensure_future(ledger.settle("d-1", hold.amounts))
            await asyncio.sleep(0)
        await asyncio.gather(first, *waiting, last)
        assert ledger.held == 0


async def test_whoever_waits_for_too_long_is_refused_and_nothing_is_held(path: Path) -> None:
    """It would be answered behind its deadline: the caller has gone."""
    with opened(path) as ledger:
        with locked(path):
            first = asyncio.ensure_future(ledger.read())
            second = asyncio.ensure_future(ledger.read())
            late = asyncio.ensure_future(ledger.reserve(order(requests=1)))
            results = await asyncio.gather(first, second, late, return_exceptions=True)
        assert [type(one) for one in results] == [LedgerUnavailable] * 3
        assert "before this one" in str(results[2])
        assert ledger.held == 0


async def test_a_closed_ledger_answers_nobody_but_who_came_before(path: Path) -> None:
    ledger, _ = open_ledger(path, BOOK, deadline_s=20)
    hold = held(await ledger.reserve(order(requests=1)))
    task = asyncio.ensure_future(ledger.settle("d-1", hold.amounts))
    await asyncio.sleep(0)
    ledger.close()
    ledger.close()
    assert (await task)[0].spent == {"requests": 1}
    assert "closed" in await refused(ledger)
    assert not any(Path(f"{path}{side}").exists() for side in SIDES)


async def test_a_bug_of_ours_reaches_whoever_asked_and_changes_nothing(path: Path) -> None:
    with opened(path) as ledger:
        broken = replace(order(), amounts={"requests": "many"})  # type: ignore[dict-item]
        with pytest.raises(TypeError):
            await ledger.reserve(broken)
        assert await works(ledger)
        assert ledger.held == 0


def test_a_caller_whose_loop_is_gone_stops_nobody(path: Path) -> None:
    async def leave(ledger: SqliteLedger) -> None:
        task = asyncio.ensure_future(ledger.reserve(order(requests=1)))
        await asyncio.sleep(0.01)
        task.cancel()

    with opened(path, deadline_s=20) as ledger:
        with locked(path):
            asyncio.run(leave(ledger))
        assert asyncio.run(works(ledger))


async def test_two_processes_share_one_file(path: Path) -> None:
    """Each sees what the other holds: 60 requests by each on a cap of 100."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from policies.budget import Hold, Order\n"
        "from policies.ledger.sqlite import SqliteLedger\n"
        "async def main():\n"
        "    ledger = SqliteLedger(Path(sys.argv[1]), deadline_s=10)\n"
        "    for n in range(60):\n"
        "        hold = await ledger.reserve(Order(f'o-{n}', 'coder', '', 1, {'requests': 1}))\n"
        "        if isinstance(hold, Hold):\n"
        "            await ledger.settle(f'o-{n}', hold.amounts)\n"
        "    ledger.close()\n"
        "asyncio.run(main())\n"
    )
    with opened(path, book(account(requests=100)), deadline_s=10) as ledger:
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path))
        mine = 0
        for number in range(60):
            hold = await ledger.reserve(order(f"d-{number}", requests=1))
            amounts = getattr(hold, "amounts", ())
            mine += len(amounts)
            await ledger.settle(f"d-{number}", amounts)
        assert await asyncio.wait_for(other.wait(), 60) == 0
        assert (await ledger.read()).accounts["daily/coder"].spent == {"requests": 100}
        assert mine >= 40
