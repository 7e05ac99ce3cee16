"""The contracts in force: opened and lowered by the policy file, raised by an operator, shown.

    policy load -> adopt      session's first request -> open_missing      `budget raise` -> raise_

Rule 1: the log is the truth: what changes is durable, or queued before whatever depends on it, when
        the ledger learns of it.
Rule 2: nothing rises but by `raise_` (policies/contract.py has the terms).
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from policies import contract as terms
from policies.budget import Account, Contract, copy, name_account, roll
from policies.ledger import Book, Ledger, PutAccount, Standing
from policies.model import Principal
from policies.policy_set import PolicySet
from policies.rule import Budget
from proxy.accounting import describe_raise, describe_snapshot
from proxy.journal import store_patiently
from proxy.recording import Recorder

log = structlog.get_logger()

_BATCH = 500  # records queued before the disk is waited for


class Contracts:
    """Those of one process; the command line uses it too where no server runs."""

    def __init__(
        self, ledger: Ledger, book: Book, *, recorder: Recorder, now_ms: Callable[[], int]
    ) -> None:
        self.book = book  # a recent copy, for whoever only looks
        self._ledger = ledger
        self._recorder = recorder
        self._now_ms = now_ms
        self._policy_set: PolicySet | None = None
        self._opened = set(book.accounts)  # base names
        self._opening = asyncio.Lock()
        self._changing = asyncio.Lock()  # log and ledger must see changes in one order
        self._owed: dict[str, Account] = {}  # the log has it, the ledger does not: by base

    async def adopt(self, policy_set: PolicySet) -> None:
        """Bring the contracts in line with a policy: what it lowers falls, new budgets open.

        Raises:
            LogUnavailable, LedgerUnavailable: not all of it could be recorded; nothing rose.
        """
        async with self._changing:
            before, self._policy_set = self._policy_set, policy_set  # sessions open under the new
            try:
                adopted = await self._adopt(policy_set)
            except BaseException:
                self._policy_set = before
                raise
            # sessions may have begun meanwhile
            self.book = Book({**self.book.accounts, **adopted.accounts}, adopted.standings)
        self._warn_of_pending()

    async def _adopt(self, policy_set: PolicySet) -> Book:
        await self.pay()
        book = await self._ledger.read()
        changed = 0
        for account in book.accounts.values():
            lowered = terms.lower(account.contract, find_budget(policy_set, account))
            if lowered != account.contract:
                account.contract = lowered
                changed = await self._put(account, "changed", changed)
        for agent in policy_set.agents:
            for budget in policy_set.budgets_of(agent):
                base = name_account(budget.id, agent)
                if budget.each == "agent" and base not in book.accounts:
                    opened = terms.open_account(budget, agent, "", self._now_ms())
                    book.accounts[base] = opened
                    changed = await self._put(opened, "opened", changed)
        return book

    async def open_missing(self, principal: Principal) -> None:
        """The accounts of a session that asks for the first time, as the newest policy says.

        Raises:
            LogUnavailable, LedgerUnavailable: they are not open; the request is denied.
        """
        if self._owed:
            await self.pay()
        if self._policy_set is None:
            return
        for budget in self._policy_set.budgets_of(principal.agent):
            session = principal.session if budget.each == "session" else ""
            base = name_account(budget.id, principal.agent, session)
            if base in self._opened:
                continue
            async with self._opening:  # whoever comes second waits until it is open, or tries too
                if base not in self._opened:
                    account = terms.open_account(budget, principal.agent, session, self._now_ms())
                    self._recorder.submit(describe_snapshot(account, "opened", self._now_ms()))
                    await self._carry_out(account)

    async def raise_(
        self,
        budget: str,
        by: str,
        *,
        agent: str | None = None,
        session: str | None = None,
        unit: str | None = None,
        to: int | None = None,
    ) -> list[dict[str, Any]]:
        """Accept what the file says now, or one value; recorded with who.

        Returns one entry per raise: account, unit, from, to (None: no limit any more).

        Raises:
            ValueError: there is no such account, or nothing to raise.
            LogUnavailable: not all of it was recorded; what was counts after a restart.
            LedgerUnavailable: what was recorded is carried out before the next request.
        """
        async with self._changing:
            await self.pay()
            chosen = _choose(await self._ledger.read(), budget, agent, session)
            # all are planned before the first is recorded: a refusal refuses all
            plans = [self._plan(account, unit, to) for account in chosen]
            made = [one for plan in plans for one in await self._raise(plan, by)]
            if not made:
                raise ValueError(
                    f"nothing of `{budget}` waits to be raised: the limits in force are those of"
                    " the policy file; edit it, or give --unit and --to"
                )
            self.book = await self._ledger.read()
        return made

    async def show(self, standings: dict[str, Standing], agent: str | None) -> list[dict[str, Any]]:
        """Every account, and every agent that has a state but no account.

        Raises:
            LedgerUnavailable: it cannot be read.
        """
        book = await self._ledger.read()
        shown = [
            self._show(account, standings.get(account.agent, Standing()))
            for account in sorted(book.accounts.values(), key=lambda one: one.base)
            if agent in (None, account.agent)
        ]
        known = {entry["agent"] for entry in shown}
        for name, standing in sorted(standings.items()):
            if name not in known and agent in (None, name):
                shown.append(self._show(Account("", name, "", Contract()), standing))
        return shown

    def find_pending(self, account: Account) -> tuple[terms.Pending, ...]:
        """What the file would allow an account more, if it were accepted."""
        if self._policy_set is None:
            return ()
        return terms.list_pending(account.contract, find_budget(self._policy_set, account))

    def _show(self, account: Account, standing: Standing) -> dict[str, Any]:
        now_ms = self._now_ms()
        roll(account, now_ms)
        waiting = {one.unit: one.filed for one in self.find_pending(account)}
        units = [
            {
                "unit": unit,
                "limit": term.limit,
                "spent": account.spent_of(unit, now_ms),
                "held": account.held.get(unit, 0),
                "available": account.available(unit, now_ms),
                "pending": unit in waiting,
                "filed": waiting.get(unit, term.filed),
            }
            for unit, term in account.contract.terms.items()
        ]
        return {
            "account": account.name if account.budget else "",
            "budget": account.budget,
            "agent": account.agent,
            "session": account.session,
            "from_ms": account.from_ms,
            "until_ms": account.until_ms,
            "units": units,
            "window_pending": "" in waiting,
            "state": standing.state.word,
            "cause": standing.cause,
        }

    def _plan(self, account: Account, unit: str | None, to: int | None) -> "_Plan":
        now_ms = self._now_ms()
        roll(account, now_ms)
        if unit is not None and to is not None:
            raised = copy(account)
            raised.contract = terms.raise_limit(account.contract, unit, to)
            return _Plan(raised, [(unit, account.contract.terms[unit].limit, to)])
        waiting = self.find_pending(account)
        if not waiting or self._policy_set is None:
            return _Plan(account, [])
        raised = terms.accept(account, find_budget(self._policy_set, account), now_ms)
        return _Plan(raised, [(one.unit or "window", one.limit, one.filed) for one in waiting])

    async def _raise(self, plan: "_Plan", by: str) -> list[dict[str, Any]]:
        if not plan.changes:
            return []
        base = plan.raised.base
        for name, old, new in plan.changes:
            await store_patiently(self._recorder, describe_raise(base, name, old, new, by))
        await store_patiently(
            self._recorder, describe_snapshot(plan.raised, "changed", self._now_ms())
        )
        await self._carry_out(plan.raised)
        log.warning("budget-raise", account=base, by=by)
        return [
            {"account": base, "unit": name, "from": old, "to": new}
            for name, old, new in plan.changes
        ]

    async def _put(self, account: Account, cause: str, changed: int) -> int:
        event = describe_snapshot(account, cause, self._now_ms())
        if changed % _BATCH:
            self._recorder.submit(event)
        else:
            await store_patiently(self._recorder, event)
        await self._carry_out(account)
        return changed + 1

    async def _carry_out(self, account: Account) -> None:
        """Tell the ledger what the log has: now, or before anything else is reserved."""
        self._owed[account.base] = account
        await self.pay()

    @property
    def is_owing(self) -> bool:
        """Whether the log knows of a contract that the ledger has not taken yet."""
        return bool(self._owed)

    async def pay(self) -> None:
        """Give the ledger what it is owed.

        Raises:
            LedgerUnavailable: it does not take it; the next request tries again.
        """
        for base, account in list(self._owed.items()):
            if self._owed.get(base) is not account:
                continue  # paid meanwhile: what came after it must not be undone
            await self._ledger.change(PutAccount(account))
            self._opened.add(base)
            # deadlines are judged by it, and nobody else may look for a while
            self.book.accounts.setdefault(base, copy(account))
            if self._owed.get(base) is account:
                del self._owed[base]

    def _warn_of_pending(self) -> None:
        for account in self.book.accounts.values():
            if self.find_pending(account):
                remedy = f"`tollkeeper budget raise {account.budget}` accepts it"
                log.warning("budget-pending", account=account.base, remedy=remedy)


class _Plan(NamedTuple):
    """An account as it will stand, and what is raised: unit, from, to."""

    raised: Account
    changes: list[tuple[str, int, int | None]]


def _choose(book: Book, budget: str, agent: str | None, session: str | None) -> list[Account]:
    chosen = [
        account
        for account in book.accounts.values()
        if account.budget == budget
        and agent in (None, account.agent)
        and session in (None, account.session)
    ]
    if not chosen:
        known = sorted({account.budget for account in book.accounts.values()})
        raise ValueError(f"no account of `{budget}`; there are: {', '.join(known) or 'none'}")
    return chosen


def find_budget(policy_set: PolicySet, account: Account) -> Budget | None:
    """The budget of the file that an account belongs to; None where the file has none."""
    for budget in policy_set.budgets_of(account.agent):
        if budget.id == account.budget and (budget.each == "session") == bool(account.session):
            return budget
    return None
