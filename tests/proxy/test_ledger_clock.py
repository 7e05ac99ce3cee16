"""The ledger's clock follows the time that passes, whatever anybody sets a clock to."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger_clock import LedgerClock, read_boot_ms


@dataclass
class Boot:
    """Time since boot, as it is told to pass."""

    ms: int = 0

    def read(self) -> int:
        return self.ms


def test_it_begins_at_the_wall_clock_and_passes_with_the_time_since_boot() -> None:
    boot = Boot(500)
    clock = LedgerClock(1_000_000, 0, boot.read)
    assert clock.now_ms() == 1_000_000
    boot.ms += 250
    assert clock.now_ms() == 1_000_250


def test_a_wall_clock_behind_the_log_does_not_count() -> None:
    clock = LedgerClock(1_000, 9_000, Boot().read)
    assert clock.now_ms() == 9_000


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.lists(st.integers(0, 10**9), max_size=5))
def test_it_never_goes_back_not_even_over_a_restart(
    wall_ms: int, floor_ms: int, steps: list[int]
) -> None:
    boot, before = Boot(), floor_ms
    clock = LedgerClock(wall_ms, floor_ms, boot.read)
    for step in steps:
        boot.ms += step
        assert clock.now_ms() >= before
        before = clock.now_ms()
    again = LedgerClock(0, before, Boot(7).read)  # and somebody set the wall clock to 1970
    assert again.now_ms() == before


def test_the_time_since_boot_does_not_go_back() -> None:
    first = read_boot_ms()
    assert 0 < first <= read_boot_ms()
