"""Legal but suspicious, or can never match. Most cases are files under tests/cases/policies."""

import pytest

from policies.compile import compile_text
from policies.model import PolicyRejected

HEAD = "version: 1\nagents: { coder: { groups: dev } }\nrules:\n"


def codes(rules: str) -> list[str]:
    try:
        findings = compile_text(HEAD + rules).findings
    except PolicyRejected as rejected:
        findings = rejected.findings
    return [one.code for one in findings if one.code != "AP102"]


def allow(fields: str) -> str:
    return f"- {{ id: r, verdict: allow, {fields} }}\n"


CASES = {
    "a private range is meant": (allow("match: { host: a.example.com, dest_ip: 10.0.0.0/8 }"), []),
    "a class is meant": (allow("match: { host: a.example.com, dest_ip: [private, loopback] }"), []),
    "public and private": (allow("match: { host: a.example.com, dest_ip: 10.0.0.0/7 }"), ["AP108"]),
    "metadata": (allow("match: { host: a.example.com, dest_ip: metadata }"), ["AP108"]),
    "a deny may be wide": (
        "- { id: d, verdict: deny, match: { dest_ip: 0.0.0.0/0 } }\n",
        ["AP207"],
    ),
    "a private address opened": (allow("match: { host: 10.0.0.5, dest_ip: 10.0.0.0/8 }"), []),
    "a private address opened wrongly": (
        allow("match: { host: 10.0.0.5, dest_ip: 10.1.0.0/16 }"),
        ["AP204"],
    ),
    "a metadata address needs its own name": (
        allow("match: { host: 169.254.169.254, dest_ip: link_local }"),
        ["AP204"],
    ),
    "a public address": (allow("match: { host: 93.184.216.34 }"), []),
    "a folder with a star": (allow('match: { host: a.example.com, path: "/pub*/x" }'), []),
    "a star in front": (allow('match: { host: a.example.com, path: "/*.pdf" }'), []),
    "a star at the end of an exception": (
        allow('match: { host: a.example.com }, unless: { path: "/pub*" }'),
        ["AP110"],
    ),
    "an exception that leaves some": (
        allow("match: { host: [a.example.com, b.example.com] }, unless: { host: a.example.com }"),
        [],
    ),
    "an empty exception list": (
        allow("match: { host: a.example.com }, unless: { path: [] }"),
        ["AP204"],
    ),
    "dates in order": (
        allow("match: { host: a.example.com }, when: { from: 2026-01-01, until: 2026-01-02 }"),
        [],
    ),
    "dates that are equal": (
        allow("match: { host: a.example.com }, when: { from: 2026-01-01, until: 2026-01-01 }"),
        ["AP204"],
    ),
    "an agent through its group": (
        allow("who: { groups: dev }, match: { host: a.example.com }"),
        [],
    ),
    "only a shadow rule": (allow("mode: shadow, match: { host: a.example.com }"), ["AP207"]),
}


@pytest.mark.parametrize(("rules", "expected"), CASES.values(), ids=CASES)
def test_a_rule_is_suspicious(rules: str, expected: list[str]) -> None:
    assert codes(rules) == expected
