"""Policy files to a PolicySet: defaults of the language, whole or not at all, and its sources."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budget import Threshold
from policies.compile import Compiled, compile_policy, compile_text
from policies.model import PolicyRejected, Verdict
from policies.rule import Budget, Cost, Match, Rule, Who, With
from policies.sources import PolicyUnreadable

GOOD = Path(__file__).parents[1] / "cases" / "policies" / "good"


def compile_rule(body: str, verdict: str = "allow") -> Rule:
    text = f"version: 1\nrules:\n- {{ id: r, verdict: {verdict}, {body} }}\n"
    return compile_text(text).policy_set.rules[0]


def test_an_allow_means_https_on_443_unless_it_says_otherwise() -> None:
    match = compile_rule("match: { host: a.example.com }").match
    assert (match.schemes, match.ports) == (frozenset({"https"}), frozenset({443}))
    match = compile_rule("match: { host: a.example.com, scheme: [http, https], port: 80 }").match
    assert (match.schemes, match.ports) == (frozenset({"http", "https"}), frozenset({80}))


def test_a_deny_and_an_exception_mean_any_scheme_and_port() -> None:
    assert compile_rule("match: { host: a.example.com }", "deny").match.ports is None
    rule = compile_rule("match: { host: a.example.com }, unless: { path: /x }")
    assert rule.unless is not None
    assert (rule.unless.schemes, rule.unless.ports) == (None, None)


def test_a_deny_without_match_denies_everything() -> None:
    rule = compile_rule("description: stop", "deny")
    assert (rule.verdict, rule.match, rule.who) == (Verdict.DENY, Match(), None)


def test_every_key_arrives_in_the_rule() -> None:
    policy_set = compile_policy(GOOD / "every-key.yaml").policy_set
    rule = next(one for one in policy_set.rules if one.id == "everything")
    assert rule.who is not None
    assert rule.who == Who(frozenset({"coder", "robot"}), frozenset({"dev"}))
    assert len(rule.match.hosts or ()) == 5
    assert [name for name, _ in rule.match.headers] == ["accept", "x-team"]
    assert dict(rule.match.query)["sort"].values == ("7", "down", "up")
    assert rule.match.dest_ip is not None
    assert rule.match.dest_ip.classes == {"private", "loopback"}
    assert rule.when is not None
    assert rule.when.days == frozenset(range(5))
    assert rule.when.between == (1080, 480)
    assert rule.when.from_ is not None
    assert rule.when.from_.isoformat() == "2026-01-01T00:00:00+01:00"
    assert rule.with_ == With(
        rates=("slow", "steady"),
        max_request_bytes=10**7,
        max_response_bytes=512 * 1024,
        capture="request_response",
        redact_path=(2, 3),
        path_params="strip",
        show_budget=True,
    )
    assert rule.cost == Cost(steps=2, effort=20, risk=3)
    assert rule.line == 24
    defaults = policy_set.defaults
    assert (defaults.mode, defaults.stale_limit_ms) == ("observe", 86_400_000)
    assert policy_set.rates["slow"].burst == 30
    assert policy_set.rates["steady"].burst == 5
    assert policy_set.budgets["task"] == Budget(
        "task",
        "session",
        (
            ("requests", 100),
            ("steps", 400),
            ("effort", 1000),
            ("risk", 50),
            ("bytes_out", 2 * 10**8),
            ("bytes_in", 2**30),
            ("wall_time", 7_200_000),
        ),
        Who(frozenset({"coder"})),
        604_800_000,
        (Threshold(80, "warn"), Threshold(90, "quarantine")),
    )
    assert policy_set.budgets["life"].at == (Threshold(100, "halt"),)
    assert policy_set.keep_rules == {"night-shift", "everything"}
    assert [one.id for one in policy_set.budgets_of("coder")] == ["life", "task"]
    assert [one.id for one in policy_set.budgets_of("robot")] == ["life"]
    assert policy_set.budgets_of("stranger") == ()


LIMITS = {
    "requests: 0": ("requests", 0),
    "requests: 9007199254740991": ("requests", 2**53 - 1),
    "steps: 7": ("steps", 7),
    "effort: 7": ("effort", 7),
    "risk: 7": ("risk", 7),
    "bytes_out: 0": ("bytes_out", 0),
    "bytes_out: 0B": ("bytes_out", 0),
    "bytes_out: 10MB": ("bytes_out", 10**7),
    'bytes_in: "10 MiB"': ("bytes_in", 10 * 2**20),
    "bytes_in: 9007199254740991B": ("bytes_in", 2**53 - 1),
    "wall_time: 0": ("wall_time", 0),
    "wall_time: 0s": ("wall_time", 0),
    "wall_time: 2h": ("wall_time", 7_200_000),
}


@pytest.mark.parametrize(("text", "limit"), LIMITS.items(), ids=LIMITS)
def test_a_limit_is_an_integer_of_its_unit(text: str, limit: tuple[str, int]) -> None:
    budget = f"budgets: {{ b: {{ each: agent, limits: {{ {text} }} }} }}"
    text = f"version: 1\nagents: {{ coder: {{}} }}\n{budget}\n"
    assert compile_text(text).policy_set.budgets["b"].limits == (limit,)


def test_units_and_thresholds_stand_in_an_order_of_their_own() -> None:
    at = "at: [{ reached: 90%, do: halt }, { reached: 50%, do: warn }, { reached: 90%, do: halt }]"
    budget = f"{{ each: agent, limits: {{ wall_time: 1s, requests: 1 }}, {at} }}"
    found = compile_text(f"version: 1\nbudgets: {{ b: {budget} }}\n").policy_set.budgets["b"]
    assert found.limits == (("requests", 1), ("wall_time", 1000))
    assert found.at == (Threshold(50, "warn"), Threshold(90, "halt"))


def test_a_rule_without_a_cost_takes_one_step_and_one_effort() -> None:
    assert compile_rule("match: { host: a.example.com }").cost == Cost(1, 1, 0)
    rule = compile_rule("match: { host: a.example.com }, cost: { risk: 4, steps: 0 }")
    assert rule.cost == Cost(0, 1, 4)


def test_quarantine_and_budgets_of_an_included_file(tmp_path: Path) -> None:
    """Budgets may stand anywhere; what quarantine lets through is the main file's to say."""
    (tmp_path / "main.yaml").write_text(
        "version: 1\ninclude: part.yaml\nquarantine: { keep_rules: a }\n"
    )
    part = "version: 1\nagents: { coder: {} }\n"
    part += "rules: [{ id: a, verdict: allow, match: { host: a.example.com } }]\n"
    part += "budgets: { daily: { each: agent, limits: { requests: 1 } } }\n"
    (tmp_path / "part.yaml").write_text(part)
    policy_set = compile_policy(tmp_path / "main.yaml").policy_set
    assert policy_set.keep_rules == {"a"}
    assert [one.id for one in policy_set.budgets_of("coder")] == ["daily"]
    (tmp_path / "part.yaml").write_text(f"{part}quarantine: {{ keep_rules: a }}\n")
    with pytest.raises(PolicyRejected) as caught:
        compile_policy(tmp_path / "main.yaml")
    assert [(Path(one.file).name, one.line, one.code) for one in caught.value.findings] == [
        ("part.yaml", 5, "AP006")
    ]


