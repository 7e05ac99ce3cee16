"""Logs made by hand: the record format a second time, from docs/records.md alone.

Nothing here calls the product to seal a record, so a mistake of the product cannot hide here.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

LOG = "0123456789abcdef0123456789abcdef"
POLICY = "aa" * 32
GENESIS = "0" * 64

type Event = dict[str, Any]
type Head = Callable[[int, str], str]


def at(second: int) -> str:
    """A time of day of a fixed day."""
    return f"2026-01-31T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.000000Z"


def spell(event: Event) -> bytes:
    """Canonical JSON for what the profile allows."""
    text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def seal(event: bytes, seq: int, prev: str, ts: str, *, log: str = LOG, v: int | str = 1) -> bytes:
    """One line with LF, whatever the bytes of the event are."""
    chain = f'{{"log":"{log}","prev":"{prev}","seq":{seq},"ts":"{ts}","v":{v}}}'
    return seal_raw(b'{"chain":' + chain.encode() + b',"event":' + event)


def seal_raw(body: bytes) -> bytes:
    """Any body with its true hash behind it."""
    digest = sha256(body + b"}").hexdigest()
    return body + f',"hash":"{digest}"}}\n'.encode()


def hash_of(line: bytes) -> str:
    """The hash field of a line with LF."""
    return line[-67:-3].decode()


def chain(events: Iterable[Event | bytes], *, log: str = LOG, step_s: int = 1) -> list[bytes]:
    """Sealed lines, one second apart."""
    lines: list[bytes] = []
    prev = GENESIS
    for seq, event in enumerate(events):
        data = event if isinstance(event, bytes) else spell(event)
        lines.append(seal(data, seq, prev, at(seq * step_s), log=log))
        prev = hash_of(lines[-1])
    return lines


def opened(after: str = "clean", **other: Any) -> Event:
    """The start of a run."""
    return {
        "kind": "log.open",
        "after": after,
        "boot_id": "b",
        "format": 2,
        "heartbeat_ms": 60_000,
        "software": "kit/1",
        **other,
    }


def loaded(digest: str = POLICY) -> Event:
    """A policy that came into force."""
    return {"kind": "policy.load", "digest": digest, "mode": "enforce", "serial": 1}


def decision(number: int = 1, verdict: str = "allow", **other: Any) -> Event:
    """A decision with every field that must be there, and the usual others."""
    return {
        "kind": "decision",
        "id": f"{number:032x}",
        "agent": {"id": "local", "session": "s1"},
        "client": "127.0.0.1",
        "stage": "request",
        "target": {
            "scheme": "https",
            "host": "api.github.com",
            "port": 443,
            "ip": "140.82.121.6",
            "sni": "api.github.com",
            "method": "GET",
            "path": "/repos/a/b/issues",
            "query_keys": ["page"],
        },
        "req": {},
        "policy": {"digest": POLICY, "serial": 1, "rules": ["read-github"]},
        "verdict": verdict,
        "reason": "allowed" if verdict == "allow" else "denied-by-rule",
        "read": [{"field": "match.path", "outcome": "true"}],
        "reserve": [],
        "redacted": [],
        **other,
    }


def outcome(number: int = 1, **other: Any) -> Event:
    """What became of an allowed request."""
    return {
        "kind": "outcome",
        "ref": f"{number:032x}",
        "status": 200,
        "bytes_in": 512,
        "bytes_out": 128,
        "ms": 12,
        "settle": [],
        **other,
    }


def amounts(*triples: tuple[str, str, int]) -> list[Event]:
    """Amounts of (account, unit, amount), in the order given."""
    return [{"account": on, "amount": much, "unit": unit} for on, unit, much in triples]


def reserved(number: int = 1, *held: tuple[str, str, int], **other: Any) -> Event:
    """A further slice for an allowed request; without `held`, 4 of one unit."""
    slices = amounts(*(held or (("daily/local", "bytes_in", 4),)))
    return {"kind": "reserve", "ref": f"{number:032x}", "reserve": slices, **other}


def moved(before: str, after: str, **other: Any) -> Event:
    """An agent's state that moved."""
    event = {"kind": "state", "agent": "local", "cause": "enough", "from": before, "to": after}
    return {**event, **other}


def raised(before: int, after: int | None, **other: Any) -> Event:
    """A limit that an operator raised; `after` None: there is none any more."""
    event = {"kind": "budget.raise", "account": "daily/local", "unit": "requests", "from": before}
    to = {} if after is None else {"to": after}
    return {**event, **to, "by": "operator", **other}


def snapshot(**other: Any) -> Event:
    """An account as it stands."""
    return {
        "kind": "ledger.snapshot",
        "account": "daily/local@2026-01-31T00:00:00Z",
        "at": [{"do": "warn", "reached": 80}],
        "cause": "opened",
        "limits": [
            {"filed": 100, "limit": 100, "unit": "requests"},
            {"limit": 4096, "unit": "bytes_out"},
        ],
        "spent": [{"amount": 7, "unit": "requests"}],
        "window_ms": 86_400_000,
        **other,
    }


CLOSED: Event = {"kind": "log.close"}
HEARTBEAT: Event = {"kind": "heartbeat"}


def run(*events: Event | bytes) -> list[Event | bytes]:
    """A whole run around some events."""
    return [opened(), loaded(), *events, CLOSED]


def everyday() -> list[bytes]:
    """A closed log of seven records: an allowed request, a denied one, a heartbeat."""
    return chain(run(decision(1), outcome(1), decision(2, "deny"), HEARTBEAT))


def put(folder: Path, lines: Sequence[bytes] | bytes, *, log: str = LOG) -> Path:
    """Write a log folder; returns its segment."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{log}-{0:020d}.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else b"".join(lines))
    return path
