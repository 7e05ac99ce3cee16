"""One record, one line for people."""

import pytest

from audit.summary import summarise, tell_amounts, tell_limits, tell_spent
from tests.kit.chains import (
    CLOSED,
    Event,
    amounts,
    decision,
    moved,
    outcome,
    raised,
    reserved,
    snapshot,
)

REF = f"{1:032x}"
LINES: dict[str, tuple[Event, str]] = {
    "a decision": (
        decision(1),
        "allow allowed local GET https://api.github.com:443/repos/a/b/issues read-github " + REF,
    ),
    "a CONNECT of nobody": (
        {
            **{name: value for name, value in decision(1, "deny").items() if name != "agent"},
            "target": {"method": "CONNECT", "host": "a.b", "port": 443},
            "policy": {"digest": "", "rules": [], "serial": 1},
        },
        "deny denied-by-rule - CONNECT a.b:443 " + REF,
    ),
    "an outcome": (
        outcome(1, settle=amounts(("a/b", "requests", 1), ("c/b", "requests", 1))),
        (
            f"outcome ref={REF} status=200 bytes_in=512 bytes_out=128 ms=12"
            " settle=a/b requests=1, c/b requests=1"
        ),
    ),
    "an outcome of nothing": (
        outcome(1),
        f"outcome ref={REF} status=200 bytes_in=512 bytes_out=128 ms=12",
    ),
    "a slice": (
        reserved(1, ("daily/local", "bytes_in", 4), ("daily/local", "bytes_out", 5)),
        f"reserve daily/local bytes_in=4 bytes_out=5 ref={REF}",
    ),
    "a state a decision led to": (
        moved("active", "warned", session="s1", ref=REF, cause="budget daily/local requests 80%"),
        f"state local (s1) active -> warned: budget daily/local requests 80% ref={REF}",
    ),
    "a state somebody chose": (
        moved("warned", "halted", by="operator"),
        "state local warned -> halted: enough by=operator",
    ),
    "a raise": (raised(1, 2), "budget.raise daily/local requests 1 -> 2 by=operator"),
    "a limit that is gone": (
        raised(1, None),
        "budget.raise daily/local requests 1 -> no limit by=operator",
    ),
    "a snapshot": (
        snapshot(),
        (
            "ledger.snapshot opened daily/local@2026-01-31T00:00:00Z spent requests=7"
            " of requests=100 bytes_out=4096 (file: none) window_ms=86400000"
        ),
    ),
    "a snapshot of little": (
        snapshot(limits=[], spent=[], window_ms=0, account="a/b", cause="changed"),
        "ledger.snapshot changed a/b spent nothing of nothing",
    ),
    "a kind without a form of its own": (
        {"kind": "dropped", "n": 2, "reason": "audit-disk-full"},
        "dropped n=2 reason=audit-disk-full",
    ),
    "a head is left out": ({"kind": "malformed", "head": "GET", "why": "w"}, "malformed why=w"),
    "a kind without fields": (CLOSED, "log.close"),
}


@pytest.mark.parametrize(("event", "line"), LINES.values(), ids=LINES)
def test_a_record_is_one_line(event: Event, line: str) -> None:
    assert summarise(event) == line


def test_amounts_are_told_by_account() -> None:
    assert tell_amounts([]) == tell_spent([]) == tell_limits([]) == ""
    assert tell_amounts(amounts(("a/b", "x", 1), ("a/b", "y", 2), ("c/b", "x", 3))) == (
        "a/b x=1 y=2, c/b x=3"
    )


def test_a_limit_says_what_the_file_says_where_that_differs() -> None:
    limits = [
        {"unit": "a", "limit": 1, "filed": 1},
        {"unit": "b", "limit": 1, "filed": 2},
        {"unit": "c", "limit": 1},
    ]
    assert tell_limits(limits) == "a=1 b=1 (file: 2) c=1 (file: none)"
