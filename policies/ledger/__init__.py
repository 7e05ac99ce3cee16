"""Where standings live. Reserved before a request leaves, settled or voided once after it.

One Protocol, one tuple of implementations. There are no accounts yet: every reservation is empty,
but it is made, kept and ended like any other, so budgets will add amounts, not steps.
"""

from typing import Protocol


class LedgerUnavailable(RuntimeError):  # noqa: N818  named after the failure
    """The ledger could not answer; the request is denied with `ledger-unavailable`."""


class Ledger(Protocol):
    """Two-phase spending keyed by decision id (reservation -> settlement or void)."""

    async def reserve(self, decision_id: str) -> None:
        """Hold what the decision may spend, whole or not at all.

        Whoever cancels it calls `void`: whether something was held is then unknown.

        Raises:
            LedgerUnavailable: nothing was held.
            ContractBroken: this decision has a reservation already.
        """

    def settle(self, decision_id: str) -> None:
        """End the reservation with what was really spent.

        Raises:
            ContractBroken: there is no open reservation of that id (I3: each settles exactly once).
        """

    def void(self, decision_id: str) -> None:
        """End the reservation with nothing spent; none is open, nothing happens (see `reserve`)."""
