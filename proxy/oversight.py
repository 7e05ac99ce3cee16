"""What an operator sees and does about budgets: show, raise, halt.

    the command --ask--> control.sock --> Oversight of the server that runs
                no server there: verify, fold the log --> Oversight of our own --> the same records

Rule 1: both ways run the same code on the same book; only who writes the log differs.
Rule 2: looking writes nothing. Without a server it shows what the next start would begin with.
Rule 3: whether something can be recorded is found out before it is done: without a server the log's
        lock is held from before the fold until the last record.

Commands are named COMMANDS on the control socket; arguments and answers are JSON maps.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog

from audit.reader import LineBroken
from audit.segment import LogUnreadable
from audit.verify import PREFIX, VALID, verify
from audit.writer import LogUnavailable
from policies.budget import State
from policies.compile import compile_policy
from policies.ledger import LedgerUnavailable
from policies.model import PolicyRejected
from policies.policy_set import PolicySet
from policies.sources import PolicyUnreadable
from policies.values import suggest
from proxy.bookkeeper import Bookkeeper
from proxy.books import Books
from proxy.changes import ChangeUnrecorded, take_log
from proxy.control import Arguments, Command, CommandRefused, ServerNotRunning, ask
from proxy.credentials import Credential, CredentialStore, CredentialsUnusable
from proxy.fold import FoldBroken
from proxy.metrics import Metrics
from proxy.recording import AuditEvent, Recorder
from proxy.settings import Settings

SHOW, STATES, RAISE, HALT = "budget.show", "agent.states", "budget.raise", "halt"
COMMANDS = (SHOW, STATES, RAISE, HALT)
REASON_CHARS_MAX = 500
_PAGE = 200  # accounts per answer: some 200 KiB, and an answer takes at most 1 MiB


class OversightRefused(RuntimeError):  # noqa: N818  named after the failure
    """It cannot be seen or done. The text says why and what helps."""


class Credentials(Protocol):
    """What is needed of proxy.credentials.CredentialStore."""

    def list(self) -> tuple[Credential, ...]:
        """Every credential ever issued."""


class Oversight:
    """Answers the commands on one bookkeeper. They raise ValueError to refuse."""

    def __init__(
        self,
        bookkeeper: Bookkeeper,
        credentials: Credentials,
        agents: Callable[[], Iterable[str]],
    ) -> None:
        self._bookkeeper = bookkeeper
        self._credentials = credentials
        self._agents = agents  # of the policy in force

    @property
    def commands(self) -> dict[str, Command]:
        """For proxy/control.py."""
        return {
            SHOW: self.show,
            STATES: self.states,
            RAISE: _say_why(self.raise_budget),
            HALT: _say_why(self.halt),
        }

    async def show(self, arguments: Arguments) -> Mapping[str, Any]:
        """`agent`, `after` -> `accounts`, a page of them, and where the next one begins."""
        agent, after = _read(arguments, "agent"), _read(arguments, "after") or "0"
        if not after.isdecimal():
            raise ValueError(f"`{after}` is not where a page begins")
        try:
            shown = await self._bookkeeper.show(agent)
        except LedgerUnavailable as error:
            raise ValueError(f"the ledger cannot be read: {error}") from error
        if agent is not None and not shown:
            self._check_known(agent)
        end = int(after) + _PAGE
        return {"accounts": shown[int(after) : end], "next": str(end) if end < len(shown) else ""}

    async def states(self, _arguments: Arguments) -> Mapping[str, Any]:
        """`states`: of every agent that is not active any more."""
        standings = self._bookkeeper.states.standings
        return {"states": {agent: one.state.word for agent, one in standings.items()}}

    async def raise_budget(self, arguments: Arguments) -> Mapping[str, Any]:
        """`budget`, `by`, `agent`, `session`, `unit`, `to` -> `raised`, one map per limit."""
        budget, by = _read(arguments, "budget"), _read(arguments, "by")
        to = arguments.get("to")
        unit = _read(arguments, "unit")
        if not budget or not by or (unit is None) != (to is None):
            raise ValueError("a raise has `budget` and `by`, and `unit` only with `to`")
        if to is not None and (isinstance(to, bool) or not isinstance(to, int)):
            raise ValueError(f"`{to}` is no whole number")
        selection = {name: _read(arguments, name) for name in ("agent", "session")}
        raised = await self._bookkeeper.raise_budget(budget, by, unit=unit, to=to, **selection)
        return {"raised": raised}

    async def halt(self, arguments: Arguments) -> Mapping[str, Any]:
        """`agent`, `reason`, `by` -> `before`, the state it was in."""
        agent, by = _read(arguments, "agent") or "", _read(arguments, "by") or ""
        reason = check_reason(_read(arguments, "reason") or "")
        if not by:
            raise ValueError("a halt has `by`")
        self._check_known(agent)
        before = await self._bookkeeper.halt(agent, reason, by)
        return {"before": before.word}

    def _check_known(self, agent: str) -> None:
        book = self._bookkeeper.contracts.book
        known = {*self._agents(), *book.standings, *self._bookkeeper.states.standings}
        known |= {account.agent for account in book.accounts.values()}
        with suppress(CredentialsUnusable):  # which says so to everybody who asks
            known |= {one.agent for one in self._credentials.list()}
        if agent not in known:
            hint = suggest(agent, known) or "`tollkeeper agent list` has those with a token"
            raise ValueError(
                f"`{agent}` is no agent of the policy, the credentials or the log; {hint}"
            )


def check_reason(text: str) -> str:
    """What a halt is recorded with: a line of text.

    Raises:
        ValueError: it is empty, too long or no line.
    """
    reason = text.strip()
    if not reason:
        raise ValueError("a halt needs a reason: it stays in the record for good")
    if len(reason) > REASON_CHARS_MAX or not reason.isprintable():
        raise ValueError(f"a reason is one line of at most {REASON_CHARS_MAX} characters")
    return reason


def perform(settings: Settings, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One of COMMANDS, by the server of this state directory or without one; blocks.

    Raises:
        OversightRefused: nothing was done.
    """
    try:
        return ask(settings.control_socket, command, arguments)
    except ServerNotRunning as absent:
        with _quietly():
            return asyncio.run(_perform_alone(settings, absent, command, arguments))
    except CommandRefused as error:
        raise OversightRefused(str(error)) from error


