"""Events to bytes: canonical, bounded, and nothing lost because it was odd."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.chain import genesis, link, ts_place
from audit.fields import FORMS
from audit.record import EventRefused, cut_text, encode, parse, settle, wire_text
from tests.kit.chains import LOG, at, chain, decision, spell

WIRE = {
    "visible ASCII stays": ("/a%C3%A9?b=c", "/a%C3%A9?b=c"),
    "a space is encoded": ("a b", "a%20b"),
    "UTF-8 is encoded byte by byte": ("é", "%C3%A9"),
    "raw bytes too": (b"\x00\xff\n", "%00%FF%0A"),
    "a lone surrogate too": ("\ud800", "%ED%A0%80"),
    "quotes and backslashes stay": ('"\\', '"\\'),
}


@pytest.mark.parametrize(("value", "expected"), WIRE.values(), ids=WIRE)
def test_wire_text_is_visible_ascii(value: str | bytes, expected: str) -> None:
    assert wire_text(value) == expected


def test_a_long_value_is_cut_and_named_by_length_and_digest() -> None:
    cut = wire_text("x" * 5000, bytes_max=10)
    assert cut.startswith("x" * 10 + " cut:5000 sha256:")
    assert len(cut) == 10 + len(" cut:5000 sha256:") + 64


def test_an_agent_cannot_forge_the_mark_of_a_cut() -> None:
    assert " cut:" not in wire_text("/a cut:1 sha256:" + "0" * 64)


def test_a_cut_never_splits_a_character() -> None:
    assert cut_text("éé", 3).startswith("é cut:4 ")


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=200)
def test_any_text_can_be_recorded(text: str) -> None:
    for event in (
        {"kind": "alert", "cause": "a", "detail": text},
        {"kind": "malformed", "client": text, "bytes": 1, "why": text},
    ):
        line, _ = link(genesis(LOG.encode()), settle(event), at(1).encode())
        form = FORMS[str(event["kind"]).encode()]
        assert form.fullmatch(line, ts_place(0), len(line) - 76)
        line.decode()


@given(
    st.integers(0, 2**53 - 1),
    st.lists(st.text(alphabet=st.characters(codec="ascii"), max_size=20), max_size=4),
)
@settings(deadline=None, max_examples=100)
def test_two_encoders_agree(count: int, keys: list[str]) -> None:
    event = decision(1, req={"length": count}, target={"query_keys": keys})
    if all(key.isascii() and key.isprintable() for key in keys):
        assert encode(event) == spell(event)


INTEGERS = {0: True, 9: True, 10: True, 2**53 - 1: True, 2**53: False, 10**16: False, -1: False}


@pytest.mark.parametrize(("value", "fits"), INTEGERS.items())
def test_integers_have_bounds(value: int, fits: bool) -> None:
    event = decision(1, req={"length": value})
    if fits:
        assert settle(event) == spell(event)
    else:
        with pytest.raises(EventRefused):
            settle(event)


def test_a_line_can_be_parsed_again() -> None:
    line = chain([decision(1)])[0]
    record = parse(line[:-1])
    assert (record.log, record.seq, record.ts) == (LOG, 0, at(0))
    assert record.event == decision(1)
    assert record.hash == json.loads(line)["hash"]


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b'{"chain":1}'])
def test_what_is_no_record_is_not_parsed(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse(line)


def test_encode_refuses_what_json_cannot_hold() -> None:
    odd: dict[str, Any] = {"kind": {1}}
    with pytest.raises(EventRefused, match="cannot be encoded"):
        encode(odd)
