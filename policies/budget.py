"""Budget arithmetic: what an account may still spend, and the two phases of spending. PURE.

    Account  what stands on one (policies/account.py)
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
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from policies.account import (
    BYTE_UNITS,
    LIMIT_MAX,
    UNITS,
    WALL_TIME,
    Account,
    Amount,
    Closed,
    Contract,
    Left,
    State,
    Term,
    Threshold,
    begin_period,
    copy,
    find_threshold,
    format_moment,
    list_left,
    name_account,
    name_period,
    put,
    roll,
    roll_all,
)
from policies.model import ContractBroken

__all__ = [
    "BYTE_UNITS",
    "LIMIT_MAX",
    "SLICE_BYTES",
    "UNITS",
    "WALL_TIME",
    "Account",
    "Amount",
    "Closed",
    "Contract",
    "Extension",
    "Hold",
    "Left",
    "Order",
    "Shortfall",
    "State",
    "Term",
    "Threshold",
    "allocate",
    "begin_period",
    "copy",
    "extend",
    "find_threshold",
    "format_moment",
    "join",
    "list_left",
    "name_account",
    "name_period",
    "put",
    "reserve",
    "roll",
    "settle",
]

SLICE_BYTES = 256 * 1024  # of a stream whose length nobody knows
_new = tuple.__new__  # a NamedTuple's own way costs twice as much


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
    ends_ms: int = 0  # the first moment at which a wall_time is over; 0: never


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


def reserve(accounts: Sequence[Account], order: Order) -> Hold | Shortfall:
    """Hold an order on every account that limits something, or on none.

    Raises:
        ContractBroken: an amount is negative. Nothing changed.
    """
    now_ms, wanted = order.now_ms, order.amounts
    for amount in wanted.values():
        if amount < 0:
            raise ContractBroken("a negative amount")
    if WALL_TIME in wanted:
        wanted = {**wanted, WALL_TIME: 0}
    closed, opened = roll_all(accounts, now_ms)
    if order.slices:
        wanted = _add_slices(accounts, wanted, order.slices)
    ends_ms = _find_end_ms(accounts, now_ms)
    amounts = _hold(accounts, wanted) if not ends_ms or now_ms < ends_ms else None
    if amounts is None:
        return _find_shortfall(accounts, order, closed, opened)
    granted: dict[str, int] = {}
    for account in accounts:
        contract = account.contract
        if not account.first_ms and contract.caps:
            account.first_ms = now_ms
        for unit in contract.byte_units:
            granted[unit] = wanted.get(unit, 0)
    left = list_left(accounts, now_ms) if order.wants_left else ()
    return _new(Hold, (amounts, granted, closed, opened, left, ends_ms))


def _add_slices(
    accounts: Sequence[Account], wanted: Mapping[str, int], slices: Iterable[str]
) -> dict[str, int]:
    """What is wanted with slices as large as every account allows, and no smaller than 1."""
    summed = dict(wanted)
    for unit in slices:
        needed, grant = summed.get(unit, 0), SLICE_BYTES
        for account in accounts:
            term = account.contract.terms.get(unit)
            if term is not None:
                used = account.spent.get(unit, 0) + account.held.get(unit, 0)
                grant = min(grant, term.limit - used - needed)
        summed[unit] = needed + max(grant, 1)
    return summed


def _find_end_ms(accounts: Iterable[Account], now_ms: int) -> int:
    """The first moment at which a wall_time of these accounts is over; 0: none has one."""
    found = 0
    for account in accounts:
        wall_time_ms = account.contract.wall_time_ms
        if wall_time_ms is not None:
            ends_ms = now_ms + wall_time_ms - account.elapsed_ms(now_ms)
            found = min(found or ends_ms, ends_ms)
    return found


def _hold(accounts: Sequence[Account], wanted: Mapping[str, int]) -> tuple[Amount, ...] | None:
    """Hold all of it and say so, zeros included; None: it does not fit, and nothing changed.

    What is held is counted in copies, which take effect together.
    """
    get = wanted.get
    amounts: list[Amount] = []
    counted: list[dict[str, int]] = []
    before, in_order = "", True
    for account in accounts:
        spent, held, name = account.spent.get, account.held.copy(), account.name
        counted.append(held)
        if name < before:
            in_order = False
        before = name
        for unit, cap in account.contract.caps:
            amount = get(unit, 0)
            used = held.get(unit, 0) + amount
            if used + spent(unit, 0) > cap:
                return None
            if amount:
                held[unit] = used
            amounts.append(_new(Amount, (name, unit, amount)))
    for account, held in zip(accounts, counted, strict=True):
        account.held = held
    if not in_order:  # a name ends with more than what accounts are ordered by
        amounts.sort()
    return tuple(amounts)


def _find_shortfall(
    accounts: Sequence[Account],
    order: Order,
    closed: tuple[Closed, ...],
    opened: tuple[Account, ...],
) -> Shortfall:
    """The first account and unit that do not suffice, in the order of the contract's terms."""
    now_ms = order.now_ms
    for account in accounts:
        for unit, term in account.contract.terms.items():
            needed = order.amounts.get(unit, 0) + (unit in order.slices)
            available = term.limit - account.spent.get(unit, 0) - account.held.get(unit, 0)
            if unit == WALL_TIME:
                needed, available = 1, account.available(unit, now_ms)
            if needed > available:
                left = list_left(accounts, now_ms)
                short = account.base, account.budget, unit, needed, max(0, available)
                return Shortfall(*short, account.until_ms, left, closed, opened)
    raise ContractBroken("I2: what fits was refused")


