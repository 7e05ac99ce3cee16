"""One record as one line that a person can scan; everything is in `audit show`. PURE.

    allow allowed local GET https://api.example.com:443/ read 1f0c…
    state local active -> halted: budget daily/local requests 100% by -

Rule 1: a line names who, what and how much, in this order; amounts as `account unit=amount`.
Rule 2: a kind without a form of its own is its fields, in the order they are recorded.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

type Event = Mapping[str, Any]


def summarise(event: Event) -> str:
    """The line of an event in form. It may hold what a terminal must not be shown as it is."""
    kind = str(event.get("kind", ""))
    if kind == "decision":
        return _join(*_tell_decision(event))
    form = _FORMS.get(kind)
    if form is not None:
        return _join(kind, *form(event))
    return _join(kind, *_tell_fields(event))


def tell_amounts(amounts: Iterable[Event]) -> str:
    """Amounts by account: `daily/a requests=1 bytes_out=512, life/a requests=1`."""
    accounts = groupby(amounts, key=lambda one: str(one["account"]))
    return ", ".join(_join(account, *map(_tell_amount, of)) for account, of in accounts)


def tell_limits(limits: Iterable[Event]) -> str:
    """Limits of one account: `requests=100 bytes_out=4096 (file: 8192)`."""
    return _join(*map(_tell_limit, limits))


def tell_spent(spent: Iterable[Event]) -> str:
    """What was spent of one account: `requests=7 bytes_out=512`."""
    return _join(*map(_tell_amount, spent))


def _tell_amount(one: Event) -> str:
    return f"{one['unit']}={one['amount']}"


def _tell_limit(one: Event) -> str:
    filed = one.get("filed")
    aside = "" if filed == one["limit"] else f" (file: {'none' if filed is None else filed})"
    return f"{one['unit']}={one['limit']}{aside}"


def _tell_decision(event: Event) -> Iterable[str]:
    target, agent = event["target"], event.get("agent", {})
    scheme = f"{target['scheme']}://" if "scheme" in target else ""  # a CONNECT has none
    port = f":{target['port']}" if "port" in target else ""
    place = f"{target.get('method', '')} {scheme}{target.get('host', '')}{port}"
    return (
        event["verdict"],
        event["reason"],
        agent.get("id", "-"),
        place + target.get("path", ""),
        ",".join(event["policy"]["rules"]),
        event["id"],
    )


def _tell_reserve(event: Event) -> Iterable[str]:
    return tell_amounts(event["reserve"]), f"ref={event['ref']}"


def _tell_state(event: Event) -> Iterable[str]:
    session = f"({event['session']})" if "session" in event else ""
    yield from (event["agent"], session, f"{event['from']} -> {event['to']}: {event['cause']}")
    yield from (f"{name}={event[name]}" for name in ("by", "ref") if name in event)


def _tell_raise(event: Event) -> Iterable[str]:
    to = event.get("to", "no limit")
    return event["account"], event["unit"], f"{event['from']} -> {to}", f"by={event['by']}"


def _tell_snapshot(event: Event) -> Iterable[str]:
    window = f"window_ms={event['window_ms']}" if event["window_ms"] else ""
    spent = tell_spent(event["spent"]) or "nothing"
    limits = tell_limits(event["limits"]) or "nothing"
    return event["cause"], event["account"], f"spent {spent} of {limits}", window


def _tell_fields(event: Event) -> Iterable[str]:
    for name, value in event.items():
        if name == "settle" and value:
            yield f"settle={tell_amounts(value)}"
        elif name not in {"kind", "head", "settle"}:
            yield f"{name}={value}"


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


_FORMS = {
    "budget.raise": _tell_raise,
    "ledger.snapshot": _tell_snapshot,
    "reserve": _tell_reserve,
    "state": _tell_state,
}
