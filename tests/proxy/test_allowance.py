"""What one exchange may still spend, byte by byte, and what it owes in the end."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budget import SLICE_BYTES, Amount, Hold, Left, Shortfall
from policies.model import ContractBroken, Decision, Obligations, Request, Verdict
from proxy.allowance import IN, OUT, Allowance, Passing, order
from proxy.vocabulary import (
    RequestSent,
    ResponseHead,
    ResponseReceived,
    SliceAnswered,
    SliceStored,
    SliceWanted,
)

BASE = "life/local"
SHORT = Shortfall(BASE, "life", IN, 1, 0, 0)
KIB = 1024


def hold(unit: str, size: int) -> Hold:
    return Hold((Amount(BASE, unit, size),), {unit: size})


def begun(*amounts: tuple[str, int]) -> Allowance:
    """An allowance over an account that limits these units."""
    held = tuple(Amount(BASE, unit, size) for unit, size in amounts)
    granted = {unit: size for unit, size in amounts if unit in (OUT, IN)}
    made = Allowance()
    made.begin(Hold(held, granted, left=(Left("life", IN, 5, 9, 0),)))
    return made


# --- what a request asks for

REQUEST = Request("https", "api.test", 443, "POST", "/x")
DECISION = Decision(
    Verdict.ALLOW, "allowed", ("r",), obligations=Obligations(steps=3, effort=5, risk=7)
)
ORDERS: dict[str, tuple[Request, int, set[str]]] = {
    "no body": (REQUEST, 90, {IN}),
    "a body of known length": (replace(REQUEST, body=True, body_length=10), 100, {IN}),
    "a body of unknown length": (replace(REQUEST, body=True), 90, {IN, OUT}),
    "a WebSocket": (replace(REQUEST, websocket=True), 90, {IN, OUT}),
}


@pytest.mark.parametrize(("request_", "out", "slices"), ORDERS.values(), ids=ORDERS)
def test_an_order_is_whole_but_for_what_has_no_length(
    request_: Request, out: int, slices: set[str]
) -> None:
    made = order(DECISION, request_, 90)
    assert made.amounts == {"requests": 1, "steps": 3, "effort": 5, "risk": 7, OUT: out}
    assert made.slices == slices
    assert (made.decision, made.request) == (DECISION, request_)


# --- what must be held first

SHORTAGES: dict[str, tuple[Passing, SliceWanted | None]] = {
    "what fits": (RequestSent(100), None),
    "one byte more": (RequestSent(101), SliceWanted(OUT, 1)),
    "an answer that fits": (ResponseReceived(50), None),
    "an answer that does not": (ResponseReceived(80), SliceWanted(IN, 30)),
    "a head and one byte of its body": (ResponseHead(200, 50, None), SliceWanted(IN, 1, True)),
    "a head without a body": (ResponseHead(204, 50, None, bodiless=True), None),
    "a head and all of its body": (ResponseHead(200, 20, 31), SliceWanted(IN, 1, True)),
    "a head and a body that fit": (ResponseHead(200, 20, 30), None),
}


@pytest.mark.parametrize(("event", "wanted"), SHORTAGES.values(), ids=SHORTAGES)
def test_what_is_short_is_asked_for_before_it_passes(
    event: Passing, wanted: SliceWanted | None
) -> None:
    allowance = begun((OUT, 100), (IN, 50))
    assert allowance.find_shortage(event) == wanted
    assert begun(("requests", 1)).find_shortage(event) is None
    assert allowance.counted == {OUT: 0, IN: 0}


def test_a_stream_asks_again_before_the_last_slice_is_over() -> None:
    allowance = begun((IN, SLICE_BYTES))
    allowance.count(ResponseReceived(SLICE_BYTES // 2))
    assert allowance.anticipate(IN) is None
    allowance.count(ResponseReceived(1))
    assert allowance.anticipate(IN) == SliceWanted(IN, SLICE_BYTES)
    assert allowance.answer(SliceAnswered(IN, hold(IN, SLICE_BYTES)))
    assert allowance.anticipate(IN) is None, "one at a time"
    allowance.store(SliceStored(IN))
    assert allowance.anticipate(IN) is None, "there is enough"


def test_nothing_is_asked_in_advance_for_what_has_a_length() -> None:
    known = begun((IN, 100))
    known.find_shortage(ResponseHead(200, 20, 80))
    assert known.anticipate(IN) is None
    upload = begun((OUT, 100))
    assert upload.anticipate(OUT) is None
    upload.stream_out()
    assert upload.anticipate(OUT) == SliceWanted(OUT, SLICE_BYTES)


def test_nobody_asks_again_in_advance_once_the_ledger_said_no() -> None:
    allowance = begun((IN, 10))
    assert not allowance.answer(SliceAnswered(IN, refusal="budget-exhausted", shortfall=SHORT))
    assert allowance.anticipate(IN) is None
    assert allowance.shortfall is SHORT
    assert allowance.find_shortage(ResponseReceived(11)) == SliceWanted(IN, 1), "in need, it does"


def test_a_unit_that_nobody_limits_is_counted_and_never_cut() -> None:
    allowance = begun(("requests", 1))
    assert allowance.count(ResponseReceived(10**9)) == ""
    assert allowance.counted[IN] == 10**9
    assert allowance.anticipate(IN) is None


# --- slices


def test_a_slice_counts_once_its_record_is_durable_and_not_before() -> None:
    allowance = begun((IN, 10))
    assert allowance.answer(SliceAnswered(IN, hold(IN, 5)))
    assert allowance.find_shortage(ResponseReceived(15)) == SliceWanted(IN, 5)
    allowance.store(SliceStored(IN))
    assert allowance.find_shortage(ResponseReceived(15)) is None
    assert allowance.held[-1] == Amount(BASE, IN, 15)


def test_a_stream_that_would_pay_in_more_periods_than_a_record_holds_is_cut() -> None:
    allowance = begun((IN, 10))
    allowance.held += [Amount(f"{BASE}@{number}", IN, 1) for number in range(300)]
    assert not allowance.answer(SliceAnswered(IN, hold(IN, 5)))
    assert allowance.count(ResponseReceived(11)) == "budget-exhausted"


def test_a_slice_that_was_not_recorded_grants_and_books_nothing() -> None:
    """What the log does not know cannot be settled: its fold would break."""
    allowance = begun((IN, 10))
    allowance.answer(SliceAnswered(IN, hold(IN, 500)))
    allowance.store(SliceStored(IN, "audit-unavailable"))
    assert allowance.count(ResponseHead(200, 60, None)) == "audit-unavailable"
    assert allowance.counted[IN] == 60, "it was read, so it is charged"
    assert allowance.settle() == (Amount(BASE, IN, 10),)


def test_a_limit_that_was_taken_away_limits_no_more() -> None:
    allowance = begun((IN, 10))
    assert not allowance.answer(SliceAnswered(IN, Hold()))
    assert allowance.count(ResponseReceived(10**6)) == ""


def test_slices_that_nobody_asked_for_are_a_broken_contract() -> None:
    allowance = begun((IN, 10))
    with pytest.raises(ContractBroken, match="nobody asked for"):
        allowance.store(SliceStored(IN))
    allowance.answer(SliceAnswered(IN, hold(IN, 5)))
    with pytest.raises(ContractBroken, match="a second slice"):
        allowance.answer(SliceAnswered(IN, hold(IN, 5)))


# --- where it ends

CUTS: dict[str, tuple[Passing, int, int]] = {
    # event, bytes of it that may still pass, bytes counted
    "a part of what is sent": (RequestSent(130), 100, 100),
    "nothing of what is one piece": (RequestSent(130, divisible=False), 0, 0),
    "a part of the answer": (ResponseReceived(80), 50, 50),
    "no frame that does not fit whole": (ResponseReceived(80, divisible=False), 0, 0),
    "no head of which no byte of body fits": (ResponseHead(200, 50, None), 0, 50),
    "no head of a body that does not fit": (ResponseHead(200, 10, 41), 0, 10),
}


@pytest.mark.parametrize(("event", "fit", "counted"), CUTS.values(), ids=CUTS)
def test_a_budget_ends_at_its_byte(event: Passing, fit: int, counted: int) -> None:
    allowance = begun((OUT, 100), (IN, 50))
    assert allowance.count(event) == "budget-exhausted"
    assert allowance.fit_bytes == fit
    unit = OUT if isinstance(event, RequestSent) else IN
    assert allowance.counted[unit] == counted


def test_exact_units_are_owed_in_full_and_bytes_as_counted() -> None:
    allowance = begun((IN, 50), (OUT, 100), ("requests", 1), ("risk", 0), ("steps", 4))
    allowance.count(RequestSent(40))
    allowance.count(ResponseReceived(7))
    assert allowance.settle() == (
        Amount(BASE, IN, 7),
        Amount(BASE, OUT, 40),
        Amount(BASE, "requests", 1),
        Amount(BASE, "steps", 4),
    )


PASSING = st.one_of(
    st.builds(RequestSent, st.integers(0, 90), divisible=st.booleans()),
    st.builds(ResponseReceived, st.integers(0, 90), divisible=st.booleans()),
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100), st.lists(st.tuples(PASSING, st.integers(0, 60))))
def test_no_byte_passes_that_is_not_held_and_recorded(
    out: int, back: int, steps: list[tuple[Passing, int]]
) -> None:
    allowance = begun((OUT, out), (IN, back))
    recorded = {OUT: out, IN: back}
    for event, size in steps:
        wanted = allowance.find_shortage(event)
        if wanted is not None and size:
            assert allowance.answer(SliceAnswered(wanted.unit, hold(wanted.unit, size)))
            durable = size % 3 > 0
            allowance.store(SliceStored(wanted.unit, "" if durable else "audit-unavailable"))
            recorded[wanted.unit] += size if durable else 0
        cut = allowance.count(event)
        assert allowance.counted[OUT] <= recorded[OUT]
        assert allowance.counted[IN] <= recorded[IN]
        if cut:
            break
    booked = {unit: amount for _, unit, amount in allowance.settle()}
    assert booked == {unit: count for unit, count in allowance.counted.items() if count}
