"""The attacks of spec/audit.md section 9 that L0 must catch, each at its exit code.

The number in front of a case is its row there.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from audit.cli import audit
from audit.verify import verify
from tests.kit.chains import (
    CLOSED,
    GENESIS,
    HEARTBEAT,
    LOG,
    Event,
    amounts,
    at,
    chain,
    decision,
    everyday,
    hash_of,
    loaded,
    moved,
    opened,
    outcome,
    put,
    raised,
    reserved,
    run,
    seal,
    seal_raw,
    snapshot,
    spell,
)

OTHER = "f" * 32
type Made = bytes | list[bytes]


def exit_of(log: Path, *options: str) -> int:
    return CliRunner().invoke(audit, ["verify", str(log), *options]).exit_code


def middle(change: Callable[[list[bytes]], object]) -> Callable[[], Made]:
    """The everyday log after a change to its list of lines."""

    def make() -> Made:
        lines = everyday()
        change(lines)
        return lines

    return make


def event(raw: bytes) -> Callable[[], Made]:
    """A log that is sealed correctly all through, with one event spelled as given."""
    return lambda: chain(run(raw))


def of(**fields: Any) -> Callable[[], Made]:
    return lambda: chain(run(decision(1, **fields)))


def renumbered(spelling: str, place: int = 2) -> Callable[[], Made]:
    """Correctly hashed from `place` on, but with that number spelled differently."""

    def make() -> Made:
        lines = everyday()[:place]
        body = seal(spell(HEARTBEAT), 0, hash_of(lines[-1]), at(place))
        lines.append(seal_raw(body[:-76].replace(b'"seq":0,', f'"seq":{spelling},'.encode())))
        lines.append(seal(spell(CLOSED), place + 1, hash_of(lines[-1]), at(place + 1)))
        return lines

    return make


def resealed(old: bytes, new: bytes) -> Callable[[], Made]:
    """Every line hashed anew after `old` became `new` in the third, links included."""

    def make() -> Made:
        lines = everyday()
        lines[2] = seal_raw(lines[2][:-76].replace(old, new))
        assert new in lines[2]
        for n in range(3, len(lines)):
            old_prev = f'"prev":"{hash_of(everyday()[n - 1])}"'.encode()
            new_prev = f'"prev":"{hash_of(lines[n - 1])}"'.encode()
            lines[n] = seal_raw(lines[n][:-76].replace(old_prev, new_prev))
        return lines

    return make


def fix_own_hash_only() -> Made:
    lines = everyday()
    lines[2] = seal_raw(lines[2][:-76].replace(b"api.github.com", b"api.githab.com"))
    return lines


def spliced() -> Made:
    lines = everyday()
    lines[2] = chain(run(decision(1), outcome(1)), log=OTHER)[2]
    return lines


def two_hashes() -> Made:
    lines = everyday()[:2]
    first = seal(spell(HEARTBEAT), 2, hash_of(lines[-1]), at(2))
    return [*lines, seal_raw(first[:-2])]


def upper_case_hash() -> Made:
    lines = everyday()
    lines[-1] = lines[-1][:-67] + hash_of(lines[-1]).upper().encode() + b'"}\n'
    return lines


def backwards() -> Made:
    lines = everyday()[:3]
    lines.append(seal(spell(outcome(1)), 3, hash_of(lines[-1]), at(1)))
    return lines


def silence(seconds: int) -> Callable[[], Made]:
    return lambda: chain([opened(), HEARTBEAT, CLOSED], step_s=seconds)


def of_length(size: int) -> Callable[[], Made]:
    """A log whose third line has `size` bytes, its LF not counted."""

    def make() -> Made:
        text = {"kind": "alert", "cause": "a", "detail": ""}
        room = size + 1 - len(chain(run(text))[2])
        return chain(run({**text, "detail": "x" * room}))

    return make


def stepped() -> Made:
    first = seal(spell(opened()), 0, GENESIS, at(0))
    step = seal(
        spell({"kind": "clock.step", "from": at(1), "to": at(5000)}), 1, hash_of(first), at(5000)
    )
    return [first, step, seal(spell(CLOSED), 2, hash_of(step), at(5001))]


def clean_after_crash() -> Made:
    return chain([opened(), opened("clean"), CLOSED])


def of_run(*events: Event | bytes) -> Callable[[], Made]:
    """A closed log of one run of the newest format."""
    return lambda: chain(run(*events))


def of_format_1(*events: Event | bytes) -> Callable[[], Made]:
    """The same, but the run declares format 1."""
    return lambda: chain([opened(format=1), loaded(), *events, CLOSED])


ONE = ("daily/local", "requests", 1)
HELD = amounts(("daily/local", "bytes_out", 9), ONE, ("life/local", "bytes_out", 9))


def spending() -> Made:
    """A stream that reserves twice, what it cost, and what that led to; then an operator."""
    return chain(run(
        snapshot(), decision(1, reserve=HELD), decision(2, "deny"), reserved(1),
        snapshot(cause="closed"), reserved(1, *((on, "bytes_in", 4) for on in ("a/b", "a/c"))),
        outcome(1, settle=HELD), moved("active", "warned", ref=f"{1:032x}"),
        moved("warned", "halted", by="operator"), moved("active", "halted", agent="other"),
        raised(100, 200), raised(200, None), raised(9, 3, unit="window"), snapshot(cause="changed"),
    ))  # fmt: skip


TAMPERED: dict[str, Callable[[], Made]] = {
    "2 a value edited and only its own hash fixed": fix_own_hash_only,
    "2 a value edited": middle(lambda x: x.__setitem__(2, x[2].replace(b"allow", b"deny"))),
    "5 a middle record deleted": middle(lambda x: x.pop(3)),
    "6 a record inserted": middle(lambda x: x.insert(3, x[5])),
    "7 two records swapped": middle(lambda x: x.__setitem__(slice(2, 4), [x[3], x[2]])),
    "8 a record duplicated": middle(lambda x: x.insert(3, x[2])),
    "9 a record of another log with matching seq": spliced,
    "11 the first record removed": middle(lambda x: x.pop(0)),
    "18 an empty file": lambda: b"",
    "18 a line that is no record": lambda: b"\n",
    "25 a gap in seq": renumbered("3"),
    "25 a repeated seq": renumbered("1"),
    "25 seq reset to 0": renumbered("0"),
    "26 seq as 1.0": renumbered("2.0"),
    "26 seq as a string": renumbered('"2"'),
    "26 seq with a leading zero": renumbered("02"),
    "26 seq with an exponent": renumbered("2e0"),
    "26 seq as -0": renumbered("-0"),
    "26 seq beyond 2^53": renumbered("9007199254740993"),
    "26 seq beyond 2^64": renumbered("18446744073709551618"),
    "26 a float in the event": of(req={"length": 1.0}),
    "26 an integer beyond 2^53-1 in the event": of(req={"length": 2**53}),
    "26 a negative count": of(req={"length": -1}),
    "26 a leading zero in the event": event(
        spell(decision(1, req={"length": 77})).replace(b":77", b":077")
    ),
    "27 a duplicate key in the event": event(b'{"kind":"heartbeat","kind":"heartbeat"}'),
    "27 a duplicate key of another value": event(
        spell(decision(1)).replace(b'"verdict":', b'"verdict":"deny","verdict":')
    ),
    "27 a duplicate key in the chain": resealed(b'"v":1', b'"v":1,"v":1'),
    "27 a duplicate key at the top": resealed(b'{"chain":', b'{"chain":{},"chain":'),
    "28 an extra top-level field": resealed(b',"event":', b',"extra":1,"event":'),
    "28 an extra field behind the event": event(spell(HEARTBEAT) + b',"extra":1'),
    "28 keys in another order": event(
        spell(decision(1)).replace(b'"ms"', b'"ms"')[:-1] + b',"a":1}'
    ),
    "28 keys of an object in another order": event(
        b'{"mode":"enforce","kind":"policy.load","digest":"' + b"a" * 64 + b'","serial":1}'
    ),
    "28 a space added": event(b'{"kind": "heartbeat"}'),
    "28 a space between chain and event": resealed(b',"event":', b', "event":'),
    "28 null for an absent field": of(trace=None),
    "28 a boolean for a count": of(req={"length": True}),
    "28 an unknown kind": event(b'{"kind":"heartbeet"}'),
    "28 no kind": event(b"{}"),
    "28 an event that is no object": event(b"[]"),
    "28 an unknown field": of(colour="red"),
    "28 a field missing": event(spell({k: v for k, v in decision(1).items() if k != "verdict"})),
    "29 CRLF": lambda: [line.replace(b"\n", b"\r\n") for line in everyday()],
    "29 CRLF in the last line": middle(lambda x: x.__setitem__(-1, x[-1][:-1] + b"\r\n")),
    "29 a byte order mark": middle(lambda x: x.__setitem__(0, b"\xef\xbb\xbf" + x[0])),
    "29 a blank line": middle(lambda x: x.insert(3, b"\n")),
    "29 a blank line at the end": middle(lambda x: x.append(b"\n")),
    "29 a NUL before a LF": middle(lambda x: x.__setitem__(3, x[3][:-1] + b"\0\n")),
    "29 NULs behind the end": middle(lambda x: x.append(b"\0" * 100)),
    "29 a byte behind the final LF": middle(lambda x: x.append(b"x")),
    "29 a whole record and a byte instead of its LF": middle(
        lambda x: x.__setitem__(-1, x[-1][:-1] + b" ")
    ),
    "29 a whole record and a second one without LF between": middle(
        lambda x: x.__setitem__(-2, x[-2][:-1])
    ),
    "30 invalid UTF-8": event(b'{"cause":"a","detail":"\xff","kind":"alert"}'),
    "30 an overlong form": event(b'{"cause":"a","detail":"\xc0\xaf","kind":"alert"}'),
    "30 a surrogate as bytes": event(b'{"cause":"a","detail":"\xed\xa0\x80","kind":"alert"}'),
    "30 a lone surrogate as an escape": event(b'{"cause":"a","detail":"\\ud800","kind":"alert"}'),
    "30 an escape for a plain letter": event(b'{"cause":"a","detail":"\\u0061","kind":"alert"}'),
    "30 an escape in upper case": event(b'{"cause":"a","detail":"\\u001F","kind":"alert"}'),
    "30 a long escape for a short one": event(b'{"cause":"a","detail":"\\u000a","kind":"alert"}'),
    "30 an escaped slash": event(b'{"cause":"a","detail":"\\/","kind":"alert"}'),
    "30 a raw control character": event(b'{"cause":"a","detail":"\x01","kind":"alert"}'),
    "30 non-ASCII in a field from the wire": of(client="é"),
    "30 NFC turned into NFD": lambda: [
        line.replace("\u00e9".encode(), "e\u0301".encode())
        for line in chain(run({"kind": "alert", "cause": "a", "detail": "caf\u00e9"}))
    ],
    "31 two hash fields": two_hashes,
    "31 a hash in upper case": upper_case_hash,
    "31 a short hash": middle(lambda x: x.__setitem__(-1, x[-1].replace(x[-1][-67:-65], b""))),
    "31 a decoy hash in place of the real one": middle(
        lambda x: x.__setitem__(-1, x[-1][:-76] + b',"hash":"' + b"0" * 64 + b'"}\n')
    ),
    "31 a log id in upper case": lambda: chain(run(), log=LOG.upper()),
    "32 a line of 10 MB": of_length(10**7),
    "32 a line of one byte too many": of_length(65_536),
    "32 10 MB without LF": lambda: b"x" * 10**7,
    "32 nesting of 100,000": event(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "32 nesting that fits a line": event(b'{"a":' * 10**4 + b"1" + b"}" * 10**4),
    "42 the time goes back": backwards,
    "42 a date that is none": lambda: [
        seal(spell(opened()), 0, GENESIS, "2026-02-30T00:00:00.000000Z")
    ],
    "42 a time with an offset": lambda: [
        seal(spell(opened()), 0, GENESIS, "2026-01-31T00:00:00.00+01:0")
    ],
    "43 an outcome without an intent": lambda: chain(run(outcome(1))),
    "43 an outcome before its intent": lambda: chain(run(outcome(1), decision(1))),
    "43 two outcomes": lambda: chain(run(decision(1), outcome(1), outcome(1))),
    "43 outcome bytes after a deny": lambda: chain(run(decision(1, "deny"), outcome(1))),
    "43 an outcome of a CONNECT": lambda: chain(run(decision(1, stage="connect"), outcome(1))),
    "43 an outcome in the next run": lambda: chain(
        [opened(), loaded(), decision(1), CLOSED, opened(), outcome(1), CLOSED]
    ),
    "43 one decision twice": lambda: chain(run(decision(1), decision(1))),
    "43 two outcomes that both settle": of_run(
        decision(1, reserve=HELD), outcome(1, settle=HELD), outcome(1, settle=HELD)
    ),
    "43 a reserve without an intent": of_run(reserved(1)),
    "43 a reserve before its intent": of_run(reserved(1), decision(1)),
    "43 a reserve behind its outcome": of_run(decision(1), outcome(1), reserved(1)),
    "43 a reserve for a denied request": of_run(decision(1, "deny"), reserved(1)),
    "43 a reserve for a CONNECT": of_run(decision(1, stage="connect"), reserved(1)),
    "43 a reserve in the next run": lambda: chain(
        [opened(), loaded(), decision(1), CLOSED, opened(), reserved(1), CLOSED]
    ),
    "a reserve of nothing": of_run(decision(1), reserved(1, reserve=[])),
    "a reserve that is not sorted": of_run(decision(1), reserved(1, reserve=HELD[::-1])),
    "a denied request that reserves": of_run(decision(1, "deny", reserve=HELD)),
    "a CONNECT that reserves": of_run(decision(1, stage="connect", reserve=HELD)),
    "a reserve of a decision that is not sorted": of_run(decision(1, reserve=HELD[::-1])),
    "a reserve of a decision that names a unit twice": of_run(
        decision(1, reserve=amounts(ONE, ONE))
    ),
    "a settlement that is not sorted": of_run(decision(1), outcome(1, settle=HELD[::-1])),
    "a settlement that names a unit twice": of_run(
        decision(1), outcome(1, settle=amounts(ONE, ONE))
    ),
    "a negative amount": of_run(decision(1), outcome(1, settle=amounts((*ONE[:2], -1)))),
    "a state that moves left": of_run(moved("active", "halted"), moved("halted", "active")),
    "a state that moves left at once": of_run(moved("warned", "active")),
    "a state that stays": of_run(moved("active", "active")),
    "a halt that is taken back in the next run": lambda: chain(
        [*run(moved("active", "halted")), *run(moved("halted", "warned"))]
    ),
    "a halt that is forgotten": of_run(moved("active", "halted"), moved("active", "quarantined")),
    "a state of a word that is none": of_run(moved("active", "retired")),
    "a raise that lowers": of_run(raised(200, 100)),
    "a raise that raises nothing": of_run(raised(100, 100)),
    "a snapshot that names a limit twice": of_run(
        snapshot(limits=[{"limit": 1, "unit": "requests"}] * 2)
    ),
    "a snapshot that is not sorted": of_run(
        snapshot(spent=[{"amount": 1, "unit": unit} for unit in ("requests", "bytes_out")])
    ),
    "format 2: a reserve in a run of format 1": of_format_1(decision(1), reserved(1)),
    "format 2: a state in a run of format 1": of_format_1(moved("active", "halted")),
    "format 2: a raise in a run of format 1": of_format_1(raised(1, 2)),
    "format 2: a snapshot in a run of format 1": of_format_1(snapshot()),
    "a format that goes back": lambda: chain([opened(), CLOSED, opened(format=1), CLOSED]),
    "46 a policy that was never loaded": lambda: chain([opened(), decision(1), CLOSED]),
    "46 a policy that was loaded later": lambda: chain([opened(), decision(1), loaded(), CLOSED]),
    "records outside of a run": lambda: chain([opened(), CLOSED, HEARTBEAT]),
    "a log that does not start with log.open": lambda: chain([HEARTBEAT, CLOSED]),
    "log.open that hides a crash": clean_after_crash,
    "log.open that invents a crash": lambda: chain([opened(), CLOSED, opened("crash"), CLOSED]),
}


@pytest.mark.parametrize("make", TAMPERED.values(), ids=TAMPERED)
def test_verify_says_tampered(make: Callable[[], Made], tmp_path: Path) -> None:
    put(tmp_path / "log", make())
    assert exit_of(tmp_path / "log") == 1
    assert exit_of(tmp_path / "log", "--allow-open") == 1


OPEN: dict[str, tuple[Callable[[], Made], int]] = {
    "13 cut at a record boundary of an open log": (lambda: everyday()[:-1], 0),
    "13 cut in the middle of the log": (lambda: everyday()[:3], 0),
    "13 crashed and started again": (lambda: chain([opened(), opened("crash")]), 0),
    "15 cut in mid-line, open": (lambda: b"".join(everyday()[:-1])[:-40], 3),
    "15 cut in mid-line, closed": (lambda: b"".join(everyday())[:-40], 3),
    "15 a whole record lacking only its LF": (lambda: b"".join(everyday())[:-1], 3),
    "42 a heartbeat missing": (silence(121), 3),
}


@pytest.mark.parametrize(("make", "allowed"), OPEN.values(), ids=OPEN)
def test_verify_says_valid_so_far(make: Callable[[], Made], allowed: int, tmp_path: Path) -> None:
    put(tmp_path / "log", make())
    assert exit_of(tmp_path / "log") == 3
    assert exit_of(tmp_path / "log", "--allow-open") == allowed


VALID: dict[str, Callable[[], Made]] = {
    "everyday": everyday,
    "a decoy hash field inside a string": lambda: chain(
        run({"kind": "alert", "cause": "a", "detail": ',"hash":"' + "0" * 64 + '"}'})
    ),
    "a decoy kind inside a string": of(client='"kind":"log.close"'),
    "a line of exactly the longest length": of_length(65_535),
    "every short escape": lambda: chain(
        run({"kind": "alert", "cause": "a", "detail": '"\\\b\f\n\r\t\x01\x1f\x7fé'})
    ),
    "the largest integer": of(req={"length": 2**53 - 1}),
    "heartbeats exactly two intervals apart": silence(120),
    "no outcome at all": lambda: chain(run(decision(1))),
    "two runs": lambda: chain([opened(), CLOSED, opened(), CLOSED]),
    "a crash, then a clean end": lambda: chain([opened(), opened("crash"), CLOSED]),
    "a silence that a clock step explains": stepped,
    "spending": spending,
    "a halt that is recorded again": of_run(moved("active", "halted"), moved("active", "halted")),
    "a halt behind a record that a full disk lost": of_run(moved("warned", "halted")),
    "format 1": of_format_1(decision(1), outcome(1), decision(2, "deny"), HEARTBEAT),
    "format 1, then 2": lambda: chain(
        [
            opened(format=1),
            loaded(),
            decision(1),
            opened("crash"),
            loaded(),
            decision(1),
            reserved(1),
            moved("active", "halted", by="operator"),
            CLOSED,
        ]
    ),
}


@pytest.mark.parametrize("make", VALID.values(), ids=VALID)
def test_verify_says_valid(make: Callable[[], Made], tmp_path: Path) -> None:
    put(tmp_path / "log", make())
    assert exit_of(tmp_path / "log") == 0
    assert exit_of(tmp_path / "log", "--fast") == 0


def test_every_flipped_bit_of_three_records_is_tampering(tmp_path: Path) -> None:
    """Row 1, all positions, the last line and its LF included."""
    whole = b"".join(chain([opened(), loaded(), CLOSED]))
    path = put(tmp_path / "log", whole)
    wrong = []
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        for fast in (False, True):
            found = verify(path, fast=fast).exit_code
            if found != 1:
                wrong.append((place, fast, found))
    assert wrong == []


def test_an_unknown_version_could_not_be_checked(tmp_path: Path) -> None:
    lines = everyday()
    body = seal(spell(HEARTBEAT), 7, hash_of(lines[-1]), at(7), v=2)
    put(tmp_path / "log", [*lines, body])
    assert exit_of(tmp_path / "log") == 2


@pytest.mark.parametrize("more", [{}, {"vkey": "new"}], ids=["same fields", "more fields"])
def test_an_unknown_format_could_not_be_checked(more: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / "log", chain([opened(), CLOSED, opened(format=3, **more), CLOSED]))
    assert exit_of(tmp_path / "log") == 2


# -- rows about files rather than bytes ---------------------------------------------------------


def test_18_an_empty_folder_is_tampering(tmp_path: Path) -> None:
    assert exit_of(tmp_path) == 1


def test_a_path_that_is_absent_could_not_be_checked(tmp_path: Path) -> None:
    assert exit_of(tmp_path / "nothing") == 2


FOREIGN: dict[str, str] = {
    "a stray segment": f"{OTHER}-{0:020d}.jsonl",
    "a second first segment": f"{LOG}-{5:020d}.jsonl",
    "a stray file": "notes.txt",
    "a draft": f"{LOG}-{0:020d}.jsonl.new",
    "a torn file that no recovery names": f"torn-{3:020d}.bin",
}


@pytest.mark.parametrize("name", FOREIGN.values(), ids=FOREIGN)
def test_24_a_foreign_file_is_tampering(name: str, tmp_path: Path) -> None:
    put(tmp_path / "log", everyday())
    (tmp_path / "log" / name).write_bytes(b"x")
    assert exit_of(tmp_path / "log") == 1


def test_24_a_foreign_folder_is_tampering(tmp_path: Path) -> None:
    put(tmp_path / "log", everyday())
    (tmp_path / "log" / "old").mkdir()
    assert exit_of(tmp_path / "log") == 1


def test_24_the_lock_and_a_named_torn_file_are_not_foreign(tmp_path: Path) -> None:
    name = f"torn-{2:020d}.bin"
    recovery = {
        "kind": "recovery",
        "cause": "torn-tail",
        "bytes": 1,
        "digest": "sha256:" + "0" * 64,
        "file": name,
        "head": "78",
    }
    put(tmp_path / "log", chain(run(recovery)))
    (tmp_path / "log" / "lock").touch()
    (tmp_path / "log" / name).write_bytes(b"x")
    assert exit_of(tmp_path / "log") == 0


def test_a_segment_under_another_name_is_tampering(tmp_path: Path) -> None:
    put(tmp_path / "log", everyday(), log=OTHER)
    assert exit_of(tmp_path / "log") == 1


def test_51_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    path = put(tmp_path / "real", everyday())
    (tmp_path / "link.jsonl").symlink_to(path)
    assert exit_of(tmp_path / "link.jsonl") == 2
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / path.name).symlink_to(path)
    assert exit_of(tmp_path / "log") == 1


def test_51_a_fifo_neither_blocks_nor_passes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert exit_of(tmp_path / "fifo") == 2
    (tmp_path / "log").mkdir()
    os.mkfifo(tmp_path / "log" / f"{LOG}-{0:020d}.jsonl")
    assert exit_of(tmp_path / "log") == 1


def test_51_a_device_could_not_be_checked() -> None:
    assert exit_of(Path("/dev/zero")) == 2


def test_51_a_hard_link_is_not_trusted(tmp_path: Path) -> None:
    path = put(tmp_path / "log", everyday())
    (tmp_path / "second").hardlink_to(path)
    assert exit_of(tmp_path / "log") == 1
    assert exit_of(path) == 2


def test_52_a_file_that_shrinks_meanwhile_could_not_be_checked(tmp_path: Path) -> None:
    path = put(tmp_path / "log", many())
    found = verify(path, progress=once(lambda: os.truncate(path, 3 << 20)))
    assert (found.exit_code, found.verdict) == (2, "unchecked")


def test_52_a_file_that_is_replaced_meanwhile_could_not_be_checked(tmp_path: Path) -> None:
    path = put(tmp_path / "log", many())

    def replace() -> None:
        path.rename(tmp_path / "away")
        path.write_bytes((tmp_path / "away").read_bytes())

    assert verify(path, progress=once(replace)).exit_code == 2


def test_52_a_byte_that_changes_behind_the_reader_could_not_be_checked(tmp_path: Path) -> None:
    path = put(tmp_path / "log", many())

    def change() -> None:
        with path.open("r+b") as file:
            file.seek(500)
            file.write(b"#")

    assert verify(path, progress=once(change)).exit_code == 2


def test_what_a_writer_appends_meanwhile_is_left_for_the_next_time(tmp_path: Path) -> None:
    path = put(tmp_path / "log", many())

    def append() -> None:
        with path.open("ab") as file:
            file.write(b"{")

    assert verify(path, progress=once(append)).exit_code == 0


def many() -> list[bytes]:
    """About four MiB."""
    text = {"kind": "alert", "cause": "a", "detail": "x" * 60_000}
    return chain(run(*[text] * 70))


def once(action: Callable[[], None]) -> Callable[[int], None]:
    todo = [action]

    def progress(_: int) -> None:
        if todo:
            todo.pop()()

    return progress
