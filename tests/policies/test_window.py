"""Time windows: policy.md 2.8, threats B12."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from policies.rule import Window
from policies.window import judge_window

BERLIN = ZoneInfo("Europe/Berlin")
OFFICE = Window(BERLIN, frozenset(range(5)), (600, 1080))
NIGHT = Window(BERLIN, frozenset({4}), (18 * 60, 8 * 60))  # Friday evening to Saturday morning
ALL_NIGHT = Window(BERLIN, None, (60, 300))
REPEATED_HOUR = Window(BERLIN, None, (120, 180))
IN_THE_GAP = Window(BERLIN, None, (150, 240))
ENDS_IN_THE_GAP = Window(BERLIN, None, (60, 150))
YEAR = Window(
    BERLIN, from_=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2027, 1, 1, tzinfo=UTC)
)

CASES = {
    "inside": (OFFICE, "2026-11-20T10:00+01:00", "true"),
    "opens on the minute": (OFFICE, "2026-11-20T09:59:59+01:00", "false"),
    "closes on the minute": (OFFICE, "2026-11-20T18:00+01:00", "false"),
    "last moment": (OFFICE, "2026-11-20T17:59:59+01:00", "true"),
    "weekend": (OFFICE, "2026-11-21T12:00+01:00", "false"),
    "the zone counts, not the clock's": (OFFICE, "2026-11-20T09:30+00:00", "true"),
    "over midnight, evening": (NIGHT, "2026-11-20T23:00+01:00", "true"),
    "over midnight, next morning": (NIGHT, "2026-11-21T07:59+01:00", "true"),
    "over midnight, evening of the next day": (NIGHT, "2026-11-21T23:00+01:00", "false"),
    "over midnight, morning of its own day": (NIGHT, "2026-11-20T07:00+01:00", "false"),
    "from is inside": (YEAR, "2026-01-01T00:00+00:00", "true"),
    "until is outside": (YEAR, "2027-01-01T00:00+00:00", "false"),
    "before from": (YEAR, "2025-12-31T23:59+00:00", "false"),
    "days alone": (Window(BERLIN, frozenset({6})), "2026-10-25T02:30+02:00", "true"),
    "another day alone": (Window(BERLIN, frozenset({6})), "2026-10-24T12:00+02:00", "false"),
    "over midnight, closes on the minute": (NIGHT, "2026-11-21T08:00+01:00", "false"),
    "the first moment of an end that never was": (
        ENDS_IN_THE_GAP,
        "2026-03-29T01:30+01:00",
        "unknown",
    ),
    "over midnight, before an end that never was": (
        Window(BERLIN, None, (1320, 150)),
        "2026-03-29T01:45+01:00",
        "unknown",
    ),
    "until a midnight that never was": (
        Window(ZoneInfo("Asia/Beirut"), None, (1200, 1440)),
        "2026-03-28T23:30+02:00",
        "unknown",
    ),
    "until midnight": (Window(BERLIN, None, (1380, 1440)), "2026-11-20T23:59+01:00", "true"),
    "the repeated hour, first time": (REPEATED_HOUR, "2026-10-25T02:30+02:00", "unknown"),
    "the repeated hour, second time": (REPEATED_HOUR, "2026-10-25T02:30+01:00", "unknown"),
    "the repeated hour inside a longer window": (ALL_NIGHT, "2026-10-25T02:30+01:00", "unknown"),
    "after the repeated hour": (ALL_NIGHT, "2026-10-25T03:30+01:00", "true"),
    "the repeated hour outside the window": (OFFICE, "2026-10-26T02:30+01:00", "false"),
    "a beginning that never was": (IN_THE_GAP, "2026-03-29T03:10+02:00", "unknown"),
    "well after a beginning that never was": (IN_THE_GAP, "2026-03-29T03:30+02:00", "true"),
    "before an end that never was": (ENDS_IN_THE_GAP, "2026-03-29T01:45+01:00", "unknown"),
    "well before an end that never was": (ENDS_IN_THE_GAP, "2026-03-29T01:15+01:00", "true"),
    "same bounds on a common day": (IN_THE_GAP, "2026-03-30T03:10+02:00", "true"),
}


@pytest.mark.parametrize(("window", "now", "expected"), CASES.values(), ids=CASES)
def test_a_window_is_the_wall_clock_of_its_zone(window: Window, now: str, expected: str) -> None:
    assert judge_window(window, datetime.fromisoformat(now)) == expected


@pytest.mark.parametrize(
    "edge", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
)
def test_an_instant_the_calendar_cannot_hold_is_unknown(edge: datetime) -> None:
    for zone in ("Etc/GMT+12", "Etc/GMT-14"):
        window = Window(ZoneInfo(zone), None, (0, 1440))
        assert judge_window(window, edge) in ("unknown", "true", "false")


def test_a_clock_step_of_a_year_gives_an_answer() -> None:
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    for step in (timedelta(days=-366), timedelta(days=366)):
        assert judge_window(OFFICE, now + step) in ("true", "false")