def list_accounts(settings: Settings, agent: str | None) -> tuple[list[dict[str, Any]], str]:
    """The standing of every account (`Bookkeeper.show`), all pages of it, and a note or "".

    Raises:
        OversightRefused: it cannot be seen.
    """
    accounts: list[dict[str, Any]] = []
    after, note = "0", ""
    while after:
        page = perform(settings, SHOW, {"agent": agent, "after": after})
        accounts += page["accounts"]
        after, note = page["next"], page.get("note", "")
    return accounts, note


def find_states(settings: Settings) -> dict[str, str]:
    """Every agent that is not active any more, and its state.

    Raises:
        OversightRefused: it cannot be seen.
    """
    states: dict[str, str] = perform(settings, STATES, {})["states"]
    return states


# --- without a server


class _NoRecorder:
    """For looking: what a start would record is not recorded."""

    failure = None

    async def store(self, event: AuditEvent) -> object:
        return event

    def submit(self, event: AuditEvent) -> None:
        del event


async def _perform_alone(
    settings: Settings, absent: ServerNotRunning, command: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    if command == SHOW:
        _verify(settings)
    try:
        done = await _act(settings, _NoRecorder(), command, arguments)
        if command == RAISE or (command == HALT and done["before"] != State.HALTED.word):
            with take_log(settings, absent) as writer:  # what is refused leaves no record
                done = await _act(settings, writer, command, arguments)
    except (ValueError, ChangeUnrecorded, LogUnavailable) as error:
        raise OversightRefused(str(error)) from error
    return done


async def _act(
    settings: Settings, recorder: Recorder, command: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    bookkeeper = _open_books(settings, recorder)
    policy_set, problem = (None, "") if command == STATES else _compile(settings)
    if problem and command == RAISE and arguments.get("to") is None:
        raise OversightRefused(problem)
    if command == SHOW:  # as a start does: on what was spent, before the file is applied
        bookkeeper.states.judge(bookkeeper.contracts.book.accounts.values())
    if policy_set is not None and command in (SHOW, RAISE):
        await bookkeeper.adopt(policy_set)
    agents = policy_set.agents if policy_set is not None else ()
    store = CredentialStore(settings.credentials_file)
    oversight = Oversight(bookkeeper, store, lambda: agents)
    done = dict(await oversight.commands[command](arguments))
    await bookkeeper.flush()
    return {**done, "note": problem} if problem and command == SHOW else done


def _open_books(settings: Settings, recorder: Recorder) -> Bookkeeper:
    """As a server opens them, but for the ledger's file: that is the next server's to write."""
    try:
        alone = replace(settings, ledger="memory")
        return Books(alone, recorder=recorder, metrics=Metrics("cli")).bookkeeper
    except FoldBroken as error:
        raise OversightRefused(f"{error}; the log says something impossible") from error
    except LineBroken as error:
        remedy = f"see `tollkeeper audit verify {settings.log_folder}`"
        raise OversightRefused(f"{error}; the log does not verify, {remedy}") from error
    except LogUnreadable as error:
        raise OversightRefused(f"{error}; run `tollkeeper init`, or give --state") from error
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        raise OversightRefused(
            f"`{settings.log_folder}`: {text}; run `tollkeeper init`, or give --state"
        ) from error


def _verify(settings: Settings) -> None:
    report = verify(settings.log_folder, allow_open=True)
    if report.exit_code not in (VALID, PREFIX):
        remedy = f"see `tollkeeper audit verify {settings.log_folder}`, or give --state"
        raise OversightRefused(f"`{settings.log_folder}`: {report.problem}; {remedy}")


def _compile(settings: Settings) -> tuple[PolicySet | None, str]:
    """The policy file, or why there is none."""
    try:
        return compile_policy(settings.policies).policy_set, ""
    except PolicyUnreadable as error:
        return None, f"{error}; give --policies"
    except PolicyRejected:
        return None, f"{settings.policies}: the policy has errors; see `tollkeeper policy check`"


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the talk that a server would log: the command says what happened."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def _drop(_logger: object, _method: str, _event: object) -> Any:
    raise structlog.DropEvent


def _say_why(
    command: Callable[[Arguments], Awaitable[Mapping[str, Any]]],
) -> Command:
    async def run(arguments: Arguments) -> Mapping[str, Any]:
        try:
            return await command(arguments)
        except LogUnavailable as error:
            raise ValueError(f"it cannot be recorded: {error}; {_UNRECORDED}") from error
        except LedgerUnavailable as error:
            raise ValueError(f"the ledger did not take it: {error}") from error

    return run


_UNRECORDED = "a raise was not made; a halt is in force while this process runs"


def _read(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{name}` is no text")
    return value
