"""All metrics behind one door; those of budgets are in proxy/budget_metrics.py. Names are fixed
(SPEC section 4); docs/metrics.md explains each.

Rule 1: labels come from closed sets: agents and rules of the policy, accounts of the ledger, reason
        codes, a few words. No host, path, address or text of an agent ever becomes a label.
Rule 2: a metric never changes a verdict. Whoever serves traffic counts through `safely`.
Rule 3: one registry per instance: tests and two servers in one process do not meet.
"""

import math
import platform
import re
from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from policies.ledger import Book
from policies.reasons import REASONS
from proxy.budget_metrics import OTHER, BudgetMetrics
from proxy.fault import ANY_FAULT

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNIDENTIFIED = "unidentified"  # the agent label of everyone whom the policy does not name

# "_created" series double the size of every answer and say nothing that we use
disable_created_metrics()  # type: ignore[no-untyped-call]

_VERDICTS = frozenset({"allow", "deny"})
_RELOADS = frozenset({"applied", "rejected", "unchanged"})
_WORD = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_WORDS_MAX = 100  # different places of faults; there are some 30

# seconds: from what an in-memory decision takes to the deadline that ends it
_DECISION_BUCKETS = (*(1e-4, 2.5e-4, 5e-4), *(1e-3, 2.5e-3, 5e-3), 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_COMMIT_BUCKETS = (*(1e-4, 2.5e-4, 5e-4), *(1e-3, 2.5e-3, 5e-3), 0.01, 0.025, 0.05, 0.1, 0.25, 0.6)
_EXCHANGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Every counter of one server. Thread-safe: the log's writer counts from its own thread.

    Also an `audit.writer.WriterObserver`: `committed`, `failed`, `recovered`.
    """

    def __init__(self, version: str = "") -> None:
        self.registry = registry = CollectorRegistry()
        self.failures = 0  # counting that raised; shown by /readyz
        self._agents: frozenset[str] = frozenset()
        self._rules: frozenset[str] = frozenset()
        self._places: set[str] = set()
        counter = partial(Counter, namespace="tollkeeper", registry=registry)
        gauge = partial(Gauge, namespace="tollkeeper", registry=registry)
        histogram = partial(Histogram, namespace="tollkeeper", registry=registry)

        self._requests = counter("requests", "Decisions.", ["agent", "verdict", "reason"])
        self._rule_matches = counter("rule_matches", "Decisions a rule determined.", ["rule"])
        self._decision_seconds = histogram(
            "decision_seconds", "From head to verdict, record included.", buckets=_DECISION_BUCKETS
        )
        self._request_seconds = histogram(
            "request_duration_seconds",
            "From head to the last byte of the answer.",
            ["agent", "verdict"],
            buckets=_EXCHANGE_BUCKETS,
        )
        self._upstream_seconds = histogram(
            "upstream_duration_seconds",
            "From the first byte to the origin to the last one back.",
            buckets=_EXCHANGE_BUCKETS,
        )
        self._audit_records = counter("audit_records", "Records handed to the log.", ["kind"])
        self._audit_commit_seconds = histogram(
            "audit_commit_seconds", "One write and sync of the log.", buckets=_COMMIT_BUCKETS
        )
        self._audit_queue_depth = gauge("audit_queue_depth", "Records not yet durable.")
        self._audit_size = gauge("audit_size_records", "Records in the log.")
        self._audit_failures = counter("audit_failures", "Records refused.", ["cause"])
        self._policy_info = gauge("policy_info", "The policy in force: 1.", ["digest", "serial"])
        self._policy_stale = gauge("policy_stale", "1: the last reload was rejected.")
        self._policy_reloads = counter("policy_reloads", "Reloads of the policy.", ["result"])
        self._faults = counter("faults", "Errors that became denials.", ["where"])
        self._connections_open = gauge("connections_open", "Connections from agents.")
        self._budgets = BudgetMetrics(registry, lambda: self._agents, self._count_failure)
        build = gauge("build_info", "This build: 1.", ["version", "python"])
        build.labels(version, platform.python_version()).set(1)

    def safely(self, count: Callable[["Metrics"], None]) -> None:
        """Call `count(self)`; whatever it raises is counted in `failures` and goes no further."""
        try:
            count(self)
        except ANY_FAULT:  # a metric must not change a verdict
            self._count_failure()

    def _count_failure(self) -> None:
        self.failures += 1

    # --- traffic

    def count_request(self, agent: str, verdict: str, reason: str) -> None:
        """One decision. `agent` is "" where nobody was identified."""
        self._requests.labels(
            self._known(agent), _closed(verdict, _VERDICTS), _reason(reason)
        ).inc()

    def count_rules(self, rules: Iterable[str]) -> None:
        """The rules that determined one decision."""
        for rule in rules:
            self._rule_matches.labels(_closed(rule, self._rules)).inc()

    def count_fault(self, where: str) -> None:
        """An exception or a missed deadline that became a denial; `where` names a place in code."""
        if where not in self._places:
            if not _WORD.fullmatch(where) or len(self._places) >= _WORDS_MAX:
                where = OTHER
            self._places.add(where)
        self._faults.labels(where).inc()

    def observe_decision(self, seconds: float) -> None:
        """From head to verdict."""
        self._decision_seconds.observe(seconds)

    def observe_request(self, agent: str, verdict: str, seconds: float) -> None:
        """From head to the last byte of the answer."""
        labels = self._known(agent), _closed(verdict, _VERDICTS)
        self._request_seconds.labels(*labels).observe(seconds)

    def observe_upstream(self, seconds: float) -> None:
        """From the first byte sent to the origin to the last one received."""
        self._upstream_seconds.observe(seconds)

    # --- budgets

    def count_steps(self, agent: str, steps: int) -> None:
        """Steps that an allowed request costs (`cost: { steps: … }`)."""
        self._budgets.count_steps(self._known(agent), steps)

    def count_exhausted(self, account: str, unit: str) -> None:
        """A used-up account (`budget/agent[/session]`) denied a request or cut a stream."""
        self._budgets.count_exhausted(account, unit)

    def count_halt(self, reason: str) -> None:
        """An agent became halted; `operator` or `budget`."""
        self._budgets.count_halt(reason)

    def watch_book(self, read_book: Callable[[], Book | None], now_ms: Callable[[], int]) -> None:
        """Where to read accounts and states, whenever somebody asks for them.

        `read_book` gives a recent copy at once, or None where there is none yet: then none of them
        is shown. `now_ms` is the ledger's clock.
        """
        self._budgets.watch(read_book, now_ms)

    # --- the log

    def count_record(self, kind: str) -> None:
        """One record handed to the log; kinds are those of audit.md section 1."""
        self._audit_records.labels(kind if _WORD.fullmatch(kind) else OTHER).inc()

    def committed(self, records: int, seconds: float) -> None:
        """So many records became durable with one sync."""
        if records:
            self._audit_commit_seconds.observe(seconds)

    def failed(self, cause: str) -> None:
        """The log refused or lost a record."""
        self._audit_failures.labels(cause if _WORD.fullmatch(cause) else OTHER).inc()

    def recovered(self, dropped: int) -> None:
        """The log works again; so many records were refused meanwhile (`dropped` in the log)."""
        self._audit_failures.labels("dropped").inc(dropped)

    # --- standing

    def show_policy(
        self, digest: str, serial: int, *, agents: Iterable[str], rules: Iterable[str]
    ) -> None:
        """A policy came into force: its agents and rules are the labels from now on."""
        self._agents, self._rules = frozenset(agents), frozenset(rules)
        self._budgets.show_agents(self._agents)
        self._policy_info.clear()
        self._policy_info.labels(digest, str(serial)).set(1)

    def show_stale(self, stale: bool) -> None:
        """Was the last reload rejected?"""
        self._policy_stale.set(stale)

    def count_reload(self, result: str) -> None:
        """`applied`, `rejected` or `unchanged`."""
        self._policy_reloads.labels(_closed(result, _RELOADS)).inc()

    def watch(
        self,
        *,
        connections_open: Callable[[], int] | None = None,
        audit_queue_depth: Callable[[], int] | None = None,
        audit_size_records: Callable[[], int] | None = None,
    ) -> None:
        """Where to read the gauges, whenever somebody asks for them."""
        for gauge, read in (
            (self._connections_open, connections_open),
            (self._audit_queue_depth, audit_queue_depth),
            (self._audit_size, audit_size_records),
        ):
            if read is not None:
                gauge.set_function(partial(_read, read))

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format; its media type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _known(self, agent: str) -> str:
        return agent if agent in self._agents else UNIDENTIFIED


def _reason(code: str) -> str:
    return code if code in REASONS else OTHER


def _closed(word: str, words: frozenset[str]) -> str:
    return word if word in words else OTHER


def _read(read: Callable[[], int]) -> float:
    try:
        return float(read())
    except Exception:  # noqa: BLE001  one part that is down must not hide all other metrics
        return math.nan
