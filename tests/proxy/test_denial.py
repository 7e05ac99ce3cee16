"""What a refused agent sees, in every form, for every reason."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.budget import UNITS, Left
from policies.reasons import REASONS
from proxy.budget_header import BUDGETS_MAX
from proxy.denial import BAD_REQUEST, LAST_RESORT, Denial, Rendered, connect_phrase, deny, render

DECISION = "9f2c" * 8
REFUSALS = [code for code, reason in REASONS.items() if reason.status >= 400]
FORMS = {
    "problem": {"accept": "*/*", "content_type": ""},
    "page": {"accept": "text/html", "content_type": ""},
    "grpc": {"accept": "", "content_type": "application/grpc+proto"},
}


def fields(rendered: Rendered) -> dict[str, str]:
    names = [name.decode().lower() for name, _ in rendered.headers]
    assert len(names) == len(set(names))
    return {name.decode().lower(): value.decode() for name, value in rendered.headers}


def show(denial: Denial, form: str = "problem", method: str = "GET") -> Rendered:
    return render(denial, method=method, http2=False, **FORMS[form])


def test_a_problem_has_exactly_the_members_of_the_specification() -> None:
    denial = deny("denied-by-rule", decision_id=DECISION, agent="coder", rule="no-deletes")
    rendered = show(denial)
    assert rendered.status == 403
    assert json.loads(rendered.body) == {
        "type": "urn:tollkeeper:reason:denied-by-rule",
        "title": "A rule denies this request",
        "status": 403,
        "detail": "A rule denies this request: do not retry; the operator has denied this"
        " explicitly.",
        "reason": "denied-by-rule",
        "decision": DECISION,
        "agent": "coder",
        "rule": "no-deletes",
        "retryable": False,
        "guidance": "do not retry",
    }
    assert fields(rendered) == {
        "content-type": "application/problem+json",
        "proxy-status": 'tollkeeper; error=http_request_denied; details="denied-by-rule"',
        "cache-control": "no-store",
        "content-length": str(len(rendered.body)),
        "connection": "close",
    }


def test_members_that_do_not_apply_are_absent() -> None:
    body = json.loads(show(deny("credential-missing", decision_id=DECISION)).body)
    assert "agent" not in body
    assert "rule" not in body


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", REFUSALS)
def test_every_reason_has_a_whole_answer_in_every_form(code: str, form: str) -> None:
    rendered = show(deny(code, decision_id=DECISION, agent="coder", rule="r"), form)
    assert rendered.status == REASONS[code].status
    assert 400 <= rendered.status <= 599
    found = fields(rendered)
    assert found["connection"] == "close"
    assert found["cache-control"] == "no-store"
    assert int(found["content-length"]) == len(rendered.body)
    assert re.fullmatch(
        rf'tollkeeper; error=[a-z_]+; details="{code}"', found["proxy-status"]
    )  # RFC 9209
    assert ("error=http_request_denied" in found["proxy-status"]) == (rendered.status < 500)
    assert ("proxy-authenticate" in found) == (rendered.status == 407)
    assert ("retry-after" in found) == (rendered.status == 429)
    rendered.encode().decode("ascii")


LEAKS = re.compile(
    rb"\d+\.\d+|mitmproxy|python|Traceback|/usr|://(?!AGENT:TOKEN@HOST:PORT)|File \"", re.IGNORECASE
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", [*REASONS, "no-such-reason"])
def test_no_answer_names_a_version_an_address_a_url_or_a_trace(code: str, form: str) -> None:
    wire = show(deny(code, decision_id=DECISION, agent="coder"), form).encode()
    assert not LEAKS.search(wire.replace(b"HTTP/1.1", b""))


LEFT = (
    Left("daily", "requests", 0, 1000, 1_795_305_600_000),
    Left("daily", "bytes_out", 4999, 50_000_000, 1_795_305_600_000),
    Left("life", "steps", 12, 400, 0),
)
MIDNIGHT_MS = 1_795_305_600_000


def test_a_used_up_budget_says_what_is_left_and_when_it_opens_again() -> None:
    denial = deny(
        "budget-exhausted",
        decision_id=DECISION,
        agent="coder",
        remaining=LEFT,
        reopens_ms=MIDNIGHT_MS,
    )
    rendered = show(denial)
    assert rendered.status == 403
    assert rendered.body == (
        b'{"type":"urn:tollkeeper:reason:budget-exhausted",'
        b'"title":"The budget of this agent is used up","status":403,"detail":"The budget of this'
        b' agent is used up: %b","reason":"budget-exhausted","decision":"%b",'
        b'"agent":"coder","retryable":false,"guidance":"the budget opens again at'
        b' 2026-11-22T00:00:00Z; do not retry before","remaining":{"daily":{"requests":0,'
        b'"bytes_out":4999},"life":{"steps":12}}}\n'
    ) % (
        (advice := REASONS["budget-exhausted"].advice)[:1].lower().encode() + advice[1:].encode(),
        DECISION.encode(),
    )
    assert "retry-after" not in fields(rendered)  # the moment is in the guidance; nobody polls


NEVER = {"no window": None, "0": 0, "in the past of time": -5, "beyond the year 9999": 2**60}


@pytest.mark.parametrize("reopens_ms", NEVER.values(), ids=NEVER)
def test_a_budget_that_never_opens_again_needs_the_operator(reopens_ms: int | None) -> None:
    denial = deny(
        "budget-exhausted", decision_id=DECISION, remaining=LEFT[2:], reopens_ms=reopens_ms
    )
    assert denial.guidance == "do not retry; the operator has to raise the budget"
    assert not denial.retryable


def test_page_and_grpc_message_tell_the_same() -> None:
    denial = deny("budget-exhausted", decision_id=DECISION, remaining=LEFT, reopens_ms=MIDNIGHT_MS)
    page = show(denial, "page").body.decode()
    assert "<dt>remaining</dt><dd>daily: 0 requests, 4999 bytes_out; life: 12 steps</dd>" in page
    assert "opens again at 2026-11-22T00:00:00Z; do not retry before</dd>" in page
    message = fields(show(denial, "grpc"))["grpc-message"]
    assert message.endswith(
        " The budget opens again at 2026-11-22T00:00:00Z; do not retry before. (budget-exhausted)"
    )


@pytest.mark.parametrize("code", [code for code in REFUSALS if code != "budget-exhausted"])
def test_no_other_reason_speaks_of_budgets(code: str) -> None:
    denial = deny(code, decision_id=DECISION, remaining=LEFT, reopens_ms=MIDNIGHT_MS)
    assert denial == deny(code, decision_id=DECISION)
    assert "remaining" not in json.loads(show(denial).body)


def test_what_is_left_is_bounded_and_names_only_ids() -> None:
    many = [Left(f"budget-{number:056}", unit, 2**53, 2**53, 0)
            for number in range(100) for unit in UNITS]  # fmt: skip
    odd = [Left(name, "steps", 1, 2, 0) for name in ("a b", "<b>", "é", "", "x" * 65)]
    denial = deny("budget-exhausted", decision_id=DECISION, remaining=(*odd, *many))
    rendered = show(denial)
    assert len(rendered.body) < 5000
    told = json.loads(rendered.body)["remaining"]
    assert len(told) == BUDGETS_MAX
    assert all(name.startswith("budget-") for name in told)
    assert len(show(denial, "page").body) < 5000


def test_nothing_left_to_tell_is_no_member() -> None:
    body = json.loads(show(deny("budget-exhausted", decision_id=DECISION)).body)
    assert "remaining" not in body


@given(reason=st.text(max_size=30), ids=st.lists(st.text(max_size=40), min_size=3, max_size=3),
       wait=st.none() | st.integers(), left=st.lists(st.builds(Left, st.text(max_size=9),
       st.text(max_size=9) | st.sampled_from(UNITS), st.integers(), st.integers(), st.integers())),
       accept=st.text(max_size=60),
       content_type=st.text(max_size=30), method=st.text(max_size=10))  # fmt: skip
@example("budget-exhausted", ["d", "a", ""], 2**70, [*LEFT], "text/html", "", "GET")
@example("budget-exhausted", ["d", "a", ""], 2**47, [*LEFT], "", "application/grpc", "GET")
@settings(max_examples=200, deadline=None)
def test_a19_whatever_is_denied_the_answer_is_a_refusal(
    reason: str,
    ids: list[str],
    wait: int | None,
    left: list[Left],
    accept: str,
    content_type: str,
    method: str,
) -> None:
    decision_id, agent, rule = ids
    denial = deny(
        reason,
        decision_id=decision_id,
        agent=agent,
        rule=rule,
        retry_after_ms=wait,
        remaining=tuple(left),
        reopens_ms=wait,
    )
    rendered = render(denial, accept=accept, content_type=content_type, method=method)
    assert rendered.status == REASONS.get(reason, REASONS["internal-error"]).status
    head, _, body = rendered.encode().partition(b"\r\n\r\n")
    assert body == rendered.body
    assert all(32 <= byte < 127 for line in head.split(b"\r\n") for byte in line)


@pytest.mark.parametrize("reason", ["allowed", "no-such-reason", "", "a\r\nb"])
def test_what_is_no_refusal_becomes_an_internal_error(reason: str) -> None:
    denial = deny(reason, decision_id=DECISION)
    assert (denial.status, denial.reason) == (403, "internal-error")


@pytest.mark.parametrize("odd", ["a\r\nSet-Cookie: x", "<script>", "a b", "é", "x" * 65, ""])
def test_ids_that_are_no_ids_are_left_out(odd: str) -> None:
    body = json.loads(show(deny("no-rule-matched", decision_id=odd, agent=odd, rule=odd)).body)
    assert body["decision"] == ""
    assert not {"agent", "rule"} & body.keys()


WAITS = {
    "rounded up": (1001, "2"),
    "whole seconds": (3000, "3"),
    "less than a second": (1, "1"),
    "unknown": (None, "1"),
    "in the past": (-5, "1"),
}


@pytest.mark.parametrize(("wait_ms", "expected"), WAITS.values(), ids=WAITS)
def test_retry_after_is_in_seconds(wait_ms: int | None, expected: str) -> None:
    denial = deny("rate-limited", decision_id=DECISION, retry_after_ms=wait_ms)
    assert fields(show(denial))["retry-after"] == expected
    assert denial.guidance == f"retry after {expected} s"
    assert denial.retryable


def test_a_wait_is_told_only_with_429() -> None:
    denial = deny("no-rule-matched", decision_id=DECISION, retry_after_ms=5000)
    assert denial.retry_after_ms is None
    assert "retry-after" not in fields(show(denial))


def test_407_offers_basic_and_nothing_else() -> None:
    found = fields(show(deny("credential-wrong", decision_id=DECISION)))
    assert found["proxy-authenticate"] == 'Basic realm="tollkeeper"'


ACCEPTS = {
    "text/html": True,
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": True,
    "text/html, */*": True,
    "TEXT/HTML": False,  # no client spells it so; JSON is never wrong
    "*/*": False,
    "": False,
    "application/json": False,
    "application/json, text/html": False,
    "application/json;q=0.5, text/html": True,
    "text/html;q=0.5, application/problem+json": False,
    "text/html;q=0.5, */*": False,
    "text/html;q=0": False,
    "text/html;q=nan, */*;q=0.1": False,
    "text/html;level=1;q=0.9, */*;q=0.8": True,
    "text/html" + "," * 2000: False,
}


@pytest.mark.parametrize(("accept", "page"), ACCEPTS.items(), ids=[a[:40] for a in ACCEPTS])
def test_a_page_is_for_clients_that_prefer_html(accept: str, page: bool) -> None:
    denial = deny("no-rule-matched", decision_id=DECISION, agent="coder")
    rendered = render(denial, accept=accept, content_type="", method="GET")
    assert fields(rendered)["content-type"].startswith("text/html") is page


def test_the_page_is_short_inert_and_says_what_the_problem_says() -> None:
    rendered = show(deny("no-rule-matched", decision_id=DECISION, agent="coder"), "page")
    text = rendered.body.decode()
    assert len(text) < 1000
    assert "script" not in text
    for part in ("403", "No rule allows this request", DECISION, "coder", "no-rule-matched"):
        assert part in text
    assert fields(rendered)["content-security-policy"] == "default-src 'none'"


GRPC = {
    "no-rule-matched": (403, "7"),
    "malformed": (400, "7"),
    "credential-wrong": (407, "16"),
    "rate-limited": (429, "8"),
    "dns-failed": (502, "14"),
    "upstream-timeout": (504, "14"),
}


@pytest.mark.parametrize(("code", "expected"), GRPC.items(), ids=GRPC)
def test_grpc_callers_get_trailers_only(code: str, expected: tuple[int, str]) -> None:
    rendered = show(deny(code, decision_id=DECISION), "grpc")
    found = fields(rendered)
    assert (rendered.status, found["grpc-status"]) == expected
    assert found["content-type"] == "application/grpc"
    assert code in found["grpc-message"]
    assert rendered.body == b""


def test_a_head_request_gets_the_length_and_no_body() -> None:
    denial = deny("no-rule-matched", decision_id=DECISION)
    head, get = show(denial, method="HEAD"), show(denial)
    assert head.headers == get.headers
    assert head.body == b""


def test_a_denied_connect_carries_the_code_in_the_reason_phrase() -> None:
    denial = deny("host-not-allowed", decision_id=DECISION)
    assert connect_phrase(denial) == b"Forbidden: host-not-allowed"
    wire = show(denial, method="CONNECT").encode()
    assert wire.startswith(b"HTTP/1.1 403 Forbidden: host-not-allowed\r\n")


def test_http2_has_no_connection_field_and_lower_case_names() -> None:
    denial = deny("no-rule-matched", decision_id=DECISION)
    rendered = render(denial, accept="", content_type="", method="GET", http2=True)
    names = [name for name, _ in rendered.headers]
    assert b"connection" not in [name.lower() for name in names]
    assert names == [name.lower() for name in names]


@pytest.mark.parametrize(("wire", "status"), [(LAST_RESORT, 403), (BAD_REQUEST, 400)])
def test_the_constants_are_whole_responses(wire: bytes, status: int) -> None:
    head, _, body = wire.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("ascii").split("\r\n")
    assert status_line.startswith(f"HTTP/1.1 {status} ")
    found = dict(line.split(": ", 1) for line in lines)
    assert int(found["Content-Length"]) == len(body)
    assert found["Connection"] == "close"
    assert json.loads(body)["status"] == status
