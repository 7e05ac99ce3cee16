"""The vectors of tests/cases/audit: whole logs in hex with the exit code a verifier must give.

They are data for people who write a verifier of their own (docs/records.md). `python -m
tests.audit.test_vectors` writes them anew from the attack table.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.segment import segment_name
from audit.verify import verify
from audit.writer import Writer
from tests.audit import test_attacks as attacks
from tests.kit.chains import decision, loaded, moved, outcome, reserved

FILE = Path(__file__).parents[1] / "cases" / "audit" / "vectors.json"
FORMAT_1 = FILE.parent / "format-1.jsonl"  # made by the writer of that time
DOCS = Path(__file__).parents[2] / "docs" / "records.md"
_CHOSEN = (
    "everyday", "two runs", "a crash, then a clean end", "every short escape",
    "a decoy hash field inside a string", "the largest integer",
    "13 cut at a record boundary of an open log", "15 cut in mid-line, closed",
    "15 a whole record lacking only its LF", "42 a heartbeat missing",
    "2 a value edited and only its own hash fixed", "5 a middle record deleted",
    "9 a record of another log with matching seq", "18 an empty file", "25 a gap in seq",
    "26 seq as 1.0", "26 seq with a leading zero", "26 a float in the event",
    "27 a duplicate key in the event", "27 a duplicate key at the top",
    "28 an extra top-level field", "28 a space added", "28 null for an absent field",
    "28 an unknown field", "29 CRLF in the last line", "29 a byte order mark",
    "29 a NUL before a LF", "29 a byte behind the final LF", "30 invalid UTF-8",
    "30 a lone surrogate as an escape", "30 an escape for a plain letter",
    "31 two hash fields", "31 a hash in upper case", "42 the time goes back",
    "43 an outcome without an intent", "43 two outcomes", "43 outcome bytes after a deny",
    "46 a policy that was never loaded", "log.open that hides a crash",
    "spending", "format 1", "format 1, then 2", "a format that goes back",
    "format 2: a reserve in a run of format 1", "format 2: a state in a run of format 1",
    "43 two outcomes that both settle", "43 a reserve without an intent",
    "43 a reserve behind its outcome", "43 a reserve for a denied request",
    "43 a reserve in the next run", "a reserve of nothing", "a denied request that reserves",
    "a reserve of a decision that is not sorted", "a settlement that names a unit twice",
    "a state that moves left", "a halt that is taken back in the next run",
    "a halt that is forgotten", "a halt that is recorded again", "a raise that lowers",
    "a snapshot that names a limit twice",
)  # fmt: skip


def make() -> list[dict[str, Any]]:
    """The chosen logs of the attack table, as data."""
    known = {
        **{name: (log, 1) for name, log in attacks.TAMPERED.items()},
        **{name: (log, 3) for name, (log, _) in attacks.OPEN.items()},
        **{name: (log, 0) for name, log in attacks.VALID.items()},
    }
    vectors = []
    for name in _CHOSEN:
        made, exit_code = known[name]
        lines = made()
        whole = lines if isinstance(lines, bytes) else b"".join(lines)
        vectors.append({"name": name, "exit": exit_code, "hex": whole.hex()})
    return vectors


VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else []


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_gets_its_exit_code(vector: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(bytes.fromhex(vector["hex"]))
    assert verify(path).exit_code == vector["exit"]


def test_the_vectors_are_those_of_the_attack_table() -> None:
    assert make() == VECTORS


def continuable(tmp_path: Path) -> Path:
    """A folder with the log of format 1 under its own name."""
    folder = tmp_path / "log"
    folder.mkdir(mode=0o700)
    data = FORMAT_1.read_bytes()
    (folder / segment_name(data[17:49].decode(), 0)).write_bytes(data)
    return folder


def test_a_log_of_the_first_format_is_still_valid() -> None:
    report = verify(FORMAT_1)
    assert (report.exit_code, report.records, report.runs) == (0, 15, 3)
    assert b'"format":2' not in FORMAT_1.read_bytes()


def test_a_log_of_the_first_format_can_be_continued(tmp_path: Path) -> None:
    folder = continuable(tmp_path)
    writer = Writer.open(folder, software="test/2")
    for event in (loaded(), decision(5), reserved(5), outcome(5), moved("active", "halted")):
        writer.store_blocking(event, timeout_s=20)
    writer.close()
    report = verify(folder)
    assert (report.exit_code, report.records, report.runs) == (0, 22, 4)
    (path,) = folder.glob("*.jsonl")
    data = path.read_bytes()
    assert data.startswith(FORMAT_1.read_bytes())
    assert (data.count(b'"format":1,'), data.count(b'"format":2,')) == (3, 1)


def test_the_verifier_of_the_docs_agrees_with_fast_on_every_vector(tmp_path: Path) -> None:
    """The code block of docs/records.md, as it stands. It knows only that a tail is one."""
    text = DOCS.read_text(encoding="utf-8")
    script = tmp_path / "own.py"
    script.write_text(text.split("```python\n")[1].split("```")[0])
    path = tmp_path / "log.jsonl"
    for vector in VECTORS:
        path.write_bytes(bytes.fromhex(vector["hex"]))
        done = subprocess.run([sys.executable, "-W", "ignore", script, path], check=False)
        ours = verify(path, fast=True)
        tail = not path.read_bytes().endswith(b"\n") and ours.records
        assert done.returncode == (3 if tail else ours.exit_code), vector["name"]


def test_the_smallest_log_of_the_docs_is_valid(tmp_path: Path) -> None:
    block = DOCS.read_text(encoding="utf-8").split("```")[-2]
    (tmp_path / "log.jsonl").write_text(block.lstrip("\n"))
    assert verify(tmp_path / "log.jsonl").exit_code == 0


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n")
