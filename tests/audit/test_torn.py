"""A tail is torn only if some record could begin with it."""

import pytest

from audit.chain import Head, genesis, walk
from audit.torn import is_torn
from tests.kit.chains import chain, decision, everyday, opened


def head_and_next() -> tuple[Head, bytes]:
    """The head behind two records, and the third without its LF."""
    lines = everyday()
    return walk(lines[:2], genesis()).head, lines[2][:-1]


def test_every_beginning_of_the_next_record_is_torn() -> None:
    head, record = head_and_next()
    for size in range(1, len(record) + 1):
        assert is_torn(record[:size], head), record[:size]


def test_no_beginning_followed_by_another_byte_is_torn_unless_it_could_go_on() -> None:
    """Control characters and bytes behind the record never can."""
    head, record = head_and_next()
    for size in range(len(record) + 1):
        assert not is_torn(record[:size] + b"\0", head)
    for byte in range(256):
        assert not is_torn(record + bytes([byte]), head)


def test_the_first_record_of_a_log_may_be_torn_too() -> None:
    line = chain([opened()])[0][:-1]
    for size in range(1, len(line) + 1):
        assert is_torn(line[:size], genesis())


def test_a_record_of_another_place_is_not_torn() -> None:
    head, _ = head_and_next()
    other = everyday()[3][:-1]
    assert not is_torn(other[:70], head)


FORGED = {
    "a wrong hash": (b',"hash":"' + b"0" * 10, True),
    "an event that closes twice": (b"}", True),
    "another field": (b',"extra":1', True),
    "an upper-case key": (b'{"A', False),
    "a bare word": (b'{"a":true', False),
    "an array that closes as an object": (b'{"a":[}', False),
    "no event": (b"[", False),
    "too deep": (b'{"a":' * 9, False),
    "a space": (b'{ "a"', False),
    "a float": (b'{"a":1.5', False),
}


@pytest.mark.parametrize(("rest", "behind"), FORGED.values(), ids=FORGED)
def test_what_no_record_goes_on_with_is_forged(rest: bytes, behind: bool) -> None:
    head, record = head_and_next()
    place = len(record) - 75 if behind else record.index(b'"event":') + 8
    assert is_torn(record[:place], head)
    assert not is_torn(record[:place] + rest, head)


def test_a_tail_longer_than_a_line_is_forged() -> None:
    line = chain([decision(1, client="x" * 70_000)])[0]
    assert not is_torn(line[:65_600], genesis())
