"""The ledger that lives as long as the process passes the contract of all ledgers."""

from policies.ledger import Ledger
from policies.ledger.memory import MemoryLedger
from tests.kit.ledger_contract import LedgerContract


class TestMemoryLedger(LedgerContract):
    """See the contract."""

    def make(self) -> Ledger:
        return MemoryLedger()

    def held(self, ledger: Ledger) -> int:
        assert isinstance(ledger, MemoryLedger)
        return ledger.held
