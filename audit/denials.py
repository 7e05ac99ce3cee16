"""How many denials of one agent are recorded singly. PURE: the clock is a parameter.

    agent `a` is denied 5,000 times in a second: 1,200 records, then `dropped{n:3800}`

Rule 1: only denials and malformed messages are ever counted instead of recorded; an allow that is
        not recorded is not allowed.
Rule 2: nothing is lost without a count: `drain` gives one `dropped` event per agent and reason.

The proxy asks `admit` before it stores a denial, and submits what `drain` returns once a second and
when it stops. An agent that floods us then costs at most its rate in disk, long before the reserve
of the volume (audit/appender.py) is touched.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

RATE_PER_S = 200
BURST = 1000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class DenialBudget:
    """One token bucket per agent. The keys are agent ids of the policy (a closed set) or ""."""

    def __init__(self, rate_per_s: float = RATE_PER_S, burst: int = BURST) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._buckets: dict[str, _Bucket] = {}
        self._dropped: Counter[tuple[str, str]] = Counter()

    def admit(self, agent: str, reason: str, now_s: float) -> bool:
        """Whether this denial is recorded singly; else it was counted. `now_s` is monotonic."""
        bucket = self._buckets.setdefault(agent, _Bucket(self._burst, now_s))
        gained = max(0.0, now_s - bucket.at_s) * self._rate
        bucket.tokens = min(float(self._burst), bucket.tokens + gained)
        bucket.at_s = now_s
        if bucket.tokens < 1:
            self._dropped[agent, reason] += 1
            return False
        bucket.tokens -= 1
        return True

    def drain(self) -> list[Mapping[str, object]]:
        """The `dropped` events for what was counted since the last call; usually none."""
        events: list[Mapping[str, object]] = []
        for (agent, reason), count in sorted(self._dropped.items()):
            event: dict[str, object] = {"kind": "dropped", "n": count, "reason": reason}
            events.append({**event, "agent": agent} if agent else event)
        self._dropped.clear()
        return events
