"""One exchange, state by state: what every event does there."""

from dataclasses import replace
from typing import Any

import pytest

from policies.budget import Amount
from policies.canonical import RawHead, format_head
from policies.model import ContractBroken, Verdict
from policies.policy_set import PolicySet
from proxy.exchange import Exchange, State, digest_head, ticket_digest
from proxy.vocabulary import (
    Close,
    DecisionRecord,
    Deny,
    Effect,
    Event,
    Failed,
    Forward,
    LedgerAnswered,
    OutcomeRecord,
    RecordStored,
    Release,
    RequestSent,
    Reserve,
    ReserveMore,
    Resolve,
    Resolved,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
    SliceAnswered,
    SliceRecord,
    SliceStored,
    SliceWanted,
    Stage,
    StoreRecord,
    Target,
)
from tests.kit.enforcement import NOW, POLICY, Message, compiled
from tests.kit.exchanges import (
    DAY,
    HOLD,
    LIFE,
    POLICIES,
    PUBLIC,
    SHORT,
    connect_head,
    head,
    read,
    slice_of,
)

SAME, CLOSED = POLICIES["same"], POLICIES["closed"]
KEEPING = compiled(POLICY + "quarantine: { keep_rules: [read] }\n")
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
    "SliceWanted": SliceWanted("bytes_in", 1),
    "SliceAnswered": SliceAnswered("bytes_in", slice_of("bytes_in", 9)),
    "SliceAnswered, no": SliceAnswered("bytes_in", refusal="budget-exhausted"),
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
    (State.FORWARDED, "SliceWanted"): (State.FORWARDED, ["ReserveMore"]),
    (State.FORWARDED, "SliceAnswered"): (State.FORWARDED, ["slice record"]),
    (State.FORWARDED, "SliceAnswered, no"): (State.FORWARDED, []),
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
        case StoreRecord(SliceRecord()):
            return "slice record"
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
    "a budget is used up": (
        (head(), Resolved(PUBLIC, NOW), LedgerAnswered("budget-exhausted", shortfall=SHORT)),
        "budget-exhausted",
    ),
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
    "a quarantine": (RecordStored(SAME, NOW, quarantined=True), "quarantined"),
    "a quarantine that keeps its rule": (RecordStored(KEEPING, NOW, quarantined=True), ""),
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
    silent, _ = play(connect_head("x.test"), stage=Stage.CONNECT, policy=OBSERVING)
    assert silent.state is State.RECORDING_DENY, "nobody said that it observes"


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


def test_what_is_cut_did_not_leave_and_is_not_counted_as_sent() -> None:
    exchange, _ = play(*SMALL, RequestSent(40, body=False), RequestSent(6), RequestSent(5))
    assert exchange.bytes_out == 46


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


def decided(effects: list[Effect]) -> DecisionRecord:
    """The decision that is to be recorded."""
    (effect,) = [one for one in effects if isinstance(one, StoreRecord)]
    assert isinstance(effect.record, DecisionRecord)
    return effect.record


def test_the_record_of_an_allow_holds_all_that_was_judged() -> None:
    asked = head()
    exchange, effects = play(asked, Resolved(PUBLIC, NOW), LedgerAnswered())
    assert exchange.decision is not None
    assert exchange.decision.rules == ("read",)
    assert decided(effects) == DecisionRecord(
        asked.target, asked.principal, asked.request, exchange.decision, PUBLIC, ""
    )
    (forward,) = exchange.handle(RecordStored(SAME, NOW))
    assert isinstance(forward, Forward)
    assert forward.decision is exchange.decision
    assert forward.ticket is not None
    assert forward.ticket.decision_id == exchange.id


def test_the_record_of_a_denial_holds_what_was_known_by_then() -> None:
    refused = head(refusal="malformed")
    record = decided(play(refused)[1])
    assert (record.target, record.principal) == (refused.target, refused.principal)
    assert (record.request, record.addresses, record.detail) == (None, (), "why")
    assert record.decision.policy_digest == SAME.digest
    asked = head(Message("/nope"))
    record = decided(play(asked, Resolved(PUBLIC, NOW))[1])
    assert (record.request, record.addresses) == (asked.request, PUBLIC)
    assert record.decision.rules == ()


