"""The log, folded: what was spent and is held on every account, and every agent's state.

    decision, reserve   hold         outcome   releases, books `settle`     log.open   a crash: what
    ledger.snapshot     contract     state     moves an agent right         is held counts in full
                        and period   budget.raise   one limit

Rule 1: the log is the truth (I6). A ledger is made equal to this at start, and with
        TOLLKEEPER_CONTRACTS=1 compared with it while it runs (proxy/books.py).
Rule 2: the arithmetic is that of policies/budget.py but for limits: what is recorded has happened,
        also where a limit has fallen below it since.
Rule 3: records of one account may stand in another order than its changes were made, when they were
        made at once. What names a period that is over, or one that has not begun, moves nothing
        back: nothing that was spent in the current period is ever lost.
Rule 4: what no order explains is `FoldBroken`: no number is guessed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from audit.reader import read
from policies import budget
from policies.budget import (
    Account,
    Amount,
    Contract,
    State,
    Term,
    Threshold,
    name_account,
    name_period,
)
from policies.ledger import Book, Standing
from policies.model import ContractBroken
from proxy.accounting import Named, parse_name, parse_time

_ALWAYS = frozenset({b"budget.raise", b"ledger.snapshot", b"log.open", b"reserve", b"state"})


class FoldBroken(ValueError):  # noqa: N818  named after the failure
    """A log says something impossible: where, and what."""

    def __init__(self, place: str, cause: str) -> None:
        super().__init__(f"{place}: {cause}")
        self.place = place
        self.cause = cause


@dataclass(slots=True)
class _Reservation:
    """What one decision holds, in the order of the holds."""

    amounts: list[Amount] = field(default_factory=list)
    gone: list[Amount] = field(default_factory=list)  # spent when its account changed the window


class Fold:
    """The book of a log, event by event."""

    def __init__(self) -> None:
        self.floor_ms = 0  # the ledger's clock never starts before this
        self._accounts: dict[str, Account] = {}
        self._standings: dict[str, Standing] = {}
        self._open: dict[str, _Reservation] = {}
        self._unopened: set[str] = set()  # bases that were seen before their first snapshot
        self._former: dict[str, str] = {}  # names that an account had under another window -> base

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event of the log; kinds that concern no account are passed over.

        Raises:
            FoldBroken: it cannot have happened after the ones before.
        """
        try:
            match event["kind"]:
                case "decision" if event["verdict"] == "allow" and event["reserve"]:
                    self._hold(event["id"], event["reserve"], self._read_time(event))
                case "reserve":
                    self._hold(event["ref"], event["reserve"], self._read_time(event))
                case "outcome":
                    self._settle(event["ref"], event["settle"])
                case "ledger.snapshot":
                    self._take_snapshot(event)
                case "budget.raise":
                    self._raise(event)
                case "state":
                    self._move(event)
                case "log.open":
                    _spend_held(self._accounts.values())
                    self._open.clear()
                    self._former.clear()
        except FoldBroken:
            raise
        except (ContractBroken, ValueError, KeyError, TypeError) as error:
            named = event.get("ref", event.get("id", event.get("account", event.get("agent"))))
            raise FoldBroken(f"{event.get('kind')} `{named}`", _explain(error)) from error

    def needs(self, line: bytes) -> bool:
        """Whether a line of the log can matter, without parsing it: most hold nothing."""
        at = line.find(b'"kind":"') + 8
        kind = line[at : line.find(b'"', at)]
        if kind == b"decision":
            return b'"reserve":[]' not in line
        if kind == b"outcome":
            at = line.find(b'"ref":"', at) + 7
            return line[at : at + 32].decode("ascii", "replace") in self._open
        return kind in _ALWAYS

    def book(self, *, live: bool) -> Book:
        """A copy of what the log comes to. `live`: of a run that goes on, so holds stay held;
        otherwise they count as spent in full, as after a crash."""
        accounts = {base: budget.copy(account) for base, account in self._accounts.items()}
        if not live:
            _spend_held(accounts.values())
        return Book(accounts, dict(self._standings))

    def _read_time(self, event: Mapping[str, Any]) -> int:
        time_ms = parse_time(event["time"])
        self.floor_ms = max(self.floor_ms, time_ms)
        return time_ms

    def _parse(self, name: str) -> tuple[str, Named]:
        named = parse_name(name)
        self.floor_ms = max(self.floor_ms, named.from_ms)
        return name_account(*named[:3]), named

    def _hold(self, ref: str, entries: Sequence[Mapping[str, Any]], now_ms: int) -> None:
        reservation = self._open.setdefault(ref, _Reservation())
        for amount in _read_amounts(entries):
            account = self._find(amount.account)
            if account is None:  # of a period that is over
                reservation.amounts.append(amount)
                continue
            if account.name != amount.account:  # its account had another window when it was held
                _add(account.spent, amount)
                reservation.gone.append(amount)
                continue
            account.first_ms = account.first_ms or now_ms
            _add(account.held, amount)
            reservation.amounts.append(amount)
        if len(reservation.amounts) > len(entries):  # a stream that was extended
            reservation.amounts = list(budget.join(reservation.amounts, ()))

    def _find(self, name: str) -> Account | None:
        """The account that a hold concerns, in a new period where the name says so."""
        known = self._accounts.get(name.partition("@")[0])
        if known is not None and known.name == name:
            return known
        base, named = self._parse(name)
        if known is None:
            known = self._accounts[base] = _make(named, Contract())
            self._unopened.add(base)
        elif name not in self._former and not self._roll(known, named.from_ms):
            return None
        return known

    def _roll(self, account: Account, from_ms: int) -> bool:
        """Begin the period that starts then, if the current one is over by then."""
        is_over = bool(account.until_ms) and from_ms >= account.until_ms
        if account.base in self._unopened:  # its window is not known yet
            is_over = from_ms > account.from_ms
        if is_over:
            account.from_ms, account.first_ms = from_ms, 0
            account.spent, account.held = {}, {}
            account.name = name_period(account.base, from_ms)
            self._former = {name: of for name, of in self._former.items() if of != account.base}
        return is_over

    def _settle(self, ref: str, entries: Sequence[Mapping[str, Any]]) -> None:
        known = self._open.pop(ref, _Reservation())
        bases = {amount.account.partition("@")[0] for amount in known.amounts}
        accounts = [self._accounts[base] for base in bases]
        budget.settle(accounts, known.amounts, _read_amounts(entries), known.gone)

    def _take_snapshot(self, event: Mapping[str, Any]) -> None:
        base, named = self._parse(event["account"])
        self._read_time(event)
        known, given = self._accounts.get(base), _make(named, _read_contract(event))
        cause = event["cause"]
        if cause == "opened" and known is None:
            self._accounts[base] = given
        elif known is None:
            raise ValueError("the account was never opened")
        elif cause == "opened":
            self._roll(known, given.from_ms)
            if base in self._unopened:
                known.contract = given.contract
                self._unopened.discard(base)
        elif cause == "changed":
            self._put(known, given)
        # closed: the next period begins with its own first record

    def _put(self, known: Account, given: Account) -> None:
        after = self._accounts[known.base] = budget.put(known, given)
        self._unopened.discard(known.base)
        if after.name == known.name:
            return
        self._former.pop(after.name, None)
        self._former[known.name] = known.base
        for reservation in self._open.values():
            here = [one for one in reservation.amounts if one.account == known.name]
            reservation.gone += here
            if here:
                reservation.amounts = [
                    one for one in reservation.amounts if one.account != known.name
                ]

    def _raise(self, event: Mapping[str, Any]) -> None:
        """A limit; another window comes into force with the snapshot behind it, which has the
        period."""
        base, _ = self._parse(event["account"])
        known, unit, to = self._accounts.get(base), event["unit"], event.get("to")
        if known is None:
            raise ValueError("the account was never opened")
        if unit == "window":
            return
        terms = dict(known.contract.terms)
        filed = terms[unit].filed if unit in terms else None
        if to is None:
            terms.pop(unit, None)
        else:
            terms[unit] = Term(to, filed)
        known.contract = replace(known.contract, terms=terms)

    def _move(self, event: Mapping[str, Any]) -> None:
        before, after = State[event["from"].upper()], State[event["to"].upper()]
        if after < before:
            raise ValueError(f"I4: a state moves left, from {before.word} to {after.word}")
        if after > self._standings.get(event["agent"], Standing()).state:
            self._standings[event["agent"]] = Standing(after, event["cause"])


