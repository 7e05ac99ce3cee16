"""What an event shows: every one has the form that a verifier asks for, and no agent's value."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.record import LINE_BYTES_MAX, encode, settle
from policies.budget import Amount
from policies.canonical import RawHead
from policies.model import Decision, Obligations, Principal, Read, Request, Verdict, Would
from proxy.call import Call, Tunnel, describe_target
from proxy.recording import (
    describe_amounts,
    describe_decision,
    describe_malformed,
    describe_outcome,
    format_time,
)
from proxy.vocabulary import DecisionRecord, OutcomeRecord, Stage, Target
from tests.kit.enforcement import Message
from tests.kit.exchanges import PUBLIC, read

DIGEST = "ab" * 32
DENIED = Decision(Verdict.DENY, "no-rule-matched", (), DIGEST)
ALLOWED = Decision(
    Verdict.ALLOW,
    "allowed",
    ("read",),
    DIGEST,
    Would(Verdict.DENY, ("shadow",)),
    read=(Read("match.host", "true"),),
)
TARGET = Target("GET", "api.test", 443, "https", "/a/b/c", ("q",), "api.test", "text/plain")
LOCAL = Principal("local", "s-1", "127.0.0.1")


def describe(decision: Decision = ALLOWED, target: Target = TARGET, **fields: Any) -> Any:
    known: dict[str, Any] = {
        "principal": LOCAL,
        "request": read(Message()),
        "addresses": PUBLIC,
        "detail": "",
    }
    record = DecisionRecord(target, decision=decision, **(known | fields))
    return describe_decision("0" * 32, "request", record, client="127.0.0.1", serial=7)


def test_a_decision_tells_who_what_where_and_why() -> None:
    assert describe() == {
        "kind": "decision",
        "id": "0" * 32,
        "agent": {"id": "local", "session": "s-1"},
        "client": "127.0.0.1",
        "stage": "request",
        "target": {
            "method": "GET",
            "host": "api.test",
            "port": 443,
            "scheme": "https",
            "sni": "api.test",
            "path": "/a/b/c",
            "ip": "93.184.216.34",
            "query_keys": ["q"],
        },
        "req": {"type": "text/plain"},
        "policy": {"digest": DIGEST, "serial": 7, "rules": ["read"]},
        "verdict": "allow",
        "reason": "allowed",
        "would": {"verdict": "deny", "rules": ["shadow"]},
        "read": [{"field": "match.host", "outcome": "true"}],
        "reserve": [],
        "redacted": [],
    }


def test_what_is_not_known_is_left_out() -> None:
    event = describe(DENIED, Target(""), principal=None, request=None, addresses=())
    assert event["target"] == {}
    assert event["req"] == {}
    assert {"agent", "would", "findings"}.isdisjoint(event)
    assert settle(event)


def test_what_is_held_is_told_with_the_ledgers_time_and_without_it_there_is_none() -> None:
    held = (Amount("life/local", "bytes_in", 262_144), Amount("life/local", "wall_time", 0))
    event = describe(reserve=held, reserved_ms=1_795_262_400_250)
    assert event["reserve"] == [
        {"account": "life/local", "amount": 262_144, "unit": "bytes_in"},
        {"account": "life/local", "amount": 0, "unit": "wall_time"},
    ]
    assert event["time"] == "2026-11-21T12:00:00.250000Z"
    assert settle(event)
    assert "time" not in describe()


def test_an_outcome_tells_what_is_booked() -> None:
    spent = (Amount("life/local", "requests", 1),)
    event = describe_outcome("0" * 32, OutcomeRecord(200, 1, 2, "", "", spent), 3)
    assert event["settle"] == describe_amounts(spent)
    assert settle(event)


def test_a_time_is_told_to_the_millisecond() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000000Z"
    assert format_time(1) == "1970-01-01T00:00:00.001000Z"


def test_a_body_is_told_by_its_length() -> None:
    request = replace(read(Message()), body=True, body_length=12)
    assert describe(request=request)["req"]["length"] == 12


def test_every_address_that_was_vetted_is_told() -> None:
    both = (*PUBLIC, ip_address("2606:4700::1111"))
    assert describe(addresses=both)["target"]["ip"] == "93.184.216.34,2606:4700::1111"


REDACTIONS: dict[str, tuple[str, tuple[int, ...], str, list[str]]] = {
    "one segment": ("/a/b/c", (2,), "/a/~/c", ["/target/path/2"]),
    "two segments": ("/a/b/c", (3, 1), "/~/b/~", ["/target/path/1", "/target/path/3"]),
    "none": ("/a/b", (), "/a/b", []),
    "more than there are": ("/a", (2, 9), "/a", []),
    "the root": ("/", (1,), "/~", ["/target/path/1"]),
    "not before the first": ("/a/b", (0,), "/a/b", []),
}


@pytest.mark.parametrize(
    ("path", "segments", "shown", "named"), REDACTIONS.values(), ids=REDACTIONS
)
def test_a_path_is_redacted_and_says_so(
    path: str, segments: tuple[int, ...], shown: str, named: list[str]
) -> None:
    decision = replace(ALLOWED, obligations=Obligations(redact_path=segments))
    event = describe(decision, replace(TARGET, path=path))
    assert (event["target"]["path"], event["redacted"]) == (shown, named)
    assert settle(event)


OUTCOMES: dict[str, tuple[OutcomeRecord, dict[str, object]]] = {
    "complete": (OutcomeRecord(200, 5, 7, "", ""), {"status": 200}),
    "never answered": (
        OutcomeRecord(None, 5, 0, "", "upstream-timeout"),
        {"status": 0, "error": "upstream-timeout"},
    ),
    "cut": (
        OutcomeRecord(200, 5, 7, "response-too-large", ""),
        {"status": 200, "cut": "response-too-large"},
    ),
}


@pytest.mark.parametrize(("record", "expected"), OUTCOMES.values(), ids=OUTCOMES)
def test_an_outcome_tells_how_it_ended(record: OutcomeRecord, expected: dict[str, object]) -> None:
    event = describe_outcome("0" * 32, record, 12)
    counts = {"bytes_out": record.bytes_out, "bytes_in": record.bytes_in, "ms": 12}
    assert event == {
        "kind": "outcome", "ref": "0" * 32, "settle": [], **counts, **expected
    }  # fmt: skip
    assert settle(event)


text = st.text(st.characters(codec="utf-8"), max_size=300) | st.sampled_from(
    ["\x00", "\r\nX: 1", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "é" * 5000]
)
wire = st.binary(max_size=400)


@settings(max_examples=100)
@given(text, text, text, st.lists(text, max_size=3), text, st.integers(0, 65535))
def test_whatever_was_asked_for_the_record_has_its_form(
    method: str, host: str, path: str, keys: list[str], detail: str, port: int
) -> None:
    """B5, I9: no byte of an agent's makes a record invalid, unbounded or missing."""
    target = Target(method, host, port, "https", path, tuple(keys), host, detail)
    line = settle(describe(DENIED, target, detail=detail))
    assert line.isascii()
    assert len(line) < LINE_BYTES_MAX
    assert b"\n" not in line