def test_a_failure_is_recorded_with_the_first_detail_that_says_something() -> None:
    at_once = decided(play(Failed("internal-error"))[1])
    assert (at_once.target, at_once.detail) == (Target(""), "")
    spoken = Failed("internal-error", "the disk is on fire")
    assert decided(play(head(), spoken)[1]).detail == "the disk is on fire"
    told = replace(head(), detail="odd")
    assert decided(play(told, Failed("internal-error"))[1]).detail == "odd"
    assert decided(play(told, spoken)[1]).detail == "the disk is on fire"


def test_a_denial_of_what_rules_allowed_still_names_them() -> None:
    limited = decided(play(LARGE, Resolved(PUBLIC, NOW))[1]).decision
    assert limited.rules == ("small",)
    rated = decided(play(*WAYS[State.RESERVING], LedgerAnswered("rate-limited", 5))[1]).decision
    assert (rated.rules, rated.retry_after_ms) == (("read",), 5)
    failed = decided([*play(*WAYS[State.RESERVING], Failed("ledger-unavailable"))[1]]).decision
    assert (failed.rules, failed.reason) == (("read",), "ledger-unavailable")


def test_what_the_resolver_and_the_ledger_are_asked_is_the_request() -> None:
    asked = head()
    (resolve,) = play(asked)[1]
    assert resolve == Resolve("api.test", 443)
    exchange, (reserve,) = play(asked, Resolved(PUBLIC, NOW))
    assert isinstance(reserve, Reserve)
    assert (reserve.decision, reserve.request) == (exchange.decision, asked.request)


STRIPPING = compiled(
    POLICY.replace(
        'id: read, verdict: allow, match: { host: api.test, methods: [GET, POST], path: "/ok/**" }',
        'id: read, verdict: allow, match: { host: api.test, path: "/ok/*" },'
        " with: { path_params: strip }",
    )
)


def test_stripped_parameters_are_neither_reserved_for_nor_sent() -> None:
    exchange, (reserve,) = play(head(Message("/ok/1;v=2")), Resolved(PUBLIC, NOW), policy=STRIPPING)
    assert isinstance(reserve, Reserve)
    assert reserve.request == read(Message("/ok/1"))
    exchange.handle(LedgerAnswered())
    (forward,) = exchange.handle(RecordStored(STRIPPING, NOW))
    assert isinstance(forward, Forward)
    assert forward.request == read(Message("/ok/1"))
    assert forward.ticket is not None
    assert forward.ticket.digest == ticket_digest(read(Message("/ok/1")))


def test_limits_are_kept_to_the_byte() -> None:
    fits = head(Message("/small", "POST", fields=((b"Content-Length", b"10"),)))
    exchange, effects = play(fits, Resolved(PUBLIC, NOW), LedgerAnswered())
    assert decided(effects).decision.verdict is Verdict.ALLOW
    exchange.handle(RecordStored(SAME, NOW))
    assert exchange.handle(RequestSent(10)) == []
    assert exchange.handle(ResponseHead(200, 50, 10)) == []
    assert exchange.handle(ResponseReceived(10)) == []
    assert exchange.bytes_in == 60
    cut = exchange.handle(ResponseReceived(1))
    assert cut == [
        Release(settle=True),
        StoreRecord(OutcomeRecord(200, 10, 61, "response-too-large", "")),
        Close("response-too-large"),
    ]


