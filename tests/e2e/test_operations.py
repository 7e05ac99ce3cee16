"""docs/operations.md says what the product says: refusals, metrics, and settings by name."""

import re
from pathlib import Path

import pytest

from proxy.settings import Settings
from tests.house.tree import sources

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
REFUSALS = PAGE.partition("## When it does not start")[2].partition("\n## ")[0]
CODE = "\n".join(path.read_text(encoding="utf-8") for path in sources())
OUTSIDE = {"address already in use"}  # the system's own words


def quoted() -> list[str]:
    """Whatever stands in backticks in the first column."""
    rows = [row for row in REFUSALS.splitlines() if row.startswith("| `")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("text", quoted())
def test_a_refusal_that_the_page_explains_is_one_that_is_given(text: str) -> None:
    assert text in CODE or text in OUTSIDE


def test_every_metric_that_the_page_watches_exists() -> None:
    known = set(re.findall(r"`(tollkeeper_\w+)`", metrics_page()))
    watched = {name.removesuffix("_bucket") for name in re.findall(r"tollkeeper_[a-z_]+", PAGE)}
    assert watched
    assert watched <= known


def metrics_page() -> str:
    return (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_numbers_of_the_page_are_the_defaults() -> None:
    assert f"`--drain-timeout` ({Settings().drain_timeout_s:.0f} s)" in PAGE
    assert f"`--max-connections` ({Settings().connections_max})" in PAGE
