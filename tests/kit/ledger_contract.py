"""What every ledger must do; a test class of each implementation inherits it (house.md 2.5)."""

import asyncio

import pytest

from policies.ledger import Ledger
from policies.model import ContractBroken


class LedgerContract:
    """`make` gives an empty ledger, `count_open` how many reservations are open in it."""

    def make(self) -> Ledger:
        raise NotImplementedError

    def count_open(self, ledger: Ledger) -> int:
        raise NotImplementedError

    def reserved(self, *ids: str) -> Ledger:
        """A ledger with these reservations open."""
        ledger = self.make()
        for decision_id in ids:
            asyncio.run(ledger.reserve(decision_id))
        return ledger

    def test_what_is_reserved_is_held_until_it_is_settled(self) -> None:
        ledger = self.reserved("a", "b")
        assert self.count_open(ledger) == 2
        ledger.settle("a")
        assert self.count_open(ledger) == 1

    def test_what_is_voided_is_held_no_more(self) -> None:
        ledger = self.reserved("a")
        ledger.void("a")
        assert self.count_open(ledger) == 0

    def test_a_decision_reserves_once(self) -> None:
        ledger = self.reserved("a")
        with pytest.raises(ContractBroken):
            asyncio.run(ledger.reserve("a"))

    def test_a_reservation_settles_once(self) -> None:
        ledger = self.reserved("a")
        ledger.settle("a")
        with pytest.raises(ContractBroken, match="I3"):
            ledger.settle("a")

    def test_nothing_is_settled_after_a_void(self) -> None:
        ledger = self.reserved("a")
        ledger.void("a")
        with pytest.raises(ContractBroken, match="I3"):
            ledger.settle("a")

    def test_what_was_never_reserved_is_not_settled(self) -> None:
        with pytest.raises(ContractBroken, match="I3"):
            self.make().settle("a")

    def test_a_reservation_that_may_not_have_been_made_can_be_voided(self) -> None:
        ledger = self.reserved("b")
        ledger.void("a")
        assert self.count_open(ledger) == 1
