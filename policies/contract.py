"""Contracts over time: opened, lowered by the policy file at once, raised only by hand. PURE.

    file lower   -> the limit falls with it            (a reload)
    file higher, renamed, removed, other window -> nothing changes; it is `pending`
    `budget raise` -> what is pending is accepted, or a value is given: recorded, with who

Rule 1: no function here but `accept` and `raise_limit` returns a contract that allows more.
Rule 2: only an *edit* counts: a limit that was raised by hand stays until the file says something
        else than when it was read last (`Term.filed`).

policy.md 2.11 and section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from policies.budget import LIMIT_MAX, Account, Contract, Term, begin_period, put
from policies.model import ContractBroken
from policies.rule import Budget


@dataclass(frozen=True, slots=True)
class Pending:
    """One change of the file that waits for `budget raise`."""

    unit: str  # "" for the window
    limit: int  # in force; of the window, ms
    filed: int | None  # what the file says; None: no limit any more


def open_account(budget: Budget, agent: str, session: str, now_ms: int) -> Account:
    """The first account of a budget for somebody, under what the file says."""
    contract = write_contract(budget)
    began_ms = begin_period(contract.window_ms, now_ms)
    return Account(budget.id, agent, session, contract, began_ms)


def write_contract(budget: Budget) -> Contract:
    """What the file says, as a contract."""
    terms = {unit: Term(limit, limit) for unit, limit in budget.limits}
    return Contract(terms, budget.window_ms or 0, budget.at)


def lower(contract: Contract, budget: Budget | None) -> Contract:
    """The contract after the file was read (again): limits that it lowered fall, nothing rises.

    `budget` None: the file has it no more.

    Raises:
        ContractBroken: a limit would have risen.
    """
    filed = dict(budget.limits) if budget is not None else {}
    terms: dict[str, Term] = {}
    for unit, term in contract.terms.items():
        says = filed.get(unit)
        limit = term.limit
        if says is not None and says != term.filed:
            limit = min(limit, says)
        terms[unit] = Term(limit, says)
    for unit, says in filed.items():
        terms.setdefault(unit, Term(says, says))  # a limit where there was none
    lowered = replace(contract, terms=terms, at=budget.at if budget is not None else contract.at)
    for unit, term in contract.terms.items():
        if lowered.terms[unit].limit > term.limit:
            raise ContractBroken("a budget rose by itself")
    return lowered


def list_pending(contract: Contract, budget: Budget | None) -> tuple[Pending, ...]:
    """What the file would allow more, if it were accepted."""
    filed = dict(budget.limits) if budget is not None else {}
    found = [
        Pending(unit, term.limit, filed.get(unit))
        for unit, term in contract.terms.items()
        if (says := filed.get(unit)) is None or says > term.limit
    ]
    window_ms = budget.window_ms or 0 if budget is not None else contract.window_ms
    if window_ms != contract.window_ms:
        found.append(Pending("", contract.window_ms, window_ms))
    return tuple(found)


def accept(account: Account, budget: Budget | None, now_ms: int) -> Account:
    """The account under what the file says now; what was spent stays spent.

    A limit that was raised by hand above what the file says stays, but not with another window:
    there it would mean something else.
    """
    contract = Contract() if budget is None else write_contract(budget)
    began_ms, before = account.from_ms, account.contract
    if contract.window_ms != before.window_ms:
        began_ms = begin_period(contract.window_ms, now_ms)
    else:
        terms = {
            unit: replace(term, limit=max(term.limit, before.terms.get(unit, term).limit))
            for unit, term in contract.terms.items()
        }
        contract = replace(contract, terms=terms)
    given = Account(account.budget, account.agent, account.session, contract, began_ms)
    return put(account, given)


def raise_limit(contract: Contract, unit: str, limit: int) -> Contract:
    """The contract with one limit raised by hand.

    Raises:
        ValueError: it has no such limit, or the value is not higher or beyond LIMIT_MAX; the text
            says so.
    """
    term = contract.terms.get(unit)
    if term is None:
        known = ", ".join(contract.terms) or "nothing"
        raise ValueError(f"`{unit}` is not limited here; limited are: {known}")
    if limit <= term.limit:
        raise ValueError(
            f"{limit} is not higher than the limit in force, {term.limit}; to lower it, edit the"
            " policy file"
        )
    if limit > LIMIT_MAX:
        raise ValueError(f"{limit} is beyond {LIMIT_MAX}, the highest limit there is")
    terms: Mapping[str, Term] = {**contract.terms, unit: Term(limit, term.filed)}
    return replace(contract, terms=terms)
