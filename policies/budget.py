"""Budget arithmetic: what an account may still spend, and the two phases of spending. PURE.

    Account = budget x agent (x session), with a contract, and per unit `spent` and `held`
    reserve  holds on all accounts or on none        settle  turns what was held into spending

I1  spent never falls within a period.
I2  spent + held <= limit after every successful reserve.
I3  each reservation settles exactly once (the ledgers keep who has one).
I4  a state never moves left in active < warned < quarantined < halted.

Rule 1: integers only: counts, bytes, milliseconds, points.
Rule 2: running out is a value (`Shortfall`); a broken invariant is `ContractBroken`.
Rule 3: time is given: milliseconds of the ledger's clock, which no step of the wall clock moves
        (docs/budgets.md). A period (window) follows the one before and never comes back.

Two-phase spending after TigerBeetle's pending, posted and voided transfers. policy.md section 4.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

from policies.model import ContractBroken

LIMIT_MAX = 2**53 - 1  # what every JSON reader keeps exactly
SLICE_BYTES = 256 * 1024  # of a stream whose length nobody knows
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


_new = tuple.__new__  # a NamedTuple's own way costs twice as much
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


@dataclass(frozen=True, slots=True)
class Order:
    """What one decision wants to hold, all or nothing.

    `amounts` must fit whole (exact units, heads, known Content-Lengths); for each unit of `slices`
    at least 1 and at most SLICE_BYTES more are held, as much as is there.
    """

    decision_id: str
    agent: str
    session: str
    now_ms: int
    amounts: Mapping[str, int]
    slices: frozenset[str] = frozenset()
    wants_left: bool = (
        True  # whether anybody will look at `Hold.left`: it costs as much as the rest
    )


@dataclass(frozen=True, slots=True)
class Extension:
    """More bytes for a stream that is under way: `need_bytes` and no less where `whole`, else at
    least 1 and up to max(need_bytes, SLICE_BYTES)."""

    decision_id: str
    unit: str
    need_bytes: int
    now_ms: int
    whole: bool = False


class Hold(NamedTuple):
    """What is held now, account by account, sorted."""

    amounts: tuple[Amount, ...] = ()
    granted: Mapping[str, int] = MappingProxyType({})  # byte unit -> bytes; absent: no limit
    closed: tuple[Closed, ...] = ()  # periods that ended on the way
    opened: tuple[Account, ...] = ()  # copies of the accounts that began a period
    left: tuple[Left, ...] = ()  # behind the hold


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Nothing is held: the first account and unit that do not suffice."""

    account: str  # its base
    budget: str
    unit: str
    needed: int
    available: int
    until_ms: int  # when the period that is used up ends; 0: never
    left: tuple[Left, ...] = ()
    closed: tuple[Closed, ...] = ()
    opened: tuple[Account, ...] = ()


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


def reserve(accounts: Sequence[Account], order: Order) -> Hold | Shortfall:
    """Hold an order on every account that limits something, or on none.

    Raises:
        ContractBroken: an amount is negative. Nothing changed.
    """
    now_ms, wanted = order.now_ms, dict(order.amounts)
    if wanted and min(wanted.values()) < 0:
        raise ContractBroken("a negative amount")
    wanted[WALL_TIME] = 0
    closed, opened = _roll_all(accounts, now_ms)
    slices, grants = order.slices, dict.fromkeys(order.slices, SLICE_BYTES)
    for account in accounts:
        spent, held = account.spent, account.held
        for unit, term in account.contract.terms.items():
            needed = wanted.get(unit, 0)
            available = term.limit - spent.get(unit, 0) - held.get(unit, 0)
            if unit in slices:
                grants[unit] = min(grants[unit], available - needed)
                needed += 1
            elif unit == WALL_TIME:
                needed, available = 1, account.available(unit, now_ms)
            if needed > available:
                left = list_left(accounts, now_ms)
                short = account.base, account.budget, unit, needed, max(0, available)
                return Shortfall(*short, account.until_ms, left, closed, opened)
    for unit, grant in grants.items():
        wanted[unit] = wanted.get(unit, 0) + grant
    amounts, granted = _hold(accounts, wanted, now_ms)
    left = list_left(accounts, now_ms) if order.wants_left else ()
    return Hold(amounts, granted, closed, opened, left)


def _hold(
    accounts: Iterable[Account], wanted: Mapping[str, int], now_ms: int
) -> tuple[tuple[Amount, ...], dict[str, int]]:
    """Hold what was found to be there, zeros included; the bytes of it are granted."""
    amounts: list[Amount] = []
    granted: dict[str, int] = {}
    for account in accounts:
        held, name = account.held, account.name
        if not account.first_ms and account.contract.terms:
            account.first_ms = now_ms
        for unit in account.contract.terms:
            amount = wanted.get(unit, 0)
            if amount:
                held[unit] = held.get(unit, 0) + amount
            if unit in BYTE_UNITS:
                granted[unit] = amount
            amounts.append(_new(Amount, (name, unit, amount)))
    amounts.sort()
    return tuple(amounts), granted


