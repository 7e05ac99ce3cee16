"""Laws between records whose memory is bounded: what is forgotten is part of the law."""

from typing import Any

import pytest

from audit.chain import GENESIS, Break, genesis, ts_place, walk
from audit.laws import DECISIONS_MIN, POLICIES_MAX, RECOVERIES_MAX, Laws, OpenDecisions, Recent
from tests.kit.chains import (
    CLOSED,
    HEARTBEAT,
    POLICY,
    Event,
    amounts,
    at,
    chain,
    decision,
    hash_of,
    loaded,
    moved,
    opened,
    outcome,
    raised,
    reserved,
    run,
    seal,
    snapshot,
    spell,
)


def judged(*events: Event | bytes, step_s: int = 1) -> tuple[Laws, Break | None]:
    """The laws behind a log, and where it breaks."""
    laws = Laws()
    return laws, walk(chain(events, step_s=step_s), genesis(), laws).broken


def at_times(*timed: tuple[str, Event]) -> list[bytes]:
    """Sealed lines, each at its own time."""
    lines: list[bytes] = []
    prev = GENESIS.decode()
    for seq, (ts, event) in enumerate(timed):
        lines.append(seal(spell(event), seq, prev, ts))
        prev = hash_of(lines[-1])
    return lines


def test_a_refused_record_leaves_no_trace() -> None:
    laws = Laws()
    lines = chain([opened(), loaded(), decision(1), decision(2, policy={"digest": "b" * 64,
                   "rules": [], "serial": 1})])  # fmt: skip
    for seq, line in enumerate(lines):
        problem = laws.judge(line, ts_place(seq))
    assert problem is not None
    assert (laws.records, len(laws.decisions)) == (3, 1)


def test_the_oldest_half_of_open_decisions_is_forgotten() -> None:
    decisions = OpenDecisions()
    for number in range(2 * DECISIONS_MIN + 1):
        assert decisions.add(b"%d" % number)
    assert b"0" not in decisions
    assert b"%d" % DECISIONS_MIN in decisions
    assert len(decisions) <= 2 * DECISIONS_MIN
    assert not decisions.add(b"%d" % DECISIONS_MIN)


def test_the_newest_values_are_kept() -> None:
    recent = Recent(2)
    for value in (b"a", b"b", b"a", b"c"):
        recent.add(value)
    assert (b"a" in recent, b"b" in recent, b"c" in recent) == (True, False, True)


def test_a_policy_loaded_long_ago_must_be_loaded_again() -> None:
    others = [loaded(f"{n:064x}") for n in range(POLICIES_MAX)]
    lines = chain([opened(), loaded(), *others, decision(1), CLOSED])
    broken = walk(lines, genesis(), Laws()).broken
    assert broken is not None
    assert "was not loaded before it" in broken.problem


def test_a_rewind_forgets_policies_that_were_never_recorded() -> None:
    laws = Laws()
    assert walk(chain(run())[:-1], genesis(), laws).broken is None
    laws.rewind(laws.ts, [chain(run())[1]])
    assert b"aa" * 32 not in laws.policies


def test_a_rewind_takes_back_what_was_judged_in_between() -> None:
    """The laws behind a rewind are those of a log without the lost records."""
    durable = [
        opened(), loaded(), decision(1), decision(2), moved("active", "warned"),
        decision(3, "deny"),
    ]  # fmt: skip
    lost = [
        outcome(1), decision(4), outcome(4), decision(5), reserved(5), decision(2, "deny"),
        moved("warned", "quarantined"), moved("quarantined", "halted"),
        moved("active", "halted", agent="other"), HEARTBEAT,
    ]  # fmt: skip
    lines = chain([*durable, *lost])
    laws = Laws()
    assert walk(lines, genesis(), laws).broken is None
    laws.rewind(at(len(durable) - 1).encode(), lines[len(durable) :])
    assert len(laws.decisions) == 2
    again = [
        outcome(1), outcome(2), decision(4), decision(5), moved("warned", "halted"),
        moved("active", "halted", agent="other"),
    ]  # fmt: skip
    for seq, line in enumerate(chain([*durable, *again])[len(durable) :], start=len(durable)):
        assert laws.judge(line, ts_place(seq)) is None


