"""The in-memory ledger: accounts by agent, holds by decision id. PURE: it performs no I/O.

    reserve -> holds[decision id] += what budget.py held        settle -> holds.pop(decision id)

Rule 1: no method awaits anything, so each call is one step for every task of the event loop.
Rule 2: what goes out is a copy; nobody but this file changes what is in here.
Rule 3: accounts come in the order of (budget, session), so that every ledger names the same one
        first where several do not suffice.

It forgets everything with the process; the fold of the log (proxy/fold.py) gives it back.
"""

from collections.abc import Sequence

from policies import budget
from policies.budget import Account, Amount, Extension, Hold, Order, Shortfall
from policies.ledger import Book, Change, PutAccount, PutStanding, Standing
from policies.model import ContractBroken


class _Reservation:
    """What one decision holds, in the order of the holds, and on whose accounts."""

    __slots__ = ("agent", "amounts", "gone", "session")

    def __init__(self, agent: str, session: str, amounts: tuple[Amount, ...]) -> None:
        self.agent = agent
        self.session = session
        self.amounts = list(amounts)
        self.gone: list[Amount] = []  # counted as spent when their account changed its period


class MemoryLedger:
    """See the module, and `policies.ledger.Ledger`."""

    def __init__(self, book: Book | None = None) -> None:
        """Begin as a copy of `book`; nothing is reserved in it."""
        self._accounts: dict[str, dict[str, Account]] = {}  # agent -> base -> account
        self._standings: dict[str, Standing] = {}
        self._found: dict[tuple[str, str], list[Account]] = {}  # by agent and session
        self._open: dict[str, _Reservation] = {}
        if book is not None:
            self._standings = dict(book.standings)
            for account in book.accounts.values():
                self._accounts.setdefault(account.agent, {})[account.base] = budget.copy(account)

    @property
    def held(self) -> int:
        """How many reservations are open."""
        return len(self._open)

    async def reserve(self, order: Order | Extension) -> Hold | Shortfall:
        """See `Ledger.reserve`."""
        known = self._open.get(order.decision_id)
        if isinstance(order, Extension):
            if known is None:
                raise ContractBroken("I3: an extension of what is not reserved")
            hold = budget.extend(self._find(known.agent, known.session), order)
            if isinstance(hold, Hold):
                known.amounts = list(budget.join(known.amounts, hold.amounts))
            return hold
        if known is not None:
            raise ContractBroken("I3: a decision reserves once")
        hold = budget.reserve(self._find(order.agent, order.session), order)
        if isinstance(hold, Hold):
            self._open[order.decision_id] = _Reservation(order.agent, order.session, hold.amounts)
        return hold

    async def settle(self, decision_id: str, spent: Sequence[Amount]) -> tuple[Account, ...]:
        """See `Ledger.settle`."""
        known = self._open.get(decision_id)
        if known is None:
            if spent:
                raise ContractBroken("I3: a reservation settles exactly once")
            return ()
        accounts = self._find(known.agent, known.session)
        budget.settle(accounts, known.amounts, spent, known.gone)
        del self._open[decision_id]
        return tuple([budget.copy(account) for account in accounts])

    async def change(self, change: Change) -> None:
        """See `Ledger.change`."""
        match change:
            case PutAccount(given):
                self._put_account(given)
            case PutStanding(agent, standing):
                if standing.state < self._standings.get(agent, Standing()).state:
                    raise ContractBroken("I4: a state moves left")
                self._standings[agent] = standing

    async def read(self) -> Book:
        """See `Ledger.read`."""
        accounts = {
            base: budget.copy(account)
            for mine in self._accounts.values()
            for base, account in mine.items()
        }
        return Book(accounts, dict(self._standings))

    def _find(self, agent: str, session: str) -> list[Account]:
        found = self._found.get((agent, session))
        if found is None:
            mine = self._accounts.get(agent, {}).values()
            found = [account for account in mine if account.session in ("", session)]
            found.sort(key=lambda account: (account.budget, account.session))
            self._found[agent, session] = found
        return found

    def _put_account(self, given: Account) -> None:
        mine = self._accounts.setdefault(given.agent, {})
        before = mine.get(given.base)
        after = mine[given.base] = budget.put(before, given)
        self._found.clear()
        if before is None or before.name == after.name:
            return
        for known in self._open.values():
            known.gone += [one for one in known.amounts if one.account == before.name]
            known.amounts = [one for one in known.amounts if one.account != before.name]