def extend(accounts: Sequence[Account], extension: Extension) -> Hold | Shortfall:
    """Hold a further slice for a stream on all its accounts that limit the unit, or on none.

    Raises:
        ContractBroken: nothing is needed, or the unit is not one of bytes. Nothing changed.
    """
    unit, now_ms = extension.unit, extension.now_ms
    if extension.need_bytes < 1 or unit not in BYTE_UNITS:
        raise ContractBroken("an extension of nothing, or of what is no stream")
    closed, opened = _roll_all(accounts, now_ms)
    limiting = [account for account in accounts if unit in account.contract.terms]
    least = extension.need_bytes if extension.whole else 1
    grant = extension.need_bytes if extension.whole else max(extension.need_bytes, SLICE_BYTES)
    for account in limiting:
        available = account.available(unit, now_ms)
        if available < least:
            short = (account.base, account.budget, unit, least, available, account.until_ms)
            return Shortfall(*short, list_left(accounts, now_ms), closed, opened)
        grant = min(grant, available)
    amounts: list[Amount] = []
    for account in limiting:
        account.held[unit] = account.held.get(unit, 0) + grant
        account.first_ms = account.first_ms or now_ms
        amounts.append(Amount(account.name, unit, grant))
    amounts.sort()
    granted = {unit: grant} if limiting else {}
    return Hold(tuple(amounts), granted, closed, opened, list_left(accounts, now_ms))


def join(held: Iterable[Amount], further: Iterable[Amount]) -> tuple[Amount, ...]:
    """Holds of one decision, one entry for each account, period and unit, in the order of the
    holds: what a stream holds must not grow with its length."""
    sums: dict[tuple[str, str], int] = {}
    for account, unit, amount in (*held, *further):
        key = account, unit
        sums[key] = sums.get(key, 0) + amount
    return tuple([_new(Amount, (*key, amount)) for key, amount in sums.items()])


def allocate(held: Iterable[Amount], counted: Mapping[str, int]) -> tuple[Amount, ...]:
    """What a settlement books, given what was held and the bytes that were counted.

    Exact units in full; bytes from the first hold on, never more than was held. `held` in the
    order of the holds, so that a stream that outlasts a period pays in both. Sorted; zeros left
    out.
    """
    spent: dict[tuple[str, str], int] = {}
    taken: dict[tuple[str, str], int] = {}  # by account without its period
    for account, unit, amount in held:
        if unit in BYTE_UNITS:
            key = account.partition("@")[0], unit
            already = taken.get(key, 0)
            amount = min(amount, counted.get(unit, 0) - already)  # noqa: PLW2901  its share
            taken[key] = already + amount
        if amount:
            spent[account, unit] = spent.get((account, unit), 0) + amount
    return tuple(sorted(Amount(*key, amount) for key, amount in spent.items()))


def settle(
    accounts: Iterable[Account],
    held: Sequence[Amount],
    spent: Sequence[Amount],
    gone: Sequence[Amount] = (),
) -> None:
    """End a reservation: `held` is released, `spent` is booked. What a closed period is owed
    stays with it. A void books nothing.

    `gone` was held too, but `put` has counted it as spent already: nothing more is done about it.

    Raises:
        ContractBroken: more is booked than was held (nothing changed), or a hold of it was
            released before.
    """
    booked, releases, counted = _sum_up(spent), _sum_up(held), _sum_up(gone)
    for key, amount in booked.items():
        if not 0 <= amount <= releases.get(key, 0) + counted.get(key, 0):
            raise ContractBroken("I2: a settlement beyond what was held")
    named = {account.name: account for account in accounts}
    for key, amount in releases.items():
        account = named.get(key[0])
        if account is None or not amount:
            continue
        unit = key[1]
        rest = account.held.pop(unit, 0) - amount
        if rest:
            if rest < 0:
                raise ContractBroken("I3: a hold released twice")
            account.held[unit] = rest
        given = booked.get(key, 0) - counted.get(key, 0)
        if given > 0:
            account.spent[unit] = account.spent.get(unit, 0) + given


def _sum_up(amounts: Sequence[Amount]) -> dict[tuple[str, str], int]:
    """By account and unit."""
    if not amounts:
        return {}
    found = {(account, unit): amount for account, unit, amount in amounts}
    if len(found) < len(amounts):  # a stream that was extended
        found = dict.fromkeys(found, 0)
        for account, unit, amount in amounts:
            found[account, unit] += amount
    return found


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


def _roll_all(
    accounts: Iterable[Account], now_ms: int
) -> tuple[tuple[Closed, ...], tuple[Account, ...]]:
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