def test_a_log_is_counted_as_it_is_read() -> None:
    laws, broken = judged(
        *run(decision(1), decision(2), outcome(1), decision(3, "deny")),
        *run(decision(4), decision(5, stage="connect"), HEARTBEAT)[:-1],
    )
    assert broken is None
    assert (laws.records, laws.runs, laws.run_seq, laws.running) == (12, 2, 7, True)
    assert laws.outcomes_unknown == 1, "of the run that is over"
    assert len(laws.decisions) == 1, "of the run that is not"
    assert laws.heartbeat_gaps == 0
    assert judged(*run())[0].running is False
    assert Laws().run_seq == 0


DIGEST = "c" * 64
OUTSIDE = "`heartbeat` stands outside of a run: no `log.open` before it"
UNSORTED = "the amounts are not sorted by account and unit, or name one of them twice"
TWO = amounts(("a/b", "requests", 1), ("a/c", "requests", 0))
NOT_OPEN = "it is unknown, was denied, or has its outcome already"
PROBLEMS: dict[str, tuple[tuple[Event | bytes, ...], str]] = {
    "the first record": ((HEARTBEAT,), OUTSIDE),
    "a run that was closed": (
        (*run(), HEARTBEAT),
        OUTSIDE,
    ),
    "a crash that is hidden": (
        (opened(), opened()),
        "`log.open` says after `clean`, expected `crash`",
    ),
    "a crash that was none": (
        (opened("crash"),),
        "`log.open` says after `crash`, expected `clean`",
    ),
    "a policy from nowhere": (
        (opened(), decision(1, policy={"digest": DIGEST, "rules": [], "serial": 1})),
        f"the decision cites policy `{DIGEST}`, which was not loaded before it",
    ),
    "a decision that is there twice": (
        tuple(run(decision(1), decision(1))),
        f"decision `{1:032x}` is there twice",
    ),
    "a format that goes back": (
        (opened(), CLOSED, opened(format=1)),
        "the format goes back from 2 to 1",
    ),
    "a kind of a later format": (
        (opened(format=1), loaded(), decision(1), reserved(1)),
        "`reserve` is of format 2, but the run declares format 1",
    ),
    "a reserve of no request": (
        tuple(run(reserved(1))),
        f"the reserve refers to `{1:032x}`, which is no open request: {NOT_OPEN}",
    ),
    "a reserve of nothing": (
        tuple(run(decision(1), reserved(1, reserve=[]))),
        "the `reserve` reserves nothing",
    ),
    "a deny that reserves": (
        tuple(run(decision(1, "deny", reserve=TWO))),
        "only an allowed request reserves",
    ),
    "a reserve out of order": (tuple(run(decision(1), reserved(1, reserve=TWO[::-1]))), UNSORTED),
    "a decision out of order": (tuple(run(decision(1, reserve=TWO[::-1]))), UNSORTED),
    "an outcome out of order": (tuple(run(decision(1), outcome(1, settle=TWO * 2))), UNSORTED),
    "a state that moves left": (
        tuple(run(moved("halted", "warned"))),
        "a state moves from halted to warned: it only moves right",
    ),
    "a halt that is forgotten": (
        tuple(run(moved("active", "halted"), moved("active", "warned"))),
        "a state moves to warned, but the agent was halted already",
    ),
    "a raise that lowers": (tuple(run(raised(2, 1))), "`budget.raise` from 2 to 1 raises nothing"),
    "a snapshot out of order": (
        tuple(run(snapshot(spent=[{"amount": 1, "unit": "a"}] * 2))),
        "what was spent is not sorted by unit, or names one of them twice",
    ),
    "an outcome of nothing": (
        tuple(run(outcome(1))),
        f"the outcome refers to `{1:032x}`, which is no open request: {NOT_OPEN}",
    ),
}


