"""The catalogue of reasons: what every entry owes to agents, operators and metrics."""

import re

import pytest

from policies.reasons import REASONS, Reason, document

SENTENCE = re.compile(r"[A-Z].*\.")
LEAKS = re.compile(r"\d+\.\d+|mitmproxy|tollkeeper|python|\.ya?ml", re.IGNORECASE)


@pytest.mark.parametrize("entry", REASONS.values(), ids=REASONS)
def test_an_entry_is_complete_and_tells_an_agent_nothing_of_the_house(entry: Reason) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", entry.code)
    assert entry.status in {200, 400, 403, 407, 429, 502, 504}
    assert SENTENCE.fullmatch(entry.title + ".")
    assert SENTENCE.fullmatch(entry.advice)
    assert not LEAKS.search(entry.title + entry.advice)
    assert entry.remedy


def test_only_identity_is_407_and_only_a_rate_is_429() -> None:
    challenged = {code for code, entry in REASONS.items() if entry.status == 407}
    assert challenged == {code for code in REASONS if code.startswith("credential-")}
    assert [code for code, entry in REASONS.items() if entry.status == 429] == ["rate-limited"]


def test_an_agent_is_not_told_to_retry_what_stays_refused() -> None:
    for code, entry in REASONS.items():
        if "Do not retry" in entry.advice:
            assert not entry.retryable, code


def test_the_page_has_one_line_for_every_code() -> None:
    lines = [line for line in document().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == list(REASONS)
