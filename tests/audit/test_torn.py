"""A tail is torn only if some record could begin with it."""

import pytest

from audit.chain import Head, genesis, opening, walk
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
    for size in range(len(other) - 150, len(other) + 1):
        assert not is_torn(other[:size], head), "all is right but where it stands"
    assert not is_torn(b'{"chain":{"log":"' + b"f" * 32 + b'","prev":"1', genesis())
    assert is_torn(b'{"chain":{"log":"' + b"f" * 32 + b'","prev":"0', genesis())


TIMES = {
    b"9999-12-31T23:59:59.999999Z": True,
    b"0000-00-00T00:00:00.000000Z": True,
    b"2026-01-31T12:00:00.00000/Z": False,
    b"2026-01-31T12:00:00.00000:Z": False,
    b"2026/01-31T12:00:00.000000Z": False,
    b"2026-01-31T12:00:00.000000+": False,
}


@pytest.mark.parametrize(("ts", "expected"), TIMES.items())
def test_a_time_is_digits_where_digits_stand(ts: bytes, expected: bool) -> None:
    start = opening(head := genesis(b"f" * 32)) + ts
    assert is_torn(start, head) is expected
    assert is_torn(start + b'","v":1},"event":{"a', head) is expected
    assert not is_torn(start + b'","v":2},"event":{"a', head)


FORGED = {
    "a wrong hash": (b',"hash":"' + b"0" * 10, True),
    "an event that closes twice": (b"}", True),
    "another field": (b',"extra":1', True),
    "an upper-case key": (b'{"A', False),
    "a bare word": (b'{"a":true', False),
    "an array that closes as an object": (b'{"a":[}', False),
    "an object that closes as an array": (b'{"a":1]', False),
    "an array in an array that closes as an object": (b'{"a":[[1}', False),
    "a key without a value": (b'{"a":}', False),
    "a comma for a value": (b'{"a":,', False),
    "a letter for a bracket": (b'{"a":X', False),
    "a value without a key": (b'{"a":1,2', False),
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


@pytest.mark.parametrize(
    "rest", [b'{"a":[1,2', b'{"a":[1,', b'{"a":[{"b":1},{"c":[]},"d', b'{"a":{},"b":[],"c":-1']
)
def test_what_a_record_could_go_on_with_is_torn(rest: bytes) -> None:
    head, record = head_and_next()
    for size in range(1, len(rest) + 1):
        assert is_torn(record[: record.index(b'"event":') + 8] + rest[:size], head), rest[:size]


def test_a_tail_longer_than_a_line_is_forged() -> None:
    line = chain([decision(1, client="x" * 70_000)])[0]
    assert not is_torn(line[:65_600], genesis())
    assert is_torn(line[:65_535], genesis())
    assert not is_torn(line[:65_536], genesis())
