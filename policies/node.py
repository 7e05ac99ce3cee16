"""The tree of a policy file: values as written, each with its place. PURE.

`load.py` builds it from the events of the YAML parser; `schema.py` reads it. Here also lives how an
unquoted scalar is typed: by the rules on which YAML 1.1 and YAML 1.2 agree. Where they do not, the
scalar is `broken` and AP004.
"""

import re
from typing import Any, Literal

Kind = Literal["map", "list", "str", "int", "bool", "null", "float", "broken"]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
SWITCHES = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,18})\Z")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)
_CLOCK = re.compile(r"[-+]?[0-9]+(?::[0-5]?[0-9])+(?:\.[0-9]*)?\Z")
_OTHER_BASE = re.compile(r"[-+]?(?:0[0-9_]+|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+)\Z")
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?\Z")
_LOOKS_PLAIN = re.compile(r"[-+.]?[0-9]|[-+]?\.[inIN]")


class Broken:
    """Stands for a value that was reported while the file was read."""

    __slots__ = ()


BROKEN = Broken()


class Node:
    """One value of the file and where it stands. `keys` holds the place of each key of a map."""

    __slots__ = ("column", "items", "keys", "kind", "line", "pairs", "partial", "text")

    def __init__(self, kind: Kind, line: int, column: int, text: str = "") -> None:
        self.kind: Kind = kind
        self.line = line  # from 1
        self.column = column  # from 1
        self.text = text  # of a scalar, as written (without quotes)
        self.pairs: dict[str, Node] = {}
        self.keys: dict[str, tuple[int, int]] = {}
        self.items: list[Node] = []
        self.partial = False  # a map one of whose keys was reported and left out

    def get(self, key: str) -> "Node | None":
        """The value below `key`, or None where this is not a map or has no such key."""
        return self.pairs.get(key)

    def texts(self) -> "list[Node]":
        """The scalars of a scalar-or-list; anything else contributes nothing."""
        nodes = self.items if self.kind == "list" else [self]
        return [node for node in nodes if node.kind in {"str", "int"}]


def surprise(text: str) -> str:
    """What some YAML reader takes an unquoted `text` for; "" where all readers agree."""
    if text.lower() in SWITCHES and text in {text.lower(), text.upper(), text.capitalize()}:
        return SWITCHES[text.lower()]
    if not _LOOKS_PLAIN.match(text):
        return ""
    if _CLOCK.match(text):
        return "a number in base 60"
    if _OTHER_BASE.match(text):
        return "a number in another base"
    if _GROUPED.match(text):
        return "a number without the `_`"
    return ""


def intention(text: str) -> str:
    """What the author of a surprising scalar most likely means, as all readers read it, or ""."""
    if text.lower() in SWITCHES:
        return SWITCHES[text.lower()]
    if _CLOCK.match(text):
        return ""
    digits = text.replace("_", "").lstrip("+")
    if digits[:2].lower() in {"0x", "0o", "0b"}:
        return str(int(digits, 0))
    return digits.lstrip("0") or "0"


def plain_kind(text: str) -> Kind:
    """The type of an unquoted scalar; `broken` where YAML readers disagree about it."""
    if text in _NULL:
        return "null"
    if text in _BOOL:
        return "bool"
    if surprise(text):
        return "broken"
    if _LOOKS_PLAIN.match(text):
        if _INT.match(text):
            return "int"
        if _FLOAT.match(text):
            return "float"
    return "str"


def plain(node: Node, empty: list[tuple[str, Node]]) -> Any:
    """The value as plain Python, for the schema; what was reported before is `BROKEN`.

    A key or list item without a value goes into `empty`, with its key, and is broken from then on.
    """
    kind = node.kind
    if kind == "str":
        return node.text
    if kind == "map":
        return {key: _plain_value(key, value, empty) for key, value in node.pairs.items()}
    if kind == "list":
        return [_plain_value("", item, empty) for item in node.items]
    if kind == "int":
        return int(node.text)
    if kind == "bool":
        return _BOOL[node.text]
    if kind == "float":
        return float(node.text.replace(".", "", 1) if node.text[-1:].isalpha() else node.text)
    return BROKEN


def _plain_value(key: str, node: Node, empty: list[tuple[str, Node]]) -> Any:
    if node.kind == "null":
        empty.append((key, node))
        node.kind = "broken"
        return BROKEN
    return plain(node, empty)
