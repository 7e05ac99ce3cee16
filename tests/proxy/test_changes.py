"""Changes of credentials are recorded: by the server that runs, or under the log's lock."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from audit.reader import Filter, read
from audit.verify import VALID, verify
from audit.writer import LogUnavailable, Writer
from proxy.changes import COMMAND, Change, ChangeUnrecorded, answer_changes, open_journal
from proxy.control import ControlServer
from proxy.settings import Settings
from proxy.state import create_state

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CHANGE = Change("coder", "add", "cli:ada", "5e" * 16)
EVENT = {
    "kind": "credential.change",
    "agent": "coder",
    "action": "add",
    "by": "cli:ada",
    "session": "5e" * 16,
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    create_state(tmp_path / "state", NOW)
    return Settings(state=tmp_path / "state")


def recorded(settings: Settings) -> list[dict[str, Any]]:
    wanted = Filter(kinds=frozenset({"credential.change"}))
    return [line.record.event for line in read(settings.log_folder, wanted)]


def record(settings: Settings, *changes: Change) -> None:
    with open_journal(settings) as journal:
        for change in changes:
            journal(change)


def test_without_a_server_the_log_is_taken_and_given_back(settings: Settings) -> None:
    record(settings, CHANGE, CHANGE)
    assert recorded(settings) == [EVENT, EVENT]
    assert verify(settings.log_folder).exit_code == VALID
    record(settings, CHANGE)  # the lock is free again


async def test_a_running_server_records_it(settings: Settings) -> None:
    writer = Writer.open(settings.log_folder, software="test")
    control = ControlServer(settings.control_socket, {COMMAND: answer_changes(writer)})
    await control.start()
    try:
        await asyncio.to_thread(record, settings, CHANGE)
        assert recorded(settings) == [EVENT]
    finally:
        await control.close()
        writer.close()


class FullLog:
    """A log whose disk is full."""

    async def store(self, event: Mapping[str, object]) -> object:
        raise LogUnavailable("audit-disk-full", f"no room for `{event['kind']}`")


async def test_a_server_that_cannot_record_says_so(settings: Settings) -> None:
    control = ControlServer(settings.control_socket, {COMMAND: answer_changes(FullLog())})
    await control.start()
    try:
        with pytest.raises(ChangeUnrecorded, match="cannot be recorded: no room for"):
            await asyncio.to_thread(record, settings, CHANGE)
    finally:
        await control.close()


def test_a_locked_log_without_a_server_is_told_apart(settings: Settings) -> None:
    writer = Writer.open(settings.log_folder, software="test")
    try:
        with pytest.raises(ChangeUnrecorded, match="in use by another writer, which does not answ"):
            record(settings)
    finally:
        writer.close()


NO_CHANGE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a field too few": {"agent": "a", "action": "add", "by": "b"},
    "a field too many": {"agent": "a", "action": "add", "by": "b", "session": "s", "x": ""},
    "a number": {"agent": 1, "action": "add", "by": "b", "session": "s"},
    "an action that is none": {"agent": "a", "action": "allow", "by": "b", "session": "s"},
}


@pytest.mark.parametrize("arguments", NO_CHANGE.values(), ids=NO_CHANGE)
async def test_what_is_no_change_is_refused_before_the_log(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a change has the fields|is not a change"):
        await answer_changes(FullLog())(arguments)
