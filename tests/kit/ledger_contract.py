"""What every ledger must do, as tests: an implementation's test file makes one and inherits."""

import asyncio
from abc import ABC, abstractmethod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.ledger import Ledger
from policies.model import ContractBroken

STEPS = st.lists(st.tuples(st.sampled_from(["reserve", "settle", "void"]), st.sampled_from("abc")))


class LedgerContract(ABC):
    """Reserve once, end once: by settling or by voiding."""

    @abstractmethod
    def make(self) -> Ledger:
        """A ledger in which nothing is held."""

    @abstractmethod
    def held(self, ledger: Ledger) -> int:
        """How many reservations are open in it."""

    def test_a_reservation_is_held_until_it_is_settled(self) -> None:
        ledger = self.make()
        asyncio.run(ledger.reserve("a"))
        assert self.held(ledger) == 1
        ledger.settle("a")
        assert self.held(ledger) == 0

    def test_a_decision_reserves_once(self) -> None:
        ledger = self.make()
        asyncio.run(ledger.reserve("a"))
        with pytest.raises(ContractBroken):
            asyncio.run(ledger.reserve("a"))
        assert self.held(ledger) == 1

    def test_nothing_is_settled_twice_or_after_a_void(self) -> None:
        ledger = self.make()
        for end in (ledger.settle, ledger.void):
            asyncio.run(ledger.reserve("a"))
            end("a")
            with pytest.raises(ContractBroken):
                ledger.settle("a")

    def test_a_void_of_nothing_does_nothing(self) -> None:
        ledger = self.make()
        ledger.void("a")
        assert self.held(ledger) == 0

    @given(steps=STEPS)
    def test_any_order_of_calls_keeps_the_books(self, steps: list[tuple[str, str]]) -> None:
        ledger = self.make()
        books: set[str] = set()
        for step, decision in steps:
            broken = (decision in books) if step == "reserve" else (decision not in books)
            try:
                if step == "reserve":
                    asyncio.run(ledger.reserve(decision))
                else:
                    getattr(ledger, step)(decision)
            except ContractBroken:
                assert broken
                assert step != "void"
                continue
            assert not broken or step == "void"
            books = books | {decision} if step == "reserve" else books - {decision}
            assert self.held(ledger) == len(books)
