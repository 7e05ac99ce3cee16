"""Regular expressions of a policy: RE2 only, full match, linear time. PURE.

Rule 1: RE2 has no backtracking, so no text an agent sends can make a rule slow (threats A18).
Rule 2: size is bounded, because ten thousand large programs would be slow to load and to hold.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import re2

PROGRAM_SIZE_MAX = 10_000  # RE2 instructions; (a{1000}){1000} and its kin are refused by RE2 itself
TEXT_CHARS_MAX = 2_000

_LITERAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-_~@,:=!&'%")
_QUANTIFIERS = frozenset("*?{+")


def find_problem(text: str) -> str | None:
    """What is wrong with an expression (lower case, no full stop), or None. Finding AP111."""
    if len(text) > TEXT_CHARS_MAX:
        return f"longer than {TEXT_CHARS_MAX} characters"
    try:
        program = _compile(text)
    except re2.error as error:
        found = error.args[0] if error.args else b""
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    except UnicodeEncodeError:
        return "not valid Unicode"
    if program.programsize > PROGRAM_SIZE_MAX:
        return f"too large: {program.programsize} instructions, at most {PROGRAM_SIZE_MAX}"
    return None


def compile_test(text: str) -> Callable[[str], bool]:
    """A test for "the whole text matches".

    Raises:
        ValueError: the expression is not valid; `compile.py` has asked `find_problem` before.
    """
    problem = find_problem(text)
    if problem is not None:
        raise ValueError(f"bad regular expression: {problem}")
    fullmatch = _compile(text).fullmatch

    def test(value: str) -> bool:
        return fullmatch(value.encode("utf-8")) is not None  # bytes: three times faster than str

    return test


def read_literal_prefix(text: str) -> str:
    """The literal text every match starts with; shorter than it could be, never wrong."""
    if "|" in text:
        return ""
    prefix = ""
    rest = text.removeprefix("^")
    for position, char in enumerate(rest):
        if char in _QUANTIFIERS:
            return prefix[:-1]
        if char not in _LITERAL:
            return _read_escaped_dot(prefix, rest[position:])
        prefix += char
    return prefix


def _read_escaped_dot(prefix: str, rest: str) -> str:
    """Go on behind `\\.` and `\\-`, which people write in paths, unless a quantifier follows."""
    if rest[:2] not in ("\\.", "\\-") or rest[2:3] in _QUANTIFIERS:
        return prefix
    return prefix + rest[1] + _continue_prefix(rest[2:])


def _continue_prefix(rest: str) -> str:
    return read_literal_prefix(rest) if not rest.startswith("^") else ""


@lru_cache(maxsize=4096)
def _compile(text: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return re2.compile(text, options)  # type: ignore[no-untyped-call]
