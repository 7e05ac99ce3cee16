"""The books of a start: the log is folded, the ledger made equal, and both may be compared."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from audit.writer import LogUnavailable, Writer, create_log
from policies.budget import Amount, State
from policies.ledger.memory import MemoryLedger
from policies.ledger.sqlite import SqliteLedger
from policies.model import ContractBroken, Decision, Verdict
from proxy.books import Books, Shadow
from proxy.fold import Fold
from proxy.metrics import Metrics
from proxy.recording import describe_decision
from proxy.settings import Settings
from proxy.vocabulary import DecisionRecord, Target
from tests.kit.desk import CODER, policy, wish
from tests.kit.recorder import Fault, MemoryRecorder

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LIFE = policy("life: { each: agent, limits: { requests: 9, bytes_in: 1MB } }")
NAME = "1".rjust(32, "0")
KINDS = {"sqlite": SqliteLedger, "memory": MemoryLedger}


def is_idle() -> bool:
    return True


class Office:
    """A state folder; `open` is a start, `close` its orderly end."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings(state=folder, **settings)
        folder.mkdir(exist_ok=True)
        create_log(self.settings.log_folder, software="test/1", now=NOON)

    def open(self, now: datetime = NOON) -> Books:
        self.writer = Writer.open(
            self.settings.log_folder, software="test/1", now=lambda: now, heartbeat_s=86_400
        )
        self.metrics = Metrics()
        return Books(self.settings, recorder=self.writer, metrics=self.metrics, now=lambda: now)

    async def close(self, books: Books) -> None:
        await books.close()
        self.writer.close()


@pytest.fixture(params=KINDS)
def office(tmp_path: Path, request: pytest.FixtureRequest) -> Office:
    return Office(tmp_path / "state", ledger=request.param)


async def test_the_ledger_is_of_the_kind_that_was_asked_for(office: Office) -> None:
    books = office.open()
    assert isinstance(books.ledger, KINDS[office.settings.ledger])
    assert (office.settings.state / "ledger.db").exists() is (office.settings.ledger == "sqlite")
    await office.close(books)


async def test_what_was_spent_held_and_halted_survives_a_restart(office: Office) -> None:
    books = office.open()
    await books.bookkeeper.adopt(LIFE)
    await books.bookkeeper.halt("local", "told to", "uid 0")
    loaded = {"kind": "policy.load", "digest": LIFE.digest, "serial": 1, "mode": "enforce"}
    await office.writer.store(loaded)
    answer = await books.bookkeeper.reserve(NAME, CODER, wish("bytes_in", requests=1))
    await office.writer.store(decision(NAME, answer.hold.amounts, answer.now_ms))
    await office.close(books)
    again = office.open()
    book = await again.ledger.read()
    account = book.accounts["life/coder"]
    assert account.spent == {"requests": 1, "bytes_in": 256 * 1024}, "nobody knows what became"
    assert account.held == {}
    assert again.bookkeeper.state("local") is State.HALTED
    assert book == again.folded
    await office.close(again)


async def test_the_clock_does_not_go_back_over_a_restart(office: Office) -> None:
    books = office.open()
    await books.bookkeeper.adopt(LIFE)
    before = books.bookkeeper.now_ms()
    await office.close(books)
    again = office.open(datetime(2020, 1, 1, tzinfo=UTC))
    assert again.bookkeeper.now_ms() >= before
    await office.close(again)


async def test_metrics_show_the_book(office: Office) -> None:
    books = office.open()
    await books.bookkeeper.adopt(LIFE)
    assert b'account="life/coder"' in office.metrics.exposition()
    await office.close(books)


SPOILT: dict[str, tuple[str, str]] = {
    "removed": ("", "there was none"),
    "no database": ("not a database at all, but long enough to be read", "it could not be read"),
}