def extend(accounts: Sequence[Account], extension: Extension) -> Hold | Shortfall:
    """Hold a further slice for a stream on all its accounts that limit the unit, or on none.

    Raises:
        ContractBroken: nothing is needed, or the unit is not one of bytes. Nothing changed.
    """
    unit, now_ms = extension.unit, extension.now_ms
    if extension.need_bytes < 1 or unit not in BYTE_UNITS:
        raise ContractBroken("an extension of nothing, or of what is no stream")
    closed, opened = roll_all(accounts, now_ms)
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
    held = tuple(held)
    found = _allocate_in_order(held, counted)
    if found is not None:
        return found
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


def _allocate_in_order(
    held: Iterable[Amount], counted: Mapping[str, int]
) -> tuple[Amount, ...] | None:
    """Where the holds are sorted, each once, and no account has two periods; None: they are not."""
    spent: list[Amount] = []
    bases: set[str] = set()
    last_account = last_unit = ""
    for one in held:
        account, unit, amount = one
        if account != last_account:
            base = account.partition("@")[0]
            if account < last_account or base in bases:
                return None
            bases.add(base)
            last_account = account
        elif unit <= last_unit:
            return None
        last_unit = unit
        if unit in BYTE_UNITS and amount > counted.get(unit, 0):
            amount = counted.get(unit, 0)
            if amount:
                spent.append(_new(Amount, (account, unit, amount)))
        elif amount:
            spent.append(one)
    return tuple(spent)


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
        ContractBroken: more is booked than was held, or a hold of it was released before.
            Nothing changed.
    """
    if not gone and _settle_in_order(accounts, held, spent):
        return
    booked, releases, counted = _sum_up(spent), _sum_up(held), _sum_up(gone)
    for key, amount in booked.items():
        if not 0 <= amount <= releases.get(key, 0) + counted.get(key, 0):
            raise ContractBroken("I2: a settlement beyond what was held")
    named = {account.name: account for account in accounts}
    changed = {name: (one.held.copy(), one.spent.copy()) for name, one in named.items()}
    for key, amount in releases.items():
        name, unit = key
        if name not in changed or not amount:
            continue
        held_now, spent_now = changed[name]
        rest = held_now.pop(unit, 0) - amount
        if rest:
            if rest < 0:
                raise ContractBroken("I3: a hold released twice")
            held_now[unit] = rest
        given = booked.get(key, 0) - counted.get(key, 0)
        if given > 0:
            spent_now[unit] = spent_now.get(unit, 0) + given
    for name, account in named.items():
        account.held, account.spent = changed[name]


def _settle_in_order(
    accounts: Iterable[Account], held: Iterable[Amount], spent: Sequence[Amount]
) -> bool:
    """Settle where every booking stands in the order of the holds and fits; else nothing changed.

    What is counted is counted in copies, which take effect together.
    """
    ordered, count, at = iter(accounts), len(spent), 0
    changed: list[tuple[Account, dict[str, int], dict[str, int]]] = []
    current = ""
    for name, unit, amount in held:
        if name != current:
            for account in ordered:
                if account.name == name:
                    break
            else:
                return False
            held_now, spent_now, current = account.held.copy(), account.spent.copy(), name
            changed.append((account, held_now, spent_now))
        given = 0
        if at < count and spent[at][1] == unit and spent[at][0] == name:
            given = spent[at][2]
            at += 1
        if not amount >= given >= 0:
            return False
        if amount:
            rest = held_now.pop(unit, 0) - amount
            if rest < 0:
                return False
            if rest:
                held_now[unit] = rest
            if given:
                spent_now[unit] = spent_now.get(unit, 0) + given
    if at < count:
        return False
    for account, held_now, spent_now in changed:
        account.held, account.spent = held_now, spent_now
    return True


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