def test_wall_clock_bounds_are_read_so_that_more_is_denied() -> None:
    """02:30 happens twice on this day; the allow starts late, the deny starts early."""
    head = "version: 1\ndefaults: { timezone: Europe/Berlin }\nrules:\n"
    when = "match: { host: a.example.com }, "
    when += "when: { from: 2026-10-25T02:30, until: 2027-10-31T02:30 }"
    bounds: dict[str, Any] = {}
    for verdict in ("allow", "deny"):
        rules = compile_text(f"{head}- {{ id: r, verdict: {verdict}, {when} }}\n").policy_set.rules
        bounds[verdict] = rules[0].when
    assert bounds["allow"].from_.timestamp() - bounds["deny"].from_.timestamp() == 3600
    assert bounds["deny"].until.timestamp() - bounds["allow"].until.timestamp() == 3600


def test_includes_are_part_of_the_policy_and_of_the_sources() -> None:
    compiled = compile_policy(GOOD / "includes.yaml")
    assert [Path(name).name for name in compiled.sources] == [
        "includes.yaml",
        "agents.yaml",
        "rules.yaml",
    ]
    assert set(compiled.policy_set.agents) == {"coder"}
    assert [rule.id for rule in compiled.policy_set.rules] == ["read"]


def test_findings_name_the_included_file(tmp_path: Path) -> None:
    (tmp_path / "main.yaml").write_text(
        "version: 1\ninclude: part.yaml\nrules: [{ id: a, verdict: deny }]\n"
    )
    (tmp_path / "part.yaml").write_text(
        "version: 1\ndefaults: {}\nname: x\nrules: [{ id: a, verdict: den }]\n"
    )
    with pytest.raises(PolicyRejected) as caught:
        compile_policy(tmp_path / "main.yaml")
    assert [(Path(one.file).name, one.line, one.code) for one in caught.value.findings] == [
        ("part.yaml", 2, "AP006"),
        ("part.yaml", 3, "AP006"),
        ("part.yaml", 4, "AP103"),
        ("part.yaml", 4, "AP007"),
    ]
    assert {Path(name).name for name in caught.value.sources} == {"main.yaml", "part.yaml"}


