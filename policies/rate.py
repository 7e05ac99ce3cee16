"""Rates: GCRA, the leaky bucket as one number per key. PURE: monotonic time is a parameter.

    admit(state, rate, now_ms) -> new state, or how long to wait

Rule 1: exact integers. Times are counted in 1/allow of a millisecond, so `allow` per `per_ms` holds
        to the request and nothing drifts.
Rule 2: a refused call consumes nothing, and several rates are consumed together or not at all.
Rule 3: memory is bounded: a key at rest is forgotten, and when all are busy new ones must wait.

Source: ITU-T I.371 (generic cell rate algorithm, virtual scheduling); policy.md section 1, `rates`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.model import RateUse
from policies.rule import Rate

KEYS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class RateState:
    """When the bucket of one key is empty again, in 1/`scale` of a millisecond."""

    empty_at: int
    scale: int  # `allow` of the rate that wrote it; a reload may bring another


def admit(
    state: RateState | None, rate: Rate, now_ms: int
) -> tuple[RateState, None] | tuple[None, int]:
    """Admit one request now, or say after how many milliseconds (at least 1) it would pass.

    `None` is a key at rest: it admits `burst` requests at once. A rate that allows nothing, or has
    no burst, never admits.
    """
    if rate.allow <= 0 or rate.burst <= 0:
        return None, max(rate.per_ms, 1)
    now = now_ms * rate.allow
    empty_at = max(_rescale(state, rate.allow), now) + rate.per_ms
    too_early = empty_at - rate.burst * rate.per_ms - now
    if too_early > 0:
        return None, -(-too_early // rate.allow)
    return RateState(empty_at, rate.allow), None


def _rescale(state: RateState | None, scale: int) -> int:
    if state is None:
        return 0
    return state.empty_at if state.scale == scale else -(-state.empty_at * scale // state.scale)


class RateLimiter:
    """The states of all keys. Not thread-safe: one event loop owns it."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._states: dict[tuple[str, str], RateState] = {}

    def admit(self, uses: Iterable[RateUse], rates: Mapping[str, Rate], now_ms: int) -> int | None:
        """Consume every use at once and return None, or nothing and the milliseconds to wait.

        `rates` are those of the policy set that decided. `now_ms` is monotonic.

        Raises:
            KeyError: a use names a rate that `rates` does not hold, which is a bug of the caller.
        """
        admitted: dict[tuple[str, str], RateState] = {}
        wait_ms = 0
        for use in uses:
            key = (use.rate, use.key)
            state = admitted.get(key) or self._states.get(key)
            new, retry_after_ms = admit(state, rates[use.rate], now_ms)
            if new is None:
                wait_ms = max(wait_ms, retry_after_ms or 1)
            else:
                admitted[key] = new
        if wait_ms:
            return wait_ms
        if not self._has_room(admitted, now_ms):
            return 1000  # every key is busy: nobody new until one of them comes to rest
        self._states.update(admitted)
        return None

    def __len__(self) -> int:
        return len(self._states)

    def _has_room(self, admitted: Mapping[tuple[str, str], RateState], now_ms: int) -> bool:
        new = sum(key not in self._states for key in admitted)
        if not new or len(self._states) + new <= self._keys_max:
            return True
        self._states = {
            key: state
            for key, state in self._states.items()
            if state.empty_at > now_ms * state.scale  # at rest is the same as never seen
        }
        return len(self._states) + new <= self._keys_max
