"""What an account is: names, contracts, periods, and what stands on it. PURE.

    Account = budget x agent (x session), with a contract, and per unit `spent` and `held`

Rule 1: integers only: counts, bytes, milliseconds, points.
Rule 2: time is given: milliseconds of the ledger's clock, which no step of the wall clock moves
        (docs/budgets.md). A period (window) follows the one before and never comes back.
Rule 3: `spent` and `held` are replaced, not changed, by whoever spends (policies/budget.py), so
        that several accounts change together or not at all.

policy.md section 4; the arithmetic is in policies/budget.py, which names all of this again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Literal, NamedTuple

LIMIT_MAX = 2**53 - 1  # what every JSON reader keeps exactly
UNITS = ("requests", "steps", "effort", "risk", "bytes_out", "bytes_in", "wall_time")
BYTE_UNITS = frozenset({"bytes_out", "bytes_in"})
WALL_TIME = "wall_time"  # a deadline in ms since the first allowed request; nothing is held of it


class State(IntEnum):
    """An agent's state. It only ever grows (I4)."""

    ACTIVE = 0
    WARNED = 1
    QUARANTINED = 2
    HALTED = 3

    @property
    def word(self) -> str:
        """As it stands in records, metrics and tables."""
        return self.name.lower()


class Amount(NamedTuple):
    """So much of one unit on one account, by the account's name in its period."""

    account: str
    unit: str
    amount: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """One entry of `at:`: what happens once so many percent of any limit are spent."""

    reached_percent: int  # 1 to 100
    do: Literal["warn", "quarantine", "halt"]

    @property
    def state(self) -> State:
        """The state it leads to."""
        return _LEADS_TO[self.do]


_LEADS_TO = {"warn": State.WARNED, "quarantine": State.QUARANTINED, "halt": State.HALTED}


@dataclass(frozen=True, slots=True)
class Term:
    """One limit of a contract, in its unit."""

    limit: int
    filed: int | None  # what the policy file said when it was read last; None: it is gone


@dataclass(frozen=True, slots=True)
class Contract:
    """What holds for an account until it is lowered by the file or raised by an operator."""

    terms: Mapping[str, Term] = field(default_factory=dict)  # by unit; units without limit absent
    window_ms: int = 0  # length of a period; 0: one contract for life
    at: tuple[Threshold, ...] = ()
    # The terms again, as every request needs them:
    caps: tuple[tuple[str, int], ...] = field(init=False, repr=False, compare=False)  # sorted
    byte_units: tuple[str, ...] = field(init=False, repr=False, compare=False)
    wall_time_ms: int | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wall_time = self.terms.get(WALL_TIME)
        caps = sorted([(unit, term.limit) for unit, term in self.terms.items()])
        put_ = object.__setattr__  # frozen
        put_(self, "caps", tuple(caps))
        put_(self, "byte_units", tuple([unit for unit in self.terms if unit in BYTE_UNITS]))
        put_(self, "wall_time_ms", wall_time.limit if wall_time is not None else None)


@dataclass(slots=True)
class Account:
    """The standing of one account in its current period. The only mutable value of this file."""

    budget: str
    agent: str
    session: str
    contract: Contract
    from_ms: int = 0  # when the period began; 0 without a window
    first_ms: int = 0  # first allowed request of the period, for wall_time; 0: none yet
    spent: dict[str, int] = field(default_factory=dict)  # by unit; absent: 0
    held: dict[str, int] = field(default_factory=dict)  # by unit, never 0
    name: str = ""  # `budget/agent[/session][@period]`: as records name it

    def __post_init__(self) -> None:
        self.name = self.name or name_period(self.base, self.from_ms)

    @property
    def base(self) -> str:
        """The name without the period: what a person calls it, and what metrics are labelled
        with."""
        return name_account(self.budget, self.agent, self.session)

    @property
    def until_ms(self) -> int:
        """When the period ends; 0: never."""
        return self.from_ms + self.contract.window_ms if self.contract.window_ms else 0

    def available(self, unit: str, now_ms: int) -> int:
        """What is left of a limited unit: limit - spent - held, at least 0."""
        limit = self.contract.terms[unit].limit
        if unit == WALL_TIME:
            return max(0, limit - self.elapsed_ms(now_ms))
        return max(0, limit - self.spent.get(unit, 0) - self.held.get(unit, 0))

    def elapsed_ms(self, now_ms: int) -> int:
        """Since the first allowed request of the period, and no further than to its end: who looks
        may do so before the next request begins another."""
        if not self.first_ms:
            return 0
        return max(0, min(now_ms, self.until_ms or now_ms) - self.first_ms)

    def spent_of(self, unit: str, now_ms: int) -> int:
        """What was spent of a unit; of wall_time, what has passed."""
        return self.elapsed_ms(now_ms) if unit == WALL_TIME else self.spent.get(unit, 0)


