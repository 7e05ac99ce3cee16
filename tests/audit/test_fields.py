"""The table of forms: complete, documented, linear."""

import json
import re
import time
from pathlib import Path

import pytest

from audit.fields import (
    COUNT,
    FORMAT,
    FORMS,
    KINDS,
    SINCE,
    STATES,
    TEXT,
    WIRE,
    Array,
    Object,
    Shape,
    event_shape,
    pattern,
)
from tests.kit.chains import (
    Event,
    at,
    decision,
    moved,
    opened,
    outcome,
    raised,
    reserved,
    snapshot,
    spell,
)

DOCS = Path(__file__).parents[2] / "docs" / "records.md"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_field_is_documented(kind: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = text.split(f"\n### `{kind}`\n")
    assert len(section) == 2, f"docs/records.md lacks a section for {kind}"
    body = section[1].split("\n### ")[0].split("\n## ")[0]
    for name in KINDS[kind]:
        mark = "?" if name.endswith("?") else " "
        assert f"| `{name.rstrip('?')}`{mark}" in body, f"{kind}.{name}"


def test_the_examples_of_the_docs_are_in_form() -> None:
    examples = re.findall(r"\n```json\n(.*)\n```", DOCS.read_text(encoding="utf-8"))
    kinds = [json.loads(example)["kind"] for example in examples]
    assert set(SINCE) <= set(kinds)
    for kind, example in zip(kinds, examples, strict=True):
        assert re.fullmatch(pattern(event_shape(kind)), example.encode()), kind


def test_optional_fields_may_be_absent_in_any_combination() -> None:
    shape = re.compile(pattern(event_shape("outcome")))
    whole = outcome(1, cut="a", error="b", req_digest="c", time=at(0))
    optional = ["cut", "error", "req_digest", "time"]
    for bits in range(16):
        absent = {name for n, name in enumerate(optional) if bits >> n & 1}
        event = {name: value for name, value in whole.items() if name not in absent}
        assert shape.fullmatch(spell(event))


def test_objects_whose_fields_are_all_optional_need_no_field() -> None:
    shape = re.compile(pattern(event_shape("decision")))
    for target in ({}, {"host": "a"}, {"sni": "a"}, {"host": "a", "sni": "b"}):
        assert shape.fullmatch(spell(decision(1, target=target)))
    assert not shape.fullmatch(spell(decision(1, target={})).replace(b"{}", b"{,}"))


def test_a_trailing_comma_is_no_form() -> None:
    shape = re.compile(pattern(Array(Object({"a?": event_shape("heartbeat")}))))
    assert shape.fullmatch(b"[{},{}]")
    for wrong in (b"[{},]", b"[,{}]", b"[{}{}]", b"[{},,{}]", b"[,]"):
        assert not shape.fullmatch(wrong)


AMOUNTS = [
    {"account": "a", "amount": 1, "unit": "requests"},
    {"account": "b", "amount": 0, "unit": "x"},
]
FULL: dict[str, Event] = {  # every field there is
    "alert": {"cause": "a", "detail": "\u00e9"},
    "budget.raise": raised(1, 2),
    "clock.step": {"from": at(0), "to": at(9)},
    "config.change": {"by": "b", "from": "\u00e9", "setting": "s", "to": ""},
    "credential.change": {"action": "rotate", "agent": "a", "by": "b", "session": "s"},
    "decision": decision(
        1,
        stage="frame",
        approval="a",
        findings=["f", "g"],
        read=[
            {"field": "f", "outcome": "true", "token": "t"},
            {"field": "g", "outcome": "false"},
            {"field": "h", "outcome": "unknown"},
        ],
        redacted=["path.1"],
        req={"length": 3, "type": "text/plain"},
        reserve=AMOUNTS,
        trace="t",
        would={"rules": ["r"], "verdict": "deny"},
    ),
    "dropped": {"agent": "a", "n": 2, "reason": "no-rule-matched"},
    "heartbeat": {},
    "ledger.snapshot": snapshot(),
    "log.close": {},
    "log.open": opened("crash"),
    "malformed": {"bytes": 1, "client": "c", "head": "h", "why": "w"},
    "outcome": outcome(
        1, cut="c", error="e", req_digest="d", settle=AMOUNTS, upstream_cert_sha256="a" * 64
    ),
    "policy.load": {"digest": "a" * 64, "mode": "observe", "serial": 1},
    "policy.reject": {"digest": "a" * 64, "findings": ["f", "\u00e9"]},
    "recovery": {
        "bytes": 1,
        "cause": "torn-tail",
        "digest": "sha256:" + "0" * 64,
        "file": f"torn-{7:020d}.bin",
        "head": "00" * 4096,
    },
    "reserve": reserved(),
    "state": moved("active", "halted", by="b", ref="0" * 32, session="s"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_with_every_field_has_its_form_and_each_required_one_is_needed(kind: str) -> None:
    form = re.compile(pattern(event_shape(kind)))
    whole = {**FULL[kind], "kind": kind, "time": at(1)}
    assert set(whole) == {name.rstrip("?") for name in event_shape(kind).fields}
    assert form.fullmatch(spell(whole))
    for name in whole:
        without = {other: value for other, value in whole.items() if other != name}
        may_be_absent = f"{name}?" in event_shape(kind).fields
        assert bool(form.fullmatch(spell(without))) is may_be_absent, name
        assert not form.fullmatch(spell({**whole, name: None})), name
        assert not form.fullmatch(spell({**whole, f"{name}_": 1})), name


def test_other_words_of_the_lists_have_a_form_too() -> None:
    for kind, name, word in (
        ("decision", "stage", "connect"), ("decision", "stage", "request"),
        ("decision", "verdict", "allow"), ("decision", "verdict", "deny"),
        ("decision", "would", {"rules": [], "verdict": "allow"}),
        ("policy.load", "mode", "enforce"),
        ("recovery", "cause", "disk-full"), ("log.open", "after", "clean"),
        ("ledger.snapshot", "cause", "closed"), ("ledger.snapshot", "cause", "changed"),
        *(("state", end, word) for end in ("from", "to") for word in STATES),
    ):  # fmt: skip
        form = re.compile(pattern(event_shape(kind)))
        event = {**FULL[kind], "kind": kind}
        assert form.fullmatch(spell({**event, name: word}))
        assert not form.fullmatch(spell({**event, name: "other"}))
    head = {**FULL["recovery"], "kind": "recovery", "head": "00" * 4097}
    assert not re.compile(pattern(event_shape("recovery"))).fullmatch(spell(head))


def test_the_actions_of_a_threshold_are_words_too() -> None:
    form = re.compile(pattern(event_shape("ledger.snapshot")))
    for word, fits in (("warn", True), ("quarantine", True), ("halt", True), ("deny", False)):
        event = snapshot(at=[{"do": word, "reached": 100}])
        assert bool(form.fullmatch(spell(event))) is fits


def test_a_kind_came_with_a_format_that_there_is() -> None:
    assert set(SINCE) < set(KINDS)
    assert set(SINCE.values()) == set(range(2, FORMAT + 1))


def test_what_the_laws_look_at_is_captured_as_it_is_spelled() -> None:
    found = FORMS[b"reserve"].fullmatch(at(0).encode() + b'","v":1},"event":' + spell(reserved(7)))
    assert found is not None
    assert found.groupdict() == {
        "ref": f"{7:032x}".encode(),
        "reserve": b'[{"account":"daily/local","amount":4,"unit":"bytes_in"}]',
    }


CUT = {
    "decision": {
        "findings",
        "policy.rules",
        "read",
        "redacted",
        "target.query_keys",
        "would.rules",
    },
    "policy.reject": {"findings"},
}


def test_both_kinds_of_text_may_be_cut_and_only_one_is_percent_encoded() -> None:
    assert (WIRE.wire, WIRE.text, TEXT.wire, TEXT.text) == (True, True, False, True)
    assert not COUNT.wire
    assert not COUNT.text


def cuttable(shape: Shape, place: str = "") -> set[str]:
    """The arrays below a shape that may be cut."""
    if isinstance(shape, Array):
        return {place} if shape.cut else set()
    if isinstance(shape, Object):
        return set().union(
            *(cuttable(one, f"{place}.{name.rstrip('?')}") for name, one in shape.fields.items())
        )
    return set()


@pytest.mark.parametrize("kind", KINDS)
def test_lists_may_be_cut_and_amounts_never(kind: str) -> None:
    assert cuttable(event_shape(kind)) == {f".{name}" for name in CUT.get(kind, set())}


MOST = 2**53 - 1
EDGES = {edge + step for edge in (0, 10, 10**15, MOST, 10**16, 10**17) for step in range(-12, 13)}
PLACES = {MOST + sign * 10**place for place in range(17) for sign in (-1, 1)}


def test_an_integer_is_judged_by_its_digits_alone() -> None:
    form = re.compile(COUNT.pattern)
    for value in EDGES | PLACES:
        assert bool(form.fullmatch(b"%d" % value)) is (0 <= value <= MOST), value
    for spelled in (b"", b"00", b"01", b"-0", b"+1", b"1.0", b"1e3", b" 1", b"0x1"):
        assert not form.fullmatch(spelled)


def test_matching_is_linear_in_hostile_lines() -> None:
    """65 KB that almost match; a pattern that backtracks would need years."""
    form = FORMS[b"decision"]
    for client in (b'"' + b"\\\\" * 32_000, b'"' + b'\\"' * 32_000 + b"\x01", b'"' * 60_000):
        line = at(0).encode() + b'","v":1},"event":{"client":' + client
        started = time.perf_counter()
        assert form.fullmatch(line) is None
        assert time.perf_counter() - started < 5  # not a speed goal: seconds against years
