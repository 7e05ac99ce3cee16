"""Budgets -> audit events, and the names in them back again: what proxy/fold.py reads, written.
PURE.

    Account  --describe_snapshot-->  ledger.snapshot{account, cause, limits[], spent[], window_ms}

Rule 1: each event carries `time`, the ledger's clock (docs/budgets.md): the chain's own `ts` is the
        wall clock, which may step.
Rule 2: an account's name is spelled by policies/budget.py and parsed here; a test takes every name
        there and back.

Fields: docs/records.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from policies.budget import Account, Amount, Closed, Contract, State, format_moment

AuditEvent = Mapping[str, object]
Cause = Literal["opened", "closed", "changed"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Named(NamedTuple):
    """What an account's name says."""

    budget: str
    agent: str
    session: str
    from_ms: int  # when the period began; 0 without a window


def describe_time(now_ms: int) -> str:
    """Milliseconds of the ledger's clock as records have times: 2026-01-31T12:00:00.000000Z."""
    moment = (_EPOCH + timedelta(milliseconds=now_ms)).replace(tzinfo=None)
    return moment.isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> int:
    """The other way.

    Raises:
        ValueError: it is no time, or not UTC.
    """
    if not text.endswith("Z"):
        raise ValueError(f"`{text}` is no time in UTC")
    return (datetime.fromisoformat(text) - _EPOCH) // _MS


def parse_name(name: str) -> Named:
    """What `policies.budget.name_period` put together: `budget/agent[/session][@period]`.

    Raises:
        ValueError: it is no account's name.
    """
    base, at, period = name.partition("@")
    budget, agent, session = (*base.split("/"), "")[:3] if base.count("/") in (1, 2) else ("",) * 3
    if not (budget and agent) or base.endswith("/") or bool(at) != bool(period):
        raise ValueError(f"`{name}` is no account")
    from_ms = parse_time(period) if at else 0
    if at and (not from_ms or format_moment(from_ms) != period):
        raise ValueError(f"`{name}` is no account: its period is not in canonical form")
    return Named(budget, agent, session, from_ms)


def describe_amounts(amounts: Iterable[Amount]) -> list[AuditEvent]:
    """What is held or booked, for `reserve` and `settle`; sorted, as records want it."""
    return [
        {"account": account, "amount": amount, "unit": unit}
        for account, unit, amount in sorted(amounts)
    ]


def describe_reserve(decision_id: str, amounts: Iterable[Amount], now_ms: int) -> AuditEvent:
    """The `reserve` event: a further slice of a stream that is under way."""
    return {
        "kind": "reserve",
        "ref": decision_id,
        "reserve": describe_amounts(amounts),
        "time": describe_time(now_ms),
    }


def describe_snapshot(account: Account, cause: Cause, now_ms: int) -> AuditEvent:
    """The `ledger.snapshot` event: an account under its contract, as it stands."""
    return _describe(account.name, account.spent, account.contract, cause, now_ms)


def describe_roll(
    closed: Sequence[Closed], opened: Sequence[Account], now_ms: int
) -> list[AuditEvent]:
    """Two `ledger.snapshot` events for each account that began a period: the old one, the new one.

    The two are what a Hold or a Shortfall has: a closed period for each opened one, in its order.
    """
    events: list[AuditEvent] = []
    for over, account in zip(closed, opened, strict=True):
        events.append(_describe(over.name, over.spent, account.contract, "closed", now_ms))
        events.append(describe_snapshot(account, "opened", now_ms))
    return events


def describe_state(
    agent: str,
    before: State,
    after: State,
    cause: str,
    now_ms: int,
    *,
    session: str = "",
    ref: str = "",
    by: str = "",
) -> AuditEvent:
    """The `state` event: an agent moved right. `ref` is the decision whose settlement did it, `by`
    the person."""
    event = {
        "kind": "state",
        "agent": agent,
        "from": before.word,
        "to": after.word,
        "cause": cause,
        "time": describe_time(now_ms),
    }
    further = {"session": session, "ref": ref, "by": by}
    return event | {name: value for name, value in further.items() if value}


def describe_raise(
    account: Account, unit: str, before: int, after: int | None, *, by: str, now_ms: int
) -> AuditEvent:
    """The `budget.raise` event: one unit, or `window` in ms. `after` None: no limit any more."""
    event: dict[str, object] = {
        "kind": "budget.raise",
        "account": account.base,
        "unit": unit,
        "from": before,
        "by": by,
        "time": describe_time(now_ms),
    }
    return event if after is None else event | {"to": after}


def _describe(
    name: str, spent: Mapping[str, int], contract: Contract, cause: Cause, now_ms: int
) -> AuditEvent:
    limits = [
        {"limit": term.limit, "unit": unit} | ({} if term.filed is None else {"filed": term.filed})
        for unit, term in contract.terms.items()
    ]
    return {
        "kind": "ledger.snapshot",
        "account": name,
        "cause": cause,
        "limits": limits,
        "spent": [{"amount": amount, "unit": unit} for unit, amount in sorted(spent.items())],
        "at": [{"do": one.do, "reached": one.reached_percent} for one in contract.at],
        "window_ms": contract.window_ms,
        "time": describe_time(now_ms),
    }