def test_a_limit_of_nothing_is_a_limit_and_no_body_keeps_it() -> None:
    nothing = compiled(POLICY.replace("10B", "0B"))
    bare = head(Message("/small"))
    exchange, effects = play(bare, Resolved(PUBLIC, NOW), LedgerAnswered(), policy=nothing)
    assert decided(effects).decision.verdict is Verdict.ALLOW
    exchange.handle(RecordStored(nothing, NOW))
    assert exchange.handle(ResponseHead(204, 50, None)) == []
    assert list(map(name, exchange.handle(ResponseReceived(1)))) == ["settle", "outcome", "Close"]
    one = head(Message("/small", "POST", fields=((b"Content-Length", b"1"),)))
    assert reason(play(one, Resolved(PUBLIC, NOW), policy=nothing)[1]) == "request-too-large"


def test_an_outcome_counts_heads_and_bodies_of_both_directions() -> None:
    _, effects = play(
        *WAYS[State.FORWARDED],
        RequestSent(100, body=False),
        RequestSent(20),
        ResponseHead(204, 80, None),
        ResponseReceived(6),
        ResponseReceived(7),
        ResponseEnd(),
    )
    assert effects == [Release(settle=True), StoreRecord(OutcomeRecord(204, 120, 93, "", ""))]


def test_a_failure_under_way_is_told_by_the_outcome() -> None:
    exchange, _ = play(*WAYS[State.FORWARDED], RequestSent(9), ResponseHead(200, 5, None))
    assert exchange.handle(Failed("upstream-failed")) == [
        Release(settle=True),
        StoreRecord(OutcomeRecord(200, 9, 5, "", "upstream-failed")),
        Close("upstream-failed"),
    ]


def test_a_record_that_may_still_come_gets_an_outcome_and_another_does_not() -> None:
    late = Failed("deadline-exceeded", queued=True)
    _, effects = play(*WAYS[State.RECORDING_ALLOW], late)
    assert effects[1] == StoreRecord(OutcomeRecord(403, 0, 0, "", "deadline-exceeded"))
    assert reason(effects[2:]) == "deadline-exceeded"
    denied = WAYS[State.RECORDING_DENY]
    assert reason(play(*denied, late)[1]) == "no-rule-matched", "what its record says"
    assert reason(play(*denied, replace(late, queued=False))[1]) == "deadline-exceeded"


def test_a_refusal_cites_the_policy_that_was_asked() -> None:
    _, effects = play(*WAYS[State.RECORDING_ALLOW], RecordStored(CLOSED, NOW))
    deny = effects[-1]
    assert isinstance(deny, Deny)
    assert deny.decision.verdict is Verdict.DENY
    assert deny.decision.policy_digest == SAME.digest
    assert deny.decision.rules == ()


@pytest.mark.parametrize("stage", list(Stage), ids=lambda stage: stage.value)
def test_observing_goes_on_under_the_next_policy_that_observes(stage: Stage) -> None:
    again = compiled(POLICY.replace("explain_denials: false", "mode: observe"))
    first: tuple[Event, ...] = (connect_head("x.test"),)
    if stage is Stage.REQUEST:
        first = (head(Message(host="x.test")), Resolved(PUBLIC, NOW), LedgerAnswered())
    exchange, effects = play(*first, stage=stage, policy=OBSERVING, observe=True)
    assert decided(effects).decision.reason == "observed"
    (forward,) = exchange.handle(RecordStored(again, NOW))
    assert isinstance(forward, Forward)


PLAIN = compiled(
    POLICY.partition("rules:")[0]
    + "rules: [{ id: r, verdict: allow, match: { host: api.test, scheme: http, port: 443 } }]"
)


def test_stage_1_knows_the_scheme_of_a_request_and_not_that_of_a_tunnel() -> None:
    assert reason(play(head(), policy=PLAIN)[1]) == "host-not-allowed"
    _, effects = play(connect_head(), stage=Stage.CONNECT, policy=PLAIN)
    assert decided(effects).decision.verdict is Verdict.ALLOW


def test_a_tunnel_is_over_for_the_exchange_once_it_is_open() -> None:
    exchange, (forward,) = play(connect_head(), RecordStored(SAME, NOW), stage=Stage.CONNECT)
    assert isinstance(forward, Forward)
    assert (forward.request, forward.ticket) == (None, None)
    assert exchange.state is State.DONE


