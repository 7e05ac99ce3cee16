"""How long a policy file takes from text to an applicable PolicySet: goal G6 of policy.md 8.

Everything is included: YAML, schema, names, lint, conflicts, digest, index, archive text. The file
is of the kind people have: one host per rule, methods, two paths, a rate, agents and groups.
"""

import gc
from time import perf_counter

from policies.compile import compile_text
from tests.bench import Row

GOALS_SECONDS = {1_000: 0.6, 10_000: 6.0}
_RULE = """\
- id: rule-{n}
  description: reads service {n}
  verdict: allow
  who: {{ agents: agent-{agent}, groups: team }}
  match:
    host: api{n}.example.com
    methods: [GET, HEAD]
    path: ["/v1/items/{{id:int}}", "/v1/list/**"]
  with: {{ rate: gently, max_request: 1MB, capture: metadata }}
"""


def write_policy(rules: int) -> str:
    """A policy of so many rules over a hundred agents."""
    agents = "".join(f"  agent-{n}: {{ groups: team }}\n" for n in range(100))
    head = f"version: 1\nagents:\n{agents}rates:\n  gently: {{ each: agent, allow: 60, per: 1m }}\n"
    body = "".join(_RULE.format(n=n, agent=n % 100) for n in range(rules))
    return f"{head}rules:\n{body}"


def measure_seconds(rules: int, rounds: int = 3) -> float:
    """The best of a few rounds: the rest is other people's work on this machine."""
    text = write_policy(rules)
    best = float("inf")
    for _ in range(rounds):
        gc.collect()
        started = perf_counter()
        compile_text(text)
        best = min(best, perf_counter() - started)
    return best


def run() -> list[Row]:
    """One row per size."""
    rows = []
    for rules, goal in GOALS_SECONDS.items():
        seconds = measure_seconds(rules, rounds=3 if rules < 10_000 else 1)
        name = f"G6 policy load and validate, {rules} rules"
        rows.append(Row(name, f"<= {goal} s", f"{seconds:.2f} s", seconds <= goal))
    return rows
