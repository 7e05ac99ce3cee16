"""The table of forms: complete, documented, linear."""

import re
import time
from pathlib import Path

import pytest

from audit.fields import COUNT, FORMS, KINDS, Array, Object, event_shape, pattern
from tests.kit.chains import at, decision, outcome, spell

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
