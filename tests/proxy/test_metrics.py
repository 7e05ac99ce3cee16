"""What is counted, under which labels, and that nobody can grow them or break a verdict by them."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from policies.budget import UNITS, Account, Contract, Term
from policies.ledger import Book
from policies.reasons import REASONS
from proxy.metrics import CONTENT_TYPE, Metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("0.1.0")
    made.show_policy("ab" * 32, 1, agents=["coder"], rules=["read-github"])
    return made


def read(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tollkeeper_{name}", labels)


def test_a_request_is_counted_by_agent_verdict_and_reason(metrics: Metrics) -> None:
    metrics.count_request("coder", "allow", "allowed")
    metrics.count_request("coder", "allow", "allowed")
    labels = {"agent": "coder", "verdict": "allow", "reason": "allowed"}
    assert read(metrics, "requests_total", **labels) == 2


@pytest.mark.parametrize("agent", ["", "stranger", "coder ", "é" * 99])
def test_whoever_the_policy_does_not_name_is_unidentified(metrics: Metrics, agent: str) -> None:
    metrics.count_request(agent, "deny", "agent-unknown")
    metrics.observe_request(agent, "deny", 0.1)
    labels = {"agent": "unidentified", "verdict": "deny"}
    assert read(metrics, "requests_total", reason="agent-unknown", **labels) == 1
    assert read(metrics, "request_duration_seconds_count", **labels) == 1


LABELS = {"agent", "verdict", "reason", "rule", "result", "account", "unit"}


@given(st.lists(st.text(max_size=20), min_size=30, max_size=60, unique=True))
@settings(max_examples=10, deadline=None)
def test_no_text_grows_the_label_sets(words: list[str]) -> None:
    metrics = Metrics()
    for word in words:
        metrics.count_request(word, word, word)
        metrics.observe_request(word, word, 0.1)
        metrics.count_rules([word])
        metrics.count_reload(word)
        metrics.count_steps(word, 1)
        metrics.count_exhausted(word, word)
        metrics.count_halt(word)
    closed = {
        "unidentified",
        "other",
        "operator",
        "budget",
        "allow",
        "deny",
        "applied",
        "rejected",
        "unchanged",
        *REASONS,
        *UNITS,
    }
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    for sample in samples:
        for label in LABELS & sample.labels.keys():
            assert sample.labels[label] in closed


def test_places_of_faults_are_bounded(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.count_fault(f"place-{number}")
    metrics.count_fault("bad\nplace")
    (family,) = (f for f in metrics.registry.collect() if f.name == "tollkeeper_faults")
    assert len(family.samples) <= 101
    assert read(metrics, "faults_total", where="other") == 901


def test_the_rules_of_a_decision_are_counted(metrics: Metrics) -> None:
    metrics.count_rules(("read-github", "gone"))
    assert read(metrics, "rule_matches_total", rule="read-github") == 1
    assert read(metrics, "rule_matches_total", rule="other") == 1


def test_only_the_policy_in_force_is_shown(metrics: Metrics) -> None:
    metrics.show_policy("cd" * 32, 2, agents=[], rules=[])
    (family,) = (f for f in metrics.registry.collect() if f.name == "tollkeeper_policy_info")
    assert [sample.labels for sample in family.samples] == [{"digest": "cd" * 32, "serial": "2"}]
    metrics.show_stale(True)
    metrics.count_reload("rejected")
    assert read(metrics, "policy_stale") == 1
    assert read(metrics, "policy_reloads_total", result="rejected") == 1


def test_the_log_is_observed(metrics: Metrics) -> None:
    metrics.count_record("decision")
    metrics.committed(8, 0.0003)
    metrics.committed(0, 9.0)  # nothing was written
    metrics.failed("disk-full")
    metrics.recovered(41)
    assert read(metrics, "audit_records_total", kind="decision") == 1
    assert read(metrics, "audit_commit_seconds_count") == 1
    assert read(metrics, "audit_failures_total", cause="disk-full") == 1
    assert read(metrics, "audit_failures_total", cause="dropped") == 41


def test_durations_are_observed_in_seconds(metrics: Metrics) -> None:
    metrics.observe_decision(0.002)
    metrics.observe_upstream(1.5)
    assert read(metrics, "decision_seconds_sum") == 0.002
    assert read(metrics, "upstream_duration_seconds_sum") == 1.5


def test_gauges_are_read_when_asked_for(metrics: Metrics) -> None:
    depth = [3]
    metrics.watch(connections_open=lambda: 7, audit_queue_depth=lambda: depth[0])
    assert read(metrics, "connections_open") == 7
    depth[0] = 4
    assert read(metrics, "audit_queue_depth") == 4


def test_a_gauge_that_fails_hides_nothing_else(metrics: Metrics) -> None:
    metrics.watch(audit_size_records=lambda: 1 // 0)
    text = metrics.exposition().decode()
    assert "tollkeeper_audit_size_records NaN" in text
    assert "tollkeeper_build_info" in text


def test_counting_that_raises_is_contained(metrics: Metrics) -> None:
    metrics.safely(lambda m: m.count_request(["no hash"], "deny", "malformed"))  # type: ignore[arg-type]  # a bug
    metrics.safely(lambda m: m.count_request("coder", "deny", "malformed"))
    assert metrics.failures == 1


def test_two_instances_share_nothing(metrics: Metrics) -> None:
    metrics.count_record("decision")
    assert read(Metrics(), "audit_records_total", kind="decision") is None


def test_the_exposition_is_what_prometheus_reads(metrics: Metrics) -> None:
    for code in REASONS:
        metrics.count_request("coder", "deny", code)
    text = metrics.exposition().decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert "tollkeeper_requests" in families
    assert "_created" not in text
    assert CONTENT_TYPE.startswith("text/plain")


def rows(document: str) -> dict[str, tuple[str, set[str]]]:
    found = {}
    for line in document.splitlines():
        if line.startswith("| `tollkeeper_"):
            name, kind, labels, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            assert len(meaning) > 10
            found[name.strip("`")] = kind, set(re.findall(r"`(\w+)`", labels))
    return found


def test_every_metric_is_documented_with_its_type_and_labels(metrics: Metrics) -> None:
    metrics.count_request("", "deny", "malformed")
    metrics.observe_request("", "deny", 0.1)
    metrics.count_rules(["x"])
    metrics.count_record("decision")
    metrics.failed("disk-full")
    metrics.count_reload("applied")
    metrics.count_fault("request")
    account = Account("daily", "coder", "", Contract({"steps": Term(9, 9)}))
    metrics.watch_book(lambda: Book({account.base: account}), lambda: 0)
    made = {}
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        made[name] = family.type, labels
    assert made == rows((ROOT / "docs" / "metrics.md").read_text("utf-8"))
