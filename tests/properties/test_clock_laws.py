"""Laws of budgets under clocks that are set: nobody gets more by it.

Within one run of the server the ledger's clock is true time, so for every span of T ms

    granted in T  <=  (ceil(T / window) + 1) x limit

and no less: a span may begin at the end of one period and end at the begin of another. Over
restarts a wall clock that is ahead is believed, so the bound holds for the ledger's time; but each
period is opened once at most, and none comes back.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from policies import budget
from policies.budget import WALL_TIME, Account, Contract, Hold, Order, Term
from proxy.ledger_clock import LedgerClock

LIMIT, LIFE_MS = 10, 5_000

Step = tuple[str, int]
_SPANS = st.one_of(st.integers(0, 50), st.integers(0, 7_000), st.integers(0, 200_000_000))
_JUMPS = st.one_of(
    st.integers(-(10**12), 10**12),
    st.sampled_from([-86_400_000, 86_400_000, 3_600_000, -3_600_000, -(10**15)]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, LIMIT + 2)),
        st.tuples(st.just("ask"), st.integers(1, 3)),
        st.tuples(st.just("settle"), st.integers(0, 3)),
        st.tuples(st.just("pass"), _SPANS),
        st.tuples(st.just("set"), _JUMPS),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=60,
)


@dataclass
class Machine:
    """One account, a true clock and a wall clock somebody plays with."""

    window_ms: int
    wall_time: bool = False
    true_ms: int = 1_800_000_000_000
    shift_ms: int = 0
    floor_ms: int = 0
    granted: list[tuple[int, int, str, int]] = field(default_factory=list)  # true, own, name, sum
    held: list[Hold] = field(default_factory=list)

    def __post_init__(self) -> None:
        terms = {"requests": Term(LIMIT, LIMIT)}
        if self.wall_time:
            terms[WALL_TIME] = Term(LIFE_MS, LIFE_MS)
        self.account = Account("b", "a", "", Contract(terms, self.window_ms))
        self.start()

    def start(self) -> None:
        """A server begins; what was held counts in full."""
        for hold in self.held:
            budget.settle([self.account], hold.amounts, [a for a in hold.amounts if a.amount])
        self.held.clear()
        wall_ms = max(0, self.true_ms + self.shift_ms)
        self.clock = LedgerClock(wall_ms, self.floor_ms, lambda: self.true_ms)

    def run(self, steps: list[Step], *, restarts: bool) -> None:
        """Do all of it."""
        for what, number in steps:
            match what:
                case "ask":
                    self.ask(number)
                case "settle" if self.held:
                    hold = self.held.pop(number % len(self.held))
                    used = [amount for amount in hold.amounts if amount.amount]
                    budget.settle([self.account], hold.amounts, used)
                case "pass":
                    self.true_ms += number
                case "set":
                    self.shift_ms = number
                case "restart" if restarts:
                    self.start()

    def ask(self, number: int) -> None:
        now_ms = self.clock.now_ms()
        order = Order("d", "a", "", now_ms, {"requests": number})
        answer = budget.reserve([self.account], order)
        if not isinstance(answer, Hold):
            return
        self.floor_ms = max(self.floor_ms, now_ms, self.account.from_ms)
        self.held.append(answer)
        self.granted.append((self.true_ms, now_ms, self.account.name, number))


def find_most(times: list[tuple[int, int]], window_ms: int) -> None:
    """For every span between two grants: the bound holds."""
    for first, (begin_ms, _) in enumerate(times):
        total = 0
        for at_ms, amount in times[first:]:
            total += amount
            span_ms = at_ms - begin_ms
            assert total <= (-(-span_ms // window_ms) + 1) * LIMIT


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1, 3_000, 86_400_000]))
def test_within_a_run_a_span_of_true_time_grants_no_more_than_its_periods(
    steps: list[Step], window_ms: int
) -> None:
    machine = Machine(window_ms)
    machine.run(steps, restarts=False)
    find_most([(true_ms, amount) for true_ms, _, _, amount in machine.granted], window_ms)


def test_the_bound_of_a_span_is_reached() -> None:
    machine = Machine(3_000)
    machine.run([("pass", 2_999), ("ask", LIMIT), ("pass", 1), ("ask", LIMIT)], restarts=False)
    assert sum(amount for *_, amount in machine.granted) == (1 + 1) * LIMIT


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1, 3_000, 86_400_000]))
def test_over_restarts_each_period_is_granted_once_and_none_comes_back(
    steps: list[Step], window_ms: int
) -> None:
    machine = Machine(window_ms)
    machine.run(steps, restarts=True)
    own = [own_ms for _, own_ms, _, _ in machine.granted]
    assert own == sorted(own)
    sums: dict[str, int] = defaultdict(int)
    for _, _, name, amount in machine.granted:
        assert name == next(reversed(sums), name) or name not in sums
        sums[name] += amount
    assert all(total <= LIMIT for total in sums.values())
    find_most([(own_ms, amount) for _, own_ms, _, amount in machine.granted], window_ms)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_without_a_window_a_limit_is_granted_once_for_life(
    steps: list[Step], restarts: bool
) -> None:
    machine = Machine(0)
    machine.run(steps, restarts=restarts)
    assert sum(amount for *_, amount in machine.granted) <= LIMIT


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_wall_time_ends_for_good_and_within_a_run_on_time(
    steps: list[Step], restarts: bool
) -> None:
    machine = Machine(0, wall_time=True)
    machine.run(steps, restarts=restarts)
    if machine.granted:
        first_true_ms, first_ms, *_ = machine.granted[0]
        assert all(own_ms - first_ms < LIFE_MS for _, own_ms, *_ in machine.granted)
        if not restarts:
            assert all(true_ms - first_true_ms < LIFE_MS for true_ms, *_ in machine.granted)
