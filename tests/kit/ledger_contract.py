"""What every ledger must do; a test class of each implementation inherits it (house.md 2.5)."""

import asyncio
from dataclasses import replace
from random import Random

import pytest

from policies.budget import Amount, State, Term, allocate
from policies.ledger import Book, Ledger, PutAccount, PutStanding, Standing
from policies.model import ContractBroken
from tests.kit.ledgers import (
    DAY_MS,
    MIDNIGHT_MS,
    NOON_MS,
    account,
    book,
    contract,
    extension,
    held,
    order,
    short,
)


class LedgerContract:
    """`make` gives a ledger that begins as a book, `count_open` how many reservations it has."""

    def make(self, given: Book) -> Ledger:
        raise NotImplementedError

    def count_open(self, ledger: Ledger) -> int:
        raise NotImplementedError

    async def spent(self, ledger: Ledger, base: str = "daily/coder") -> dict[str, int]:
        return (await ledger.read()).accounts[base].spent

    async def held(self, ledger: Ledger, base: str = "daily/coder") -> dict[str, int]:
        return (await ledger.read()).accounts[base].held

    async def test_a_ledger_begins_as_the_book_it_is_given(self) -> None:
        given = book(account(requests=5, at=[(80, "warn")]), account("hourly", window_ms=DAY_MS))
        given.standings["coder"] = Standing(State.WARNED, "budget daily requests 80%")
        ledger = self.make(given)
        assert await ledger.read() == given
        assert self.count_open(ledger) == 0

    async def test_what_is_read_is_a_copy(self) -> None:
        ledger = self.make(book(account(requests=5)))
        read = await ledger.read()
        read.accounts["daily/coder"].spent["requests"] = 5
        read.standings["coder"] = Standing(State.HALTED)
        assert await self.spent(ledger) == {}
        assert (await ledger.read()).standings == {}

    async def test_what_it_was_given_stays_the_givers(self) -> None:
        given = book(account(requests=5))
        ledger = self.make(given)
        await ledger.reserve(order(requests=1))
        assert given.accounts["daily/coder"].held == {}

    async def test_what_is_reserved_is_held_until_it_is_settled(self) -> None:
        ledger = self.make(book(account(requests=5, bytes_out=100)))
        hold = held(await ledger.reserve(order(requests=2, bytes_out=30)))
        assert hold.amounts == (
            Amount("daily/coder", "bytes_out", 30),
            Amount("daily/coder", "requests", 2),
        )
        assert self.count_open(ledger) == 1
        assert await self.held(ledger) == {"requests": 2, "bytes_out": 30}
        (after,) = await ledger.settle("d-1", allocate(hold.amounts, {"bytes_out": 10}))
        assert (after.spent, after.held) == ({"requests": 2, "bytes_out": 10}, {})
        assert await self.spent(ledger) == {"requests": 2, "bytes_out": 10}
        assert self.count_open(ledger) == 0

    async def test_what_is_voided_costs_nothing(self) -> None:
        ledger = self.make(book(account(requests=5)))
        await ledger.reserve(order(requests=2))
        await ledger.settle("d-1", ())
        assert (await self.spent(ledger), await self.held(ledger)) == ({}, {})
        assert self.count_open(ledger) == 0

    async def test_a_settlement_answers_with_copies(self) -> None:
        ledger = self.make(book(account(requests=5)))
        hold = held(await ledger.reserve(order(requests=2)))
        (after,) = await ledger.settle("d-1", hold.amounts)
        after.spent["requests"] = 0
        assert await self.spent(ledger) == {"requests": 2}

    async def test_what_does_not_suffice_holds_nothing_anywhere(self) -> None:
        ledger = self.make(book(account("a", requests=5), account("b", requests=1)))
        answer = short(await ledger.reserve(order(requests=2)))
        assert (answer.account, answer.unit, answer.needed, answer.available) == (
            *("b/coder", "requests", 2, 1),
        )
        assert await self.held(ledger, "a/coder") == {}
        assert self.count_open(ledger) == 0
        assert await ledger.settle("d-1", ()) == ()

    async def test_the_first_account_that_does_not_suffice_is_the_first_by_budget(self) -> None:
        """In whatever order they were opened."""
        ledger = self.make(Book())
        for one in (
            *(account("b", requests=0), account("a-b", requests=0)),
            *(account("a", session="s-1", requests=0), account("a", requests=0)),
        ):
            await ledger.change(PutAccount(one))
        assert short(await ledger.reserve(order(requests=1))).account == "a/coder"
        await ledger.change(PutAccount(account("a", requests=9)))
        assert short(await ledger.reserve(order(requests=1))).account == "a/coder/s-1"
        await ledger.change(PutAccount(account("a", session="s-1", requests=9)))
        assert short(await ledger.reserve(order(requests=1))).account == "a-b/coder"

    async def test_only_the_accounts_of_the_agent_and_its_session_take_part(self) -> None:
        mine = account("a", requests=5), account("b", session="s-1", requests=5)
        others = account("b", session="s-2", requests=5), account("a", agent="b", requests=5)
        ledger = self.make(book(*mine, *others))
        hold = held(await ledger.reserve(order(requests=1)))
        assert [one.account for one in hold.amounts] == ["a/coder", "b/coder/s-1"]
        after = await ledger.settle("d-1", hold.amounts)
        assert [one.base for one in after] == ["a/coder", "b/coder/s-1"]
        plain = held(await ledger.reserve(order("d-2", session="", requests=1)))
        assert [one.account for one in plain.amounts] == ["a/coder"]

    async def test_whom_nobody_limits_may_do_anything(self) -> None:
        ledger = self.make(Book())
        hold = held(await ledger.reserve(order("d-1", "bytes_in", requests=10**9)))
        assert (hold.amounts, hold.granted) == ((), {})
        assert self.count_open(ledger) == 1
        assert await ledger.settle("d-1", ()) == ()
        assert self.count_open(ledger) == 0

    async def test_a_decision_reserves_once(self) -> None:
        ledger = self.make(book(account(requests=5)))
        await ledger.reserve(order(requests=1))
        with pytest.raises(ContractBroken, match="I3"):
            await ledger.reserve(order(requests=9))
        assert await self.held(ledger) == {"requests": 1}

    async def test_a_reservation_settles_once(self) -> None:
        ledger = self.make(book(account(requests=5)))
        hold = held(await ledger.reserve(order(requests=1)))
        await ledger.settle("d-1", hold.amounts)
        with pytest.raises(ContractBroken, match="I3"):
            await ledger.settle("d-1", hold.amounts)
        assert await self.spent(ledger) == {"requests": 1}

    async def test_nothing_is_settled_after_a_void(self) -> None:
        ledger = self.make(book(account(requests=5)))
        hold = held(await ledger.reserve(order(requests=1)))
        await ledger.settle("d-1", ())
        with pytest.raises(ContractBroken, match="I3"):
            await ledger.settle("d-1", hold.amounts)
        assert await self.spent(ledger) == {}

    async def test_what_was_never_reserved_is_not_settled(self) -> None:
        with pytest.raises(ContractBroken, match="I3"):
            await self.make(Book()).settle("d-1", [Amount("daily/coder", "requests", 1)])

    async def test_a_reservation_that_may_not_have_been_made_can_be_voided(self) -> None:
        ledger = self.make(book(account(requests=5)))
        await ledger.reserve(order("d-2", requests=1))
        assert await ledger.settle("d-1", ()) == ()
        assert self.count_open(ledger) == 1

    @pytest.mark.parametrize(
        "spent",
        [
            [Amount("daily/coder", "requests", 2)],
            [Amount("daily/coder", "requests", -1)],
            [Amount("daily/coder", "steps", 1)],
            [Amount("other/coder", "requests", 1)],
            [Amount("daily/coder", "requests", 1), Amount("daily/coder", "requests", 1)],
        ],
    )
    async def test_nothing_is_booked_beyond_what_was_held(self, spent: list[Amount]) -> None:
        ledger = self.make(book(account(requests=5, steps=5), account("other", steps=5)))
        await ledger.reserve(order(requests=1))
        with pytest.raises(ContractBroken, match="I2"):
            await ledger.settle("d-1", spent)
        assert (await self.spent(ledger), await self.held(ledger)) == ({}, {"requests": 1})
        assert self.count_open(ledger) == 1

    async def test_a_stream_is_extended_slice_by_slice(self) -> None:
        ledger = self.make(book(account(bytes_in=1_000_000)))
        first = held(await ledger.reserve(order("d-1", "bytes_in")))
        assert first.granted == {"bytes_in": 262_144}
        second = held(await ledger.reserve(extension(300_000)))
        assert second.granted == {"bytes_in": 300_000}
        third = held(await ledger.reserve(extension(1)))
        assert third.granted == {"bytes_in": 262_144}
        assert held(await ledger.reserve(extension(200_000))).granted == {"bytes_in": 175_712}
        assert short(await ledger.reserve(extension(1))).available == 0
        assert await self.held(ledger) == {"bytes_in": 1_000_000}
        booked = allocate((*first.amounts, *second.amounts), {"bytes_in": 500_000})
        await ledger.settle("d-1", booked)
        assert (await self.spent(ledger), await self.held(ledger)) == ({"bytes_in": 500_000}, {})

    async def test_an_extension_that_must_be_whole_is_never_clipped(self) -> None:
        ledger = self.make(book(account("a", bytes_in=100), account("b", bytes_in=90)))
        await ledger.reserve(order())
        answer = short(await ledger.reserve(extension(91, whole=True)))
        assert (answer.account, answer.needed, answer.available) == ("b/coder", 91, 90)
        assert await self.held(ledger, "a/coder") == {}
        assert held(await ledger.reserve(extension(90, whole=True))).granted == {"bytes_in": 90}

    async def test_nothing_is_extended_that_is_not_reserved(self) -> None:
        ledger = self.make(book(account(bytes_in=100)))
        with pytest.raises(ContractBroken, match="I3"):
            await ledger.reserve(extension(1))
        await ledger.reserve(order("d-1", "bytes_in"))
        await ledger.settle("d-1", ())
        with pytest.raises(ContractBroken, match="I3"):
            await ledger.reserve(extension(1))
        assert await self.held(ledger) == {}

    async def test_a_period_begins_at_the_first_request_in_it_and_both_are_told(self) -> None:
        ledger = self.make(book(account(window_ms=DAY_MS, requests=1)))
        first = held(await ledger.reserve(order(now_ms=MIDNIGHT_MS - 1, requests=1)))
        assert (first.closed, first.opened) == ((), ())
        await ledger.settle("d-1", first.amounts)
        second = held(await ledger.reserve(order("d-2", now_ms=MIDNIGHT_MS, requests=1)))
        assert [(one.name, one.spent) for one in second.closed] == [
            ("daily/coder@2024-10-04T00:00:00Z", {"requests": 1})
        ]
        assert [one.name for one in second.opened] == ["daily/coder@2024-10-05T00:00:00Z"]
        assert second.opened[0].spent == {}
        assert await self.held(ledger) == {"requests": 1}

    async def test_a_period_begins_even_where_the_request_is_refused(self) -> None:
        ledger = self.make(book(account("a", requests=0), account("b", window_ms=DAY_MS, steps=1)))
        answer = short(await ledger.reserve(order(now_ms=MIDNIGHT_MS, requests=1)))
        assert [one.name for one in answer.closed] == ["b/coder@2024-10-04T00:00:00Z"]
        again = short(await ledger.reserve(order("d-2", now_ms=MIDNIGHT_MS, requests=1)))
        assert again.closed == ()
        assert (await ledger.read()).accounts["b/coder"].from_ms == MIDNIGHT_MS

    async def test_an_extension_begins_a_period_as_well(self) -> None:
        ledger = self.make(book(account("a", bytes_in=1), account("b", window_ms=DAY_MS, steps=1)))
        await ledger.reserve(order())
        answer = short(await ledger.reserve(extension(2, now_ms=MIDNIGHT_MS, whole=True)))
        assert [one.name for one in answer.opened] == ["b/coder@2024-10-05T00:00:00Z"]
        assert (await ledger.read()).accounts["b/coder"].from_ms == MIDNIGHT_MS

    async def test_a_request_settles_with_the_period_in_which_it_began(self) -> None:
        ledger = self.make(book(account(window_ms=DAY_MS, requests=1)))
        old = held(await ledger.reserve(order(requests=1)))
        new = held(await ledger.reserve(order("d-2", now_ms=MIDNIGHT_MS, requests=1)))
        (after,) = await ledger.settle("d-1", old.amounts)
        assert (after.spent, after.held) == ({}, {"requests": 1})
        await ledger.settle("d-2", new.amounts)
        assert await self.spent(ledger) == {"requests": 1}

    async def test_a_changed_contract_keeps_what_was_spent_and_held(self) -> None:
        ledger = self.make(book(account(requests=5)))
        hold = held(await ledger.reserve(order(requests=2)))
        await ledger.change(PutAccount(account(requests=3)))
        assert short(await ledger.reserve(order("d-2", requests=2))).available == 1
        await ledger.settle("d-1", hold.amounts)
        found = (await ledger.read()).accounts["daily/coder"]
        assert found.contract.terms == {"requests": Term(3, 3)}
        assert (found.spent, found.held) == ({"requests": 2}, {})

    async def test_a_contract_below_what_is_held_still_settles(self) -> None:
        ledger = self.make(book(account(requests=5)))
        hold = held(await ledger.reserve(order(requests=4)))
        await ledger.change(PutAccount(account(requests=1)))
        assert short(await ledger.reserve(order("d-2", requests=1))).available == 0
        await ledger.settle("d-1", hold.amounts)
        assert await self.spent(ledger) == {"requests": 4}

    async def test_a_stale_contract_brings_no_period_back(self) -> None:
        """Somebody read the account before midnight and writes after it."""
        stale = account(window_ms=DAY_MS, requests=3)
        ledger = self.make(book(stale))
        hold = held(await ledger.reserve(order(now_ms=MIDNIGHT_MS, requests=1)))
        await ledger.change(PutAccount(replace(stale, contract=contract({}, window_ms=DAY_MS))))
        assert (await ledger.read()).accounts["daily/coder"].from_ms == MIDNIGHT_MS
        await ledger.settle("d-1", hold.amounts)
        assert await self.spent(ledger) == {"requests": 1}

    async def test_with_another_window_what_is_held_counts_at_once_and_only_once(self) -> None:
        """Also when the window from before comes back while the request still runs."""
        ledger = self.make(book(account(window_ms=DAY_MS, bytes_in=100)))
        hold = held(await ledger.reserve(order("d-1", bytes_in=60)))
        await ledger.change(PutAccount(account(bytes_in=100)))
        found = (await ledger.read()).accounts["daily/coder"]
        assert (found.name, found.spent, found.held) == ("daily/coder", {"bytes_in": 60}, {})
        await ledger.change(PutAccount(account(window_ms=DAY_MS, bytes_in=100)))
        more = held(await ledger.reserve(extension(20)))
        assert more.amounts == (Amount("daily/coder@2024-10-04T00:00:00Z", "bytes_in", 40),)
        booked = allocate((*hold.amounts, *more.amounts), {"bytes_in": 70})
        (after,) = await ledger.settle("d-1", booked)
        assert after.held == {}
        assert after.spent == {"bytes_in": 70}
        assert self.count_open(ledger) == 0

    async def test_another_window_on_one_account_leaves_the_holds_on_the_others(self) -> None:
        ledger = self.make(book(account("a", window_ms=DAY_MS, steps=9), account("b", steps=9)))
        hold = held(await ledger.reserve(order(steps=4)))
        other = held(await ledger.reserve(order("d-2", agent="another", steps=4)))
        await ledger.change(PutAccount(account("a", steps=9)))
        assert await self.held(ledger, "b/coder") == {"steps": 4}
        after = await ledger.settle("d-1", hold.amounts)
        assert [(one.spent, one.held) for one in after] == [({"steps": 4}, {})] * 2
        assert await ledger.settle("d-2", other.amounts) == ()

    async def test_a_state_only_moves_right(self) -> None:
        ledger = self.make(Book())
        await ledger.change(PutStanding("coder", Standing(State.QUARANTINED, "too much")))
        await ledger.change(PutStanding("coder", Standing(State.QUARANTINED, "again")))
        for state in (State.ACTIVE, State.WARNED):
            with pytest.raises(ContractBroken, match="I4"):
                await ledger.change(PutStanding("coder", Standing(state)))
        read = await ledger.read()
        assert read.standings == {"coder": Standing(State.QUARANTINED, "again")}

    async def test_a_negative_amount_is_refused_before_anything_happens(self) -> None:
        ledger = self.make(book(account(window_ms=DAY_MS, requests=1)))
        with pytest.raises(ContractBroken):
            await ledger.reserve(order(now_ms=MIDNIGHT_MS, requests=-1))
        assert (await ledger.read()).accounts["daily/coder"].from_ms < MIDNIGHT_MS
        assert self.count_open(ledger) == 0

    @pytest.mark.parametrize("seed", range(3))
    async def test_two_hundred_at_once_never_pass_a_cap_of_a_hundred(self, seed: int) -> None:
        """Whatever the order in which they come, settle and void."""
        chance = Random(seed)
        caps = {"all/coder": 100, "mine/coder/s-1": 90}
        ledger = self.make(book(account("all", requests=100), account("mine", "coder", "s-1")))
        await ledger.change(PutAccount(account("mine", "coder", "s-1", requests=90)))
        booked = dict.fromkeys(caps, 0)

        async def look() -> None:
            found = (await ledger.read()).accounts
            for base, cap in caps.items():
                one = found[base]
                assert one.spent.get("requests", 0) + one.held.get("requests", 0) <= cap
                assert one.spent.get("requests", 0) >= booked[base]

        async def ask(number: int) -> None:
            session = chance.choice(["s-1", "s-2"])
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            hold = await ledger.reserve(order(f"d-{number}", session=session, requests=1))
            await look()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            amounts = getattr(hold, "amounts", ())
            spent = amounts if chance.random() < 0.7 else ()
            after = await ledger.settle(f"d-{number}", spent)
            assert len(after) == (0 if not amounts else 1 + (session == "s-1"))
            for one in spent:
                booked[one.account] += one.amount

        await asyncio.gather(*(ask(number) for number in range(200)))
        await look()
        found = (await ledger.read()).accounts
        assert [one.held for one in found.values()] == [{}, {}]
        assert {base: one.spent["requests"] for base, one in found.items()} == booked
        assert booked["all/coder"] >= 60
        assert self.count_open(ledger) == 0

    async def test_all_accounts_hold_or_none_whichever_of_them_is_short(self) -> None:
        units = ("requests", "steps", "bytes_out", "bytes_in")
        for seed in range(40):
            chance = Random(seed)
            accounts = [
                replace(
                    account(f"b-{n}", session=chance.choice(["", "s-1"])),
                    contract=contract(
                        {unit: chance.randrange(6) for unit in units if chance.random() < 0.6}
                    ),
                )
                for n in range(chance.randrange(1, 6))
            ]
            ledger = self.make(book(*accounts))
            wanted = {unit: chance.randrange(4) for unit in units}
            await ledger.reserve(replace(order(), amounts=wanted))
            fits = all(
                wanted[unit] <= term.limit
                for one in accounts
                for unit, term in one.contract.terms.items()
            )
            for one in (await ledger.read()).accounts.values():
                share = {unit: wanted[unit] for unit in one.contract.terms if wanted[unit]}
                assert one.held == (share if fits else {}), seed

    async def test_wall_time_counts_from_the_first_allowed_request(self) -> None:
        ledger = self.make(book(account(wall_time=1_000)))
        hold = held(await ledger.reserve(order(requests=1)))
        assert hold.amounts == (Amount("daily/coder", "wall_time", 0),)
        await ledger.settle("d-1", ())
        assert isinstance(await ledger.reserve(order("d-2", now_ms=NOON_MS + 999)), tuple)
        answer = short(await ledger.reserve(order("d-3", now_ms=NOON_MS + 1_000)))
        assert (answer.unit, answer.available) == ("wall_time", 0)
