"""A recorder in memory that refuses what the real log refuses, and fails on demand."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit.record import EventRefused, encode, settle
from audit.writer import Stored


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with the next record of a kind.

    `error` is raised; `hang` waits for ever; with `recorded` the event became durable all the same.
    """

    error: BaseException | None = None
    hang: bool = False
    recorded: bool = False


class MemoryRecorder:
    """Stands where audit.writer.Writer stands. `events` are durable, in order."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.faults: dict[str, Fault] = {}  # by kind of event; "*" for any
        self.failure: str | None = None
        self._open: set[str] = set()
        self._known: set[str] = set()

    async def store(self, event: Mapping[str, object]) -> Stored:
        """Record, or do what the fault says."""
        fault = self._find_fault(event)
        if fault is None or fault.recorded:
            self._append(event)
        if fault is not None and fault.hang:
            await asyncio.Event().wait()
        if fault is not None and fault.error is not None:
            raise fault.error
        return Stored(len(self.events), "", "")

    def submit(self, event: Mapping[str, object]) -> None:
        """As `store`; what would hang is only lost."""
        fault = self._find_fault(event)
        if fault is None or fault.recorded or fault.hang:
            self._append(event)
        if fault is not None and fault.error is not None:
            raise fault.error

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The durable events of a kind."""
        return [event for event in self.events if event["kind"] == kind]

    @property
    def open_requests(self) -> set[str]:
        """Allowed requests that have no outcome yet."""
        return set(self._open)

    def _find_fault(self, event: Mapping[str, object]) -> Fault | None:
        return self.faults.get(str(event["kind"])) or self.faults.get("*")

    def _append(self, event: Mapping[str, object]) -> None:
        encode(event)
        settle(event)  # the form of its kind, or EventRefused
        kept = dict(event)
        if kept["kind"] == "decision":
            if kept["id"] in self._known:
                raise EventRefused("a decision twice")
            self._known.add(str(kept["id"]))
            if (kept["verdict"], kept["stage"]) == ("allow", "request"):
                self._open.add(str(kept["id"]))
        if kept["kind"] == "outcome":
            if kept["ref"] not in self._open:
                raise EventRefused("an outcome of no open request")
            self._open.remove(str(kept["ref"]))
        self.events.append(kept)