@dataclass(frozen=True, slots=True)
class Closed:
    """A period that is over: its name, and what was spent in it."""

    name: str
    spent: Mapping[str, int]


class Left(NamedTuple):
    """What one account has left of one unit: for the agent's eyes as well."""

    budget: str
    unit: str
    available: int
    limit: int
    until_ms: int  # when the next period begins; 0: never


def name_account(budget: str, agent: str, session: str = "") -> str:
    """`budget/agent[/session]`; ids hold no `/` (policies/values.py)."""
    return f"{budget}/{agent}/{session}" if session else f"{budget}/{agent}"


def name_period(base: str, from_ms: int) -> str:
    """An account's name in one period: with its first moment where there is a window."""
    return f"{base}@{format_moment(from_ms)}" if from_ms else base


def format_moment(moment_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC: `2026-11-21T00:00:00Z`, fraction if there is
    one."""
    moment = datetime.fromtimestamp(moment_ms // 1000, UTC).replace(tzinfo=None)
    rest = moment_ms % 1000
    return moment.isoformat() + (f".{rest:03}" if rest else "") + "Z"


def begin_period(window_ms: int, now_ms: int) -> int:
    """The first moment of the period that `now_ms` is in: whole windows since 1970, UTC."""
    return now_ms // window_ms * window_ms if window_ms else 0


def roll(account: Account, now_ms: int) -> Closed | None:
    """Begin the next period where the current one is over. Time that goes back begins nothing."""
    until_ms = account.until_ms
    return _begin_next(account, now_ms) if until_ms and now_ms >= until_ms else None


def _begin_next(account: Account, now_ms: int) -> Closed:
    closed = Closed(account.name, dict(account.spent))
    account.from_ms = begin_period(account.contract.window_ms, now_ms)
    account.first_ms = 0
    account.spent, account.held = {}, {}
    account.name = name_period(account.base, account.from_ms)
    return closed


def find_threshold(account: Account, now_ms: int) -> tuple[Threshold, str] | None:
    """The farthest-reaching threshold that what was spent has reached, and the unit that did."""
    found: tuple[Threshold, str] | None = None
    for threshold in account.contract.at:
        for unit, term in account.contract.terms.items():
            spent = account.spent_of(unit, now_ms)
            if spent * 100 < threshold.reached_percent * term.limit or not spent:
                continue
            if found is None or threshold.state > found[0].state:
                found = threshold, unit
    return found


def list_left(accounts: Iterable[Account], now_ms: int) -> tuple[Left, ...]:
    """What every account has left, unit by unit."""
    return tuple(
        [
            Left(
                account.budget, unit, account.available(unit, now_ms), term.limit, account.until_ms
            )
            for account in accounts
            for unit, term in account.contract.terms.items()
        ]
    )


def roll_all(
    accounts: Iterable[Account], now_ms: int
) -> tuple[tuple[Closed, ...], tuple[Account, ...]]:
    """The periods that are over, and copies of the accounts that began another."""
    closed: list[Closed] = []
    opened: list[Account] = []
    for account in accounts:
        window_ms = account.contract.window_ms
        if window_ms and now_ms >= account.from_ms + window_ms:
            closed.append(_begin_next(account, now_ms))
            opened.append(copy(account))
    return tuple(closed), tuple(opened)


def copy(account: Account) -> Account:
    """An account that changes on its own."""
    new = Account.__new__(Account)  # past __init__, which would be half of what a request costs
    new.budget, new.agent, new.session = account.budget, account.agent, account.session
    new.contract, new.name = account.contract, account.name
    new.from_ms, new.first_ms = account.from_ms, account.first_ms
    new.spent, new.held = account.spent.copy(), account.held.copy()
    return new


def put(known: Account | None, given: Account) -> Account:
    """An account with the contract of `given`: what `known` spent stays spent (I1).

    Without another window only the contract changes: a period that went by since `given` was read
    does not come back. With one the period changes too, and what is still held counts as spent:
    it is `gone` to the settlement of those requests.
    """
    if known is None:
        return copy(given)
    merged = copy(known)
    merged.contract = given.contract
    if given.name != known.name and given.contract.window_ms != known.contract.window_ms:
        merged.from_ms, merged.name = given.from_ms, given.name
        for unit, amount in known.held.items():
            merged.spent[unit] = merged.spent.get(unit, 0) + amount
        merged.held = {}
    return merged
