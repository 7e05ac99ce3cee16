"""Text that reads like other text: hidden characters, mixed scripts, letters that look Latin. PURE.

A small table, not the whole of UTS 39: the letters that have been used in look-alike host names.
A-labels (`xn--`) are judged by what they show.
"""

import re
from unicodedata import category, name

import idna

# letters of other scripts that fonts draw like Latin ones
_LATIN_TWINS = frozenset("аеорсухіјѕԁһԛԝӏɑοναρτυικγϲⅼ")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PARTS = re.compile(r"[^./*-]+")


def describe_lookalike(text: str) -> str:
    """What is suspicious about `text`, to follow it in a message; "" for nothing."""
    if text.isascii() and "xn--" not in text:
        return ""
    for part in _PARTS.findall(_decode(text) if "xn--" in text else text):
        found = "" if part.isascii() else _describe_part(part)
        if found:
            return found
    return ""


def _describe_part(part: str) -> str:
    for mark in part:
        if mark in _BIDI:
            return f"holds U+{ord(mark):04X}, which changes the order of what is shown"
        if category(mark) == "Cf":
            return f"holds U+{ord(mark):04X}, which is not shown"
    letters = [mark for mark in part if mark.isalpha()]
    scripts = sorted({name(mark, "UNKNOWN").split()[0].capitalize() for mark in letters})
    twin = next((mark for mark in letters if mark in _LATIN_TWINS), "")
    if len(scripts) > 1 and not {"Cjk", "Hiragana", "Katakana", "Hangul"} & set(scripts):
        odd = twin or next(mark for mark in letters if not mark.isascii())
        return f"mixes {' and '.join(scripts)} letters: U+{ord(odd):04X} stands in it"
    if twin and all(mark in _LATIN_TWINS for mark in letters):
        return f"looks like Latin letters and is not: U+{ord(twin):04X} stands in it"
    return ""


def _decode(text: str) -> str:
    return ".".join(_decode_label(label) for label in text.split("."))


def _decode_label(label: str) -> str:
    try:
        return idna.ulabel(label) if label.startswith("xn--") else label
    except (idna.IDNAError, ValueError, IndexError, OverflowError):
        return label  # canonicalise_host has the say on it
