import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.fields import FORMS
from audit.record import encode
from policies.budget import (
    Account,
    Amount,
    Contract,
    State,
    Term,
    Threshold,
    name_account,
    name_period,
)
from proxy.accounting import (
    describe_raise,
    describe_reserve,
    describe_snapshot,
    describe_state,
    parse_name,
    parse_time,
)
from proxy.recording import AuditEvent, format_time

NOON_MS = 1_795_262_400_000  # 2026-11-21T12:00:00Z
MIDNIGHT_MS = 1_795_219_200_000
REF = "0f" * 16
CONTRACT = Contract(
    {"requests": Term(5, 9), "bytes_out": Term(100, None)},
    86_400_000,
    (Threshold(80, "warn"), Threshold(100, "halt")),
)
ACCOUNT = Account("daily", "coder", "", CONTRACT, MIDNIGHT_MS, spent={"steps": 1, "requests": 2})

EVENTS: dict[str, AuditEvent] = {
    "a further slice": describe_reserve(REF, (Amount("a/b", "bytes_in", 7),), NOON_MS),
    "an account as it stands": describe_snapshot(ACCOUNT, "changed", NOON_MS),
    "an account without limits": describe_snapshot(
        Account("daily", "coder", "", Contract()), "opened", 0
    ),
    "an agent moved by a budget": describe_state(
        "coder",
        State.ACTIVE,
        State.WARNED,
        "budget daily/coder requests 80%",
        session="s1",
        ref=REF,
    ),
    "an agent halted by hand": describe_state(
        "coder", State.WARNED, State.HALTED, "it loops", by="cli:ada"
    ),
    "a limit that rose": describe_raise("daily/coder", "requests", 5, 9, "cli:ada"),
    "a limit that is gone": describe_raise("daily/coder", "requests", 5, None, "cli:ada"),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_what_is_described_has_the_form_of_its_kind(event: AuditEvent) -> None:
    form = FORMS[str(event["kind"]).encode()]
    assert form.fullmatch(b'2026-11-21T12:00:00.000000Z","v":1},"event":' + encode(event))


def test_a_snapshot_tells_the_whole_contract() -> None:
    assert describe_snapshot(ACCOUNT, "opened", NOON_MS) == {
        "kind": "ledger.snapshot",
        "account": "daily/coder@2026-11-21T00:00:00Z",
        "cause": "opened",
        "limits": [
            {"unit": "requests", "limit": 5, "filed": 9},
            {"unit": "bytes_out", "limit": 100},
        ],
        "spent": [{"unit": "requests", "amount": 2}, {"unit": "steps", "amount": 1}],
        "at": [{"do": "warn", "reached": 80}, {"do": "halt", "reached": 100}],
        "window_ms": 86_400_000,
        "time": "2026-11-21T12:00:00.000000Z",
    }


IDS = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,5}[A-Za-z0-9])?", fullmatch=True)
MOMENTS_MS = st.one_of(st.just(0), st.integers(1, 253_402_300_799_999))


@given(IDS, IDS, st.one_of(st.just(""), IDS), MOMENTS_MS)
def test_a_name_is_read_as_it_was_spelled(
    budget: str, agent: str, session: str, from_ms: int
) -> None:
    name = name_period(name_account(budget, agent, session), from_ms)
    assert parse_name(name) == (budget, agent, session, from_ms)


@given(MOMENTS_MS)
def test_a_time_is_read_as_it_was_written(moment_ms: int) -> None:
    assert parse_time(format_time(moment_ms)) == moment_ms


NO_NAMES = {
    "nothing": "",
    "no agent": "daily",
    "an empty agent": "daily/",
    "an empty budget": "/coder",
    "an empty session": "daily/coder/",
    "too many parts": "daily/coder/s/t",
    "an empty period": "daily/coder@",
    "no time": "daily/coder@noon",
    "a time without a zone": "daily/coder@2026-11-21T00:00:00",
    "a time of another zone": "daily/coder@2026-11-21T00:00:00+01:00",
    "a time spelled otherwise": "daily/coder@2026-11-21T00:00:00.000Z",
    "two periods": "daily/coder@2026-11-21T00:00:00Z@2026-11-21T00:00:00Z",
    "the moment that stands for none": "daily/coder@1970-01-01T00:00:00Z",
}


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        parse_name(name)
