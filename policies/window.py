"""Time windows: is it that time of day, on that day, in that zone? PURE: the clock is a parameter.

Rule 1: half-open wall-clock intervals; one over midnight belongs to the day it opens on.
Rule 2: three answers. A time that happens twice (clocks go back), and a bound that happens never or
        twice, give "unknown": closed for an allow, in force for a deny (policy.md 2.4 and 2.8).
Rule 3: total: an instant the calendar cannot hold is unknown too (threats B12).
"""

from datetime import UTC, date, datetime, time, timedelta

from policies.outcome import FALSE, TRUE, UNKNOWN, Outcome
from policies.rule import Window


def judge_window(window: Window, now: datetime) -> Outcome:
    """Whether `now` (aware) lies inside the window: true, false or unknown."""
    if window.from_ is not None and now < window.from_:
        return FALSE
    if window.until is not None and now >= window.until:
        return FALSE
    if window.days is None and window.between is None:
        return TRUE
    try:
        return _judge_wall_clock(window, now)
    except (OverflowError, ValueError):
        return UNKNOWN


def _judge_wall_clock(window: Window, now: datetime) -> Outcome:
    local = now.astimezone(window.timezone)
    today = local.date()
    if window.between is None:
        return TRUE if window.days is None or today.weekday() in window.days else FALSE
    opens, closes = window.between
    minute = local.hour * 60 + local.minute
    over_midnight = opens > closes
    if over_midnight and minute < closes:
        opened_on = today - timedelta(days=1)
    elif minute >= opens and (over_midnight or minute < closes):
        opened_on = today
    else:
        return FALSE
    if window.days is not None and opened_on.weekday() not in window.days:
        return FALSE
    closes_on = opened_on + timedelta(days=1) if over_midnight else opened_on
    sure = (
        len(_instants(window, today, minute)) == 1
        and now >= max(_instants(window, opened_on, opens))
        and now < min(_instants(window, closes_on, closes))
    )
    return TRUE if sure else UNKNOWN


def _instants(window: Window, day: date, minute: int) -> set[datetime]:
    """Every instant a wall-clock minute can mean: one, or two in a gap or an overlap (PEP 495)."""
    if minute == 1440:
        day, minute = day + timedelta(days=1), 0
    wall = datetime.combine(day, time(minute // 60, minute % 60), window.timezone)
    return {wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)}
