"""A bookkeeper of real parts at a desk: ledger and log in memory, a clock that is told the time.

desk.reconcile()    the fold of what was recorded is what the ledger says (I6)
"""

from dataclasses import dataclass, field
from typing import Any

from policies.budget import allocate
from policies.compile import compile_text
from policies.ledger import Book
from policies.ledger.memory import MemoryLedger
from policies.model import Decision, Principal, Request, Verdict
from policies.policy_set import PolicySet
from proxy.bookkeeper import Bookkeeper
from proxy.fold import Fold
from proxy.metrics import Metrics
from proxy.recording import format_time
from proxy.vocabulary import LedgerAnswered, Reserve
from tests.kit.ledgers import NOON_MS
from tests.kit.recorder import MemoryRecorder

HEAD = """
version: 1
agents: { coder: {}, local: { identity: { source: ["127.0.0.0/8"] } } }
rules: [{ id: r, verdict: allow, match: { host: api.test } }]
"""
CODER = Principal("coder", "s-1", "127.0.0.1")
LOCAL = Principal("local", "", "127.0.0.1")
_REQUEST = Request("https", "api.test", 443, "GET", "/")
_DECISION = Decision(Verdict.ALLOW, "allowed", ("r",))


def policy(*budgets: str, more: str = "") -> PolicySet:
    """A policy with these budgets, one YAML entry each."""
    listed = "".join(f"  {budget}\n" for budget in budgets)
    return compile_text(HEAD + more + (f"budgets:\n{listed}" if budgets else "")).policy_set


def wish(*slices: str, **amounts: int) -> Reserve:
    """What a decision wants."""
    return Reserve(_DECISION, _REQUEST, amounts, frozenset(slices))


@dataclass
class Desk:
    """`ledger` may be another one, or a broken one."""

    ledger: Any = field(default_factory=MemoryLedger)
    now_ms: int = NOON_MS
    book: Book | None = None

    def __post_init__(self) -> None:
        self.recorder = MemoryRecorder()
        self.metrics = Metrics()
        self.keeper = Bookkeeper(
            self.ledger,
            recorder=self.recorder,
            metrics=self.metrics,
            now_ms=lambda: self.now_ms,
            book=self.book,
            deadline_s=0.05,
        )

    async def reserve(
        self, decision_id: str = "1", *slices: str, who: Principal = CODER, **amounts: int
    ) -> LedgerAnswered:
        """Hold, and write the decision down as the enforcer does."""
        name = decision_id.rjust(32, "0")
        answer = await self.keeper.reserve(name, who, wish(*slices, **(amounts or {"requests": 1})))
        if answer.hold.amounts:
            self.recorder.events.append(_decide(name, answer))
        return answer

    async def settle(self, decision_id: str, answer: LedgerAnswered, **counted: int) -> None:
        """Book everything that was held but for bytes, and write the outcome down."""
        name = decision_id.rjust(32, "0")
        spent = allocate(answer.hold.amounts, counted)
        self.keeper.settle(name, spent, CODER)
        settle = [{"account": a, "unit": u, "amount": n} for a, u, n in spent]
        self.recorder.events.append({"kind": "outcome", "ref": name, "settle": settle})
        await self.keeper.flush()

    async def spend(self, decision_id: str, *, who: Principal = CODER, **amounts: int) -> str:
        """Both at once; returns why not, or ""."""
        answer = await self.reserve(decision_id, who=who, **amounts)
        if not answer.refusal:
            await self.settle(decision_id, answer)
        return answer.refusal

    async def spent(self, base: str) -> dict[str, int]:
        """Of one account."""
        book: Book = await self.ledger.read()
        return book.accounts[base].spent

    async def limits(self, base: str) -> dict[str, int]:
        """In force on one account."""
        book: Book = await self.ledger.read()
        return {unit: term.limit for unit, term in book.accounts[base].contract.terms.items()}

    def snapshots(self, cause: str) -> list[str]:
        """The accounts that were recorded so, in order."""
        found = self.recorder.of("ledger.snapshot")
        return [event["account"] for event in found if event["cause"] == cause]

    async def reconcile(self) -> None:
        """Raises where ledger and log tell different stories."""
        fold = Fold()
        for event in self.recorder.events:
            fold.add(event)
        truth, found = fold.book(live=True), await self.ledger.read()
        for account in found.accounts.values():
            account.first_ms = truth.accounts[account.base].first_ms
        assert found == truth


def _decide(name: str, answer: LedgerAnswered) -> dict[str, Any]:
    held = [{"account": a, "unit": u, "amount": n} for a, u, n in answer.hold.amounts]
    time = format_time(answer.now_ms)
    return {"kind": "decision", "id": name, "verdict": "allow", "reserve": held, "time": time}
