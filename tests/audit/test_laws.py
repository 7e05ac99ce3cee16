"""Laws between records whose memory is bounded: what is forgotten is part of the law."""

from audit.chain import genesis, ts_place, walk
from audit.laws import DECISIONS_MIN, POLICIES_MAX, Laws, OpenDecisions, Recent
from tests.kit.chains import CLOSED, chain, decision, loaded, opened, run


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
    laws.rewind(laws.ts, [b"aa" * 32])
    assert b"aa" * 32 not in laws.policies
