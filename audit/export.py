"""Other formats for records, derived and streamed: one record in, one row out.

Rule 1: an export is a copy for reading. Only JSON lines keep the exact bytes and can be hashed
        again.
Rule 2: a spreadsheet must not run what an agent sent: a cell that could be a formula gets a `'` in
        front of it (OWASP, CSV injection).

To add a format: one class here, one entry in `FORMATS`; `tests/kit/export_contract.py` holds it.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from audit.reader import Line
from audit.summary import tell_amounts, tell_limits, tell_spent

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "%")
COLUMNS = (
    "seq", "ts", "kind", "decision", "agent", "session", "client", "stage", "method", "scheme",
    "host", "port", "path", "verdict", "reason", "rules", "would", "policy_digest",
    "policy_serial", "status", "bytes_out", "bytes_in", "ms", "error", "detail", "hash",
    "time", "account", "unit", "from", "to", "by", "reserve", "settle", "spent", "limits",
    "window_ms",
)  # fmt: skip


class Format(Protocol):
    """A way to write records as bytes."""

    name: str

    def head(self) -> bytes:
        """What comes before the first row."""

    def row(self, line: Line) -> bytes:
        """One record."""


class JsonLines:
    """The records as they are, byte for byte."""

    name = "jsonl"

    def head(self) -> bytes:
        return b""

    def row(self, line: Line) -> bytes:
        return line.raw


class Csv:
    """RFC 4180 with a head line; decisions and outcomes in the same columns.

    New columns come behind the others: a script may count them.
    """

    name = "csv"

    def head(self) -> bytes:
        return _csv(COLUMNS)

    def row(self, line: Line) -> bytes:
        cells = _cells(line)
        return _csv(_harmless(cells.get(column, "")) for column in COLUMNS)


FORMATS: tuple[Format, ...] = (JsonLines(), Csv())


def export(lines: Iterable[Line], to: Format) -> Iterator[bytes]:
    """The bytes of an export, row by row; nothing is held back."""
    yield to.head()
    for line in lines:
        yield to.row(line)


def _cells(line: Line) -> dict[str, Any]:
    event, record = line.record.event, line.record
    agent = event.get("agent", {})
    agent = agent if isinstance(agent, dict) else {"id": agent}
    policy = event.get("policy", {})
    would = event.get("would", {})
    detail = [
        event[name] for name in ("why", "cause", "detail", "action", "setting") if name in event
    ]
    return {
        **{name: event[name] for name in COLUMNS if name in event},
        **event.get("target", {}),
        "seq": record.seq,
        "ts": record.ts,
        "hash": record.hash,
        "decision": event.get("id", event.get("ref", "")),
        "agent": agent.get("id", ""),
        "session": agent.get("session", event.get("session", "")),
        "rules": " ".join(policy.get("rules", ())),
        "would": would.get("verdict", ""),
        "policy_digest": policy.get("digest", event.get("digest", "")),
        "policy_serial": policy.get("serial", event.get("serial", "")),
        "detail": " ".join(map(str, detail)),
        "reserve": tell_amounts(event.get("reserve", ())),
        "settle": tell_amounts(event.get("settle", ())),
        "spent": tell_spent(event.get("spent", ())),
        "limits": tell_limits(event.get("limits", ())),
    }


def _harmless(cell: Any) -> str:
    text = str(cell)
    return f"'{text}" if isinstance(cell, str) and text.startswith(_FORMULA) else text


def _csv(cells: Iterable[str]) -> bytes:
    row = io.StringIO()
    csv.writer(row).writerow(cells)
    return row.getvalue().encode()
