"""The denial: everything an agent may learn when the answer is no, and nothing else.

    reason code + ids  --deny-->  Denial  --render-->  status, header fields, body
                                             \\-- fails? -->  LAST_RESORT, a constant

Rule 1: the only inputs are a code of policies/reasons.py, ids, a time, and what the agent's own
        budgets have left: ids, units and numbers. No host, address, path, exception or version can
        be named here, because none can get in.
Rule 2: no denial is a 2xx. A code that is unknown, or that is no refusal, becomes `internal-error`.
Rule 3: `LAST_RESORT` and `BAD_REQUEST` are built at import: where they are needed, formatting has
        just failed (threats A19).

Problem details: RFC 9457. Proxy-Status: RFC 9209. gRPC: its HTTP/2 protocol, "Trailers-Only".
"""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from policies.budget import Left, format_moment
from policies.reasons import REASONS
from proxy.budget_header import gather

TYPE_PREFIX = "urn:tollkeeper:reason:"

# RFC 9209 section 2.3; whatever is not the origin's fault is a request that was denied
_PROXY_ERRORS = {
    "dns-failed": "dns_error",
    "upstream-unreachable": "destination_unavailable",
    "upstream-timeout": "http_response_timeout",
    "upstream-tls-failed": "tls_certificate_error",
    "upstream-protocol": "http_protocol_error",
    "upgrade-unapproved": "http_upgrade_failed",
}
# gRPC status codes: unauthenticated, resource exhausted, unavailable; permission denied otherwise
_GRPC_STATUSES = {407: 16, 429: 8, 502: 14, 504: 14}
_GRPC_DENIED = 7

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")  # as in policies.yaml
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_ACCEPT_CHARS_MAX = 1024  # browsers send 150; past this nobody is reading a page
_EXHAUSTED = "budget-exhausted"
_MOMENT_MAX_MS = 253_402_300_799_000  # the last second of the year 9999: RFC 3339 ends there


@dataclass(frozen=True, slots=True)
class Denial:
    """One refusal, before anyone knows which form the client wants it in."""

    status: int  # HTTP status; never 2xx
    reason: str  # code of policies/reasons.py
    title: str  # the same for every occurrence of the reason
    detail: str  # one sentence that a person or a model can act on
    decision_id: str  # of the record, for the operator
    agent: str | None  # whom the caller was identified as
    rule: str | None  # the rule of this agent that decided, where one did
    retryable: bool  # the same request may pass later
    guidance: str  # what to do, and when
    retry_after_ms: int | None = None
    remaining: Mapping[str, Mapping[str, int]] | None = None  # of the agent's budgets, by unit


@dataclass(frozen=True, slots=True)
class Rendered:
    """A denial as an HTTP response."""

    status: int
    reason_phrase: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def encode(self) -> bytes:
        """The whole response as HTTP/1.1 bytes."""
        status_line = b"HTTP/1.1 %d %b\r\n" % (self.status, self.reason_phrase)
        fields = b"".join(b"%b: %b\r\n" % field for field in self.headers)
        return status_line + fields + b"\r\n" + self.body


def deny(
    reason: str,
    *,
    decision_id: str,
    agent: str | None = None,
    rule: str | None = None,
    retry_after_ms: int | None = None,
    remaining: tuple[Left, ...] = (),
    reopens_ms: int | None = None,
) -> Denial:
    """The denial for one reason code. Total: every input gives one, whatever went wrong before.

    `rule` and `remaining` must be those of `agent` itself: an agent never learns another one's.
    Ids that do not look like ids are left out. `retry_after_ms` counts from now and only with
    status 429. `remaining` and `reopens_ms` (since 1970; when the exhausted account's next period
    begins, None or 0: never) only count with `budget-exhausted`.
    """
    known = REASONS.get(reason)
    if known is None or not 400 <= known.status <= 599:
        known = REASONS["internal-error"]
    wait_ms = (
        max(retry_after_ms or 1000, 1) if known.status == HTTPStatus.TOO_MANY_REQUESTS else None
    )
    return Denial(
        status=known.status,
        reason=known.code,
        title=known.title,
        detail=f"{known.title}: {known.advice[:1].lower()}{known.advice[1:]}",
        decision_id=_checked(decision_id) or "",
        agent=_checked(agent),
        rule=_checked(rule),
        retryable=known.retryable,
        guidance=_guide_budget(reopens_ms)
        if known.code == _EXHAUSTED
        else _guide(known.status, known.retryable, wait_ms),
        retry_after_ms=wait_ms,
        remaining=_tell(remaining) if known.code == _EXHAUSTED else None,
    )


def render(
    denial: Denial, *, accept: str, content_type: str, method: str, http2: bool = False
) -> Rendered:
    """The denial in the form that the client reads: problem details, a short page, or gRPC.

    `accept` and `content_type` are the request's fields, "" where absent. HTTP/2 has no Connection
    field and no reason phrase; its field names are lower-case.
    """
    if content_type.lower().startswith("application/grpc"):
        form, body = _grpc_fields(denial), b""
    elif _prefers_html(accept):
        form, body = _HTML_FIELDS, _page(denial)
    else:
        form, body = _PROBLEM_FIELDS, _problem(denial)
    fields = [*form, *_common_fields(denial), (b"Content-Length", b"%d" % len(body))]
    if http2:
        fields = [(name.lower(), value) for name, value in fields]
    else:
        fields.append((b"Connection", b"close"))
    phrase = connect_phrase(denial) if method == "CONNECT" else _phrase(denial.status)
    return Rendered(denial.status, phrase, tuple(fields), b"" if method == "HEAD" else body)


