"""Metrics of budgets and of agents' states, read from the ledger's book when somebody asks.

    Book (a recent copy) + ledger clock  --collect-->  limit, spent, held, remaining; agent_state

Rule 1: accounts and agents are what the operator made: budgets, agents of the policy, sessions of
        `agent add`. Nothing that an agent sends becomes a label.
Rule 2: a period that is over counts as over, although the ledger only notices with the next
        request: nobody is warned of what was used up yesterday.
Rule 3: no book, or a book that cannot be read: nothing is shown, and all other metrics are.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from policies.budget import UNITS, Account, State, copy, roll
from policies.ledger import Book, Standing

OTHER = "other"  # a word outside its closed set, as in proxy/metrics.py
HALT_REASONS = frozenset({"operator", "budget"})

_ACCOUNT = re.compile(r"[A-Za-z0-9._-]{1,64}/([A-Za-z0-9._-]{1,64})(?:/[A-Za-z0-9._-]{1,64})?")
_ACCOUNTS_MAX = 10_000  # that ran out in one run; the operator opens each of them
_LABELS = ("account", "unit")


class BudgetMetrics(Collector):
    """What one server says of budgets. Registers itself."""

    def __init__(
        self,
        registry: CollectorRegistry,
        agents: Callable[[], Iterable[str]],
        failed: Callable[[], None],
    ) -> None:
        """`agents`: those of the policy in force. `failed`: the book could not be read."""
        self._agents, self._failed = agents, failed
        self._read_book: Callable[[], Book | None] = lambda: None
        self._now_ms: Callable[[], int] = lambda: 0
        self._shown: set[str] = set()  # accounts that were in the book
        self._ran_out: set[str] = set()  # and those that ended something
        # before the counters: a series that begins at 0 is one whose first rise is seen
        registry.register(self)
        self._steps = Counter(
            "tollkeeper_steps", "Steps that allowed requests cost.", ["agent"], registry=registry
        )
        self._exhausted = Counter(
            "tollkeeper_budget_exhausted",
            "Requests and streams that a used-up budget ended.",
            _LABELS,
            registry=registry,
        )
        self._halts = Counter(
            "tollkeeper_halts", "Agents that were halted.", ["reason"], registry=registry
        )
        for reason in HALT_REASONS:
            self._halts.labels(reason)

    def watch(self, read_book: Callable[[], Book | None], now_ms: Callable[[], int]) -> None:
        """Where to read the book (a copy; None: not yet) and the ledger's clock, at each scrape."""
        self._read_book, self._now_ms = read_book, now_ms

    def show_agents(self, agents: Iterable[str]) -> None:
        """Agents that may take steps from now on."""
        for agent in agents:
            self._steps.labels(agent)

    def count_steps(self, agent: str, steps: int) -> None:
        """So many steps of an agent whose label is known."""
        self._steps.labels(agent).inc(steps)

    def count_exhausted(self, account: str, unit: str) -> None:
        """An account (its base name) that did not suffice."""
        if account not in self._ran_out:
            if not self._is_account(account) or len(self._ran_out) >= _ACCOUNTS_MAX:
                account = OTHER
            self._ran_out.add(account)
        self._exhausted.labels(account, unit if unit in UNITS else OTHER).inc()

    def count_halt(self, reason: str) -> None:
        """An agent became halted: by the `operator`, or by a threshold of a `budget`."""
        self._halts.labels(reason if reason in HALT_REASONS else OTHER).inc()

    def _is_account(self, account: str) -> bool:
        """In the book, or so new that nobody asked since: then of an agent of the policy."""
        found = _ACCOUNT.fullmatch(account)
        return account in self._shown or (found is not None and found[1] in self._agents())

    def describe(self) -> Iterable[Metric]:
        """The names, for the registry, without reading anything."""
        return [*_account_families(), _state_family()]

    def collect(self) -> Iterator[Metric]:
        """Everything as it stands now."""
        try:
            book, now_ms = self._read_book(), self._now_ms()
            families = (
                [] if book is None else [*self._standings(book), *self._accounts(book, now_ms)]
            )
        except Exception:  # noqa: BLE001  one part that is down must not hide all other metrics
            self._failed()
            families = []
        yield from families

    def _standings(self, book: Book) -> list[Metric]:
        family = _state_family()
        for agent in sorted({*self._agents(), *book.standings}):
            current = book.standings.get(agent, Standing()).state
            for state in State:
                family.add_metric([agent, state.word], float(state is current))
        return [family]

    def _accounts(self, book: Book, now_ms: int) -> list[Metric]:
        limit, spent, held, remaining = families = _account_families()
        for known in sorted(book.accounts.values(), key=lambda account: account.base):
            account = copy(known)
            roll(account, now_ms)
            self._shown.add(account.base)
            for unit in _units(account):
                labels = account.base, unit
                spent.add_metric(labels, account.spent_of(unit, now_ms))
                held.add_metric(labels, account.held.get(unit, 0))
                if unit in account.contract.terms:
                    limit.add_metric(labels, account.contract.terms[unit].limit)
                    remaining.add_metric(labels, account.available(unit, now_ms))
                    self._exhausted.labels(*labels)
        return list(families)


def _units(account: Account) -> list[str]:
    """What is limited, and what was spent of limits that are gone."""
    shown = account.contract.terms.keys() | account.spent.keys() | account.held.keys()
    return [unit for unit in UNITS if unit in shown]


def _account_families() -> tuple[
    GaugeMetricFamily, CounterMetricFamily, GaugeMetricFamily, GaugeMetricFamily
]:
    name = "tollkeeper_budget_"
    return (
        GaugeMetricFamily(f"{name}limit", "Limit in force, in its unit.", labels=_LABELS),
        CounterMetricFamily(f"{name}spent", "Spent in this period, in its unit.", labels=_LABELS),
        GaugeMetricFamily(f"{name}held", "Reserved and not yet settled.", labels=_LABELS),
        GaugeMetricFamily(f"{name}remaining", "Limit - spent - held.", labels=_LABELS),
    )


def _state_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "tollkeeper_agent_state", "1 for the state an agent is in.", labels=("agent", "state")
    )
