"""Text that reads like other text."""

import pytest

from policies.lookalike import describe_lookalike

CASES = {
    "plain": ("api.example.com", ""),
    "all Cyrillic, clearly": ("пример.example.com", ""),
    "accents": ("münchen.example", ""),
    "Japanese mixes by nature": ("東京タワーabc.example", ""),
    "one letter": ("аpi.example.com", "mixes Cyrillic and Latin letters: U+0430 stands in it"),
    "in an A-label": (
        "xn--pi-6kc.example.com",
        "mixes Cyrillic and Latin letters: U+0430 stands in it",
    ),
    "all look-alikes": ("аре.example", "looks like Latin letters and is not: U+0430 stands in it"),
    "Greek": ("gοοgle", "mixes Greek and Latin letters: U+03BF stands in it"),
    "direction": ("a\u202eb", "holds U+202E, which changes the order of what is shown"),
    "no width": ("a\u200bb", "holds U+200B, which is not shown"),
    "an A-label that is none": ("xn--99999999999.example", ""),
    "a path": ("/v1/аdmin", "mixes Cyrillic and Latin letters: U+0430 stands in it"),
}


@pytest.mark.parametrize(("text", "found"), CASES.values(), ids=CASES)
def test_a_lookalike_is_described(text: str, found: str) -> None:
    assert describe_lookalike(text) == found
