"""The in-memory ledger keeps the contract of every ledger."""

from policies.ledger import Book, Ledger
from policies.ledger.memory import MemoryLedger
from tests.kit.ledger_contract import LedgerContract
from tests.kit.ledgers import account, book, order


class TestMemoryLedger(LedgerContract):
    """See the contract."""

    def make(self, given: Book) -> Ledger:
        return MemoryLedger(given)

    def count_open(self, ledger: Ledger) -> int:
        assert isinstance(ledger, MemoryLedger)
        return ledger.held

    async def test_without_a_book_it_knows_nobody(self) -> None:
        assert await MemoryLedger().read() == Book()

    async def test_an_account_that_comes_later_takes_part_at_once(self) -> None:
        ledger = MemoryLedger(book(account("a", requests=1)))
        await ledger.reserve(order(requests=1))
        await ledger.settle("d-1", ())
        assert (await MemoryLedger(await ledger.read()).read()) == await ledger.read()
