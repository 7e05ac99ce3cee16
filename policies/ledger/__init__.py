"""Where standings live: what was spent and is held on every account, and the agents' states.

    Book   everything a ledger knows, as a value: the fold of the log (proxy/fold.py)
    Ledger reserve -> Hold | Shortfall ... settle          two-phase spending by decision id

Rule 1: the log is the truth. A ledger begins as the `Book` that was folded from it, and equals it
        again whenever nothing is held.
Rule 2: reserve holds on all accounts of an agent or on none (policies/budget.py: arithmetic).
Rule 3: whoever cannot answer raises `LedgerUnavailable`; the request is denied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.budget import Account, Amount, Extension, Hold, Order, Shortfall, State


class LedgerUnavailable(RuntimeError):  # noqa: N818  named after the failure
    """The ledger could not answer; the request is denied with `ledger-unavailable`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An agent's state, and why."""

    state: State = State.ACTIVE
    cause: str = ""


@dataclass(slots=True)
class Book:
    """Every account by its base name, and every agent that is no longer active."""

    accounts: dict[str, Account] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PutAccount:
    """Open an account, or replace its contract and period (`budget.put`)."""

    account: Account


@dataclass(frozen=True, slots=True)
class PutStanding:
    """An agent's state moves right."""

    agent: str
    standing: Standing


Change = PutAccount | PutStanding


class Ledger(Protocol):
    """Two-phase spending keyed by decision id (reservation -> settlement or void)."""

    async def reserve(self, order: Order | Extension) -> Hold | Shortfall:
        """Hold an order, or a further slice for a decision that has a reservation.

        All accounts of the order's agent (and of its session) take part. Whoever cancels it calls
        `settle` with nothing: whether something was held is then unknown.

        Raises:
            LedgerUnavailable: nothing was held.
            ContractBroken: an order of a decision that has a reservation; an extension of one that
                has none.
        """

    async def settle(self, decision_id: str, spent: Sequence[Amount]) -> tuple[Account, ...]:
        """End a reservation; returns copies of the accounts that took part, as they stand now.

        Nothing spent is a void, which is also right where no reservation is open.

        Raises:
            LedgerUnavailable: it is unknown whether it ended.
            ContractBroken: none is open of that id (I3), or more is booked than was held (I2).
        """

    async def change(self, change: Change) -> None:
        """Put an account or a standing.

        Raises:
            LedgerUnavailable: nothing changed.
            ContractBroken: a state would move left (I4), or spent would fall (I1).
        """

    async def read(self) -> Book:
        """A copy of everything.

        Raises:
            LedgerUnavailable: it cannot be read.
        """


__all__ = [
    "Account",
    "Amount",
    "Book",
    "Change",
    "Extension",
    "Hold",
    "Ledger",
    "LedgerUnavailable",
    "Order",
    "PutAccount",
    "PutStanding",
    "Shortfall",
    "Standing",
    "State",
]
