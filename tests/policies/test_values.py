"""One value at a time: units, words, times, ranges."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

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