def fold_log(folder: Path) -> Fold:
    """The fold of a log that verifies; a torn tail is not part of it.

    Raises:
        FoldBroken: the log says something impossible.
        LogUnreadable, LineBroken: see audit/reader.py.
    """
    fold = Fold()
    for line in read(folder, needs=fold.needs):
        try:
            fold.add(line.record.event)
        except FoldBroken as error:
            place = f"{folder}: record {line.record.seq}, {error.place}"
            raise FoldBroken(place, error.cause) from error
    return fold


def _make(named: Named, contract: Contract) -> Account:
    return Account(named.budget, named.agent, named.session, contract, named.from_ms)


def _read_amounts(entries: Iterable[Mapping[str, Any]]) -> list[Amount]:
    return [Amount(one["account"], one["unit"], one["amount"]) for one in entries]


def _read_contract(event: Mapping[str, Any]) -> Contract:
    terms = {one["unit"]: Term(one["limit"], one.get("filed")) for one in event["limits"]}
    at = tuple([Threshold(one["reached"], one["do"]) for one in event["at"]])
    return Contract(terms, event["window_ms"], at)


def _add(sums: dict[str, int], amount: Amount) -> None:
    if amount.amount:
        sums[amount.unit] = sums.get(amount.unit, 0) + amount.amount


def _spend_held(accounts: Iterable[Account]) -> None:
    """Nobody knows what became of it, so it counts in full."""
    for account in accounts:
        for unit, amount in account.held.items():
            account.spent[unit] = account.spent.get(unit, 0) + amount
        account.held = {}


def _explain(error: Exception) -> str:
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
