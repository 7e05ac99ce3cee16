"""YAML text to nodes: places, strictness, and never an exception."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.load import DEPTH_MAX, FILE_BYTES_MAX, parse
from policies.node import BROKEN, Node, plain

TYPES = {
    "text": ("a", "str"),
    "quoted number": ("'1'", "str"),
    "quoted word": ('"no"', "str"),
    "block text": ("|\n  yes", "str"),
    "a host": ("api.example.com", "str"),
    "an address": ("192.0.2.1", "str"),
    "an address of version six": ("2001:db8::1", "str"),
    "a date": ("2026-11-01", "str"),
    "a time stamp": ("2026-11-01T00:00:00Z", "str"),
    "a unit": ("10MB", "str"),
    "a version with dots": ("1.2.3", "str"),
    "whole number": ("12", "int"),
    "negative number": ("-12", "int"),
    "zero": ("0", "int"),
    "fraction": ("0.1", "float"),
    "exponent": ("1e3", "float"),
    "infinity": ("-.inf", "float"),
    "not a number": (".nan", "float"),
    "a number of many digits": ("9" * 30, "float"),
    "true": ("true", "bool"),
    "False": ("False", "bool"),
    "nothing": ("", "null"),
    "tilde": ("~", "null"),
    "yes": ("yes", "broken"),
    "N": ("N", "broken"),
    "octal": ("0443", "broken"),
    "new octal": ("0o17", "broken"),
    "hexadecimal": ("0x1F", "broken"),
    "binary": ("0b11", "broken"),
    "base sixty": ("10:00", "broken"),
    "three parts of base sixty": ("1:30:00", "broken"),
    "grouped": ("1_000", "broken"),
}


@pytest.mark.parametrize(("written", "kind"), TYPES.values(), ids=TYPES)
def test_a_scalar_has_one_type_for_all_readers(written: str, kind: str) -> None:
    root, findings = parse(f"key: {written}\n", "p.yaml")
    assert root is not None
    assert root.pairs["key"].kind == kind
    assert [one.code for one in findings] == (["AP004"] if kind == "broken" else [])


def test_every_value_and_key_knows_its_place() -> None:
    root, findings = parse("a:\n  - b: 1\n    é: [x, yy]\n", "p.yaml")
    assert root is not None
    assert findings == []
    item = root.pairs["a"].items[0]
    assert item.keys == {"b": (2, 5), "é": (3, 5)}
    assert [(n.line, n.column) for n in item.pairs["é"].items] == [(3, 9), (3, 12)]


def test_a_broken_file_has_no_tree_and_one_finding() -> None:
    root, findings = parse("a: [\n", "p.yaml")
    assert root is None
    assert [one.code for one in findings] == ["AP001"]


def test_every_unquoted_star_is_found_in_one_go() -> None:
    text = "a: *.x\nb: [*.y, c]\nd: { e: **.z }\n*f : 1\n"
    root, findings = parse(text, "p.yaml")
    assert root is not None
    assert [(one.line, one.column, one.code) for one in findings] == [
        (1, 4, "AP002"),
        (2, 5, "AP002"),
        (3, 9, "AP002"),
        (4, 1, "AP002"),
    ]
    assert list(root.pairs) == ["a", "b", "d"]


def test_the_number_of_repaired_stars_is_bounded() -> None:
    root, findings = parse("".join(f"k{n}: *.x\n" for n in range(200)), "p.yaml")
    assert root is None
    assert len(findings) < 30


def test_an_alias_bomb_is_refused_and_never_expanded() -> None:
    levels = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 30))
    root, findings = parse(f"b0: &b0 [x]\n{levels}", "p.yaml")
    assert root is not None
    assert {one.code for one in findings} == {"AP005"}


def test_depth_is_bounded() -> None:
    """At once: the parser alone needs half a minute for this one."""
    _, findings = parse("[" * 100_000, "p.yaml")
    assert [one.message for one in findings] == [f"nested deeper than {DEPTH_MAX} levels"]


def test_size_is_bounded() -> None:
    root, findings = parse("#" * (FILE_BYTES_MAX + 1), "p.yaml")
    assert root is None
    assert findings[0].message == "the file is larger than 16 MiB"


def test_a_long_key_is_refused() -> None:
    _, findings = parse(f'? "{"k" * 300}"\n: 1\n', "p.yaml")
    assert [one.code for one in findings] == ["AP007"]


def test_an_empty_file_is_an_empty_map() -> None:
    for text in ("", "# only a comment\n", "---\n", "~\n"):
        root, findings = parse(text, "p.yaml")
        assert root is not None
        assert (root.kind, root.pairs, findings) == ("map", {}, [])


def test_plain_values_lose_nothing_but_what_was_reported() -> None:
    root, _ = parse("a: 1\nb: [true, x, 0.5]\nc: yes\nd:\n", "p.yaml")
    assert root is not None
    empty: list[tuple[str, Node]] = []
    assert plain(root, empty) == {"a": 1, "b": [True, "x", 0.5], "c": BROKEN, "d": BROKEN}
    assert [key for key, _ in empty] == ["d"]


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=string.printable + "\x07\x85\u2028é&*!|>%@`", max_size=60))
def test_any_text_gives_a_tree_or_a_finding(text: str) -> None:
    root, findings = parse(text, "p.yaml")
    assert root is not None or findings
    for one in findings:
        assert one.line >= 1
        assert one.column >= 1
        assert one.message.isprintable()
