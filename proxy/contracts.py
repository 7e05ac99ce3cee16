"""The contracts in force: opened and lowered by the policy file, raised by an operator, shown.

    policy load -> adopt      session's first request -> open_missing      `budget raise` -> raise_

Rule 1: the log is the truth: what changes is durable, or queued before whatever depends on it, when
        the ledger learns of it.
Rule 2: nothing rises but by `raise_` (policies/contract.py has the terms).
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from audit.writer import LogUnavailable
from policies import contract as terms
from policies.budget import Account, Contract, copy, name_account, roll
from policies.ledger import Book, Ledger, PutAccount, Standing
from policies.model import Principal
from policies.policy_set import PolicySet
from policies.rule import Budget
from proxy.accounting import describe_raise, describe_snapshot
from proxy.recording import AuditEvent, Recorder

log = structlog.get_logger()

_RECORD_S = 10.0  # a person or a reload waits
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

    async def adopt(self, policy_set: PolicySet) -> None:
        """Bring the contracts in line with a policy: what it lowers falls, new budgets open.

        Raises:
            LogUnavailable, LedgerUnavailable: not all of it could be recorded; nothing rose.
        """
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
        self._policy_set = policy_set
        self.book = book
        self._warn_of_pending()

    async def open_missing(self, principal: Principal, policy_set: PolicySet) -> None:
        """The accounts of a session that asks for the first time.

        Raises:
            LogUnavailable, LedgerUnavailable: they are not open; the request is denied.
        """
        for budget in policy_set.budgets_of(principal.agent):
            session = principal.session if budget.each == "session" else ""
            base = name_account(budget.id, principal.agent, session)
            if base in self._opened:
                continue
            async with self._opening:  # whoever comes second waits until it is open, or tries too
                if base not in self._opened:
                    account = terms.open_account(budget, principal.agent, session, self._now_ms())
                    self._recorder.submit(describe_snapshot(account, "opened", self._now_ms()))
                    await self._ledger.change(PutAccount(account))
                    self._opened.add(base)

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
            LogUnavailable, LedgerUnavailable: not recorded, so not raised.
        """
        book = await self._ledger.read()
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
        made: list[dict[str, Any]] = []
        for account in chosen:
            roll(account, self._now_ms())
            made += await self._raise(account, by, unit, to)
        if not made:
            raise ValueError(
                f"nothing of `{budget}` waits to be raised: the limits in force are those of the"
                " policy file; edit it, or give --unit and --to"
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

    async def _raise(
        self, account: Account, by: str, unit: str | None, to: int | None
    ) -> list[dict[str, Any]]:
        now_ms, base = self._now_ms(), account.base
        changes: list[tuple[str, int, int | None]]
        if unit is not None and to is not None:
            raised = copy(account)
            raised.contract = terms.raise_limit(account.contract, unit, to)
            changes = [(unit, account.contract.terms[unit].limit, to)]
        else:
            waiting = self.find_pending(account)
            if not waiting or self._policy_set is None:
                return []
            raised = terms.accept(account, find_budget(self._policy_set, account), now_ms)
            changes = [(one.unit or "window", one.limit, one.filed) for one in waiting]
        for name, old, new in changes:
            await self._store(describe_raise(base, name, old, new, by))
        await self._store(describe_snapshot(raised, "changed", now_ms))
        await self._ledger.change(PutAccount(raised))
        log.warning("budget-raise", account=base, by=by)
        return [
            {"account": base, "unit": name, "from": old, "to": new} for name, old, new in changes
        ]

    async def _put(self, account: Account, cause: str, changed: int) -> int:
        event = describe_snapshot(account, cause, self._now_ms())
        if changed % _BATCH:
            self._recorder.submit(event)
        else:
            await self._store(event)
        await self._ledger.change(PutAccount(account))
        self._opened.add(account.base)
        return changed + 1

    async def _store(self, event: AuditEvent) -> None:
        try:
            async with asyncio.timeout(_RECORD_S):
                await self._recorder.store(event)
        except TimeoutError:
            text = f"not durable within {_RECORD_S} s"
            raise LogUnavailable("audit-unavailable", text) from None

    def _warn_of_pending(self) -> None:
        for account in self.book.accounts.values():
            if self.find_pending(account):
                remedy = f"`tollkeeper budget raise {account.budget}` accepts it"
                log.warning("budget-pending", account=account.base, remedy=remedy)


def find_budget(policy_set: PolicySet, account: Account) -> Budget | None:
    """The budget of the file that an account belongs to; None where the file has none."""
    for budget in policy_set.budgets_of(account.agent):
        if budget.id == account.budget and (budget.each == "session") == bool(account.session):
            return budget
    return None