@pytest.mark.parametrize(("content", "cause"), SPOILT.values(), ids=SPOILT)
async def test_a_ledger_that_is_not_what_the_log_says_is_written_anew_and_it_is_said(
    content: str, cause: str, tmp_path: Path
) -> None:
    office = Office(tmp_path / "state")
    books = office.open()
    await books.bookkeeper.adopt(LIFE)
    await office.close(books)
    file = office.settings.state / "ledger.db"
    for path in office.settings.state.glob("ledger.db*"):
        path.unlink()
    if content:
        file.write_text(content)
    with capture_logs() as lines:
        again = office.open()
    assert [line["cause"] for line in lines if line["event"] == "ledger-rebuilt"] == [cause]
    assert (await again.ledger.read()) == again.folded
    await office.close(again)


async def test_the_first_ledger_is_no_news(tmp_path: Path) -> None:
    office = Office(tmp_path / "state")
    with capture_logs() as lines:
        books = office.open()
    assert [line for line in lines if line["event"] == "ledger-rebuilt"] == []
    await office.close(books)


# --- comparing


async def test_a_ledger_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", ledger="memory", contracts=True)
    books = office.open()
    await books.bookkeeper.adopt(LIFE)
    await books.check(idle=is_idle)
    ledger = books.ledger
    assert isinstance(ledger, MemoryLedger)
    account = ledger._accounts["coder"]["life/coder"]
    account.spent["requests"] = 3
    await books.check(idle=lambda: False)
    with pytest.raises(ContractBroken, match=r"I6: .* `life/coder`"):
        await books.check(idle=is_idle)
    account.spent.clear()
    await books.check(idle=is_idle)
    await books.bookkeeper.halt("coder", "told to", "uid 0")
    await books.bookkeeper.flush()
    await books.check(idle=is_idle)
    ledger._standings.clear()
    with pytest.raises(ContractBroken, match="state"):
        await books.check(idle=is_idle)
    await office.close(books)


async def test_without_the_flag_nothing_is_compared(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", ledger="memory")
    books = office.open()
    await books.bookkeeper.adopt(LIFE)
    ledger = books.ledger
    assert isinstance(ledger, MemoryLedger)
    ledger._accounts.clear()
    await books.check(idle=is_idle)
    await office.close(books)


def decision(name: str, amounts: tuple[Amount, ...], now_ms: int) -> dict[str, Any]:
    allowed = Decision(Verdict.ALLOW, "allowed", ("r",), LIFE.digest)
    record = DecisionRecord(
        Target("GET", "api.test", 443), CODER, None, allowed, (), "", amounts, now_ms
    )
    return dict(describe_decision(name, "request", record, client="127.0.0.1", serial=1))


HOLD = (Amount("life/coder", "requests", 1),)
OUTCOME = {
    "kind": "outcome", "ref": NAME, "status": 200, "bytes_out": 0, "bytes_in": 0, "ms": 1,
    "settle": [{"account": "life/coder", "unit": "requests", "amount": 2}],
}  # fmt: skip


async def test_what_was_recorded_and_cannot_have_happened_is_noticed() -> None:
    recorder = MemoryRecorder()
    shadow = Shadow(recorder, Fold())
    await shadow.store(decision(NAME, HOLD, 1))
    shadow.submit(OUTCOME)
    assert len(recorder.events) == 2, "the evidence is kept"
    with pytest.raises(ContractBroken, match="I2"):
        await shadow.compare(MemoryLedger().read, is_idle)


async def write(shadow: Shadow, way: str) -> None:
    event = decision(NAME, HOLD, 1)
    if way == "store":
        await shadow.store(event)
    else:
        shadow.submit(event)


@pytest.mark.parametrize("way", ["store", "submit"])
async def test_with_a_record_that_may_be_lost_there_is_nothing_to_compare_with(way: str) -> None:
    recorder = MemoryRecorder()
    recorder.faults["decision"] = Fault(LogUnavailable("audit-disk-full", "x"))
    shadow = Shadow(recorder, Fold())
    with pytest.raises(LogUnavailable):
        await write(shadow, way)
    recorder.faults.clear()
    await shadow.compare(MemoryLedger().read, is_idle)
    assert shadow.failure is None
