"""Linking and walking: what the writer links the verifier accepts, and nothing else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from audit.chain import Head, genesis, link, opening, ts_place, walk
from tests.kit.chains import LOG, Event, at, chain, everyday, hash_of, spell

bodies = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 99) | st.text(max_size=9), min_size=1),
    min_size=1,
    max_size=6,
)


def write(events: list[Event]) -> list[bytes]:
    head, lines = genesis(LOG.encode()), []
    for second, event in enumerate(events):
        line, head = link(head, spell(event), at(second).encode())
        lines.append(line)
    return lines


@given(bodies)
@settings(deadline=None, max_examples=60)
def test_what_the_writer_links_the_verifier_accepts(events: list[Event]) -> None:
    lines = write(events)
    walked = walk(lines, genesis())
    assert walked.broken is None
    assert walked.head == Head(
        LOG.encode(), len(lines), hash_of(lines[-1]).encode(), at(len(lines) - 1).encode()
    )
    assert lines == chain(events)


@given(bodies, st.data())
@settings(deadline=None, max_examples=100)
def test_any_flipped_bit_before_the_last_line_is_found(
    events: list[Event], data: st.DataObject
) -> None:
    """Every byte before the last line; the last line has its own table of cases."""
    lines = write([*events, {"last": 1}])
    victim = data.draw(st.integers(0, len(lines) - 2))
    bit = data.draw(st.integers(0, 8 * len(lines[victim]) - 1))
    flipped = bytearray(lines[victim])
    flipped[bit // 8] ^= 1 << (bit % 8)
    lines[victim] = bytes(flipped)
    walked = walk(b"".join(lines).splitlines(keepends=True), genesis())
    assert walked.broken is not None


def test_the_walk_goes_on_from_any_head() -> None:
    lines = everyday()
    half = walk(lines[:3], genesis())
    assert walk(lines[3:], half.head).head == walk(lines, genesis()).head


def test_a_tail_without_lf_is_returned_unjudged() -> None:
    lines = everyday()
    walked = walk([*lines, b'{"chain"'], genesis())
    assert (walked.broken, walked.tail, walked.closed) == (None, b'{"chain"', True)


def test_the_time_stands_where_every_verifier_looks_for_it() -> None:
    for seq in (0, 9, 10, 123_456, 2**53 - 1):
        head = Head(LOG.encode(), seq, b"0" * 64, at(0).encode())
        assert len(opening(head)) == ts_place(seq)


def test_an_empty_walk_has_no_head() -> None:
    walked = walk([], genesis())
    assert (walked.head.seq, walked.last, walked.closed) == (0, b"", False)
