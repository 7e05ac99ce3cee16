"""Laws L1 to L6 of one exchange, over random orders of events and a failure at every step.

Each law has a companion: an exchange that was broken on purpose, and the check that fires.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budget import Amount
from policies.model import ContractBroken, Decision, Verdict
from proxy.allowance import Passing
from proxy.exchange import _STEPS, Exchange, State
from proxy.vocabulary import (
    Close,
    Deny,
    Effect,
    Event,
    Failed,
    Forward,
    Head,
    LedgerAnswered,
    RecordStored,
    Release,
    RequestSent,
    Reserve,
    Resolved,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
    SliceAnswered,
    SliceStored,
    SliceWanted,
    Stage,
)
from tests.kit.enforcement import NOW, Message
from tests.kit.exchanges import (
    HOLD,
    POLICIES,
    PUBLIC,
    LawBroken,
    Watch,
    answer,
    connect_head,
    head,
    list_events,
    read,
    slice_of,
)

EVENTS = {stage: list_events(stage) for stage in Stage}
SAME = POLICIES["same"]
HAPPY = (
    head(),
    Resolved(PUBLIC, NOW),
    LedgerAnswered(),
    RecordStored(SAME, NOW),
    RequestSent(100, body=False),
    ResponseEnd(),
)


def start(stage: Stage = Stage.REQUEST, kind: type[Exchange] = Exchange) -> Watch:
    return Watch(kind("0" * 32, stage, SAME))


def fits(exchange: Exchange, event: Event) -> bool:
    return isinstance(event, Failed) or (exchange.state, type(event)) in _STEPS


@settings(max_examples=300)
@given(st.data(), st.sampled_from(list(Stage)), st.integers(0, 9))
def test_every_law_holds_whatever_happens_in_whatever_order(
    data: st.DataObject, stage: Stage, wildness: int
) -> None:
    """Most events fit the state, some do not; `wildness` says how many."""
    watch = start(stage)
    for _ in range(data.draw(st.integers(0, 14))):
        wild = data.draw(st.integers(0, 9)) < wildness
        names = [n for n, e in EVENTS[stage].items() if wild or fits(watch.exchange, e)]
        event = EVENTS[stage][data.draw(st.sampled_from(names))] if names else Failed("draining")
        was_reserving = watch.exchange.state is State.RESERVING
        if was_reserving:
            watch.told_refused(event)
        watch.feed(event)
    watch.finish()


@settings(max_examples=100)
@given(st.sampled_from(list(Stage)), st.integers(0, 8), st.booleans(), st.data())
def test_a_failure_at_any_step_before_forward_ends_in_a_denial(
    stage: Stage, step: int, queued: bool, data: st.DataObject
) -> None:
    watch = start(stage)
    heads = [e for e in EVENTS[stage].values() if isinstance(e, Head)]
    event: Event | None = data.draw(st.sampled_from(heads))
    for _ in range(step):
        if event is None:
            break
        event = answer(watch.feed(event), SAME)
    before = watch.forwarded is None
    effects = watch.feed(Failed("internal-error", queued=queued))
    while (event := answer(effects, SAME)) is not None:
        effects = watch.feed(event)
    if before:
        assert watch.forwarded is None
        assert watch.denied is not None
    watch.finish()


def test_the_happy_path_forwards_once_and_ends_once() -> None:
    watch = start()
    for event in HAPPY:
        watch.feed(event)
    watch.finish()
    assert watch.forwarded is not None
    assert watch.outcomes == 1


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["/ok/1", "/nope", "/small"]), max_size=1), st.data())
def test_no_credential_reaches_a_record(paths: list[str], data: st.DataObject) -> None:
    """L6: the secret of the head stands in no event the exchange ever asks to be stored."""
    watch = start()
    message = Message(
        paths[0] if paths else "/ok/1",
        fields=(
            (
                data.draw(
                    st.sampled_from(
                        [b"Proxy-Authorization", b"proxy-authorization", b"PROXY-AUTHORIZATION"]
                    )
                ),
                b"Basic c2VjcmV0LXRva2Vu",
            ),
        ),
    )
    event: Event | None = head(message)
    while event is not None:
        event = answer(watch.feed(event), SAME)
    watch.finish()
    assert watch.written
    assert all("c2VjcmV0" not in text for text in watch.written)


# --- broken on purpose ---------------------------------------------------------------------------


class AllowsEverything(Exchange):
    """L1: what is denied is stored and goes on as if it were allowed."""

    def _deny_as(self, decision: Decision) -> list[Effect]:
        self.decision = decision
        return self._store_allow()


class ForgetsTheTicket(Exchange):
    """L1: the request is gone when the ticket is made."""

    def _recheck(self, _event: RecordStored) -> str:
        self.request = None
        return ""


class DoesNotWait(Exchange):
    """L2: forwards as soon as the ledger answered."""

    def _store_allow(self) -> list[Effect]:
        return [self._store_decision(), self._forward(None)]


class ForgivesFailures(Exchange):
    """L3: a failure changes nothing."""

    def _fail(self, _event: Failed) -> list[Effect]:
        return []


class ForwardsOnFailure(Exchange):
    """L3: a failure is taken for an allow."""

    def _fail(self, _event: Failed) -> list[Effect]:
        return [self._forward(None)]


class KeepsTheReservation(Exchange):
    """L4: nothing is ever released."""

    def _release(self, spent: tuple[Amount, ...], *, settle: bool = False) -> list[Effect]:
        del spent, settle
        return []


class ReservesAgain(Exchange):
    """L4: holds a second time what is held."""

    def _store_allow(self) -> list[Effect]:
        return [Reserve(self._decided(), read(Message())), *super()._store_allow()]


class ReleasesTwice(Exchange):
    """L4: released whether or not something is held."""

    def _release(self, spent: tuple[Amount, ...], *, settle: bool = False) -> list[Effect]:
        return [Release(settle, spent), Release(settle, spent)]


class DecidesTwice(Exchange):
    """L5: stores the decision again when the first is stored."""

    def _on_allow_stored(self, _event: RecordStored) -> list[Effect]:
        return [self._store_decision()]


class EndsTwice(Exchange):
    """L5: an outcome for every byte."""

    def _on_sent(self, _event: RequestSent) -> list[Effect]:
        return [*self._outcome(200, "", ()), *self._outcome(200, "", ())]


def _patched(kind: type[Exchange], *steps: tuple[State, type[Event], str]) -> type[Exchange]:
    """The state table holds the methods of Exchange itself: let it use the broken ones."""
    table = {(state, event): getattr(kind, name) for state, event, name in steps}
    handle = Exchange.handle

    def broken(self: Exchange, event: Event) -> list[Effect]:
        step = table.get((self.state, type(event)))
        return handle(self, event) if step is None else list(step(self, event))

    kind.handle = broken  # type: ignore[method-assign]
    return kind


BROKEN: dict[str, tuple[type[Exchange], tuple[Event, ...], str]] = {
    "L1 a denied request": (
        AllowsEverything,
        (head(Message(host="x.test")), RecordStored(SAME, NOW)),
        "L1",
    ),
    "L1 a request without a ticket": (ForgetsTheTicket, HAPPY[:4], "L1"),
    "L2 before the record": (DoesNotWait, HAPPY[:3], "L2"),
    "L3 a failure that is forgiven": (ForgivesFailures, (HAPPY[0], Failed("x")), "L3"),
    "L3 a failure that forwards": (ForwardsOnFailure, (*HAPPY[:3], Failed("x")), "L2"),
    "L4 a reservation that is kept": (KeepsTheReservation, HAPPY, "L4"),
    "L4 a second reservation": (ReservesAgain, HAPPY[:3], "L4"),
    "L4 a reservation that ends twice": (ReleasesTwice, HAPPY, "L4"),
    "L5 a second decision": (
        _patched(DecidesTwice, (State.RECORDING_ALLOW, RecordStored, "_on_allow_stored")),
        HAPPY[:4],
        "L5",
    ),
    "L5 a second outcome": (
        _patched(EndsTwice, (State.FORWARDED, RequestSent, "_on_sent")),
        HAPPY[:5],
        "L5",
    ),
}


@pytest.mark.parametrize(("kind", "events", "law"), BROKEN.values(), ids=BROKEN)
def test_the_check_of_a_law_fires_in_an_exchange_that_breaks_it(
    kind: type[Exchange], events: tuple[Event, ...], law: str
) -> None:
    exchange = kind("0" * 32, Stage.REQUEST, SAME)
    with pytest.raises(ContractBroken, match=law):
        _play(exchange, events)


def _play(exchange: Exchange, events: tuple[Event, ...]) -> None:
    for event in events:
        exchange.handle(event)


def test_a_credential_in_the_request_breaks_l6() -> None:
    """The head arrives without Proxy-* fields; were it not so, it would not be judged."""
    request = replace(read(Message()), headers=(("proxy-authorization", "Basic x"),))
    exchange = Exchange("0" * 32, Stage.REQUEST, SAME)
    with pytest.raises(ContractBroken, match="L6"):
        exchange.handle(replace(head(), request=request))


HELD = (*HAPPY[:2], LedgerAnswered(hold=HOLD, now_ms=1), HAPPY[3])
MORE = SliceAnswered("bytes_in", slice_of("bytes_in", 64))

ENDS: dict[str, tuple[Event, ...]] = {
    "in order": (RequestSent(100, body=False), ResponseHead(200, 30, None), ResponseEnd()),
    "the ledger raised": (),
    "cut, as the budget is used up": (RequestSent(121),),
    "cut by the size of its head": (RequestSent(9, body=False), ResponseHead(200, 30, 5_000)),
    "cut, as the answer is too large": (RequestSent(9), ResponseReceived(101)),
    "failed before a byte left": (Failed("connect-failed"),),
    "failed under way": (RequestSent(5), Failed("client-gone")),
    "failed while a slice is asked for": (
        RequestSent(5), ResponseReceived(90), SliceWanted("bytes_in", 20), Failed("client-gone"),
    ),
    "failed while a slice is recorded": (
        RequestSent(5), ResponseReceived(90), SliceWanted("bytes_in", 20), MORE, Failed("x"),
    ),
    "a slice that is used": (
        RequestSent(5), SliceWanted("bytes_in", 20), MORE, SliceStored("bytes_in"),
        ResponseReceived(160), ResponseEnd(),
    ),
    "a slice nobody recorded": (
        RequestSent(5), SliceWanted("bytes_in", 20), MORE,
        SliceStored("bytes_in", "audit-unavailable"), ResponseHead(200, 160, None),
    ),
    "a slice that comes too late": (RequestSent(5), ResponseEnd(), MORE),
}  # fmt: skip


@pytest.mark.parametrize("events", ENDS.values(), ids=ENDS)
def test_each_way_to_end_settles_once_and_no_more_than_was_held(events: tuple[Event, ...]) -> None:
    watch = start()
    for event in (*HELD, *events):
        watch.feed(event)
    watch.finish()
    assert watch.released is not None
    assert watch.outcomes == 1


@pytest.mark.parametrize(
    "stored",
    [
        RecordStored(SAME, NOW, halted=True),
        RecordStored(POLICIES["closed"], NOW),
        RecordStored(SAME, NOW, quarantined=True),
        Failed("deadline-exceeded", queued=True),
        Failed("audit-unavailable"),
    ],
    ids=lambda event: repr(event)[:20],
)
def test_what_is_stopped_behind_its_reservation_is_void(stored: Event) -> None:
    watch = start()
    for event in (*HELD[:3], stored):
        watch.feed(event)
    watch.finish()
    assert watch.forwarded is None
    assert watch.released == Release(settle=False)


class SettlesEverything(Exchange):
    """L4: books more than was held."""

    def _release(self, spent: tuple[Amount, ...], *, settle: bool = False) -> list[Effect]:
        twice = tuple(one._replace(amount=2 * one.amount) for one in spent)
        return super()._release(twice, settle=settle)


class VoidsWhatLeft(Exchange):
    """L4: books nothing although something was sent."""

    def _release(self, *_: object, **__: object) -> list[Effect]:
        return super()._release((), settle=False)


class PassesUnheld(Exchange):
    """L4: looks away when a budget is used up."""

    def _pass(self, event: Passing) -> list[Effect]:
        self.allowance.counted["bytes_out"] += event.count_bytes
        return []


BLIND: dict[str, tuple[type[Exchange], str]] = {
    "more is booked than was held": (SettlesEverything, "L4: .* of"),
    "nothing is booked of what left": (VoidsWhatLeft, "L4: a void of what left"),
    "bytes pass that nobody held": (PassesUnheld, "L4: 130 bytes_out of 120"),
}


@pytest.mark.parametrize(("kind", "law"), BLIND.values(), ids=BLIND)
def test_the_watch_sees_what_is_spent_beside_a_budget(kind: type[Exchange], law: str) -> None:
    watch = start(kind=kind)
    events = (*HELD, RequestSent(90), RequestSent(40), ResponseEnd())
    with pytest.raises(LawBroken, match=law):
        _show(watch, events)


def _show(watch: Watch, events: tuple[Event, ...]) -> None:
    for event in events:
        watch.feed(event)


WATCHED: dict[str, tuple[list[Effect], str]] = {
    "L1": ([Forward(Decision(Verdict.DENY, "x"), None, None)], "L1"),
    "L4": ([Release(settle=True)], "L4"),
    "L4 twice": ([Reserve(Decision(Verdict.DENY, "x"), read(Message()))] * 2, "L4"),
    "two denials": ([Deny("x", Decision(Verdict.DENY, "x"))] * 2, "two denials"),
    "a cut of nothing": ([Close("x")], "a cut"),
}


@pytest.mark.parametrize(("effects", "law"), WATCHED.values(), ids=WATCHED)
def test_the_watch_of_these_tests_sees_a_broken_law(effects: list[Effect], law: str) -> None:
    class Fixed(Exchange):
        def handle(self, _event: Event) -> list[Effect]:
            return effects

    with pytest.raises(LawBroken, match=law):
        start(kind=Fixed).feed(Failed("x"))


def test_a_connect_needs_no_ticket_and_has_no_outcome() -> None:
    watch = start(Stage.CONNECT)
    watch.feed(connect_head())
    watch.feed(RecordStored(SAME, NOW))
    watch.finish()
    assert watch.forwarded is not None
    assert watch.forwarded.ticket is None
    assert watch.outcomes == 0
