"""Exchange and decision -> audit event: the one place where the decision room and the evidence room
meet. PURE.

Records take names, never values (audit.md section 7): no header value, no query value, no body, no
credential.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from policies.budget import Amount
from policies.model import Principal
from proxy.call import hide_userinfo
from proxy.vocabulary import (
    DecisionRecord,
    OutcomeRecord,
)

AuditEvent = Mapping[str, object]


class Recorder(Protocol):
    """What is needed of audit.writer.Writer."""

    async def store(self, event: AuditEvent) -> object:
        """Durable when it returns."""

    def submit(self, event: AuditEvent) -> None:
        """Queued; durable in order."""

    @property
    def failure(self) -> str | None:
        """Why nothing can be recorded; None: it can."""


REDACTED = "~"  # stands for a path segment that the rule hides; never a canonical segment by itself
_PATH_CHARS_MAX = 4096
_SEEN_BYTES_MAX = 256  # of the first line of a message that could not be parsed
_FIELD = re.compile(r"\A([!-9;-~]+:).*", re.DOTALL)  # a field where a first line should be


def describe_decision(
    decision_id: str, stage: str, record: DecisionRecord, *, client: str, serial: int
) -> AuditEvent:
    """The write-ahead `decision` event of audit.md section 1."""
    decision = record.decision
    path, redacted = _redact(record.target.path, decision.obligations.redact_path)
    event: dict[str, object] = {
        "kind": "decision",
        "id": decision_id,
        "client": client,
        "stage": stage,
        "target": _describe_target(record, path),
        "req": _describe_request(record),
        "policy": {
            "digest": decision.policy_digest,
            "serial": serial,
            "rules": list(decision.rules),
        },
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "read": [{"field": read.field, "outcome": read.outcome} for read in decision.read],
        "reserve": describe_amounts(record.reserve),
        "redacted": redacted,
    }
    if record.reserve:
        event["time"] = format_time(record.reserved_ms)
    if record.principal is not None:
        event["agent"] = describe_agent(record.principal)
    if decision.would is not None:
        event["would"] = {
            "verdict": decision.would.verdict.value,
            "rules": list(decision.would.rules),
        }
    if record.detail:
        event["findings"] = [record.detail[:512]]
    return event


def describe_outcome(decision_id: str, record: OutcomeRecord, elapsed_ms: int) -> AuditEvent:
    """The `outcome` event of audit.md section 1. Status 0: the upstream never answered."""
    event: dict[str, object] = {
        "kind": "outcome",
        "ref": decision_id,
        "status": record.status or 0,
        "bytes_out": record.bytes_out,
        "bytes_in": record.bytes_in,
        "ms": elapsed_ms,
        "settle": describe_amounts(record.settle),
    }
    if record.cut:
        event["cut"] = record.cut
    if record.error:
        event["error"] = record.error
    return event


def describe_malformed(client: str, why: str, seen: bytes) -> AuditEvent:
    """The `malformed` event: of what was seen, only the first line, and no value in it.

    Query, user information and field values are left out: there a credential may stand, also in a
    message that nobody could parse (L6).
    """
    event: dict[str, object] = {
        "kind": "malformed",
        "client": client,
        "why": why,
        "bytes": len(seen),
    }
    line = seen.lstrip(b"\r\n").partition(b"\n")[0][:_SEEN_BYTES_MAX].decode("latin-1").rstrip("\r")
    shown = _FIELD.sub(r"\1", hide_userinfo(line.partition("?")[0]))
    if shown:
        event["head"] = shown
    return event


def describe_amounts(amounts: tuple[Amount, ...]) -> list[Mapping[str, object]]:
    """What is held or booked, account by account, in the order given (sorted)."""
    return [
        {"account": account, "amount": amount, "unit": unit} for account, unit, amount in amounts
    ]


def format_time(moment_ms: int) -> str:
    """Milliseconds since 1970 as records write a time: `2026-11-21T12:00:00.000000Z`."""
    moment = datetime.fromtimestamp(moment_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment_ms % 1000:03}000Z"


def describe_agent(principal: Principal) -> AuditEvent:
    """Who was charged; a source-identified agent has no session."""
    agent: dict[str, object] = {"id": principal.agent}
    if principal.session:
        agent["session"] = principal.session
    return agent


def _describe_target(record: DecisionRecord, path: str) -> AuditEvent:
    target = record.target
    fields: dict[str, object] = {
        "method": target.method,
        "host": target.host,
        "scheme": target.scheme,
        "sni": target.sni,
        "path": path,
        "ip": ",".join(str(address) for address in record.addresses),
    }
    event = {name: value for name, value in fields.items() if value}
    if target.port:
        event["port"] = target.port
    if target.query_keys:
        event["query_keys"] = list(target.query_keys)
    return event


def _describe_request(record: DecisionRecord) -> AuditEvent:
    event: dict[str, object] = {}
    request = record.request
    if request is not None and request.body and request.body_length is not None:
        event["length"] = request.body_length
    if record.target.content_type:
        event["type"] = record.target.content_type[:256]
    return event


def _redact(path: str, segments: tuple[int, ...]) -> tuple[str, list[str]]:
    """Replace the named segments (from 1); each removal is listed."""
    path = path[:_PATH_CHARS_MAX]
    if not segments:
        return path, []
    parts = path.split("/")
    removed = [number for number in segments if 1 <= number < len(parts)]
    for number in removed:
        parts[number] = REDACTED
    return "/".join(parts), [f"/target/path/{number}" for number in sorted(removed)]
