"""The in-memory ledger: open reservations by decision id. PURE: it performs no I/O."""

from policies.model import ContractBroken


class MemoryLedger:
    """Holds reservations for the life of the process."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    async def reserve(self, decision_id: str) -> None:
        """See `Ledger.reserve`."""
        if decision_id in self._open:
            raise ContractBroken("a decision reserves once")
        self._open.add(decision_id)

    def settle(self, decision_id: str) -> None:
        """See `Ledger.settle`."""
        if decision_id not in self._open:
            raise ContractBroken("I3: a reservation settles exactly once")
        self._open.remove(decision_id)

    def void(self, decision_id: str) -> None:
        """See `Ledger.void`."""
        self._open.discard(decision_id)

    @property
    def held(self) -> int:
        """How many reservations are open."""
        return len(self._open)
