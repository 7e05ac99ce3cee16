"""Kinds of values: the words of a refusal are ours, and what an editor is told agrees with us."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from policies import scalars
from policies.node import BROKEN

FITTING: dict[str, tuple[Any, Any, Any]] = {
    "a list of ids": (scalars.Ids, ["a", "b"], ("a", "b")),
    "one id": (scalars.Ids, "a", ("a",)),
    "a size": (scalars.Size, "10MB", 10**7),
    "a limit that is counted": (scalars.CountLimit, 0, 0),
    "a limit in bytes": (scalars.SizeLimit, "1 KiB", 1024),
    "a limit of nothing": (scalars.SizeLimit, 0, 0),
    "a limit of time": (scalars.TimeLimit, "2h", 7_200_000),
    "points": (scalars.Points, 0, 0),
    "a share": (scalars.Percent, "80%", 80),
    "a period": (scalars.Period, "1d", 86_400_000),
    "a port": (scalars.Port, 443, 443),
    "a window": (scalars.Between, ["18:00", "08:00"], (1080, 480)),
}
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a size without unit": (scalars.Size, 200, "AP008"),
    "a limit below nothing": (scalars.CountLimit, -1, "AP609"),
    "a limit that is a flag": (scalars.CountLimit, True, "AP609"),
    "a limit in bytes without unit": (scalars.SizeLimit, 200, "AP008"),
    "a limit of time that is text": (scalars.TimeLimit, "soon", "AP609"),
    "points below nothing": (scalars.Points, -1, "AP007"),
    "half a point": (scalars.Points, 0.5, "AP007"),
    "a share of nothing": (scalars.Percent, "0%", "AP007"),
    "more than all": (scalars.Percent, "101%", "AP007"),
    "a share without unit": (scalars.Percent, 80, "AP008"),
    "a period in words": (scalars.Period, "daily", "AP007"),
    "a port beyond all": (scalars.Port, 65536, "AP007"),
    "a day that never begins": (scalars.Between, ["18:00", "18:00"], "AP204"),
    "two tests at once": (scalars.Test, {"prefix": "a", "suffix": "b"}, "AP007"),
    "a test that nobody knows": (scalars.Test, {"begins": "a"}, "AP006"),
}


@pytest.mark.parametrize(("kind", "written", "read"), FITTING.values(), ids=FITTING)
def test_a_value_is_read_as_its_kind(kind: Any, written: Any, read: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    assert adapter.validate_python(written) == read


@pytest.mark.parametrize(("kind", "written", "code"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_carries_our_words(kind: Any, written: Any, code: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(written)
    (one,) = caught.value.errors()
    assert one["type"] == "unfit"
    assert one["ctx"]["code"] == code
    assert one["ctx"]["message"]


def test_what_was_reported_before_is_not_reported_again() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(scalars.CountLimit)
    for value in (BROKEN, [BROKEN], {"a": [BROKEN]}):
        with pytest.raises(ValidationError) as caught:
            adapter.validate_python(value)
        assert [one["type"] for one in caught.value.errors()] == ["broken"]


PATTERNS = {
    "sizes": (scalars.Size, ("10MB", "1 KiB", "0B", "5TB"), ("10mb", "10", "-1B", "1.5MB", "MB")),
    "times": (scalars.Period, ("500ms", "30 s", "1d"), ("1w", "d", "-1d", "1.5h")),
    "shares": (scalars.Percent, ("1%", "80%", "100%"), ("0%", "101%", "080%", "80", "80 %")),
    "names": (scalars.Id, ("a", "a-b_c.9", "9"), ("", "-a", "a.", "a/b", "a b", "a" * 65)),
}


@pytest.mark.parametrize(("kind", "good", "bad"), PATTERNS.values(), ids=PATTERNS)
def test_the_pattern_for_editors_agrees_with_the_reader(
    kind: Any, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    pattern = adapter.json_schema()["pattern"]
    for text in good:
        assert re.search(pattern, text)
        adapter.validate_python(text)
    for text in bad:
        assert not re.search(pattern, text)
        with pytest.raises(ValidationError):
            adapter.validate_python(text)