def connect_phrase(denial: Denial) -> bytes:
    """The reason phrase of a denied CONNECT: some clients print it, and none prints the body."""
    return b"%b: %b" % (_phrase(denial.status), denial.reason.encode("ascii"))


def _guide(status: int, retryable: bool, wait_ms: int | None) -> str:
    if wait_ms is not None:
        return f"retry after {_seconds(wait_ms)} s"
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "retry with valid credentials"
    return "retry later, with growing pauses" if retryable else "do not retry"


def _guide_budget(reopens_ms: int | None) -> str:
    if reopens_ms is None or not 0 < reopens_ms <= _MOMENT_MAX_MS:
        return "do not retry; the operator has to raise the budget"
    return f"the budget opens again at {format_moment(reopens_ms)}; do not retry before"


def _tell(left: tuple[Left, ...]) -> Mapping[str, Mapping[str, int]] | None:
    return gather(one for one in left if _ID.fullmatch(one.budget)) or None


def _checked(text: str | None) -> str | None:
    """An id that is an id, or None."""
    return text if text and _ID.fullmatch(text) else None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)  # rounded up: a client that comes back early is refused again


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")


def _common_fields(denial: Denial) -> list[tuple[bytes, bytes]]:
    error = _PROXY_ERRORS.get(denial.reason, "http_request_denied")
    proxy_status = f'tollkeeper; error={error}; details="{denial.reason}"'
    fields = [(b"Proxy-Status", proxy_status.encode("ascii")), (b"Cache-Control", b"no-store")]
    if denial.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        fields.append((b"Proxy-Authenticate", b'Basic realm="tollkeeper"'))
    if denial.retry_after_ms is not None:
        fields.append((b"Retry-After", b"%d" % _seconds(denial.retry_after_ms)))
    return fields


_PROBLEM_FIELDS = ((b"Content-Type", b"application/problem+json"),)
_HTML_FIELDS = (
    (b"Content-Type", b"text/html; charset=utf-8"),
    (b"Content-Security-Policy", b"default-src 'none'"),
    (b"X-Content-Type-Options", b"nosniff"),
)


def _grpc_fields(denial: Denial) -> tuple[tuple[bytes, bytes], ...]:
    # the one guidance that says more than the detail does
    more = f" {_capital(denial.guidance)}." if denial.reason == _EXHAUSTED else ""
    message = f"{denial.detail}{more} ({denial.reason})".replace("%", "%25")
    return (
        (b"Content-Type", b"application/grpc"),
        (b"Grpc-Status", b"%d" % _GRPC_STATUSES.get(denial.status, _GRPC_DENIED)),
        (b"Grpc-Message", message.encode("ascii")),
    )


def _problem(denial: Denial) -> bytes:
    members = {
        "type": TYPE_PREFIX + denial.reason,
        "title": denial.title,
        "status": denial.status,
        "detail": denial.detail,
        "reason": denial.reason,
        "decision": denial.decision_id,
        "agent": denial.agent,
        "rule": denial.rule,
        "retryable": denial.retryable,
        "guidance": denial.guidance,
        "remaining": denial.remaining,
    }
    present = {name: value for name, value in members.items() if value is not None}
    return json.dumps(present, separators=(",", ":")).encode("ascii") + b"\n"


def _page(denial: Denial) -> bytes:
    title, detail = html.escape(denial.title), html.escape(denial.detail)
    rows = {"reason": denial.reason, "decision": denial.decision_id, "guidance": denial.guidance}
    rows |= {name: value for name in ("agent", "rule") if (value := getattr(denial, name))}
    if denial.remaining:
        rows["remaining"] = "; ".join(
            f"{budget}: " + ", ".join(f"{amount} {unit}" for unit, amount in units.items())
            for budget, units in denial.remaining.items()
        )
    table = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items())
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{denial.status} {title}</h1><p>{detail}</p><dl>{table}</dl></html>\n"
    )
    return text.encode("ascii")


def _prefers_html(accept: str) -> bool:
    """A page only where HTML is asked for by name, and wanted more than JSON (RFC 9110, 12.5.1)."""
    if "text/html" not in accept or len(accept) > _ACCEPT_CHARS_MAX:
        return False
    wanted = {"text/html": 0.0, "json": 0.0, "*/*": 0.0}
    for entry in accept.lower().split(","):
        media, *parameters = (part.strip() for part in entry.split(";"))
        kind = "json" if media.endswith(("/json", "+json")) else media
        if kind in wanted:
            wanted[kind] = max(wanted[kind], _quality(parameters))
    return wanted["text/html"] > wanted["json"] and wanted["text/html"] >= wanted["*/*"]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            weight = _QUALITY.fullmatch(parameter)
            return float(weight[1]) if weight else 0.0
    return 1.0


def _constant(reason: str) -> bytes:
    denial = deny(reason, decision_id="")
    return render(denial, accept="", content_type="", method="GET").encode()


LAST_RESORT = _constant("internal-error")  # a whole HTTP/1.1 403 for when rendering fails
BAD_REQUEST = _constant("malformed")  # a whole HTTP/1.1 400 for bytes that are no message
OVERLOADED = _constant("overloaded")  # a whole HTTP/1.1 403 for a connection too many
