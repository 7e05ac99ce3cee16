"""Nothing that was spent is forgotten: kill -9 at 30 seeded points, and the ledger is lost.

The sum over the log is made by tests/kit/sum_log.py, which knows none of our code. What the origin
has seen is the other witness: it can never be more than what was charged.
"""

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kit.counting_house import API, CountingHouse, open_house, reason_of
from tests.kit.http1 import Http1
from tests.kit.proxy import wait_until
from tests.kit.sum_log import sum_log

KILLS = 30
CLIENTS = 3
FEW = 40
AGENTS = 'local: { identity: { source: ["127.0.0.0/8"] } }, coder: {}'
BUDGETS = (
    "wide: { each: agent, limits: { requests: 1000000, bytes_out: 1GB, bytes_in: 1GB } }",
    "daily: { each: agent, window: 1d, limits: { steps: 1000000, effort: 1000000 } }",
    f"few: {{ each: session, who: {{ agents: coder }}, limits: {{ requests: {FEW} }} }}",
)


class Load:
    """Clients that ask for all kinds of things as fast as they are answered, until told to stop."""

    def __init__(self, house: CountingHouse, token: str) -> None:
        self.answered = 0
        self._house = house
        self._stop = threading.Event()
        works: list[Callable[[], None]] = [self._ask] * CLIENTS
        works += [lambda: self._spend(token), self._listen]
        self._threads = [threading.Thread(target=self._repeat, args=(one,)) for one in works]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError, ValueError):
                work()

    def _ask(self) -> None:
        with self._house.tunnel() as client:
            for size in (0, 10, 3_000):
                client.ask("/echo", API, method="POST", body=b"l" * size)
                client.ask(f"/big/{size * 30}", API)
                self.answered += 2
            client.ask("/never", API)

    def _spend(self, token: str) -> None:
        """A budget that is used up on the way, once and for all."""
        answer = self._house.ask("/few", token)
        if answer.status == 403:
            assert reason_of(answer) == "budget-exhausted"
            self._stop.wait(0.05)

    def _listen(self) -> None:
        """A stream that is under way when the end comes."""
        with self._house.tunnel() as client:
            client.send("/drip/0.002", API)
            client.read_head()
            for _ in client.chunks():
                if self._stop.is_set():
                    return


def leave(ledger: Path, _yesterday: Path) -> None:
    assert ledger.is_file()


def delete(ledger: Path, _yesterday: Path) -> None:
    for path in ledger.parent.glob("ledger.db*"):
        path.unlink()


def forget_what_is_not_merged(ledger: Path, _yesterday: Path) -> None:
    """The file without its write-ahead log: it is as old as its last checkpoint."""
    for path in ledger.parent.glob("ledger.db-*"):
        path.unlink()


def restore(ledger: Path, yesterday: Path) -> None:
    delete(ledger, yesterday)
    for path in yesterday.iterdir():
        shutil.copy(path, ledger.parent)


def corrupt(ledger: Path, _yesterday: Path) -> None:
    size = ledger.stat().st_size
    with ledger.open("r+b") as file:
        file.write(b"\xff" * min(size, 4096))


def spoil_the_side_file(ledger: Path, _yesterday: Path) -> None:
    with ledger.with_name("ledger.db-wal").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 4096)


# what happens to the ledger, and what the next start says of it
type Damage = tuple[Callable[[Path, Path], None], set[str]]
DAMAGES: tuple[Damage, ...] = (
    (leave, {"", "it was behind the log"}),  # holds of the killed process count in full
    (delete, {"there was none"}),
    (forget_what_is_not_merged, {"it was behind the log", "it could not be read"}),
    (restore, {"it was behind the log"}),
    (corrupt, {"it could not be read"}),
    (spoil_the_side_file, {"it was behind the log", "it could not be read"}),
)


def rebuilt_because(house: CountingHouse) -> str:
    """What the server said of its ledger when it started."""
    (line, *more) = [one for one in house.proxy.stderr.splitlines() if "ledger-rebuilt" in one] or [
        ""
    ]
    assert not more
    return line.partition("cause='")[2].partition("'")[0]


def check_restart(house: CountingHouse, before: dict[str, dict[str, int]], *, command: bool) -> int:
    """The books after a start equal the log's sum, nothing is held, and nothing fell; returns the
    number of requests that are paid for."""
    shown = house.show(command=command)
    assert [one for one in shown.values() for unit in one["units"] if unit["held"]] == []
    spent = {
        name: {unit["unit"]: unit["spent"] for unit in one["units"] if unit["spent"]}
        for name, one in shown.items()
    }
    logged = sum_log(house.proxy.state / "log")
    assert spent == {name: logged.get(name, {}) for name in spent}
    assert set(before) <= set(spent)
    lower = [
        (name, unit)
        for name, units in before.items()
        for unit, amount in units.items()
        if spent[name].get(unit, 0) < amount
    ]
    assert lower == []
    return sum(units.get("requests", 0) for name, units in spent.items() if "wide/" in name)


