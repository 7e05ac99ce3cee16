"""One exchange, state by state: what every event does there."""

from dataclasses import replace
from typing import Any

import pytest

from policies.canonical import RawHead
from policies.model import ContractBroken, Verdict
from policies.policy_set import PolicySet
from proxy.exchange import Exchange, State, digest_head, ticket_digest
from proxy.vocabulary import (
    DecisionRecord,
    Deny,
    Effect,
    Event,
    Failed,
    Forward,
    LedgerAnswered,
    OutcomeRecord,
    RecordStored,
    RequestSent,
    Resolved,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
    Stage,
    StoreRecord,
)
from tests.kit.enforcement import NOW, POLICY, Message, compiled
from tests.kit.exchanges import POLICIES, PUBLIC, connect_head, head, read

SAME, CLOSED = POLICIES["same"], POLICIES["closed"]
OBSERVING = compiled(POLICY.replace("explain_denials: false", "mode: observe"))

EVENTS: dict[str, Event] = {
    "Head": head(),
    "Resolved": Resolved(PUBLIC, NOW),
    "LedgerAnswered": LedgerAnswered(),
    "RecordStored": RecordStored(SAME, NOW),
    "RequestSent": RequestSent(100, body=False),
    "ResponseHead": ResponseHead(200, 60, None),
    "ResponseReceived": ResponseReceived(10),
    "ResponseEnd": ResponseEnd(),
    "Failed": Failed("internal-error"),
    "Failed, queued": Failed("deadline-exceeded", queued=True),
}
WAYS: dict[State, tuple[Event, ...]] = {  # how each state is reached
    State.NEW: (),
    State.RESOLVING: (head(),),
    State.RESERVING: (head(), Resolved(PUBLIC, NOW)),
    State.RECORDING_ALLOW: (head(), Resolved(PUBLIC, NOW), LedgerAnswered()),
    State.RECORDING_DENY: (head(Message("/nope")), Resolved(PUBLIC, NOW)),
    State.FORWARDED: (
        head(),
        Resolved(PUBLIC, NOW),
        LedgerAnswered(),
        RecordStored(SAME, NOW),
    ),
    State.DONE: (head(refusal="malformed"), RecordStored(SAME, NOW)),
}
# what is not named is a broken contract; in DONE nothing happens any more
TABLE: dict[tuple[State, str], tuple[State, list[str]]] = {
    (State.NEW, "Head"): (State.RESOLVING, ["Resolve"]),
    (State.NEW, "Failed"): (State.RECORDING_DENY, ["deny record"]),
    (State.NEW, "Failed, queued"): (State.RECORDING_DENY, ["deny record"]),
    (State.RESOLVING, "Resolved"): (State.RESERVING, ["Reserve"]),
    (State.RESOLVING, "Failed"): (State.RECORDING_DENY, ["deny record"]),
    (State.RESOLVING, "Failed, queued"): (State.RECORDING_DENY, ["deny record"]),
    (State.RESERVING, "LedgerAnswered"): (State.RECORDING_ALLOW, ["allow record"]),
    (State.RESERVING, "Failed"): (State.RECORDING_DENY, ["void", "deny record"]),
    (State.RESERVING, "Failed, queued"): (State.RECORDING_DENY, ["void", "deny record"]),
    (State.RECORDING_ALLOW, "RecordStored"): (State.FORWARDED, ["Forward"]),
    (State.RECORDING_ALLOW, "Failed"): (State.DONE, ["void", "Deny"]),
    (State.RECORDING_ALLOW, "Failed, queued"): (State.DONE, ["void", "outcome", "Deny"]),
    (State.RECORDING_DENY, "RecordStored"): (State.DONE, ["Deny"]),
    (State.RECORDING_DENY, "Failed"): (State.DONE, ["Deny"]),
    (State.RECORDING_DENY, "Failed, queued"): (State.DONE, ["Deny"]),
    (State.FORWARDED, "RequestSent"): (State.FORWARDED, []),
    (State.FORWARDED, "ResponseHead"): (State.FORWARDED, []),
    (State.FORWARDED, "ResponseReceived"): (State.FORWARDED, []),
    (State.FORWARDED, "ResponseEnd"): (State.DONE, ["settle", "outcome"]),
    (State.FORWARDED, "Failed"): (State.DONE, ["void", "outcome", "Close"]),
    (State.FORWARDED, "Failed, queued"): (State.DONE, ["void", "outcome", "Close"]),
}


def name(effect: Effect) -> str:
    match effect:
        case StoreRecord(DecisionRecord() as record):
            return f"{record.decision.verdict} record"
        case StoreRecord(OutcomeRecord()):
            return "outcome"
    settles = getattr(effect, "settle", None)
    return type(effect).__name__ if settles is None else "settle" if settles else "void"


