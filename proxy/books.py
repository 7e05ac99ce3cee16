"""Opening the books: log -> fold -> ledger made equal -> bookkeeper; and looking over its shoulder.

With `--contracts` (TOLLKEEPER_CONTRACTS=1) every event goes into a second fold as well, and
whenever nothing is under way the ledger must equal it (SPEC section 5, policy.md I6): a difference
is `ContractBroken`, and the proxy denies from then on.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog

from audit.writer import LogUnavailable, wall_clock
from policies.ledger import Book, Ledger
from policies.ledger.memory import MemoryLedger
from policies.model import ContractBroken
from proxy.bookkeeper import Bookkeeper
from proxy.fold import Fold, FoldBroken, fold_log
from proxy.ledger_clock import LedgerClock
from proxy.metrics import Metrics
from proxy.recording import AuditEvent, Recorder
from proxy.settings import Settings

log = structlog.get_logger()

_CAUSES = {
    "missing": "there was none",
    "older": "it was behind the log",
    "newer": "it was ahead of the log",
    "different": "it did not agree with the log",
    "unreadable": "it could not be read",
}


class Books:
    """Ledger, clock and bookkeeper of one process."""

    def __init__(
        self,
        settings: Settings,
        *,
        recorder: Recorder,
        metrics: Metrics,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        """Fold the log, which `recorder` holds the lock of, and make the ledger equal to it.

        Raises:
            FoldBroken, LogUnreadable, LineBroken: the log says something impossible.
            LedgerUnavailable: the ledger is locked, or its folder cannot be written.
        """
        fold = fold_log(settings.log_folder)
        self.folded = fold.book(live=False)
        self._close: Callable[[], None] = lambda: None
        self.recorder: Recorder = recorder
        self._shadow: Shadow | None = None
        if settings.contracts:
            self.recorder = self._shadow = Shadow(recorder, fold)
        wall_ms = int(now().timestamp() * 1000)
        clock = LedgerClock(wall_ms, fold.floor_ms)
        self.ledger = self._open(settings)
        self.bookkeeper = Bookkeeper(
            self.ledger,
            recorder=self.recorder,
            metrics=metrics,
            now_ms=clock.now_ms,
            book=self.folded,
            deadline_s=settings.ledger_deadline_s,
        )
        metrics.watch_book(lambda: self.bookkeeper.contracts.book, clock.now_ms)

    async def check(self, *, idle: Callable[[], bool]) -> None:
        """Compare ledger and log, if that was asked for and nothing is under way.

        Raises:
            ContractBroken: they differ.
        """
        if self._shadow is not None and idle():
            await self._shadow.compare(self.ledger.read, idle)

    async def close(self) -> None:
        """Settle what is owed, then let go of the ledger."""
        await self.bookkeeper.flush()
        self._close()

    def _open(self, settings: Settings) -> Ledger:
        if settings.ledger == "memory":
            return MemoryLedger(self.folded)
        from policies.ledger.sqlite import open_ledger

        path = settings.state / "ledger.db"
        ledger, found = open_ledger(path, self.folded, deadline_s=settings.ledger_deadline_s)
        self._close = ledger.close
        accounts = len(self.folded.accounts)
        if found and (accounts or found != "missing"):  # else it is simply the first one
            log.warning("ledger-rebuilt", ledger=str(path), cause=_CAUSES[found], accounts=accounts)
        return ledger


class Shadow:
    """A recorder that folds what it records."""

    def __init__(self, recorder: Recorder, fold: Fold) -> None:
        self._recorder = recorder
        self._fold = fold
        self._lost = False  # an event that may or may not be in the log: nothing to compare with
        self._broken = ""  # what could not have happened, and was recorded

    @property
    def failure(self) -> str | None:
        """See `Recorder`."""
        return self._recorder.failure

    async def store(self, event: AuditEvent) -> object:
        """See `Recorder`."""
        try:
            self._take(event)
            return await self._recorder.store(event)
        except BaseException:
            self._lost = True
            raise

    def submit(self, event: AuditEvent) -> None:
        """See `Recorder`."""
        try:
            self._recorder.submit(event)
        except LogUnavailable:
            self._lost = True
            raise
        self._take(event)

    def _take(self, event: AuditEvent) -> None:
        try:
            self._fold.add(event)
        except FoldBroken as error:
            if not self._lost:  # else it may follow from what is missing here
                self._broken = self._broken or str(error)

    async def compare(self, read: Callable[[], Awaitable[Book]], idle: Callable[[], bool]) -> None:
        """Whether the ledger is what the log comes to; not where something happened meanwhile.

        Raises:
            ContractBroken: it is not.
        """
        if self._broken:
            raise ContractBroken(f"I6: {self._broken}")
        found = await read()
        if self._lost or not idle():
            return
        truth = self._fold.book(live=True)
        for base, account in truth.accounts.items():
            mine = found.accounts.get(base)
            if mine is None or (mine.contract, mine.spent, mine.held) != (
                account.contract,
                account.spent,
                account.held,
            ):
                raise ContractBroken(f"I6: the ledger and the log differ about `{base}`")
        if found.standings != truth.standings:
            raise ContractBroken("I6: the ledger and the log differ about an agent's state")