@settings(max_examples=100)
@given(wire, wire, st.sampled_from(list(Stage)), st.booleans())
def test_whatever_came_off_the_wire_the_record_has_its_form(
    method: bytes, target: bytes, stage: Stage, tunnelled: bool
) -> None:
    tunnel = Tunnel("api.test", 443, None) if tunnelled else None
    call = Call(stage, "127.0.0.1", RawHead(method, target, ()), tunnel=tunnel)
    line = settle(describe(DENIED, describe_target(call), principal=None, request=None))
    assert line.isascii()
    assert len(line) < LINE_BYTES_MAX


@settings(max_examples=100)
@given(wire)
def test_whatever_could_not_be_parsed_has_its_record(seen: bytes) -> None:
    event = describe_malformed("127.0.0.1", "no head", seen)
    assert settle(event).isascii()
    assert event["bytes"] == len(seen)
    assert len(str(event.get("head", ""))) <= 256


def test_a_huge_record_is_bounded_and_says_what_was_cut() -> None:
    target = replace(TARGET, path="/" + "a" * 100_000, query_keys=tuple(["k" * 4000] * 50))
    line = settle(describe(DENIED, target))
    assert len(line) < LINE_BYTES_MAX
    assert b"cut:" in line


def test_an_ordinary_record_needs_no_mending() -> None:
    """The quick road: what the writer tries first gives the same bytes."""
    assert encode(describe()) == settle(describe())


SECRET = "c2VjcmV0"
SEEN: dict[str, tuple[bytes, str | None]] = {
    "a credential below the first line": (
        f"GET /x HTTP/1.1\r\nProxy-Authorization: Basic {SECRET}\r\n".encode(),
        "GET /x HTTP/1.1",
    ),
    "a credential as the first line": (
        f"Proxy-Authorization: Basic {SECRET}\r\n".encode(),
        "Proxy-Authorization:",
    ),
    "a query": (f"GET /x?token={SECRET} HTTP/1.1\r\n".encode(), "GET /x"),
    "user information": (
        f"GET http://me:{SECRET}@h/x HTTP/1.1\r\n".encode(),
        "GET ~@h/x HTTP/1.1",
    ),
    "user information in CONNECT": (
        f"CONNECT me:{SECRET}@h:443 HTTP/1.1\r\n".encode(),
        "CONNECT ~@h:443 HTTP/1.1",
    ),
    "another protocol": (b"SSH-2.0-probe\r\n", "SSH-2.0-probe"),
    "empty lines first": (b"\r\n\r\nGET /x\n", "GET /x"),
    "an at sign in a path": (b"GET /@scope/pkg HTTP/1.1\r\n", "GET /@scope/pkg HTTP/1.1"),
    "nothing": (b"", None),
}


@pytest.mark.parametrize(("seen", "shown"), SEEN.values(), ids=SEEN)
def test_a_malformed_message_shows_no_secret(seen: bytes, shown: str | None) -> None:
    event = describe_malformed("127.0.0.1", "no head", seen)
    assert event.get("head") == shown
    assert SECRET not in str(event)


def test_a_request_is_described_by_names_only() -> None:
    request: Request = read(Message("/ok/1?token=" + SECRET, fields=((b"x-key", SECRET.encode()),)))
    assert SECRET not in str(describe(request=request))
