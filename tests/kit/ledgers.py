"""Accounts, orders and books for tests of budgets and ledgers, in as few words as possible."""

from collections.abc import Iterable, Mapping

from policies.budget import Account, Contract, Extension, Hold, Order, Shortfall, Term, Threshold
from policies.ledger import Book

DAY_MS = 86_400_000
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2  # 2024-10-04T12:00:00Z
MIDNIGHT_MS = 20_000 * DAY_MS + DAY_MS  # the one after it


def contract(
    limits: Mapping[str, int], *, window_ms: int = 0, at: Iterable[tuple[int, str]] = ()
) -> Contract:
    """What a file with these limits says."""
    terms = {unit: Term(limit, limit) for unit, limit in limits.items()}
    return Contract(terms, window_ms, tuple(Threshold(*one) for one in at))  # type: ignore[arg-type]


def account(
    budget: str = "daily",
    agent: str = "coder",
    session: str = "",
    *,
    window_ms: int = 0,
    at: Iterable[tuple[int, str]] = (),
    **limits: int,
) -> Account:
    """An account nobody used yet; with a window, of the day of NOON_MS."""
    began_ms = NOON_MS // window_ms * window_ms if window_ms else 0
    given = contract(limits, window_ms=window_ms, at=at)
    return Account(budget, agent, session, given, began_ms)


def book(*accounts: Account) -> Book:
    """By their names."""
    return Book({one.base: one for one in accounts})


def order(
    decision_id: str = "d-1",
    *slices: str,
    agent: str = "coder",
    session: str = "s-1",
    now_ms: int = NOON_MS,
    **amounts: int,
) -> Order:
    """What a decision of `coder` wants."""
    return Order(decision_id, agent, session, now_ms, amounts, frozenset(slices))


def extension(
    need_bytes: int,
    decision_id: str = "d-1",
    *,
    unit: str = "bytes_in",
    now_ms: int = NOON_MS,
    whole: bool = False,
) -> Extension:
    """More bytes for the stream of a decision."""
    return Extension(decision_id, unit, need_bytes, now_ms, whole)


def held(answer: Hold | Shortfall) -> Hold:
    """The answer, which has to be a hold."""
    assert isinstance(answer, Hold), answer
    return answer


def short(answer: Hold | Shortfall) -> Shortfall:
    """The answer, which has to be a shortfall."""
    assert isinstance(answer, Shortfall), answer
    return answer
