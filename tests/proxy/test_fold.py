"""The fold is held against the ledger itself: what both are told must leave both the same."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.record import encode
from audit.segment import LogUnreadable
from policies.budget import (
    Account,
    Amount,
    Contract,
    Extension,
    Hold,
    Order,
    State,
    Term,
    Threshold,
    allocate,
    begin_period,
    copy,
)
from policies.ledger import Book, PutAccount, PutStanding, Standing
from policies.ledger.memory import MemoryLedger
from proxy.accounting import (
    describe_raise,
    describe_reserve,
    describe_snapshot,
    describe_state,
    parse_time,
)
from proxy.fold import Fold, FoldBroken, fold_log
from proxy.recording import describe_amounts, format_time
from tests.kit import chains

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
NOON_MS = 1_795_262_400_000  # 2026-11-21T12:00:00Z
DAY = "daily/local@2026-11-21T00:00:00Z"
NEXT_DAY = "daily/local@2026-11-22T00:00:00Z"
AGENTS = ("local", "coder")
SESSIONS = ("", "s1", "s2")


class Story:
    """A ledger that lives through something, and the events of it."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.events: list[dict[str, Any]] = []
        self.fold = Fold()
        self.now_ms = NOON_MS
        self.held: dict[str, list[Amount]] = {}  # by decision id
        self.count = 0
        self.tell(chains.opened(), chains.loaded())

    def tell(self, *events: Mapping[str, Any]) -> None:
        for event in events:
            plain = json.loads(encode(event))
            self.events.append(plain)
            self.fold.add(plain)

    def read(self) -> Book:
        return asyncio.run(self.ledger.read())

    def put(self, account: Account, cause: str) -> None:
        self.tell(describe_snapshot(account, cause, self.now_ms))
        asyncio.run(self.ledger.change(PutAccount(account)))

    def _tell_periods(self, hold: Any) -> None:
        for closed, opened in zip(hold.closed, hold.opened, strict=True):
            ended = copy(opened)
            ended.name, ended.spent = closed.name, dict(closed.spent)
            self.tell(describe_snapshot(ended, "closed", self.now_ms))
            self.tell(describe_snapshot(opened, "opened", self.now_ms))

    def reserve(self, agent: str, session: str, amounts: Mapping[str, int], *, late: bool) -> None:
        self.count += 1
        ref = f"{self.count:032x}"
        order = Order(ref, agent, session, self.now_ms, amounts, frozenset({"bytes_in"}))
        hold = asyncio.run(self.ledger.reserve(order))
        if not late:
            self._tell_periods(hold)
        if isinstance(hold, Hold):
            reserve = describe_amounts(hold.amounts)
            time = {"time": format_time(self.now_ms)} if reserve else {}
            self.tell(chains.decision(self.count, reserve=reserve, **time))
            self.held[ref] = list(hold.amounts)
        if late:
            self._tell_periods(hold)

    def extend(self, ref: str, need_bytes: int) -> None:
        hold = asyncio.run(self.ledger.reserve(Extension(ref, "bytes_in", need_bytes, self.now_ms)))
        self._tell_periods(hold)
        if isinstance(hold, Hold) and hold.amounts:
            self.tell(describe_reserve(ref, hold.amounts, self.now_ms))
            self.held[ref] += hold.amounts

    def settle(self, ref: str, counted: Mapping[str, int] | None) -> None:
        spent = () if counted is None else allocate(self.held.pop(ref), counted)
        self.held.pop(ref, None)
        asyncio.run(self.ledger.settle(ref, spent))
        self.tell(chains.outcome(int(ref, 16), settle=describe_amounts(spent)))

    def move(self, agent: str, to: State) -> None:
        before = self.read().standings.get(agent, Standing()).state
        if to > before:
            self.tell(describe_state(agent, before, to, f"to {to.word}"))
            asyncio.run(self.ledger.change(PutStanding(agent, Standing(to, f"to {to.word}"))))

    def crash(self) -> None:
        """The next run begins with what the log says."""
        before = self.read().accounts
        self.tell(chains.opened("crash"), chains.loaded())
        self.held.clear()
        book = self.fold.book(live=False)
        for base, account in before.items():
            for unit in {*account.spent, *account.held}:
                owed = account.spent.get(unit, 0) + account.held.get(unit, 0)
                assert book.accounts[base].spent[unit] == owed
        self.ledger = MemoryLedger(book)

    def check(self) -> None:
        assert self.fold.book(live=True) == self.read()
        assert self.fold.floor_ms <= self.now_ms


