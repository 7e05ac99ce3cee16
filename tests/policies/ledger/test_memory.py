"""The in-memory ledger keeps the contract of every ledger."""

from policies.ledger import Ledger
from policies.ledger.memory import MemoryLedger
from tests.kit.ledger_contract import LedgerContract


class TestMemoryLedger(LedgerContract):
    """See the contract."""

    def make(self) -> Ledger:
        return MemoryLedger()

    def count_open(self, ledger: Ledger) -> int:
        assert isinstance(ledger, MemoryLedger)
        return ledger.held