def play(*events: Event, **settings: Any) -> tuple[Exchange, list[Effect]]:
    """Feed events to a new exchange; its state and what the last one asked for."""
    stage = settings.pop("stage", Stage.REQUEST)
    exchange = Exchange("0" * 32, stage, settings.pop("policy", SAME), **settings)
    effects: list[Effect] = []
    for event in events:
        effects = exchange.handle(event)
    return exchange, effects


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
def test_each_event_does_what_the_table_says(state: State, event: str) -> None:
    exchange, _ = play(*WAYS[state])
    assert exchange.state is state
    expected = TABLE.get((state, event))
    if state is State.DONE:
        assert exchange.handle(EVENTS[event]) == []
    elif expected is None:
        with pytest.raises(ContractBroken, match=f"while {state.value}"):
            exchange.handle(EVENTS[event])
        assert exchange.state is state
    else:
        effects = exchange.handle(EVENTS[event])
        assert (exchange.state, list(map(name, effects))) == expected


def reason(effects: list[Effect]) -> str:
    """Of the denial that was recorded or given."""
    for effect in effects:
        if isinstance(effect, StoreRecord) and isinstance(effect.record, DecisionRecord):
            return effect.record.decision.reason
        if isinstance(effect, Deny):
            return effect.reason
    raise AssertionError(effects)


LARGE = head(Message("/small", "POST", fields=((b"Content-Length", b"11"),)))
DENIALS: dict[str, tuple[tuple[Event, ...], str]] = {
    "nobody was identified": ((replace(head(), principal=None),), "credential-missing"),
    "the adapter knew already": ((head(refusal="malformed"),), "malformed"),
    "no rule names the host": ((head(Message(host="x.test")),), "host-not-allowed"),
    "no rule names the path": ((head(Message("/nope")), Resolved(PUBLIC, NOW)), "no-rule-matched"),
    "a rule denies": ((head(Message("/ok/never")), Resolved(PUBLIC, NOW)), "denied-by-rule"),
    "no address": ((head(), Resolved((), NOW)), "dns-failed"),
    "the body is too large": ((LARGE, Resolved(PUBLIC, NOW)), "request-too-large"),
    "the ledger refuses": (
        (head(), Resolved(PUBLIC, NOW), LedgerAnswered("rate-limited", 5)),
        "rate-limited",
    ),
}


@pytest.mark.parametrize(("events", "expected"), DENIALS.values(), ids=DENIALS)
def test_a_denial_is_recorded_and_then_given(events: tuple[Event, ...], expected: str) -> None:
    exchange, effects = play(*events)
    assert exchange.state is State.RECORDING_DENY
    assert reason(effects) == expected
    assert reason(exchange.handle(RecordStored(SAME, NOW))) == expected


def test_a_refusal_of_the_ledger_tells_when_to_come_back() -> None:
    exchange, _ = play(head(), Resolved(PUBLIC, NOW), LedgerAnswered("rate-limited", 1500))
    (effect,) = exchange.handle(RecordStored(SAME, NOW))
    assert isinstance(effect, Deny)
    assert effect.retry_after_ms == 1500


def test_the_ticket_is_for_the_request_that_was_judged() -> None:
    exchange, effects = play(*WAYS[State.FORWARDED])
    (forward,) = effects
    assert isinstance(forward, Forward)
    assert forward.ticket is not None
    assert forward.request == read(Message())
    assert forward.ticket.digest == ticket_digest(read(Message()))
    assert forward.ticket.addresses == PUBLIC
    assert forward.ticket.dial_port == 443
    assert exchange.state is State.FORWARDED


def test_a_pinned_port_is_dialled_and_the_asked_one_is_judged() -> None:
    _, effects = play(
        head(), Resolved(PUBLIC, NOW, 8443), LedgerAnswered(), RecordStored(SAME, NOW)
    )
    (forward,) = effects
    assert isinstance(forward, Forward)
    assert forward.ticket is not None
    assert forward.ticket.dial_port == 8443


RECHECKS: dict[str, tuple[RecordStored, str]] = {
    "the same policy": (RecordStored(SAME, NOW), ""),
    "another policy that allows it": (RecordStored(compiled(), NOW), ""),
    "another policy that does not": (RecordStored(CLOSED, NOW), "policy-changed"),
    "a halt": (RecordStored(SAME, NOW, halted=True), "halted"),
    "an end of observing": (RecordStored(CLOSED, NOW), "policy-changed"),
}


