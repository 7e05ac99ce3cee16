"""One value at a time: units, words, times, ranges."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import values
from policies.values import Unfit

SIZES = {
    "bytes": ("512B", 512),
    "decimal kilo": ("5kB", 5000),
    "decimal kilo, as people write it": ("5KB", 5000),
    "decimal mega": ("10MB", 10**7),
    "binary mega": ("10MiB", 10 * 2**20),
    "with a space": ("1 GiB", 2**30),
    "none": ("0B", 0),
}
TIMES = {
    "ms": ("500ms", 500),
    "s": ("2s", 2000),
    "m": ("5m", 300_000),
    "h": ("2h", 7_200_000),
    "d": ("1d", 86_400_000),
}


@pytest.mark.parametrize(("text", "amount"), SIZES.values(), ids=SIZES)
def test_a_size_is_bytes(text: str, amount: int) -> None:
    assert values.read_size(text) == amount


@pytest.mark.parametrize(("text", "amount"), TIMES.values(), ids=TIMES)
def test_a_time_is_milliseconds(text: str, amount: int) -> None:
    assert values.read_duration(text) == amount


DATE = "write 2026-11-01, or 2026-11-01T08:00:00Z"
NAME = "use letters, digits, `-`, `_` and `.`, at most 64, such as `read-docs`"
HOST = "write the plain host: no scheme, port, path or user, as in `api.example.com`"
UNFIT: dict[str, tuple[Any, Any, str, str]] = {
    "size without unit": (values.read_size, 200, "AP008", "write 10MB, 10MiB, 500kB or 512B"),
    "size in lower case": (values.read_size, "10mb", "AP008", "did you mean `10MB`?"),
    "size in bits": (values.read_size, "10Mbit", "AP008", "write 10MB, 10MiB, 500kB or 512B"),
    "size below nothing": (values.read_size, "-1MB", "AP007", "write 10MB, 10MiB, 500kB or 512B"),
    "size as true": (values.read_size, True, "AP007", "write 10MB, 10MiB, 500kB or 512B"),
    "size beyond 2^53": (values.read_size, "9007199254740992B", "AP007", ""),
    "time of nothing": (values.read_duration, "0s", "AP007", ""),
    "time in capitals": (values.read_duration, "5M", "AP008", "did you mean `5m`?"),
    "count as text": (values.read_count, "5", "AP007", "write it without quotes"),
    "count as true": (values.read_count, True, "AP007", ""),
    "version true": (values.read_version, True, "AP007", "write `version: 1`"),
    "day in full": (values.read_day, "Wednesday", "AP007", "did you mean `wed`?"),
    "minute of no hour": (values.read_minute, "24:01", "AP007", 'write "08:00" in quotes'),
    "month thirteen": (values.read_moment, "2026-13-01", "AP007", DATE),
    "week date": (values.read_moment, "2026-W10-1", "AP007", DATE),
    "zone path": (values.read_timezone, "../etc/passwd", "AP007", "write UTC or Europe/Berlin"),
    "zone in lower case": (values.read_timezone, "europe/berlin", "AP007",
                           "did you mean `Europe/Berlin`?"),
    "id too long": (values.read_id, "a" * 65, "AP007", NAME),
    "id that ends in a dot": (values.read_id, "a.", "AP007", NAME),
    "header with a space": (values.read_header_name, "x team", "AP007", ""),
    "netmask": (values.read_network, "10.0.0.0/255.0.0.0", "AP107", "write `10.0.0.0/8`"),
    "no host at all": (values.read_host, "", "AP104", HOST),
}  # fmt: skip


@pytest.mark.parametrize(("read", "value", "code", "hint"), UNFIT.values(), ids=UNFIT)
def test_an_unfit_value_says_what_to_write(read: Any, value: Any, code: str, hint: str) -> None:
    with pytest.raises(Unfit) as caught:
        read(value)
    assert (caught.value.code, caught.value.hint) == (code, hint)


def test_a_wall_clock_that_happens_twice_or_never_has_two_readings() -> None:
    zone = ZoneInfo("Europe/Berlin")
    for text in ("2026-03-29T02:30", "2026-10-25T02:30"):
        moment = values.read_moment(text)
        early = values.fix_moment(moment, zone, later=False)
        late = values.fix_moment(moment, zone, later=True)
        assert (late.timestamp() - early.timestamp()) == 3600
    plain = values.fix_moment(datetime(2026, 7, 1), zone, later=True)  # noqa: DTZ001
    assert plain.isoformat() == "2026-07-01T00:00:00+02:00"


def test_a_quoted_number_is_shown_with_its_quotes() -> None:
    assert values.show("443") == '`"443"`'
    assert values.show("true") == '`"true"`'
    assert values.show("x" * 200) == f"`{'x' * 77}...`"


def test_a_name_is_suggested_only_when_near_and_among_few() -> None:
    assert values.suggest("metods", ["methods", "match"]) == "did you mean `methods`?"
    assert values.suggest("budgets", ["agents", "rules"]) == ""
    assert values.suggest("name-1", [f"name-{n}" for n in range(2000)]) == ""


COUNT, SIZE, TIME = values.read_count_limit, values.read_size_limit, values.read_time_limit
PLAIN = "write a plain number; 0 allows nothing"
SIZES_HINT = "write 10MB, 10MiB, 500kB or 512B; 0 allows nothing"
TIMES_HINT = "write 30s, 5m, 2h or 1d; 0 allows nothing"
NONE = "leave the line out if there is no limit"
BAD_LIMITS: dict[str, tuple[Any, Any, str, str]] = {
    "negative": (COUNT, -1, "`-1`", PLAIN),
    "true": (COUNT, True, "`true`", PLAIN),
    "false": (COUNT, False, "`false`", PLAIN),
    "a float": (COUNT, 1.5, "`1.5`", PLAIN),
    "a whole float": (COUNT, 10.0, "`10.0`", PLAIN),
    "not a number": (COUNT, float("nan"), "`.nan`", PLAIN),
    "infinite": (COUNT, float("inf"), "`.inf`", NONE),
    "infinite below": (COUNT, float("-inf"), "`-.inf`", PLAIN),
    "2^53": (COUNT, 2**53, "`9007199254740992`", NONE),
    "2^60": (COUNT, 2**60, "`1152921504606846976`", NONE),
    "words": (COUNT, "ten", "`ten`", PLAIN),
    "quoted": (COUNT, "10", '`"10"`', "write it without quotes"),
    "digits of another script": (COUNT, "١٠", "`١٠`", PLAIN),
    "a size for a count": (COUNT, "10MB", "`10MB`", PLAIN),
    "a list": (COUNT, [1], "a list", PLAIN),
    "a map": (COUNT, {"a": 1}, "a map", PLAIN),
    "no size": (SIZE, "plenty", "`plenty`", SIZES_HINT),
    "an empty size": (SIZE, "", '`""`', SIZES_HINT),
    "a negative size": (SIZE, "-5MB", "`-5MB`", SIZES_HINT),
    "a negative number for a size": (SIZE, -5, "`-5`", SIZES_HINT),
    "a part of a size": (SIZE, "1.5MB", "`1.5MB`", SIZES_HINT),
    "a float for a size": (SIZE, 1.5, "`1.5`", SIZES_HINT),
    "zero as a float": (SIZE, 0.0, "`0.0`", SIZES_HINT),
    "false for a size": (SIZE, False, "`false`", SIZES_HINT),
    "a size of NaN": (SIZE, float("nan"), "`.nan`", SIZES_HINT),
    "a size beyond 2^53": (SIZE, "9007199254740992B", "`9007199254740992B`", SIZES_HINT),
    "a number beyond 2^53 for a size": (SIZE, 2**60, "`1152921504606846976`", NONE),
    "no time": (TIME, "soon", "`soon`", TIMES_HINT),
    "a negative time": (TIME, "-2h", "`-2h`", TIMES_HINT),
    "a time of true": (TIME, True, "`true`", TIMES_HINT),
    "a time beyond 2^53": (TIME, "104249991375d", "`104249991375d`", TIMES_HINT),
}


@pytest.mark.parametrize(("read", "value", "shown", "hint"), BAD_LIMITS.values(), ids=BAD_LIMITS)
def test_a_bad_limit_is_ap609(read: Any, value: Any, shown: str, hint: str) -> None:
    with pytest.raises(Unfit) as caught:
        read(value)
    expected = {
        COUNT: "a whole number from 0 to 2^53-1",
        SIZE: "a size from 0 to 2^53-1 bytes",
        TIME: "a time from 0 to 2^53-1 ms",
    }[read]
    said = caught.value
    assert (said.code, said.message, said.hint) == (
        "AP609",
        f"expected {expected}, not {shown}",
        hint,
    )


UNITLESS: dict[str, tuple[Any, Any, str]] = {
    "bytes": (SIZE, 200, "`200` has no unit"),
    "quoted bytes": (SIZE, "200", "`200` has no unit"),
    "milliseconds": (TIME, 2, "`2` has no unit"),
    "bits": (SIZE, "10Mb", "`Mb` is not a unit of size"),
    "a time for a size": (SIZE, "2h", "`h` is not a unit of size"),
    "a month": (TIME, "1M", "`M` is not a unit of time"),
    "a share": (values.read_percent, 80, "`80` has no unit"),
    "a fraction": (values.read_percent, 0.8, "`0.8` has no unit"),
}


@pytest.mark.parametrize(("read", "value", "message"), UNITLESS.values(), ids=UNITLESS)
def test_a_unit_that_is_missing_is_ap008(read: Any, value: Any, message: str) -> None:
    with pytest.raises(Unfit) as caught:
        read(value)
    assert (caught.value.code, caught.value.message) == ("AP008", message)
    assert caught.value.hint


def test_nothing_needs_no_unit() -> None:
    assert COUNT(0) == SIZE(0) == SIZE("0B") == TIME(0) == TIME("0s") == 0


@given(st.integers(0, 2**53 - 1))
def test_every_integer_up_to_the_bound_is_a_limit(limit: int) -> None:
    assert COUNT(limit) == SIZE(f"{limit}B") == TIME(f"{limit}ms") == limit


odd = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=2**53),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.sampled_from([COUNT, SIZE, TIME]), odd)
def test_a_limit_is_an_integer_in_range_or_a_finding(read: Any, value: Any) -> None:
    refused: Unfit | None = None
    try:
        limit = read(value)
    except Unfit as unfit:
        refused = unfit
    if refused is None:
        assert type(limit) is int
        assert 0 <= limit < 2**53
        assert isinstance(value, str)
    else:
        assert refused.code in {"AP008", "AP609"}
        assert refused.message
        assert refused.hint


@pytest.mark.parametrize("percent", [1, 80, 100])
def test_a_share_is_a_whole_percentage(percent: int) -> None:
    assert values.read_percent(f"{percent}%") == percent


@pytest.mark.parametrize("value", ["0%", "101%", "99.5%", "80 %", "-1%", "%", "", True, None, []])
def test_another_share_is_refused(value: Any) -> None:
    with pytest.raises(Unfit, match="expected a whole percentage") as caught:
        values.read_percent(value)
    assert (caught.value.code, caught.value.hint) == ("AP007", "write `80%`")


def test_a_window_is_some_time_and_not_forever() -> None:
    assert values.read_window("1d") == 86_400_000
    assert values.read_window("36500d") == 36_500 * 86_400_000
    for value in ("0s", "36501d", "daily"):
        with pytest.raises(Unfit) as caught:
            values.read_window(value)
        assert caught.value.code == "AP007"


@given(st.integers(0, 2**53 - 1))
def test_what_is_spelt_is_read_back_as_it_was(amount: int) -> None:
    assert SIZE(values.spell_size(amount)) == TIME(values.spell_duration(amount)) == amount


SPELT = {
    values.spell_size: ("0B", "999B", "50MB", "1GiB", "1500kB", "10MiB", "9007199254740991B"),
    values.spell_duration: ("0s", "1ms", "1500ms", "90s", "90m", "2h", "1d", "36h"),
}


def test_the_unit_with_the_smallest_number_is_chosen() -> None:
    for spell, texts in SPELT.items():
        read = SIZE if spell is values.spell_size else TIME
        assert tuple(spell(read(text)) for text in texts) == texts
