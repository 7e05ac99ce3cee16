"""Linking and walking: what the writer links the verifier accepts, and nothing else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from audit.chain import LINE_BYTES_MAX, Break, Head, genesis, link, opening, ts_place, walk
from audit.laws import Laws
from audit.torn import is_torn
from tests.kit.chains import LOG, Event, at, chain, everyday, hash_of, opened, run, seal, spell

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
    assert walked.head == Head(b"", 0, b"0" * 64, b"0001-01-01T00:00:00.000000Z")
    assert walked.offset == 0
    assert walk([], genesis(LOG.encode())).head == genesis(LOG.encode())


def test_the_head_of_a_walk_is_the_head_the_writer_stands_at() -> None:
    """Also where the number of the record grows a digit, which moves the place of its time."""
    head, lines = genesis(LOG.encode()), []
    for second in range(103):
        line, head = link(head, b'{"a":1}', at(second).encode())
        lines.append(line)
        walked = walk(lines, genesis())
        assert walked.head == head
        assert walked.offset == len(b"".join(lines))
        assert walked.last == line


def test_a_chain_goes_on_in_its_own_log_only() -> None:
    other = chain([{"a": 1}], log="f" * 32)
    walked = walk(other, genesis(LOG.encode()))
    assert walked.broken == Break(1, 0, "the record belongs to another log")
    assert walk(other, genesis(b"f" * 32)).broken is None


def test_a_first_record_that_is_torn_leaves_the_head_of_a_new_log() -> None:
    whole = chain([opened()])[0]
    for size in (0, 1, 40, 60, len(whole) - 1):
        walked = walk([whole[:size]], genesis())
        assert (walked.broken, walked.tail) == (None, whole[:size])
        assert walked.head in (genesis(), genesis(LOG.encode())), "unnamed, or the log it names"
        assert is_torn(walked.tail, walked.head)


def test_a_line_without_end_is_no_tail() -> None:
    lines = everyday()
    place, too_long = len(b"".join(lines)), "the line is longer than 65535 bytes"
    for line in (b"x" * LINE_BYTES_MAX, b"x" * LINE_BYTES_MAX + b"\n"):
        walked = walk([*lines, line], genesis())
        assert (walked.tail, walked.broken) == (b"", Break(len(lines) + 1, place, too_long))
    almost = b"x" * (LINE_BYTES_MAX - 1)
    assert walk([*lines, almost], genesis()).tail == almost
    broken = walk([*lines, almost + b"\n"], genesis()).broken
    assert broken == Break(len(lines) + 1, place, "the line is not a record")


def broken_at_four(line: bytes) -> Break | None:
    """The everyday log with another fourth line."""
    return walk([*everyday()[:3], line], genesis()).broken


def test_a_break_says_where_it_is_and_what_is_wrong_there() -> None:
    lines = everyday()
    place = len(b"".join(lines[:3]))
    good = {"event": spell({"kind": "heartbeat"}), "seq": 3, "prev": hash_of(lines[2]), "ts": at(3)}
    for change, problem in (
        ({"log": "f" * 32}, "the record belongs to another log"),
        ({"seq": 4}, "the record has number 4, expected 3"),
        ({"prev": "f" * 64}, "the record does not name the hash of the record before it"),
    ):
        assert broken_at_four(seal(**{**good, **change})) == Break(4, place, problem)  # type: ignore[arg-type]
    for version in (0, 2, 10):
        unknown = f"record version {version} is not known"
        line = seal(**good, v=version)  # type: ignore[arg-type]
        assert broken_at_four(line) == Break(4, place, unknown, "unknown-version")
    whole = seal(**good)  # type: ignore[arg-type]
    assert broken_at_four(whole.replace(b"heart", b"HEART")) == Break(
        4, place, "the record does not match its own hash"
    )
    assert broken_at_four(b"{}\n") == Break(4, place, "the line is not a record")
    assert broken_at_four(whole) is None


def test_a_law_that_is_broken_says_where() -> None:
    lines = chain(run({"kind": "nothing"}))
    walked = walk(lines, genesis(), Laws())
    assert walked.broken is not None
    assert (walked.broken.line, walked.broken.offset) == (3, len(lines[0]) + len(lines[1]))
    assert walked.offset == walked.broken.offset
    assert walked.head == walk(lines[:2], genesis(), Laws()).head
