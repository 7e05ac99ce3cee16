"""The ledger's clock: wall time that no step of the wall clock moves.

    now = base + (boot time now - boot time at start)        base = max(wall at start, floor)

Rule 1: it never goes back, not even over a restart: `floor_ms` is the latest time the log knows.
Rule 2: a wall clock that is set while we run changes nothing: windows and deadlines follow the time
        that passed. CLOCK_BOOTTIME counts suspended time as well (clock_gettime(2)).
"""

import time
from collections.abc import Callable


def read_boot_ms() -> int:
    """Milliseconds since boot, sleep included where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


class LedgerClock:
    """One per process."""

    def __init__(
        self, wall_ms: int, floor_ms: int, read_ms: Callable[[], int] = read_boot_ms
    ) -> None:
        self._read_ms = read_ms
        self._base_ms = max(wall_ms, floor_ms) - read_ms()

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return self._base_ms + self._read_ms()