def test_a_ticket_digest_is_that_of_the_head_that_is_sent() -> None:
    request = read(Message())
    assert ticket_digest(request) == digest_head("https", "api.test", 443, format_head(request))


@pytest.mark.parametrize("lost", ["request", "principal"])
def test_nothing_is_judged_once_its_subject_is_lost(lost: str) -> None:
    exchange, _ = play(head())
    setattr(exchange, lost, None)
    with pytest.raises(ContractBroken, match="no request to judge"):
        exchange.handle(Resolved(PUBLIC, NOW))


def test_a_request_without_one_is_a_broken_contract() -> None:
    with pytest.raises(ContractBroken, match="without a canonical request"):
        play(replace(head(), request=None))


# --- budgets


HELD = (head(), Resolved(PUBLIC, NOW), LedgerAnswered(hold=HOLD, now_ms=77))


def test_what_is_held_stands_in_the_record_of_the_decision() -> None:
    record = decided(play(*HELD)[1])
    assert (record.reserve, record.reserved_ms) == (HOLD.amounts, 77)


def test_a_denial_holds_nothing_and_tells_which_account_is_short() -> None:
    used_up = LedgerAnswered("budget-exhausted", shortfall=SHORT)
    exchange, effects = play(*HELD[:2], used_up)
    record = decided(effects)
    assert (record.reserve, record.detail) == ((), "life/local bytes_in: 1 > 0")
    (deny,) = exchange.handle(RecordStored(SAME, NOW))
    assert isinstance(deny, Deny)
    assert deny.shortfall is SHORT


def test_a_quarantined_agent_is_judged_by_what_is_kept() -> None:
    quarantined = replace(head(), quarantined=True)
    assert reason(play(quarantined)[1]) == "quarantined"
    _, effects = play(quarantined, *HELD[1:], policy=KEEPING)
    assert decided(effects).decision.verdict is Verdict.ALLOW


def test_an_end_books_what_was_spent_on_every_account_that_held() -> None:
    exchange, _ = play(*HELD, RecordStored(SAME, NOW), RequestSent(40), ResponseHead(200, 9, None))
    assert exchange.find_shortage(ResponseReceived(92)) == SliceWanted("bytes_in", 1)
    assert exchange.anticipate("bytes_in") is not None
    release, outcome = exchange.handle(ResponseEnd())
    spent = (
        Amount(DAY, "bytes_in", 9), Amount(DAY, "bytes_out", 40), Amount(DAY, "requests", 1),
        Amount(LIFE, "bytes_in", 9), Amount(LIFE, "risk", 3),
    )  # fmt: skip
    assert release == Release(settle=True, spent=spent)
    assert outcome == StoreRecord(OutcomeRecord(200, 40, 9, "", "", spent))
    assert exchange.find_shortage(ResponseReceived(92)) is None, "it is over"
    assert exchange.anticipate("bytes_in") is None


def test_a_slice_is_recorded_as_it_was_held_and_used_once_that_is_durable() -> None:
    exchange, _ = play(*HELD, RecordStored(SAME, NOW), RequestSent(40))
    assert exchange.handle(SliceWanted("bytes_in", 50)) == [
        ReserveMore(SliceWanted("bytes_in", 50))
    ]
    more = slice_of("bytes_in", 50)
    (store,) = exchange.handle(SliceAnswered("bytes_in", more, now_ms=78))
    assert store == StoreRecord(SliceRecord(more.amounts, 78))
    assert exchange.find_shortage(ResponseReceived(150)) == SliceWanted("bytes_in", 50)
    exchange.handle(SliceStored("bytes_in"))
    assert exchange.find_shortage(ResponseReceived(150)) is None
    assert exchange.handle(ResponseReceived(150)) == []
    cut = exchange.handle(ResponseReceived(1))
    assert list(map(name, cut)) == ["settle", "outcome", "Close"]
    assert cut[-1] == Close("budget-exhausted")
    assert exchange.bytes_in == 150
