"""The house without its sockets: real policy keeper, enforcer, ledger and log; `check` audits it.

house.ask(message)      a verdict, and what is durable by then
house.check()           the real verifier over the folder, and ledger and log reconciled
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from audit.verify import verify
from audit.writer import Writer, create_log
from policies.compile import compile_policy
from policies.ledger.memory import MemoryLedger
from proxy.call import Call
from proxy.enforcer import Admitted, Enforcer, Refused
from proxy.exchange import Exchange
from proxy.generation import PolicyKeeper
from proxy.metrics import Metrics
from proxy.settings import Settings
from proxy.vocabulary import Event, Failed, Stage
from tests.kit.enforcement import NOW, POLICY, SETTINGS, Message, furnish

ANSWER_S = 1.0


@dataclass
class House:
    """One folder, one run of the log at a time. `now` may be set; it is everybody's clock."""

    folder: Path
    policy: str = POLICY
    ledger: Any = None
    resolver: Any = None
    now: datetime = NOW
    open: dict[str, Exchange] = field(default_factory=dict)
    asked: int = 0
    admitted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)  # ended while the log could not tell it

    def __post_init__(self) -> None:
        self.file = self.folder / "policies.yaml"
        self.file.write_text(self.policy)
        self.log = self.folder / "log"
        self.ledger = self.ledger or MemoryLedger()
        create_log(self.log, software="test/1", now=self.now)
        self.start()

    def start(self) -> None:
        """Open the log, bring the policy into force."""
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
            ledger_deadline_s=0.1,
            audit_deadline_s=0.2,
            dns_timeout_s=0.2,
        )
        self.keeper = PolicyKeeper(
            settings, compile_policy(self.file), recorder=self.writer, metrics=self.metrics
        )
        asyncio.run(self.keeper.start())
        parts = {"resolver": self.resolver} if self.resolver else {}
        self.enforcer: Enforcer
        self.enforcer, _ = furnish(
            recorder=self.writer,
            settings=settings,
            generation=self.keeper.generation,
            ledger=self.ledger,
            metrics=self.metrics,
            now=lambda: self.now,
            **parts,
        )

    def stop(self) -> None:
        """End what is open, close the log."""
        for exchange in list(self.open.values()):
            self.advance(exchange, Failed("draining"))
        self.writer.close()

    @property
    def ready(self) -> bool:
        """As /readyz sees it: nothing that would deny what the policy allows."""
        return not (self.writer.failure or self.keeper.generation.refusal or self.enforcer.draining)

    def ask(self, call: Call | None = None) -> Admitted | Refused:
        """One request. Fails where the answer is late, or an allow is not durable by now."""
        asked = call or Message().call()
        broken = self.writer.failure is not None
        began = time.monotonic()
        exchange = self.enforcer.open(asked)
        verdict = asyncio.run(self.enforcer.judge(exchange, asked))
        if time.monotonic() - began > ANSWER_S:
            raise AssertionError("the answer was late")
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

    def advance(self, exchange: Exchange, event: Event) -> None:
        """One event of a running stream."""
        broken = self.writer.failure is not None
        self.enforcer.advance(exchange, event)
        if exchange.state.value == "done":
            self.open.pop(exchange.id, None)
            self.settle()  # an outcome is only queued: was it lost?
            if broken or self.writer.failure is not None:
                self.unsure.add(exchange.id)

    def reload(self, text: str) -> str:
        """Another policy file, read at once."""
        self.file.write_text(text)
        return asyncio.run(self.keeper.reload())

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

    def wait_until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """For what recovers by itself."""
        until = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError("it did not recover")
            time.sleep(0.005)

    def move_clock(self, by: timedelta) -> None:
        """The wall clock jumps."""
        self.now += by

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
        held = getattr(self.ledger, "held", None)
        _hold(held in (None, len(self.open)), f"{held} reservations, {len(self.open)} open")
        _hold(self.enforcer.open_exchanges == len(self.open), "exchanges that never ended")

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
