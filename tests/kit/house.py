"""The house without its sockets: real policy keeper, enforcer, books and log; `check` audits it.

house.ask(message)      a verdict, and what is durable by then
house.check()           the real verifier over the folder, and ledger and log reconciled

One event loop lives as long as the house; after every step all settlements are made, unless the
ledger is down. Two clocks: `now` is the wall's, which may step, `boot_ms` the one that passes.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from audit.verify import verify
from audit.writer import Writer, create_log
from policies.budget import Account, State
from policies.compile import compile_policy
from policies.ledger import Book, Ledger
from policies.ledger.memory import MemoryLedger
from proxy.bookkeeper import Bookkeeper
from proxy.call import Call
from proxy.enforcer import Admitted, Enforcer, Refused
from proxy.exchange import Exchange
from proxy.fold import fold_log
from proxy.generation import PolicyKeeper
from proxy.ledger_clock import LedgerClock
from proxy.metrics import Metrics
from proxy.settings import Settings
from proxy.vocabulary import (
    Event,
    Failed,
    RequestSent,
    ResponseHead,
    ResponseReceived,
    Stage,
)
from tests.kit.enforcement import NOW, POLICY, SETTINGS, Message, furnish

ANSWER_S = 1.0


@dataclass
class House:
    """One folder, one run of the log at a time. `now` may be set; it is everybody's wall clock."""

    folder: Path
    policy: str = POLICY
    make_ledger: Callable[[Book], Any] = MemoryLedger
    resolver: Any = None
    now: datetime = NOW
    boot_ms: int = 1
    open: dict[str, Exchange] = field(default_factory=dict)
    asked: int = 0
    admitted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)  # ended while the log could not tell it
    cut: list[str] = field(default_factory=list)
    crashes: int = 0

    def __post_init__(self) -> None:
        self._runner = asyncio.Runner()
        self._seen: dict[str, int] = {}  # account and unit -> spent, which never falls
        self._totals: dict[str, int] = {}  # account and unit -> spent and held
        self._moved: dict[str, State] = {}
        self.file = self.folder / "policies.yaml"
        self.file.write_text(self.policy)
        self.log = self.folder / "log"
        create_log(self.log, software="test/1", now=self.now)
        self.start()

    # --- runs

    def start(self) -> None:
        """Open the log, fold it, bring the policy into force."""
        self._runner.close()
        self._runner = asyncio.Runner()
        self.is_lossy = False
        self.metrics = Metrics()
        self.writer = Writer.open(
            self.log,
            software="test/1",
            retry_s=0.05,
            now=lambda: self.now,
            heartbeat_s=86_400,
            observer=self.metrics,
        )
        settings = Settings(
            policies=self.file,
            state=self.folder / "state",
            resolve=SETTINGS.resolve,
            hook_deadline_s=0.5,
            ledger_deadline_s=0.2,
            audit_deadline_s=0.2,
            dns_timeout_s=0.2,
        )
        self.bookkeeper = self._open_books(settings)
        self.keeper = PolicyKeeper(
            settings,
            compile_policy(self.file),
            recorder=self.writer,
            metrics=self.metrics,
            adopt=self.bookkeeper.adopt,
        )
        self.run(self._begin())
        parts = {"resolver": self.resolver} if self.resolver else {}
        self.enforcer: Enforcer
        self.enforcer, _ = furnish(
            recorder=self.writer,
            settings=settings,
            generation=self.keeper.generation,
            bookkeeper=self.bookkeeper,
            metrics=self.metrics,
            now=lambda: self.now,
            **parts,
        )

    def _open_books(self, settings: Settings) -> Bookkeeper:
        fold = fold_log(self.log)
        self.folded = fold.book(live=False)
        self.ledger: Ledger = self.make_ledger(self.folded)
        wall_ms = int(self.now.timestamp() * 1000)
        bookkeeper = Bookkeeper(
            self.ledger,
            recorder=self.writer,
            metrics=self.metrics,
            now_ms=LedgerClock(wall_ms, fold.floor_ms, lambda: self.boot_ms).now_ms,
            book=self.folded,
            deadline_s=settings.ledger_deadline_s,
        )
        bookkeeper.states.cut = self._cut_agent
        return bookkeeper

    async def _begin(self) -> None:
        self.bookkeeper.states.judge(self.folded.accounts.values())
        await self.keeper.start()

    def stop(self) -> None:
        """End what is open, close the log."""
        for exchange in list(self.open.values()):
            self.advance(exchange, Failed("draining"))
        self.run(self._end())
        self._runner.close()
        self.writer.close()

    def crash(self) -> None:
        """Lose everything but what is on disk by now, without a word; then start again.

        The process is not killed, so a copy of the folder stands for the disk it leaves behind.
        """
        self.crashes += 1
        left = self.folder / f"log-{self.crashes}"
        shutil.copytree(self.log, left)
        self.unsure |= set(self.open) | (self.refused - self._known())
        self.open.clear()
        self.run(self._end())
        self.writer.close()
        self.log = left
        self.start()

    async def _end(self) -> None:
        await self._rest()
        waiting = list(self.bookkeeper._tasks)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        close = getattr(self.ledger, "close", None)
        if close is not None:
            close()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the house's loop; its settlements are made when this returns."""

        async def main() -> T:
            try:
                return await work
            finally:
                await self._rest()

        return self._runner.run(main())

    async def _rest(self) -> None:
        if hasattr(self, "enforcer"):
            while running := list(self.enforcer.extensions._running.values()):
                await asyncio.wait(running)
        await self.bookkeeper.flush()

    @property
    def ready(self) -> bool:
        """As /readyz sees it: nothing that would deny what the policy allows."""
        return not (
            self.writer.failure
            or self.bookkeeper.problem
            or self.keeper.generation.refusal
            or self.enforcer.draining
        )

    # --- what happens to it

    def ask(self, call: Call | None = None) -> Admitted | Refused:
        """One request. Fails where the answer is late, or an allow is not durable by now."""
        asked = call or Message().call()
        broken = self.writer.failure is not None
        began = time.monotonic()
        exchange = self.enforcer.open(asked)
        verdict, seconds = self.run(self._judge(exchange, asked))
        if seconds > ANSWER_S:
            raise AssertionError(f"the answer was late: {seconds} {time.monotonic() - began}")
        self.asked += 1
        if isinstance(verdict, Refused):
            self.refused.add(exchange.id)
            self.settle()
            if broken or self.writer.failure is not None:
                self.unsure.add(exchange.id)
            return verdict
        if exchange.id not in self._durable("decision", "id", verdict="allow"):
            raise AssertionError("admitted before the record of it was durable")
        self.admitted.add(exchange.id)
        if exchange.stage is Stage.REQUEST:
            self.open[exchange.id] = exchange
        return verdict

    async def _judge(self, exchange: Exchange, call: Call) -> tuple[Admitted | Refused, float]:
        began = time.monotonic()
        verdict = await self.enforcer.judge(exchange, call)
        return verdict, time.monotonic() - began

    def advance(self, exchange: Exchange, event: Event) -> str | None:
        """One event of a running stream, as an adapter hands it on: what it needs is asked for
        first. Returns the reason to cut."""
        broken = self.writer.failure is not None
        cut = self.run(self._advance(exchange, event))
        if exchange.is_over:
            self.open.pop(exchange.id, None)
            self.settle()  # an outcome is only queued: was it lost?
            if broken or self.writer.failure is not None:
                self.unsure.add(exchange.id)
        return cut

    async def _advance(self, exchange: Exchange, event: Event) -> str | None:
        if isinstance(event, RequestSent | ResponseHead | ResponseReceived):
            await self.enforcer.extensions.extend(exchange, event)
        return self.enforcer.advance(exchange, event)

    def reload(self, text: str) -> str:
        """Another policy file, read at once."""
        self.file.write_text(text)
        return self.run(self.keeper.reload())

    def halt(self, agent: str) -> None:
        """By hand. It holds even where the log does not take it."""
        self.run(self.bookkeeper.halt(agent, "told to", "uid 0"))

    def tick(self) -> None:
        """What a server does once a second."""

        async def main() -> None:
            self.bookkeeper.states.record_missing()
            await self.bookkeeper.recover()
            await self.bookkeeper.judge_wall_time()

        overdue = self.bookkeeper.find_overdue()
        for exchange in [one for one in self.open.values() if one.id in overdue]:
            self.advance(exchange, Failed("budget-exhausted"))
        self.run(main())

    def _cut_agent(self, agent: str, spared: frozenset[str], reason: str) -> int:
        """As the server does; here every stream has a connection of its own."""
        mine = [
            exchange
            for exchange in self.open.values()
            if exchange.principal is not None
            and exchange.principal.agent == agent
            and not (exchange.decision and spared.intersection(exchange.decision.rules))
        ]
        for exchange in mine:
            self.enforcer.advance(exchange, Failed(reason))
            del self.open[exchange.id]
            self.cut.append(exchange.id)
            if self.writer.failure is not None:
                self.unsure.add(exchange.id)
        return len(mine)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What is on disk."""
        return [event for event in self._read() if kind is None or event["kind"] == kind]

    def settle(self, timeout_s: float = 5.0) -> None:
        """Wait until everything that was queued is on disk, or the log has given up."""
        until = time.monotonic() + timeout_s
        while self.writer.size != self.writer._head.seq and self.writer.failure is None:
            if time.monotonic() > until:
                raise TimeoutError("the log does not come to rest")
            time.sleep(0.001)
        self.is_lossy = self.is_lossy or self.writer.failure is not None

    def wait_until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """For what recovers by itself."""
        until = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError("it did not recover")
            self.run(asyncio.sleep(0.005))

    def move_clock(self, by: timedelta) -> None:
        """The wall clock jumps."""
        self.now += by

    def pass_time(self, ms: int) -> None:
        """Time passes, whatever the wall clock shows."""
        self.boot_ms += ms

    # --- what must hold

    def check(self, *, closed: bool = False) -> None:
        """The real verifier over the folder; then log, ledger and verdicts must tell one story."""
        self.settle()
        report = verify(self.log, allow_open=not closed)
        if report.exit_code != 0:
            raise AssertionError(f"the log does not verify: {report.problem}")
        allows = self._durable("decision", "id", verdict="allow")
        denies = self._durable("decision", "id", verdict="deny")
        requests = self._durable("decision", "id", verdict="allow", stage="request")
        outcomes = [event["ref"] for event in self.events("outcome")]
        _hold(self.admitted <= allows, "an admitted request without its allow")
        _hold(not self.admitted & denies, "admitted and denied")
        _hold(len(outcomes) == len(set(outcomes)), "two outcomes of one request")
        _hold(set(outcomes) <= requests, "an outcome of nothing")
        missing = requests - set(outcomes) - set(self.open) - self.unsure
        _hold(not missing, f"allowed requests that ended without an outcome: {missing}")
        unrecorded = self.refused - denies - set(outcomes) - self.unsure - allows
        lost = len(self.events("malformed")) + self.writer._dropped.total()
        lost += sum(event["n"] for event in self.events("dropped"))
        _hold(len(unrecorded) <= lost, f"refusals without a record: {unrecorded}")
        _hold(self.enforcer.open_exchanges == len(self.open), "exchanges that never ended")
        if not closed:
            self.check_books()

    def check_books(self) -> None:
        """The ledger against the log, against its limits, and against what it said before."""
        book = self.run(self.ledger.read())
        held = getattr(self.ledger, "held", None)
        if held is not None and self.bookkeeper.is_idle:
            _hold(held == len(self.open), f"{held} reservations, {len(self.open)} open")
        for account in book.accounts.values():
            self._check_account(account)
        for agent, standing in book.standings.items():
            before = self._moved.get(agent, State.ACTIVE)
            _hold(standing.state >= before, f"`{agent}` moved left")
            self._moved[agent] = standing.state
            here = self.bookkeeper.state(agent)
            _hold(here >= standing.state, f"`{agent}` is not what the ledger says")
        if not self.is_lossy and self.bookkeeper.is_idle:
            self._compare(fold_log(self.log).book(live=True), book)

    def _check_account(self, account: Account) -> None:
        for unit, term in account.contract.terms.items():
            key, spent = f"{account.name} {unit}", account.spent.get(unit, 0)
            total = spent + account.held.get(unit, 0)
            _hold(spent >= self._seen.get(key, 0), f"I1: {key} fell to {spent}")
            lowered = total <= self._totals.get(key, 0)
            _hold(total <= term.limit or lowered, f"I2: {key} {total} of {term.limit}")
            self._seen[key], self._totals[key] = spent, total

    def _compare(self, truth: Book, book: Book) -> None:
        """I6. What is on its way may be held already and recorded later; nothing else may
        differ."""
        _hold(truth.accounts.keys() == book.accounts.keys(), "I6: other accounts")
        for base, account in book.accounts.items():
            logged = truth.accounts[base]
            _hold(account.name == logged.name, f"I6: {base} is in another period")
            _hold(account.contract == logged.contract, f"I6: {base} has another contract")
            _hold(account.spent == logged.spent, f"I6: {base} {account.spent} {logged.spent}")
            held = account.held == logged.held
            _hold(held or bool(self.open), f"I6: {base} holds {account.held}, not {logged.held}")
        _hold(truth.standings == book.standings, "I6: other standings")

    def _known(self) -> set[str]:
        return self._durable("decision", "id") | self._durable("outcome", "ref")

    def _durable(self, kind: str, name: str, **fields: str) -> set[str]:
        return {
            str(event[name])
            for event in self._read()
            if event["kind"] == kind and all(event[key] == value for key, value in fields.items())
        }

    def _read(self) -> Iterator[dict[str, Any]]:
        for segment in sorted(self.log.glob("*.jsonl")):
            for line in segment.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)["event"]


def _hold(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