def test_nothing_is_called_undefined_while_a_file_cannot_be_read_as_yaml(tmp_path: Path) -> None:
    (tmp_path / "main.yaml").write_text(
        "version: 1\ninclude: part.yaml\nrules:\n"
        "- { id: a, verdict: deny, who: { agents: coder } }\n"
    )
    (tmp_path / "part.yaml").write_text("agents: [\n")
    with pytest.raises(PolicyRejected) as caught:
        compile_policy(tmp_path / "main.yaml")
    assert [one.code for one in caught.value.findings] == ["AP001"]


def test_a_missing_file_is_unreadable() -> None:
    with pytest.raises(PolicyUnreadable):
        compile_policy(GOOD / "no-such.yaml")


def test_a_policy_with_warnings_may_be_applied() -> None:
    compiled: Compiled = compile_text("version: 1\nagents: { coder: {} }\n")
    assert [one.code for one in compiled.findings] == ["AP207"]
    assert compiled.policy_set.rules == ()


def test_the_shipped_default_is_clean() -> None:
    from importlib.resources import files

    text = files("policies").joinpath("default_policy.yaml").read_text(encoding="utf-8")
    compiled = compile_text(text)
    assert compiled.findings == ()
    assert list(compiled.policy_set.agents) == ["local"]
    assert [rule.id for rule in compiled.policy_set.rules] == ["read-github"]
    assert compiled.policy_set.budgets_of("local") == (
        Budget("daily", "agent", (("requests", 1000), ("bytes_out", 50_000_000)), None, 86_400_000),
    )
    assert "$schema=policies.schema.json" in text.splitlines()[0]


def test_the_examples_of_the_default_are_clean_too() -> None:
    from importlib.resources import files

    text = files("policies").joinpath("default_policy.yaml").read_text(encoding="utf-8")
    head, _, tail = text.partition("  # More examples.")
    lines = tail.splitlines()[2:]
    shown = [
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line.replace("#", "", 1)
        for line in lines
        if not line.startswith(("# How often", "# What each", "# that does not"))
    ]
    compiled = compile_text(head + "\n".join(shown) + "\n")
    assert compiled.findings == ()
    assert len(compiled.policy_set.rules) == 4


WORDS = [
    "null",
    "yes",
    "{}",
    "[]",
    "0x1",
    "with:",
    "[a, [b]]",
    "{a: {b: c}}",
    "-1",
    "*.com",
    "\u202e",
]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_edit_of_a_policy_is_compiled_or_rejected_in_our_words(data: st.DataObject) -> None:
    """Nothing but PolicyRejected comes out; what is accepted can be archived."""
    name = data.draw(st.sampled_from(["every-key.yaml", "budgets.yaml"]))
    words = (GOOD / name).read_text(encoding="utf-8").split(" ")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(st.sampled_from([*WORDS, "", *words[:40]]))
    try:
        compiled = compile_text(" ".join(words))
    except PolicyRejected as rejected:
        findings = rejected.findings
    else:
        findings = ()
        again = compile_text(compiled.archive)
        assert again.policy_set.digest == compiled.policy_set.digest
    assert not findings or any(one.severity == "error" for one in findings)
    assert not any("Input should" in one.message for one in findings)