@pytest.mark.parametrize("stage", list(Stage), ids=lambda stage: stage.value)
@pytest.mark.parametrize(("stored", "expected"), RECHECKS.values(), ids=RECHECKS)
def test_what_changed_while_the_record_was_written_stops_the_request(
    stored: RecordStored, expected: str, stage: Stage
) -> None:
    """policy.md 2.1: a recorded allow that is stopped ends in an outcome, nothing settled."""
    before = WAYS[State.RECORDING_ALLOW] if stage is Stage.REQUEST else (connect_head(),)
    exchange, effects = play(*before, stored, stage=stage)
    if not expected:
        assert name(effects[0]) == "Forward"
        return
    assert reason(effects) == expected
    kinds = list(map(name, effects))
    assert kinds == (["void", "outcome", "Deny"] if stage is Stage.REQUEST else ["Deny"])
    assert exchange.state is State.DONE
    if stage is Stage.REQUEST:
        outcome = effects[1]
        assert isinstance(outcome, StoreRecord)
        assert outcome.record == OutcomeRecord(403, 0, 0, "", expected)


def test_observe_mode_lets_an_unknown_host_through_and_says_so() -> None:
    exchange, effects = play(
        connect_head("x.test"), stage=Stage.CONNECT, policy=OBSERVING, observe=True
    )
    assert list(map(name, effects)) == ["allow record"]
    assert exchange.decision is not None
    assert exchange.decision.reason == "observed"
    assert exchange.decision.would is not None
    assert exchange.decision.would.verdict is Verdict.DENY


@pytest.mark.parametrize(
    ("policy", "observe"),
    [(OBSERVING, False), (SAME, True)],
    ids=["the key without the flag", "the flag without the key"],
)
def test_observing_needs_key_and_flag(policy: PolicySet, observe: bool) -> None:
    _, effects = play(connect_head("x.test"), stage=Stage.CONNECT, policy=policy, observe=observe)
    assert reason(effects) == "host-not-allowed"


def test_a_tunnel_opened_by_observing_is_not_opened_once_that_ended() -> None:
    _, effects = play(
        connect_head("x.test"),
        RecordStored(SAME, NOW),
        stage=Stage.CONNECT,
        policy=OBSERVING,
        observe=True,
    )
    assert reason(effects) == "policy-changed"


SMALL = (
    head(Message("/small", "POST", fields=((b"Transfer-Encoding", b"chunked"),))),
    Resolved(PUBLIC, NOW),
    LedgerAnswered(),
    RecordStored(SAME, NOW),
)
CUTS: dict[str, tuple[tuple[Event, ...], str]] = {
    "a request body": ((RequestSent(6), RequestSent(5)), "request-too-large"),
    "a response body": (
        (ResponseHead(200, 50, None), ResponseReceived(6), ResponseReceived(5)),
        "response-too-large",
    ),
    "a response by its head": ((ResponseHead(200, 50, 11),), "response-too-large"),
}


@pytest.mark.parametrize(("events", "expected"), CUTS.values(), ids=CUTS)
def test_a_stream_is_cut_where_it_passes_its_limit(
    events: tuple[Event, ...], expected: str
) -> None:
    exchange, effects = play(*SMALL, *events)
    assert list(map(name, effects)) == ["settle", "outcome", "Close"]
    assert exchange.state is State.DONE
    outcome = effects[1]
    assert isinstance(outcome, StoreRecord)
    assert isinstance(outcome.record, OutcomeRecord)
    assert outcome.record.cut == expected


def test_heads_do_not_count_against_the_limit_of_a_body() -> None:
    exchange, effects = play(*SMALL, RequestSent(500, body=False), RequestSent(10))
    assert effects == []
    assert exchange.bytes_out == 510


def test_a_failure_after_bytes_left_is_settled() -> None:
    _, effects = play(*WAYS[State.FORWARDED], RequestSent(1), Failed("client-gone"))
    assert list(map(name, effects)) == ["settle", "outcome", "Close"]


def test_a_late_denial_still_hides_what_its_rule_hides() -> None:
    _, effects = play(
        head(Message("/u/secret/x")), Resolved(PUBLIC, NOW), LedgerAnswered("rate-limited", 5)
    )
    (effect,) = effects
    assert isinstance(effect, StoreRecord)
    assert isinstance(effect.record, DecisionRecord)
    assert effect.record.decision.obligations.redact_path == (2,)


def test_a_head_has_another_digest_for_everything_that_matters() -> None:
    fields = ((b"host", b"a"), (b"x", b"1"))
    plain = RawHead(b"GET", b"/a", fields)
    others = [
        ("http", "a.test", 443, plain),
        ("https", "b.test", 443, plain),
        ("https", "a.test", 444, plain),
        ("https", "a.test", 443, RawHead(b"PUT", b"/a", fields)),
        ("https", "a.test", 443, RawHead(b"GET", b"/b", fields)),
        ("https", "a.test", 443, RawHead(b"GET", b"/a", fields[:1])),
        ("https", "a.test", 443, RawHead(b"GET", b"/a", fields[::-1])),
        ("https", "a.test", 443, RawHead(b"GET", b"/a", ((b"host", b"a"), (b"x", b"2")))),
    ]
    digests = {digest_head(*parts) for parts in others}
    assert len(digests | {digest_head("https", "a.test", 443, plain)}) == len(others) + 1