@pytest.mark.parametrize(("events", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_broken_law_is_told_in_words(events: tuple[Event | bytes, ...], problem: str) -> None:
    broken = judged(*events)[1]
    assert broken is not None
    assert (broken.problem, broken.cause) == (problem, "tampered")


def test_one_decision_denied_twice_or_at_its_tunnel_is_no_open_request() -> None:
    assert judged(*run(decision(1, "deny"), decision(1, "deny"), decision(1)))[1] is None
    assert judged(*run(decision(1, stage="connect"), decision(1)))[1] is None


def test_a_reserve_does_not_end_its_request() -> None:
    laws, broken = judged(*run(decision(1, reserve=TWO), reserved(1), reserved(1), outcome(1)))
    assert broken is None
    assert len(laws.decisions) == 0


def test_the_laws_of_amounts_came_with_format_2() -> None:
    """What format 1 let stand still stands."""
    odd = (decision(1, "deny", reserve=TWO[::-1]), decision(2), outcome(2, settle=TWO[::-1]))
    assert judged(opened(format=1), loaded(), *odd, CLOSED)[1] is None
    assert judged(opened(format=2), loaded(), *odd, CLOSED)[1] is not None


def test_a_refused_format_leaves_the_one_before_in_force() -> None:
    laws, broken = judged(opened(format=1), CLOSED, opened("crash", format=2))
    assert broken is not None
    assert laws.format == 1
    assert judged(opened(format=1), CLOSED, opened(format=2), loaded(), snapshot())[1] is None


def test_a_state_is_remembered_across_runs() -> None:
    halted = run(moved("active", "halted"))
    laws, broken = judged(*halted, *run(moved("active", "warned")))
    assert broken is not None
    assert "but the agent was halted" in broken.problem
    assert len(laws.standings) == 1


def test_the_time_and_the_date_are_told_apart() -> None:
    lines = at_times((at(5), opened()), (at(4), HEARTBEAT))
    broken = walk(lines, genesis(), Laws()).broken
    assert broken is not None
    assert broken.problem == f"the time goes back from {at(5)} to {at(4)}"
    assert broken.cause == "tampered"
    for first, then in (
        ("2026-02-27", "2026-02-30"),
        ("2026-02-28", "2026-02-29"),
        ("2026-04-30", "2026-04-31"),
        ("2027-02-28", "2027-02-29"),
    ):
        moments = f"{first}T23:00:00.000000Z", f"{then}T00:00:00.000000Z"
        lines = at_times((moments[0], opened(heartbeat_ms=10**8)), (moments[1], HEARTBEAT))
        broken = walk(lines, genesis(), Laws()).broken
        assert broken is not None
        assert (broken.problem, broken.cause) == (f"`{then}` is not a date", "tampered")
    fine = at_times((at(0), opened()), (at(0), loaded()), ("2028-02-29T00:00:00.000000Z", CLOSED))
    assert walk(fine, genesis(), Laws()).broken is None


def test_text_is_utf_8_and_only_that() -> None:
    good = {"cause": "a", "detail": "\u00e9", "kind": "alert"}
    assert judged(*run(good))[1] is None
    broken = judged(*run(spell(good).replace("\u00e9".encode(), b"\xff")))[1]
    assert broken is not None
    assert (broken.problem, broken.cause) == ("the record is not UTF-8", "tampered")


GAPS: dict[str, tuple[list[tuple[int, Event]], int]] = {
    "two intervals": ([(0, HEARTBEAT), (120, HEARTBEAT), (240, HEARTBEAT)], 0),
    "a moment more": ([(0, HEARTBEAT), (121, HEARTBEAT)], 1),
    "silence from the start": ([(121, HEARTBEAT)], 1),
    "each silence counts once": ([(121, loaded()), (200, loaded()), (300, loaded())], 2),
    "other records are no heartbeat": ([(100, loaded()), (121, loaded())], 1),
    "a heartbeat puts it off": ([(100, HEARTBEAT), (219, loaded())], 0),
    "a step of the clock explains it": (
        [(500, {"kind": "clock.step", "from": at(1), "to": at(500)}), (620, HEARTBEAT)],
        0,
    ),
    "a step of the clock puts it off": (
        [(100, {"kind": "clock.step", "from": at(1), "to": at(100)}), (220, HEARTBEAT)],
        0,
    ),
    "a recovery puts it off": (
        [(100, {"kind": "recovery", "bytes": 1, "cause": "disk-full"}), (220, HEARTBEAT)],
        0,
    ),
    "a recovery explains it": (
        [(500, {"kind": "recovery", "bytes": 1, "cause": "disk-full"}), (620, HEARTBEAT)],
        0,
    ),
    "and starts it anew": (
        [(500, {"kind": "recovery", "bytes": 1, "cause": "disk-full"}), (621, HEARTBEAT)],
        1,
    ),
    "between runs it is quiet": ([(1, CLOSED), (900, opened()), (1020, CLOSED)], 0),
    "a close after a silence": ([(121, CLOSED)], 1),
    "a crash is no silence": ([(900, opened("crash")), (1020, HEARTBEAT)], 0),
}


@pytest.mark.parametrize(("timed", "expected"), GAPS.values(), ids=GAPS)
def test_a_silence_of_more_than_two_heartbeats_is_counted(
    timed: list[tuple[int, Event]], expected: int
) -> None:
    laws = Laws()
    lines = at_times((at(0), opened()), *((at(second), event) for second, event in timed))
    assert walk(lines, genesis(), laws).broken is None
    assert laws.heartbeat_gaps == expected


def test_a_heartbeat_is_waited_for_a_day_at_most_and_never_past_the_calendar() -> None:
    laws = Laws()
    rare = opened(heartbeat_ms=10**12)
    lines = at_times((at(0), rare), ("2026-02-02T00:00:00.000000Z", HEARTBEAT))
    assert walk(lines, genesis(), laws).broken is None
    assert laws.heartbeat_gaps == 0
    lines = at_times((at(0), rare), ("2026-02-02T00:00:00.000001Z", HEARTBEAT))
    assert walk(lines, genesis(), laws := Laws()).broken is None
    assert laws.heartbeat_gaps == 1
    last = "9999-12-31T23:59:59.999999Z"
    assert walk(at_times((last, rare), (last, CLOSED)), genesis(), laws := Laws()).broken is None
    assert laws.heartbeat_gaps == 0


def recovered(file: str) -> Event:
    return {"kind": "recovery", "bytes": 1, "cause": "torn-tail", "file": file}


def test_the_names_of_torn_files_are_remembered_up_to_a_bound() -> None:
    names = [f"torn-{n:020d}.bin" for n in range(RECOVERIES_MAX + 1)]
    laws, broken = judged(opened(), *map(recovered, names))
    assert broken is None
    assert names[0].encode() not in laws.recoveries
    assert names[1].encode() in laws.recoveries
    assert judged(opened(), {"kind": "recovery", "bytes": 1, "cause": "disk-full"})[1] is None


def test_what_is_taken_or_cleared_is_forgotten_young_and_old() -> None:
    decisions = OpenDecisions()
    for number in range(DECISIONS_MIN + 1):
        decisions.add(b"%d" % number)
    assert b"0" in decisions
    for ref in (b"0", b"%d" % DECISIONS_MIN):
        decisions.take(ref)
        assert ref not in decisions
    assert len(decisions) == DECISIONS_MIN - 1
    decisions.clear()
    assert len(decisions) == 0
    assert decisions.add(b"1")


def test_a_rewind_gives_the_time_back_too() -> None:
    laws, broken = judged(opened(), loaded(), HEARTBEAT)
    assert broken is None
    laws.rewind(at(0).encode(), [])
    assert laws.ts == at(0).encode()
    assert POLICY.encode() in laws.policies
    laws.policies.discard(b"unknown")


UNREADABLE: dict[str, tuple[Any, str, str]] = {
    "a newer format": (
        opened(format=3, more="x"),
        "record format 3 is not known",
        "unknown-version",
    ),
    "a newer format of the same fields": (
        opened(format=3),
        "record format 3 is not known",
        "unknown-version",
    ),
    "a format that is none": (opened(format=0, more="x"), "", "tampered"),
    "format 0": (opened(format=0), "record format 0 is not known", "unknown-version"),
    "the number in another kind": ({"kind": "heartbeat", "format": 3}, "", "tampered"),
}


@pytest.mark.parametrize(("event", "problem", "cause"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_only_newer_is_not_called_tampering(event: Any, problem: str, cause: str) -> None:
    broken = judged(event)[1]
    assert broken is not None
    assert broken.cause == cause
    assert problem in broken.problem


def test_a_time_in_another_form_is_told_as_such() -> None:
    (line,) = at_times(("2026-01-31T24:00:00.000000Z", opened()))
    assert Laws().judge(line, ts_place(0)) == ("the time is not in canonical form", "tampered")