def read_spent(house: CountingHouse) -> dict[str, dict[str, int]]:
    """Just before the end."""
    return {
        name: {unit["unit"]: unit["spent"] for unit in one["units"]}
        for name, one in house.show().items()
        if "daily" not in name  # whose period may end meanwhile
    }


def kill_again_and_again(folder: Path, seed: int, damages: Sequence[Damage]) -> None:
    """Load, kill, damage, start, look; once for each damage."""
    chance = random.Random(seed)
    yesterday = folder / "yesterday"
    yesterday.mkdir(parents=True)
    with open_house(folder, *BUDGETS, agents=AGENTS) as house:
        token = house.issue("coder")
        ledger = house.proxy.state / "ledger.db"
        for number, (damage, causes) in enumerate(damages):
            load = Load(house, token)
            try:
                wanted = chance.randrange(1, 40)
                assert wait_until(lambda: load.answered >= wanted, timeout_s=30.0)  # noqa: B023
                before = read_spent(house)
                time.sleep(chance.random() * 0.02)
            finally:
                house.proxy.stop(signal.SIGKILL)
                load.stop()
            if not any(yesterday.iterdir()):
                for path in ledger.parent.glob("ledger.db*"):
                    shutil.copy(path, yesterday)
            damage(ledger, yesterday)
            house.proxy.start()
            assert rebuilt_because(house) in causes, (number, damage, house.proxy.stderr)
            paid = check_restart(house, before, command=number % len(DAMAGES) == 0)
            assert len(house.origin.requests) <= paid, (number, damage)
        while house.ask("/few", token).status == 200:
            pass
        few = [line for line in house.origin.lines if line.split()[1] == "/few"]
        assert 0 < len(few) <= FEW
        (left,) = [one for name, one in house.show().items() if name.startswith("few/")]
        assert (left["units"][0]["spent"], left["units"][0]["available"]) == (FEW, 0)
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0, house.proxy.verify().stdout


@pytest.mark.timeout(240)
def test_what_was_spent_survives_thirty_kills_and_every_loss_of_the_ledger(tmp_path: Path) -> None:
    """Two servers at a time, since most of it is waiting for their starts."""
    damages = (DAMAGES * KILLS)[: KILLS // 2]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(kill_again_and_again, tmp_path / f"{seed}", seed, damages)
            for seed in (20261121, 20261122)
        ]
        for run in runs:
            run.result()


def test_a_clean_restart_says_nothing_and_a_ledger_ahead_of_its_log_is_made_equal(
    tmp_path: Path,
) -> None:
    """Tomorrow's ledger beside today's log: the log is the truth, and the start says so."""
    with open_house(tmp_path, *BUDGETS, agents=AGENTS) as house:
        assert [house.ask("/ok").status for _ in range(3)] == [200] * 3
        spent = house.check_books()
        assert house.proxy.stop() == 0
        assert house.check_books(command=True) == spent  # no server runs
        log, today = house.proxy.state / "log", tmp_path / "today"
        shutil.copytree(log, today)
        house.proxy.start()
        assert rebuilt_because(house) == ""
        assert house.check_books() == spent
        assert [house.ask("/ok").status for _ in range(5)] == [200] * 5
        assert house.check_books() != spent
        assert house.proxy.stop() == 0
        shutil.rmtree(log)
        today.rename(log)
        house.proxy.start()
        assert rebuilt_because(house) == "it was ahead of the log"
        assert house.check_books() == spent


def test_a_stream_that_a_kill_ended_counts_in_full(tmp_path: Path) -> None:
    """Nobody knows how much of it was sent: what was held is spent, and no more of it later."""
    with open_house(tmp_path, *BUDGETS, agents=AGENTS) as house:
        with Http1(house.tunnel().connection) as client:
            client.send("/drip/0.01", API)
            assert client.read_head().status == 200
            held = {
                unit["unit"]: unit["held"]
                for unit in house.show()["wide/local"]["units"]
                if unit["held"]
            }
            assert held["requests"] == 1
            assert held["bytes_in"] == 256 * 1024
            house.proxy.stop(signal.SIGKILL)
        house.proxy.start()
        assert house.spent("wide/local") == held
        assert house.check_books()["wide/local"] == held
        house.proxy.stop(signal.SIGKILL)
        house.proxy.start()
        assert house.check_books()["wide/local"] == held
