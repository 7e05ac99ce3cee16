"""Scalars: what is surprising, what was meant, and the walk to plain values."""

import pytest

from policies.load import parse
from policies.node import Node, intention, plain_kind, surprise

MEANT = {
    "yes": ("yes", "true"),
    "Off": ("Off", "false"),
    "octal": ("0443", "443"),
    "hexadecimal": ("0x1BB", "443"),
    "grouped": ("1_000", "1000"),
    "clock": ("10:00", ""),
}


@pytest.mark.parametrize(("text", "meant"), MEANT.values(), ids=MEANT)
def test_a_surprise_has_a_likely_intention(text: str, meant: str) -> None:
    assert plain_kind(text) == "broken"
    assert surprise(text)
    assert intention(text) == meant


@pytest.mark.parametrize("text", ["nO", "oN", "nope", "a:b", "10:99", "1.2.3.4", "0x", "v1_0"])
def test_what_only_resembles_a_surprise_is_text(text: str) -> None:
    assert surprise(text) == ""
    assert plain_kind(text) == "str"


def test_texts_are_the_scalars_of_a_scalar_or_list() -> None:
    root, _ = parse("one: a\nmany: [a, 7, {b: c}, true]\nmap: {a: b}\n", "p.yaml")
    assert root is not None
    texts = {key: [node.text for node in value.texts()] for key, value in root.pairs.items()}
    assert texts == {"one": ["a"], "many": ["a", "7"], "map": []}


def test_a_missing_key_is_none() -> None:
    assert Node("map", 1, 1).get("x") is None
