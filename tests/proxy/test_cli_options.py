"""Options: durations, flags in complaints, defaults that are values already."""

from datetime import timedelta

import click
import pytest

from proxy.cli.options import Parsed, parse_duration

DURATIONS = {
    "45s": timedelta(seconds=45),
    "30m": timedelta(minutes=30),
    "12h": timedelta(hours=12),
    "90d": timedelta(days=90),
    "2w": timedelta(weeks=2),
}
NO_DURATIONS = ("", "90", "d", "0d", "-1d", "1.5h", "1 d", "1d ", "1D", "1y", "٣d", "99999999d")


@pytest.mark.parametrize(("text", "duration"), DURATIONS.items())
def test_a_duration_is_a_number_and_a_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and s, m, h, d or w"):
        parse_duration(text)


def test_a_complaint_names_the_flag_once() -> None:
    option = click.Option(["--overlap"])
    with pytest.raises(click.UsageError, match=r"^`--overlap 1y`: it is no duration"):
        Parsed("duration", parse_duration).convert("1y", option, None)


def test_a_default_that_is_no_text_stays_what_it_is() -> None:
    assert Parsed("duration", parse_duration).convert(timedelta(), None, None) == timedelta()
