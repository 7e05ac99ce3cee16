"""How long a decision takes: goals G1 to G5 and G9 of policy.md 8, as multiples of a calibration.

The calibration is one dict look-up and one tuple comparison (about 0.1 us on the machine the goals
were written on), run beside each measurement, so that the multiple means the same on any machine.
Microseconds are printed for orientation. The cyclic collector is off while timing, as in `timeit`.
"""

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from random import Random
from time import perf_counter_ns

import cedarpy

from policies.canonical import RawHead, canonicalise_request
from policies.engine import decide, screen
from policies.explain import explain
from policies.model import Principal, Request, Verdict
from policies.policy_set import PolicySet, build
from policies.rule import (
    Agent,
    Defaults,
    HostPattern,
    Match,
    PathPattern,
    Predicate,
    Rule,
    Segment,
)
from tests.bench import Row

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CALLER = Principal("coder", "s-1", "203.0.113.9")
PUBLIC = (ip_address("93.184.216.34"),)
GOAL_UNIT_US = 0.1  # what one calibration step is in the goals
HEADERS = (
    ("accept", "application/json"),
    ("accept-encoding", "gzip, br"),
    ("authorization", "Bearer 0123456789abcdef"),
    ("content-type", "application/json"),
    ("user-agent", "agent/1.0"),
    ("x-request-id", "8c1f2c3a"),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """Percentiles of one call, and of the calibration run beside it."""

    p50_us: float
    p99_us: float
    unit_us: float

    def describe(self, microseconds: float) -> str:
        """As a multiple, with the microseconds behind it."""
        return f"{microseconds / self.unit_us:.0f}x ({microseconds:.1f} us)"


def run() -> list[Row]:
    """Every row of the decision's goals."""
    return [
        *_measure_spread(),
        *_measure_one_host(),
        *_measure_canonical_form(),
        *_measure_explain(),
        *_measure_against_cedar(),
        _measure_memory(),
    ]


def write_spread(rules: int) -> PolicySet:
    """A rule per host: methods, two path patterns, every third with a query and a header test."""
    return _build([_spread_rule(number) for number in range(rules)])


def write_one_host(rules: int) -> PolicySet:
    """All rules on one host: literal paths, typed segments, globs and expressions in turn."""
    return _build([_one_host_rule(number) for number in range(rules)])


def measure(call: Callable[[Request], object], requests: Sequence[Request], rounds: int) -> Timing:
    """Time single calls; percentiles over all of them."""
    for request in requests:
        call(request)
    gc.collect()
    gc.disable()
    try:
        unit_us = calibrate_us()
        samples = []
        for _ in range(rounds):
            for request in requests:
                started = perf_counter_ns()
                call(request)
                samples.append(perf_counter_ns() - started)
        unit_us = (unit_us + calibrate_us()) / 2
    finally:
        gc.enable()
    samples.sort()
    return Timing(
        samples[len(samples) // 2] / 1000, samples[len(samples) * 99 // 100] / 1000, unit_us
    )


def calibrate_us() -> float:
    """Microseconds of one dict look-up and one tuple comparison, the median of several runs."""
    table = {(f"host{number}", number): number for number in range(1000)}
    key, other = ("host" + str(500), 500), ("host" + str(500), 500)
    runs = []
    for _ in range(9):
        started = perf_counter_ns()
        for _ in range(10_000):
            _ = table[key]
            _ = key == other
        runs.append((perf_counter_ns() - started) / 10_000_000)
    return sorted(runs)[len(runs) // 2]


def _measure_spread() -> list[Row]:
    timings = {}
    for rules in (10, 10_000, 100_000):
        policy_set = write_spread(rules)
        requests = _spread_requests(rules)
        timings[rules] = measure(_decider(policy_set), requests, 20_000 // len(requests))
        del policy_set
    growth = timings[100_000].p50_us / timings[10].p50_us
    return [
        _row("G1 decision p50, 10k spread rules", timings[10_000], 15, p99=False),
        _row("G1 decision p99, 10k spread rules", timings[10_000], 60, p99=True),
        _row("G1 decision p50, 100k spread rules", timings[100_000], 25, p99=False),
        _row("G1 decision p99, 100k spread rules", timings[100_000], 100, p99=True),
        Row("G1 decision, t(100k) / t(10)", "<= 4", f"{growth:.2f}", growth <= 4),
    ]


def _measure_one_host() -> list[Row]:
    policy_set = write_one_host(10_000)
    timing = measure(_decider(policy_set), _one_host_requests(10_000), 20)
    first = measure(_screener(policy_set), _one_host_requests(1000), 5)
    return [
        _row("G2 decision p99, 10k rules on one host", timing, 200, p99=True),
        _row("G2 stage 1 p99, 10k rules on one host", first, 200, p99=True),
    ]


def _measure_canonical_form() -> list[Row]:
    fields = tuple((name.title().encode(), value.encode()) for name, value in HEADERS)
    head = RawHead(
        b"POST",
        b"/v1/./items/%7euser/42?page=1&q=a+b%20c",
        ((b"Host", b"API.example.com"), *fields, (b"Content-Length", b"12")),
    )
    timing = measure(
        lambda request: canonicalise_request(
            head, scheme="https", host="api.example.com", port=request.port
        ),
        [Request("https", "api.example.com", 443, "GET", "/")],
        5000,
    )
    return [_row("G3 canonical form of a request, p50", timing, 30, p99=False)]


def _measure_explain() -> list[Row]:
    policy_set, requests = write_spread(10_000), _spread_requests(10_000)
    plain = measure(_decider(policy_set), requests, 10)
    told = measure(
        lambda request: explain(request, CALLER, policy_set, addresses=PUBLIC, now=NOW),
        requests,
        10,
    )
    ratio = told.p50_us / plain.p50_us
    return [Row("G4 explain / decision, p50", "<= 2x", f"{ratio:.2f}x", ratio <= 2)]


def _measure_against_cedar() -> list[Row]:
    rules = 1000
    policy_set, requests = write_spread(rules), _spread_requests(rules)[:20]
    ours = measure(_decider(policy_set), requests, 50)
    text = "\n".join(_to_cedar(rule) for rule in policy_set.rules)
    theirs = measure(lambda request: _ask_cedar(text, request), requests[:5], 2)
    prepared = cedarpy.PolicySet.from_str(text)
    parsed = measure(lambda request: _ask_cedar(prepared, request), requests, 5)
    return [
        _ratio_row("G5 cedarpy (policy text) / decision, 1k rules", theirs, ours),
        _ratio_row("G5 cedarpy (parsed once) / decision, 1k rules", parsed, ours),
    ]


def _measure_memory() -> Row:
    _build([_spread_rule(number) for number in range(10)])
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    policy_set = write_spread(10_000)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    each = held / len(policy_set.rules)
    return Row("G9 memory per rule, 10k spread rules", "<= 3 KB", f"{each:.0f} B", each <= 3000)


def _row(name: str, timing: Timing, goal_us: float, *, p99: bool) -> Row:
    microseconds = timing.p99_us if p99 else timing.p50_us
    goal = goal_us / GOAL_UNIT_US
    met = microseconds / timing.unit_us <= goal
    return Row(name, f"<= {goal:.0f}x ({goal_us:.0f} us)", timing.describe(microseconds), met)


def _ratio_row(name: str, theirs: Timing, ours: Timing) -> Row:
    ratio = theirs.p50_us / ours.p50_us
    return Row(name, ">= 50x", f"{ratio:.0f}x ({theirs.p50_us:.0f} us)", ratio >= 50)


def _decider(policy_set: PolicySet) -> Callable[[Request], object]:
    return lambda request: decide(request, CALLER, policy_set, addresses=PUBLIC, now=NOW)


def _screener(policy_set: PolicySet) -> Callable[[Request], object]:
    return lambda request: screen(
        CALLER, policy_set, host=request.host, port=request.port, scheme=None, now=NOW
    )


def _build(rules: Sequence[Rule]) -> PolicySet:
    return build(rules, [Agent("coder", frozenset({"team"}))], [], Defaults(), "0" * 64, "bench")


def _spread_rule(number: int) -> Rule:
    tested = number % 3 == 0
    return Rule(
        f"rule-{number}",
        Verdict.DENY if number % 50 == 1 else Verdict.ALLOW,
        Match(
            hosts=(HostPattern("exact", f"api{number}.example.com"),),
            schemes=frozenset({"https"}),
            ports=frozenset({443}),
            methods=frozenset({"GET", "HEAD"}),
            paths=(_pattern(f"v1 items-{number % 7} {{id:int}}"), _pattern("v1 list **")),
            query=(("page", Predicate("re", ("[0-9]+",))),) if tested else (),
            headers=(("x-request-id", Predicate("present")),) if tested else (),
        ),
    )


def _one_host_rule(number: int) -> Rule:
    paths: tuple[PathPattern, ...] | None = (
        (_pattern(f"v1 repos-{number} **"),),
        (_pattern(f"v2 {{id:int}} part-{number}"),),
        (_pattern(f"v3 report-{number}-*.pdf"),),
        None,
    )[number % 4]
    return Rule(
        f"rule-{number}",
        Verdict.DENY if number % 50 == 1 else Verdict.ALLOW,
        Match(
            hosts=(HostPattern("exact", "api.example.com"),),
            schemes=frozenset({"https"}),
            ports=frozenset({443}),
            methods=frozenset({"GET", "HEAD"}),
            paths=paths,
            path_res=(f"/v4/x{number}/[a-z]+",) if paths is None else None,
        ),
    )


def _pattern(words: str) -> PathPattern:
    parts = words.split()
    rest = parts[-1] == "**"
    return PathPattern(tuple(_segment(part) for part in parts[: len(parts) - rest]), rest)


def _segment(part: str) -> Segment:
    if part.startswith("{"):
        return Segment("int", part)
    return Segment("glob" if "*" in part else "literal", part)


def _spread_requests(rules: int) -> list[Request]:
    """Of a seeded thousand: four in five fit a rule, the rest miss it by method or path."""
    rng = Random(7)
    requests = []
    for turn in range(1000):
        number = rng.randrange(rules)
        fits = Request(
            "https", f"api{number}.example.com", 443, "GET", f"/v1/items-{number % 7}/42",
            "page=1", (("page", "1"),), HEADERS,
        )  # fmt: skip
        misses = (replace(fits, method="PUT"), replace(fits, path="/v1/other"))
        requests.append(misses[turn % 2] if turn % 5 == 0 else fits)
    return requests


def _one_host_requests(rules: int) -> list[Request]:
    rng = Random(7)
    requests = []
    for _ in range(1000):
        number = rng.randrange(rules)
        path = (
            f"/v1/repos-{number}/a/b",
            f"/v2/17/part-{number}",
            f"/v3/report-{number}-x.pdf",
            f"/v4/x{number}/abc",
        )[number % 4]
        requests.append(Request("https", "api.example.com", 443, "GET", path, headers=HEADERS))
    return requests


def _to_cedar(rule: Rule) -> str:
    """The nearest policy in Cedar's language: host, methods, and one path by prefix."""
    effect = "permit" if rule.verdict is Verdict.ALLOW else "forbid"
    host = (rule.match.hosts or ())[0].name
    methods = ", ".join(f'"{method}"' for method in sorted(rule.match.methods or ()))
    return (
        f'{effect}(principal == Agent::"coder", action, resource) when {{ context.host == "{host}"'
        f' && [{methods}].contains(context.method) && context.path like "/v1/*" }};'
    )


def _ask_cedar(policies: str | cedarpy.PolicySet, request: Request) -> object:
    asked = {
        "principal": 'Agent::"coder"',
        "action": 'Action::"call"',
        "resource": 'Host::"h"',
        "context": {"host": request.host, "method": request.method, "path": request.path},
    }
    return cedarpy.is_authorized(asked, policies, [])


def main() -> None:
    """Print the table."""
    for row in run():
        print(f"{'ok  ' if row.met else 'MISS'} {row.name:<48} {row.value:<22} goal {row.goal}")


if __name__ == "__main__":
    main()
