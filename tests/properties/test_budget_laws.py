"""Laws of budgets: both ledgers beside a plain model, over random requests, contracts and clocks.

I1  spent never falls within a period          I2  spent + held <= limit after every reserve
I3  each reservation settles exactly once      I4  an agent's state never moves left

The model is written from policy.md section 4 and shares no code with policies/budget.py: it keeps
every hold as a line of its own, and sums up. After each step `read()` of both ledgers equals it.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policies.budget import Account, Amount, Contract, Extension, Hold, Order, State, Term, allocate
from policies.ledger import Book, Ledger, PutAccount, PutStanding, Standing
from policies.ledger.memory import MemoryLedger
from policies.ledger.sqlite import SqliteLedger, open_ledger
from policies.model import ContractBroken

HOUR_MS = 3_600_000
START_MS = 500_000 * HOUR_MS + 17
SLICE = 262_144
AGENTS = ("ann", "ben")
SESSIONS = ("", "s-1", "s-2")
BUDGETS = ("low", "odd", "top")
EXACT = ("requests", "risk")
BYTES = ("bytes_out", "bytes_in")
LIMITS = st.dictionaries(
    st.sampled_from(EXACT), st.integers(0, 6), max_size=2
) | st.fixed_dictionaries(
    {},
    optional={
        "requests": st.integers(0, 9),
        "bytes_out": st.sampled_from([0, 1, 10, 1_000, SLICE + 1]),
        "bytes_in": st.sampled_from([0, 1, 2, 1_000, 3 * SLICE]),
        "wall_time": st.sampled_from([0, 1, 1_000, HOUR_MS]),
    },
)
WINDOWS = st.sampled_from([0, 0, HOUR_MS, 3 * HOUR_MS])


@dataclass
class Line:
    """One amount that is or was held."""

    base: str
    began_ms: int
    unit: str
    amount: int
    counted: bool = False  # as spent, when the window changed


@dataclass
class Sheet:
    """One account of the model."""

    agent: str
    session: str
    budget: str
    limits: dict[str, int]
    window_ms: int
    began_ms: int
    first_ms: int = 0
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return "/".join(part for part in (self.budget, self.agent, self.session) if part)


class Model:
    """What the specification says, without any hurry."""

    def __init__(self) -> None:
        self.sheets: dict[str, Sheet] = {}
        self.open: dict[str, tuple[str, str, list[Line]]] = {}
        self.states: dict[str, State] = {}

    def held(self, sheet: Sheet, unit: str) -> int:
        return sum(
            line.amount
            for _, _, lines in self.open.values()
            for line in lines
            if (line.base, line.began_ms, line.unit) == (sheet.base, sheet.began_ms, unit)
            and not line.counted
        )

    def free(self, sheet: Sheet, unit: str) -> int:
        return sheet.limits[unit] - sheet.spent.get(unit, 0) - self.held(sheet, unit)

    def concern(self, agent: str, session: str, now_ms: int) -> list[Sheet]:
        """The accounts that take part, each in the period of now."""
        found = [
            sheet
            for sheet in self.sheets.values()
            if sheet.agent == agent and sheet.session in ("", session)
        ]
        for sheet in found:
            if sheet.window_ms and now_ms >= sheet.began_ms + sheet.window_ms:
                sheet.began_ms = now_ms - now_ms % sheet.window_ms
                sheet.first_ms, sheet.spent = 0, {}
        return found

    def is_late(self, sheet: Sheet, now_ms: int) -> bool:
        if "wall_time" not in sheet.limits:
            return False
        passed_ms = now_ms - sheet.first_ms if sheet.first_ms else 0
        return passed_ms >= sheet.limits["wall_time"]

    def reserve(
        self, key: str, agent: str, session: str, now_ms: int, wanted: dict[str, int],
        slices: frozenset[str],
    ) -> dict[str, int] | None:  # fmt: skip
        """Granted bytes, or None."""
        found = self.concern(agent, session, now_ms)
        granted: dict[str, int] = {}
        for sheet in found:
            if self.is_late(sheet, now_ms):
                return None
            for unit in sheet.limits.keys() - {"wall_time"}:
                rest = self.free(sheet, unit) - wanted.get(unit, 0)
                if rest < (1 if unit in slices else 0):
                    return None
                if unit in slices:
                    granted[unit] = min(granted.get(unit, SLICE), rest)
        lines = []
        for sheet in found:
            if sheet.limits and not sheet.first_ms:
                sheet.first_ms = now_ms
            for unit in sheet.limits:
                amount = 0 if unit == "wall_time" else wanted.get(unit, 0) + granted.get(unit, 0)
                lines.append(Line(sheet.base, sheet.began_ms, unit, amount))
        self.open[key] = agent, session, lines
        units = {unit for sheet in found for unit in sheet.limits} & {*BYTES}
        return {unit: wanted.get(unit, 0) + granted.get(unit, 0) for unit in units}

    def extend(self, key: str, unit: str, need: int, now_ms: int, whole: bool) -> int | None:
        """Granted bytes, -1 where nothing limits them, or None."""
        agent, session, lines = self.open[key]
        found = [one for one in self.concern(agent, session, now_ms) if unit in one.limits]
        least = min([self.free(sheet, unit) for sheet in found], default=0)
        if found and least < (need if whole else 1):
            return None
        grant = need if whole else min(least, max(need, SLICE))
        for sheet in found:
            sheet.first_ms = sheet.first_ms or now_ms
            lines.append(Line(sheet.base, sheet.began_ms, unit, grant))
        return grant if found else -1

    def settle(self, key: str, counted: dict[str, int] | None) -> None:
        """With the bytes that were counted; None: a void."""
        _, _, lines = self.open.pop(key)
        taken: dict[tuple[str, str], int] = {}
        for line in lines:
            if counted is None:
                continue
            amount = line.amount
            if line.unit in BYTES:
                already = taken.get((line.base, line.unit), 0)
                amount = min(amount, counted[line.unit] - already)
                taken[line.base, line.unit] = already + amount
            sheet = self.sheets[line.base]
            if sheet.began_ms == line.began_ms and not line.counted and amount:
                sheet.spent[line.unit] = sheet.spent.get(line.unit, 0) + amount

    def put(self, sheet: Sheet) -> None:
        known = self.sheets.get(sheet.base)
        if known is None:
            self.sheets[sheet.base] = sheet
            return
        if known.window_ms != sheet.window_ms and known.began_ms != sheet.began_ms:
            for _, _, lines in self.open.values():
                for line in lines:
                    if (line.base, line.began_ms) == (known.base, known.began_ms):
                        if not line.counted and line.amount:
                            spent = known.spent.get(line.unit, 0)
                            known.spent[line.unit] = spent + line.amount
                        line.counted = True
            known.began_ms = sheet.began_ms
        known.limits, known.window_ms = sheet.limits, sheet.window_ms


class Ledgers(RuleBasedStateMachine):
    """Both ledgers, the model, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.sqlite: SqliteLedger | None = None
        self.memory = MemoryLedger()
        self.model = Model()
        self.now_ms = START_MS
        self.count = 0
        self.ended: list[str] = []
        self.holds: dict[str, list[Amount]] = {}
        self.before: dict[tuple[str, int], dict[str, int]] = {}

    @initialize()
    def begin(self) -> None:
        path = self.folder / "ledger.db"
        self.sqlite, _ = open_ledger(path, Book(), deadline_s=120)

    def teardown(self) -> None:
        if self.sqlite is not None:
            self.sqlite.close()
        self.loop.close()
        shutil.rmtree(self.folder)

    def both(self) -> tuple[Ledger, Ledger]:
        assert self.sqlite is not None
        return self.memory, self.sqlite

    def run[T](self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)

    def breaks(self, work: Coroutine[object, object, object], law: str) -> None:
        with pytest.raises(ContractBroken, match=law):
            self.run(work)

    @rule(ms=st.sampled_from([0, 1, 999, 60_000, HOUR_MS, 5 * HOUR_MS]))
    def let_time_pass(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def step_to_the_end_of_the_hour(self) -> None:
        self.now_ms += HOUR_MS - self.now_ms % HOUR_MS - 1

    @rule(
        agent=st.sampled_from(AGENTS), session=st.sampled_from(SESSIONS),
        name=st.sampled_from(BUDGETS), limits=LIMITS, window_ms=WINDOWS,
    )  # fmt: skip
    def put_account(
        self, agent: str, session: str, name: str, limits: dict[str, int], window_ms: int
    ) -> None:
        """Open one, or raise, lower, add and remove limits, or change the window."""
        began_ms = self.now_ms - self.now_ms % window_ms if window_ms else 0
        contract = Contract({unit: Term(limit, None) for unit, limit in limits.items()}, window_ms)
        for ledger in self.both():
            given = Account(name, agent, session, contract, began_ms)
            self.run(ledger.change(PutAccount(given)))
        self.model.put(Sheet(agent, session, name, limits, window_ms, began_ms))

    @rule(agent=st.sampled_from(AGENTS), state=st.sampled_from(State), cause=st.text(max_size=3))
    def put_standing(self, agent: str, state: State, cause: str) -> None:
        change = PutStanding(agent, Standing(state, cause))
        if state < self.model.states.get(agent, State.ACTIVE):
            for ledger in self.both():
                self.breaks(ledger.change(change), "I4")
            return
        self.model.states[agent] = state
        for ledger in self.both():
            self.run(ledger.change(change))

    @rule(
        agent=st.sampled_from(AGENTS), session=st.sampled_from(SESSIONS),
        requests=st.integers(0, 3), risk=st.integers(0, 3), bytes_out=st.sampled_from([0, 1, 9]),
        slices=st.frozensets(st.sampled_from(BYTES)),
    )  # fmt: skip
    def reserve(
        self, agent: str, session: str, requests: int, risk: int, bytes_out: int,
        slices: frozenset[str],
    ) -> None:  # fmt: skip
        self.count += 1
        key = f"d-{self.count}"
        wanted = {"requests": requests, "risk": risk, "bytes_out": bytes_out}
        order = Order(key, agent, session, self.now_ms, wanted, slices)
        memory, sqlite = (self.run(ledger.reserve(order)) for ledger in self.both())
        assert memory == sqlite
        granted = self.model.reserve(key, agent, session, self.now_ms, wanted, slices)
        if granted is None:
            assert not isinstance(memory, Hold)
            sheet = self.model.sheets[memory.account]
            if memory.unit != "wall_time":  # free is below 0 where a limit fell under what is held
                assert memory.needed > self.model.free(sheet, memory.unit)
                assert memory.available == max(0, self.model.free(sheet, memory.unit))
            return
        assert isinstance(memory, Hold)
        assert memory.granted == granted
        lines = self.model.open[key][2]
        assert sorted((one.unit, one.amount) for one in memory.amounts) == sorted(
            (line.unit, line.amount) for line in lines
        )
        self.holds[key] = list(memory.amounts)
        for sheet in self.model.concern(agent, session, self.now_ms):
            for unit, limit in sheet.limits.items():
                assert sheet.spent.get(unit, 0) + self.model.held(sheet, unit) <= limit  # I2

    @precondition(lambda self: self.holds)
    @rule(
        data=st.data(), unit=st.sampled_from(BYTES), whole=st.booleans(),
        need=st.sampled_from([1, 5, SLICE, SLICE + 1]),
    )  # fmt: skip
    def extend(self, data: st.DataObject, unit: str, whole: bool, need: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.holds)))
        extension = Extension(key, unit, need, self.now_ms, whole)
        memory, sqlite = (self.run(ledger.reserve(extension)) for ledger in self.both())
        assert memory == sqlite
        grant = self.model.extend(key, unit, need, self.now_ms, whole)
        if grant is None:
            assert not isinstance(memory, Hold)
            return
        assert isinstance(memory, Hold)
        assert memory.granted == ({} if grant < 0 else {unit: grant})
        self.holds[key] += memory.amounts

    @precondition(lambda self: self.holds)
    @rule(
        data=st.data(), void=st.booleans(),
        counted=st.fixed_dictionaries(
            {unit: st.sampled_from([0, 1, 7, SLICE, 2 * SLICE]) for unit in BYTES}
        ),
    )  # fmt: skip
    def settle(self, data: st.DataObject, void: bool, counted: dict[str, int]) -> None:
        key = data.draw(st.sampled_from(sorted(self.holds)))
        spent = () if void else allocate(self.holds.pop(key), counted)
        self.holds.pop(key, None)
        memory, sqlite = (self.run(ledger.settle(key, spent)) for ledger in self.both())
        assert memory == sqlite
        self.model.settle(key, None if void else counted)
        self.ended.append(key)
        found = self.run(self.memory.read()).accounts
        assert all(found[one.base] == one for one in memory)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def use_what_has_ended(self, data: st.DataObject) -> None:
        """Settled or voided once is for ever (I3); a void of it is nothing."""
        key = data.draw(st.sampled_from(sorted(self.ended)))
        for ledger in self.both():
            self.breaks(ledger.settle(key, [Amount("low/ann", "requests", 1)]), "I3")
            self.breaks(ledger.reserve(Extension(key, "bytes_in", 1, self.now_ms)), "I3")
            assert self.run(ledger.settle(key, ())) == ()

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def reserve_twice(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.holds)))
        for ledger in self.both():
            self.breaks(ledger.reserve(Order(key, "ann", "", self.now_ms, {})), "I3")

    @rule()
    def settle_all(self) -> None:
        """Every exit returns held to 0."""
        for key in list(self.holds):
            for ledger in self.both():
                self.run(ledger.settle(key, ()))
            self.model.settle(key, None)
            del self.holds[key]
            self.ended.append(key)
        for ledger in self.both():
            for account in self.run(ledger.read()).accounts.values():
                assert account.held == {}
        assert self.memory.held == 0

    @invariant()
    def both_equal_the_model(self) -> None:
        if self.sqlite is None:
            return
        memory, sqlite = (self.run(ledger.read()) for ledger in self.both())
        assert memory == sqlite
        assert self.memory.held == len(self.model.open)
        assert memory.accounts.keys() == self.model.sheets.keys()
        states = {agent: standing.state for agent, standing in memory.standings.items()}
        assert states == self.model.states
        for base, sheet in self.model.sheets.items():
            account = memory.accounts[base]
            limits = {unit: term.limit for unit, term in account.contract.terms.items()}
            assert (limits, account.from_ms) == (sheet.limits, sheet.began_ms)
            assert (account.first_ms, account.spent) == (sheet.first_ms, sheet.spent)
            units = {*EXACT, *BYTES, "wall_time"}
            held = {unit: self.model.held(sheet, unit) for unit in units}
            assert account.held == {unit: amount for unit, amount in held.items() if amount}
            before = self.before.setdefault((base, account.from_ms), {})
            for unit, amount in account.spent.items():
                assert amount >= before.get(unit, 0)  # I1
            self.before[base, account.from_ms] = dict(account.spent)


Ledgers.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLedgers = Ledgers.TestCase
