"""What a server answers to `budget show`, `budget raise` and `halt`, whoever asks."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from audit.reader import Filter, read
from audit.writer import LogUnavailable, Writer, wall_clock
from policies.budget import (
    Account,
    Amount,
    Contract,
    Extension,
    Hold,
    Order,
    Shortfall,
    State,
    Term,
    Threshold,
)
from policies.ledger import Book, Change, LedgerUnavailable, Standing
from policies.ledger.memory import MemoryLedger
from proxy.accounting import describe_snapshot
from proxy.bookkeeper import Bookkeeper
from proxy.control import ControlServer
from proxy.credentials import CredentialStore
from proxy.metrics import Metrics
from proxy.oversight import (
    HALT,
    RAISE,
    SHOW,
    STATES,
    Oversight,
    OversightRefused,
    check_reason,
    find_states,
    list_accounts,
    perform,
)
from proxy.recording import Recorder, describe_amounts, format_time
from proxy.settings import Settings
from proxy.state import create_state
from tests.kit.chains import POLICY, decision

NOON_MS = 1_795_262_400_000
CONTRACT = Contract({"requests": Term(5, 5)})


def account(agent: str, session: str = "") -> Account:
    return Account("life", agent, session, CONTRACT, spent={"requests": 2})


def book(*accounts: Account, **standings: Standing) -> Book:
    return Book({one.base: one for one in accounts}, standings)


BOOK = book(account("coder"), account("local"), gone=Standing(State.HALTED, "x"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    create_state(tmp_path / "state", wall_clock())
    return Settings(state=tmp_path / "state", policies=tmp_path / "policies.yaml")


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writer]:
    opened = Writer.open(settings.log_folder, software="test")
    yield opened
    await asyncio.to_thread(opened.close)


def oversee(
    settings: Settings,
    recorder: Recorder,
    *,
    given: Book = BOOK,
    ledger: Any = None,
) -> Oversight:
    keeper = Bookkeeper(
        ledger or MemoryLedger(given),
        recorder=recorder,
        metrics=Metrics("test"),
        now_ms=lambda: NOON_MS,
        book=given,
    )
    return Oversight(keeper, CredentialStore(settings.credentials_file), lambda: ("named",))


def recorded(settings: Settings, *kinds: str) -> list[dict[str, Any]]:
    wanted = Filter(kinds=frozenset(kinds))
    return [line.record.event for line in read(settings.log_folder, wanted)]


async def test_every_page_of_many_accounts_arrives(settings: Settings, writer: Writer) -> None:
    given = book(*(account("coder", f"s{number:04}") for number in range(450)))
    control = ControlServer(
        settings.control_socket, oversee(settings, writer, given=given).commands
    )
    await control.start()
    try:
        accounts, note = await asyncio.to_thread(list_accounts, settings, "coder")
        assert [one["account"] for one in accounts] == sorted(given.accounts)
        assert note == ""
        assert await asyncio.to_thread(list_accounts, settings, "named") == ([], "")
    finally:
        await control.close()


async def test_a_halt_and_a_raise_are_recorded_by_the_server(
    settings: Settings, writer: Writer
) -> None:
    control = ControlServer(settings.control_socket, oversee(settings, writer).commands)
    await control.start()
    asked = {"agent": "coder", "reason": " it loops ", "by": "cli:ada"}
    raising = {"budget": "life", "agent": "local", "unit": "requests", "to": 9, "by": "cli:ada"}
    try:
        assert await asyncio.to_thread(perform, settings, HALT, asked) == {"before": "active"}
        assert await asyncio.to_thread(perform, settings, HALT, asked) == {"before": "halted"}
        raised = await asyncio.to_thread(perform, settings, RAISE, raising)
        assert [one["to"] for one in raised["raised"]] == [9]
        states = await asyncio.to_thread(find_states, settings)
        assert states == {"coder": "halted", "gone": "halted"}
        with pytest.raises(OversightRefused, match="nobody"):
            await asyncio.to_thread(perform, settings, HALT, {**asked, "agent": "nobody"})
    finally:
        await control.close()
    [state] = recorded(settings, "state")
    assert (state["cause"], state["by"]) == ("it loops", "cli:ada")
    kinds = [event["kind"] for event in recorded(settings, "budget.raise", "ledger.snapshot")]
    assert kinds == ["budget.raise", "ledger.snapshot"]


@pytest.mark.parametrize("agent", ["coder", "gone", "named"])
async def test_an_agent_of_the_policy_or_the_book_is_known(
    settings: Settings, writer: Writer, agent: str
) -> None:
    asked = {"agent": agent, "reason": "x", "by": "cli:ada"}
    done = await oversee(settings, writer).halt(asked)
    assert done == {"before": "halted" if agent == "gone" else "active"}


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "a page that is none": (SHOW, {"after": "x"}),
    "a page before the first": (SHOW, {"after": "-1"}),
    "an agent that is no text": (SHOW, {"agent": 1}),
    "an agent that is not known": (SHOW, {"agent": "nobody"}),
    "a halt of nobody": (HALT, {"reason": "x", "by": "me"}),
    "a halt without a reason": (HALT, {"agent": "coder", "by": "me"}),
    "a halt for a reason that is none": (HALT, {"agent": "coder", "reason": 5, "by": "me"}),
    "a halt by nobody": (HALT, {"agent": "coder", "reason": "x"}),
    "a raise of nothing": (RAISE, {"by": "me"}),
    "a raise by nobody": (RAISE, {"budget": "life"}),
    "a unit without a value": (RAISE, {"budget": "life", "by": "me", "unit": "requests"}),
    "a value without a unit": (RAISE, {"budget": "life", "by": "me", "to": 9}),
    "a value in words": (RAISE, {"budget": "life", "by": "me", "unit": "requests", "to": "9"}),
    "a value that is a truth": (
        RAISE,
        {"budget": "life", "by": "me", "unit": "requests", "to": True},
    ),
    "a value with a fraction": (
        RAISE,
        {"budget": "life", "by": "me", "unit": "requests", "to": 9.5},
    ),
    "a value beyond every limit": (
        RAISE,
        {"budget": "life", "by": "me", "unit": "requests", "to": 2**53},
    ),
}


@pytest.mark.parametrize(("command", "arguments"), BAD.values(), ids=BAD)
async def test_broken_arguments_are_refused_and_change_nothing(
    settings: Settings, writer: Writer, command: str, arguments: dict[str, Any]
) -> None:
    oversight = oversee(settings, writer)
    with pytest.raises(ValueError):
        await oversight.commands[command](arguments)
    assert recorded(settings, "state", "budget.raise", "ledger.snapshot") == []
    assert await oversight.commands[STATES]({}) == {"states": {"gone": "halted"}}


class FullLog:
    """A log whose disk is full."""

    failure = "disk-full"

    async def store(self, event: Mapping[str, object]) -> object:
        raise LogUnavailable("audit-disk-full", f"no room for `{event['kind']}`")

    def submit(self, event: Mapping[str, object]) -> None:
        raise LogUnavailable("audit-disk-full", f"no room for `{event['kind']}`")


async def test_what_cannot_be_recorded_is_said_and_the_halt_is_in_force(
    settings: Settings,
) -> None:
    oversight = oversee(settings, FullLog())
    raising = {"budget": "life", "unit": "requests", "to": 9, "by": "me"}
    with pytest.raises(ValueError, match=r"cannot be recorded: no room.* a raise was not made"):
        await oversight.commands[RAISE](raising)
    asked = {"agent": "coder", "reason": "x", "by": "me"}
    with pytest.raises(ValueError, match=r"cannot be recorded: no room .*a halt is in force"):
        await oversight.commands[HALT](asked)
    shown = await oversight.commands[SHOW]({"agent": "coder"})
    assert shown["accounts"][0]["state"] == "halted"
    assert shown["accounts"][0]["units"][0]["limit"] == 5


class DeafLedger(MemoryLedger):
    """A ledger that answers nobody."""

    async def reserve(self, order: Order | Extension) -> Hold | Shortfall:
        raise LedgerUnavailable(f"no answer to {order.decision_id}")

    async def change(self, change: Change) -> None:
        raise LedgerUnavailable(f"no answer to {change}")

    async def read(self) -> Book:
        raise LedgerUnavailable("it is locked")


@pytest.mark.parametrize("command", [SHOW, RAISE])
async def test_a_ledger_that_fails_is_named(
    settings: Settings, writer: Writer, command: str
) -> None:
    oversight = oversee(settings, writer, ledger=DeafLedger())
    with pytest.raises(ValueError, match=r"the ledger .*: it is locked"):
        await oversight.commands[command](
            {"budget": "life", "by": "me"} if command == RAISE else {}
        )


def test_a_reason_is_one_line_without_its_edges() -> None:
    assert check_reason("  läuft im Kreis\n") == "läuft im Kreis"
    assert check_reason("x" * 500) == "x" * 500


async def test_a_locked_log_without_a_server_is_told_apart(
    settings: Settings, writer: Writer
) -> None:
    settings.policies.write_text("version: 1\nagents: { coder: {} }\nrules: []\n")
    asked = {"agent": "coder", "reason": "x", "by": "me"}
    with pytest.raises(OversightRefused, match="in use by another writer, which does not answer"):
        await asyncio.to_thread(perform, settings, HALT, asked)
    assert recorded(settings, "state") == []


async def test_an_impossible_log_is_refused_with_its_record(
    settings: Settings, writer: Writer
) -> None:
    name = "life/coder@noon"
    event = {"kind": "ledger.snapshot", "account": name, "cause": "opened", "window_ms": 1}
    rest: dict[str, Any] = {"limits": [], "spent": [], "at": []}
    time = {"time": "2026-11-21T12:00:00.000000Z"}
    await writer.store({**event, **rest, **time})
    with pytest.raises(OversightRefused, match=r"record \d, ledger.snapshot `life/coder@noon`"):
        await asyncio.to_thread(perform, settings, STATES, {})


async def test_without_a_server_thresholds_show_as_at_the_next_start(
    settings: Settings, writer: Writer
) -> None:
    contract = Contract({"requests": Term(5, 5)}, 0, (Threshold(40, "quarantine"),))
    spent = Account("life", "coder", "", contract)
    hold = Amount("life/coder", "requests", 2)
    await writer.store({"kind": "policy.load", "digest": POLICY, "mode": "enforce", "serial": 1})
    await writer.store(describe_snapshot(spent, "opened", NOON_MS))
    held: dict[str, Any] = {"reserve": describe_amounts((hold,)), "time": format_time(NOON_MS)}
    await writer.store(decision(1, **held))  # of which nobody will ever know what became
    [shown], _ = await asyncio.to_thread(list_accounts, settings, None)
    assert (shown["units"][0]["spent"], shown["state"]) == (2, "quarantined")
    assert shown["cause"] == "budget life/coder requests 40%"
    assert recorded(settings, "state") == []
