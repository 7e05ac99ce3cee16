"""Budgets -> audit events, and the names in them back again: what proxy/fold.py reads, written.
PURE.

    Account  --describe_snapshot-->  ledger.snapshot{account, cause, limits[], spent[], window_ms}

Rule 1: what concerns a period carries `time`, the ledger's clock (docs/budgets.md): the chain's own
        `ts` is the wall clock, which may step.
Rule 2: an account's name is spelled by policies/budget.py and parsed here; a test takes every name
        there and back.

Fields: docs/records.md.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from policies.budget import Account, Amount, State, format_moment
from proxy.recording import AuditEvent, describe_amounts, format_time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Named(NamedTuple):
    """What an account's name says."""

    budget: str
    agent: str
    session: str
    from_ms: int  # when the period began; 0 without a window


def parse_time(text: str) -> int:
    """A record's time in milliseconds since 1970, the other way of `format_time`.

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


def describe_reserve(decision_id: str, amounts: tuple[Amount, ...], now_ms: int) -> AuditEvent:
    """The `reserve` event: a further slice of a stream that is under way."""
    return {
        "kind": "reserve",
        "ref": decision_id,
        "reserve": describe_amounts(amounts),
        "time": format_time(now_ms),
    }


def describe_snapshot(account: Account, cause: str, now_ms: int) -> AuditEvent:
    """The `ledger.snapshot` event: an account under its contract, as it stands.

    `cause`: opened (the account, or its next period), closed (a period), changed (the contract).
    """
    limits = [
        {"limit": term.limit, "unit": unit} | ({} if term.filed is None else {"filed": term.filed})
        for unit, term in account.contract.terms.items()
    ]
    spent = sorted(account.spent.items())
    return {
        "kind": "ledger.snapshot",
        "account": account.name,
        "cause": cause,
        "limits": limits,
        "spent": [{"amount": amount, "unit": unit} for unit, amount in spent],
        "at": [{"do": one.do, "reached": one.reached_percent} for one in account.contract.at],
        "window_ms": account.contract.window_ms,
        "time": format_time(now_ms),
    }


def describe_state(
    agent: str,
    before: State,
    after: State,
    cause: str,
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
    }
    further = {"session": session, "ref": ref, "by": by}
    return event | {name: value for name, value in further.items() if value}


def describe_raise(base: str, unit: str, before: int, after: int | None, by: str) -> AuditEvent:
    """The `budget.raise` event: one unit of an account, by its base name, or `window` in ms.

    `after` None: no limit any more.
    """
    event: dict[str, object] = {
        "kind": "budget.raise",
        "account": base,
        "unit": unit,
        "from": before,
        "by": by,
    }
    return event if after is None else event | {"to": after}