def open_accounts(story: Story) -> None:
    term = {unit: Term(20, 20) for unit in ("requests", "steps", "wall_time")}
    term |= {unit: Term(3000, 3000) for unit in ("bytes_out", "bytes_in")}
    for agent in AGENTS:
        for budget, session, window_ms in (
            ("life", "", 0),
            ("daily", "", DAY_MS),
            ("hourly", "s1", HOUR_MS),
        ):
            contract = Contract(term | {"wall_time": Term(DAY_MS, None)}, window_ms)
            from_ms = begin_period(window_ms, story.now_ms)
            story.put(Account(budget, agent, session, contract, from_ms), "opened")


def take_step(story: Story, random: Random, *, windows: bool = True) -> None:
    """One thing that may happen."""
    refs = sorted(story.held)
    match random.randrange(12):
        case 0 | 1 | 2 | 3:
            amounts = {unit: random.randrange(3) for unit in ("requests", "steps")}
            amounts["bytes_out"] = random.randrange(200)
            late = random.random() < 0.3
            story.reserve(random.choice(AGENTS), random.choice(SESSIONS), amounts, late=late)
        case 4 if refs:
            story.extend(random.choice(refs), random.randrange(1, 300))
        case 5 | 6 | 7 if refs:
            counted = {unit: random.randrange(400) for unit in ("bytes_out", "bytes_in")}
            story.settle(random.choice(refs), None if random.random() < 0.2 else counted)
        case 8:
            story.now_ms += random.choice((1, HOUR_MS // 2, HOUR_MS, DAY_MS, 3 * DAY_MS))
        case 9:
            change_contract(story, random, windows=windows)
        case 10:
            story.move(random.choice(AGENTS), random.choice(tuple(State)))
        case 11 if random.random() < 0.3:
            story.crash()


def change_contract(story: Story, random: Random, *, windows: bool) -> None:
    base, account = random.choice(sorted(story.read().accounts.items()))
    terms = dict(account.contract.terms)
    unit = random.choice(["requests", "steps", "bytes_in"])
    old, new = terms.pop(unit, Term(0, None)), random.choice((None, random.randrange(5000)))
    if new is not None:
        terms[unit] = Term(new, old.filed)
    window_ms = account.contract.window_ms
    if windows and random.random() < 0.4:
        window_ms = random.choice((0, HOUR_MS, DAY_MS))
        story.tell(describe_raise(base, "window", account.contract.window_ms, window_ms, "me"))
    at = (Threshold(random.randrange(1, 101), "halt"),)
    from_ms = begin_period(window_ms, story.now_ms)
    if window_ms == account.contract.window_ms:
        from_ms = account.from_ms
    story.tell(describe_raise(base, unit, old.limit, new, "me"))
    contract = Contract(terms, window_ms, at)
    given = Account(account.budget, account.agent, account.session, contract, from_ms)
    story.put(given, "changed")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_the_fold_of_what_happened_is_the_ledger_it_happened_to(seed: int) -> None:
    story, random = Story(), Random(seed)
    open_accounts(story)
    for _ in range(40):
        take_step(story, random)
        story.check()


@pytest.mark.parametrize("seed", range(4))
def test_a_script_that_knows_none_of_our_code_sums_the_same(tmp_path: Path, seed: int) -> None:
    story, random = Story(), Random(seed)
    open_accounts(story)
    for _ in range(150):
        take_step(story, random, windows=False)
    story.crash()
    chains.put(tmp_path / "log", chains.chain(story.events))
    done = subprocess.run(
        [sys.executable, "-I", "tests/kit/sum_log.py", str(tmp_path / "log")],
        capture_output=True,
        check=True,
        timeout=30,
    )
    summed = json.loads(done.stdout)
    folded = fold_log(tmp_path / "log").book(live=False)
    assert folded == story.fold.book(live=False) == story.read()
    for account in folded.accounts.values():
        expected = {unit: n for unit, n in summed.get(account.name, {}).items() if n}
        assert account.spent == expected


def test_what_holds_nothing_is_skipped_unparsed(tmp_path: Path) -> None:
    """Lines that cannot matter need not even match their hash: whether they do, verify says."""
    lines = chains.chain(chains.run(chains.decision(1), chains.outcome(1), chains.HEARTBEAT))
    broken = [line.replace(b'"hash":"', b'"hash":"0') for line in lines[1:]]
    chains.put(tmp_path / "log", [lines[0], *broken])
    assert fold_log(tmp_path / "log").book(live=False) == Book()
    with pytest.raises(LogUnreadable):
        fold_log(tmp_path / "nowhere.jsonl")


# --- single stories


def snapshot(
    account: str = DAY, cause: str = "opened", window_ms: int = DAY_MS, **limits: int
) -> dict[str, Any]:
    return {
        "kind": "ledger.snapshot",
        "account": account,
        "cause": cause,
        "limits": [{"limit": limit, "unit": unit} for unit, limit in limits.items()],
        "spent": [],
        "at": [],
        "window_ms": window_ms,
        "time": format_time(NOON_MS),
    }


def amounts(account: str = DAY, **units: int) -> list[dict[str, Any]]:
    return [{"account": account, "amount": n, "unit": unit} for unit, n in sorted(units.items())]


def allowed(number: int, account: str = DAY, time_ms: int = NOON_MS, **units: int) -> Any:
    return chains.decision(number, reserve=amounts(account, **units), time=format_time(time_ms))


def settled(number: int, account: str = DAY, **units: int) -> Any:
    return chains.outcome(number, settle=amounts(account, **units))


def moved(before: str, after: str, agent: str = "local", cause: str = "c") -> dict[str, Any]:
    return {"kind": "state", "agent": agent, "from": before, "to": after, "cause": cause}


def fold(*events: Mapping[str, Any]) -> Fold:
    made = Fold()
    for event in events:
        made.add(event)
    return made


def account(*events: Mapping[str, Any], live: bool = True) -> Account:
    [found] = fold(*events).book(live=live).accounts.values()
    return found


OPENED = snapshot(requests=5, bytes_in=100)

SPENDING: dict[str, tuple[list[Any], dict[str, int], dict[str, int]]] = {
    "what is allowed is held": ([allowed(1, requests=1)], {}, {"requests": 1}),
    "an outcome books and releases": (
        [allowed(1, requests=1, bytes_in=9), settled(1, requests=1, bytes_in=4)],
        {"requests": 1, "bytes_in": 4},
        {},
    ),
    "an empty settlement releases all": ([allowed(1, requests=1), settled(1)], {}, {}),
    "a slice is held on top": (
        [
            allowed(1, bytes_in=9),
            {
                "kind": "reserve",
                "ref": f"{1:032x}",
                "reserve": amounts(bytes_in=7),
                "time": format_time(NOON_MS),
            },
        ],
        {},
        {"bytes_in": 16},
    ),
    "a crash spends what was held": (
        [allowed(1, requests=1, bytes_in=9), chains.opened("crash")],
        {"requests": 1, "bytes_in": 9},
        {},
    ),
    "a denial takes nothing": ([chains.decision(1, "deny")], {}, {}),
    "a limit that fell below takes nothing back": (
        [allowed(1, requests=4), settled(1, requests=4), snapshot(cause="changed", requests=2)],
        {"requests": 4},
        {},
    ),
    "a raise that the crash cut from its snapshot": (
        [
            snapshot(cause="changed", requests=0),
            {**describe_raise("daily/local", "requests", 0, 9, "me")},
            allowed(1, requests=6),
        ],
        {},
        {"requests": 6},
    ),
    "the next day begins with nothing": (
        [allowed(1, requests=4), settled(1, requests=4), snapshot(NEXT_DAY, requests=5)],
        {},
        {},
    ),
    "the next day begins with its first request": (
        [allowed(1, requests=4), settled(1, requests=4), allowed(2, NEXT_DAY, requests=1)],
        {},
        {"requests": 1},
    ),
    "a request of yesterday settles with yesterday": (
        [allowed(1, requests=4), allowed(2, NEXT_DAY, requests=1), settled(1, requests=4)],
        {},
        {"requests": 1},
    ),
    "a record of yesterday that comes late moves nothing": (
        [snapshot(NEXT_DAY, requests=5), allowed(2, NEXT_DAY, requests=1), allowed(1, requests=4)],
        {},
        {"requests": 1},
    ),
    "a closed period alone begins none": (
        [allowed(1, requests=4), snapshot(cause="closed", requests=5)],
        {},
        {"requests": 4},
    ),
    "another window keeps what was spent, and spends what is held": (
        [
            allowed(1, requests=1),
            settled(1, requests=1),
            allowed(2, requests=1),
            snapshot("daily/local", "changed", 0, requests=5),
        ],
        {"requests": 2},
        {},
    ),
    "what was held under the old window is paid already": (
        [
            allowed(1, requests=1),
            snapshot("daily/local", "changed", 0, requests=5),
            settled(1, requests=1),
        ],
        {"requests": 1},
        {},
    ),
    "what was held under the old window and recorded late is spent": (
        [
            snapshot("daily/local", "changed", 0, requests=5),
            allowed(1, requests=1),
            settled(1, requests=1),
        ],
        {"requests": 1},
        {},
    ),
    "a shorter window does not make the old one look new": (
        [
            snapshot("daily/local@2026-11-21T12:00:00Z", "changed", HOUR_MS, requests=5),
            allowed(1, "daily/local@2026-11-21T12:00:00Z", requests=1),
            snapshot(cause="changed", requests=5),
            snapshot("daily/local@2026-11-21T12:00:00Z", "opened", HOUR_MS, requests=5),
            allowed(2, "daily/local@2026-11-21T12:00:00Z", requests=1),
        ],
        {"requests": 2},
        {},
    ),
}


@pytest.mark.parametrize(("events", "spent", "held"), SPENDING.values(), ids=SPENDING)
def test_spending_follows_the_records(
    events: list[Any], spent: dict[str, int], held: dict[str, int]
) -> None:
    found = account(OPENED, *events)
    assert (found.spent, found.held) == (spent, held)
    dead = account(OPENED, *events, live=False)
    assert dead.spent == {unit: spent.get(unit, 0) + held.get(unit, 0) for unit in {*spent, *held}}
    assert dead.held == {}


def test_a_request_may_be_recorded_before_its_account_is() -> None:
    """Two first requests at once: nothing is lost, and the contract comes behind."""
    first = account(allowed(1, requests=1), OPENED)
    assert first.held == {"requests": 1}
    assert first.contract.terms["requests"] == Term(5, None)
    later = account(allowed(1, requests=1), snapshot(NEXT_DAY, requests=5))
    assert (later.name, later.held) == (NEXT_DAY, {})


def test_the_first_request_starts_the_wall_time() -> None:
    opened = snapshot(wall_time=HOUR_MS)
    first, second = (allowed(n, time_ms=NOON_MS + n, wall_time=0) for n in (1, 2))
    assert account(opened).first_ms == 0
    assert account(opened, first, second, settled(1)).first_ms == NOON_MS + 1
    assert account(opened, first, snapshot(NEXT_DAY, wall_time=1)).first_ms == 0


def test_a_raise_changes_one_limit_and_leaves_what_the_file_said() -> None:
    opened = describe_snapshot(
        Account("life", "local", "", Contract({"requests": Term(5, 3), "steps": Term(1, 1)})),
        "opened",
        NOON_MS,
    )
    raised = account(opened, describe_raise("life/local", "requests", 5, 8, "me"))
    assert raised.contract.terms == {"requests": Term(8, 3), "steps": Term(1, 1)}
    freed = account(opened, describe_raise("life/local", "requests", 5, None, "me"))
    assert freed.contract.terms == {"steps": Term(1, 1)}


def test_a_state_only_moves_right() -> None:
    standings = (
        fold(
            moved("active", "warned", cause="a"),
            moved("active", "halted", cause="b"),
            moved("active", "quarantined", cause="late"),
            moved("active", "warned", agent="coder"),
        )
        .book(live=False)
        .standings
    )
    assert standings == {
        "local": Standing(State.HALTED, "b"),
        "coder": Standing(State.WARNED, "c"),
    }


def test_the_clock_never_starts_before_what_the_log_knows() -> None:
    assert fold().floor_ms == 0
    assert fold(OPENED).floor_ms == NOON_MS
    assert fold(OPENED, allowed(1, time_ms=NOON_MS + 5, requests=0)).floor_ms == NOON_MS + 5
    started_ms = parse_time("2026-11-22T00:00:00Z")
    assert fold(OPENED, snapshot(NEXT_DAY)).floor_ms == started_ms


IMPOSSIBLE: dict[str, tuple[list[Any], str]] = {
    "more is settled than was held": (
        [allowed(1, requests=1), settled(1, requests=2)],
        f"outcome `{1:032x}`: I2: a settlement beyond what was held",
    ),
    "what was never held is settled": ([settled(1, requests=1)], "I2: a settlement beyond"),
    "it is settled twice": (
        [allowed(1, requests=1), settled(1, requests=1), settled(1, requests=1)],
        "I2: a settlement beyond",
    ),
    "a state moves left": (
        [moved("halted", "active")],
        "state `local`: I4: a state moves left, from halted to active",
    ),
    "a state nobody knows": ([moved("active", "gone")], "state `local`: "),
    "an account changes that never was": (
        [snapshot("other/local", "changed")],
        "ledger.snapshot `other/local`: the account was never opened",
    ),
    "an account closes that never was": ([snapshot("other/local", "closed")], "never opened"),
    "an account rises that never was": (
        [describe_raise("other/local", "requests", 1, 2, "me")],
        "budget.raise `other/local`: the account was never opened",
    ),
    "a name that is none": ([allowed(1, "daily", requests=1)], "`daily` is no account"),
    "a hold without a time": (
        [chains.decision(1, reserve=amounts(requests=1))],
        "the field 'time' is missing",
    ),
    "a field is missing": ([{"kind": "reserve", "ref": "x"}], "is missing"),
}


@pytest.mark.parametrize(("events", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_have_happened_is_said_with_its_place(events: list[Any], words: str) -> None:
    with pytest.raises(FoldBroken) as caught:
        fold(OPENED, *events)
    assert words in str(caught.value)


def test_a_broken_fold_of_a_log_names_the_record(tmp_path: Path) -> None:
    chains.put(tmp_path / "log", chains.chain(chains.run(OPENED, moved("halted", "active"))))
    with pytest.raises(FoldBroken, match="record 3, state `local`: I4"):
        fold_log(tmp_path / "log")


def test_a_book_is_a_copy() -> None:
    made = fold(OPENED, allowed(1, requests=1))
    made.book(live=False).accounts["daily/local"].spent["requests"] = 99
    assert made.book(live=True).accounts["daily/local"].spent == {}
