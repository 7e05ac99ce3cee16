"""Changes of credentials, recorded: through the running server, or by taking the log's lock.

    agent add …  --open_journal--> server runs?  yes: control.sock --> its writer
                                                 no:  our own writer, for as long as the command

Rule 1: whether a change can be recorded is found out before it is made. A token whose change could
        not be recorded is never shown (proxy/cli/agent.py).
Rule 2: both ways write the same event, made and checked in one place.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args

from audit.writer import EventRefused, LogBroken, LogBusy, LogMissing, LogUnavailable, Writer
from proxy.control import CommandRefused, ServerNotRunning, ask
from proxy.settings import Settings
from proxy.state import describe_software

COMMAND = "credential.changed"  # its name on the control socket
RECORD_TIMEOUT_S = 10.0  # a person waits; a disk that needs longer is broken

Action = Literal["add", "rotate", "revoke"]
_ACTIONS: tuple[Action, ...] = get_args(Action)
_FIELDS = ("agent", "action", "by", "session")


class ChangeUnrecorded(RuntimeError):  # noqa: N818  named after the failure
    """A change cannot be recorded, or was not. The text says why and what helps."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an agent's credentials. Names only: never a token or its hash."""

    agent: str
    action: Action
    by: str  # who asked: `cli:<user>`
    session: str


Journal = Callable[[Change], None]


class Stores(Protocol):
    """What is needed of audit.writer.Writer in a server."""

    async def store(self, event: Mapping[str, object]) -> object:
        """Durable when it returns."""


def describe_change(change: Change) -> Mapping[str, object]:
    """The `credential.change` event of audit.md section 1."""
    return {"kind": "credential.change", **asdict(change)}


def answer_changes(
    recorder: Stores,
) -> Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]:
    """The server's side: the command `COMMAND` of proxy/control.py, which records what it is told.

    It raises ValueError for what is no change, or when the log takes nothing.
    """

    async def record(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        change = _read_change(arguments)
        try:
            await recorder.store(describe_change(change))
        except LogUnavailable as error:
            raise ValueError(f"the change cannot be recorded: {error}") from error
        return {}

    return record


@contextmanager
def open_journal(settings: Settings) -> Iterator[Journal]:
    """A way to record changes, known to work when this begins.

    Raises:
        ChangeUnrecorded: nothing can be recorded; nothing was changed.
    """
    try:
        ask(settings.control_socket, "ping")
    except ServerNotRunning as absent:
        with take_log(settings, absent) as writer:
            yield _journal(settings, writer)
    except CommandRefused as error:
        raise ChangeUnrecorded(str(error)) from error
    else:
        yield lambda change: _tell_server(settings, change)


def _tell_server(settings: Settings, change: Change) -> None:
    try:
        ask(settings.control_socket, COMMAND, asdict(change))
    except (ServerNotRunning, CommandRefused) as error:
        raise ChangeUnrecorded(str(error)) from error


@contextmanager
def take_log(settings: Settings, absent: ServerNotRunning) -> Iterator[Writer]:
    """The log, verified and locked, for a command that has no server to ask.

    Raises:
        ChangeUnrecorded: nothing can be recorded there.
    """
    try:
        writer = Writer.open(
            settings.log_folder, software=describe_software(), heartbeat_s=settings.heartbeat_s
        )
    except LogBusy as error:
        raise ChangeUnrecorded(f"{error}, which does not answer: {absent}") from error
    except LogMissing as error:
        raise ChangeUnrecorded(f"{error}; run `tollkeeper init`, or give --state") from error
    except LogBroken as error:
        raise ChangeUnrecorded(
            f"{error}; the log does not verify, see `tollkeeper audit verify {settings.log_folder}`"
        ) from error
    except LogUnavailable as error:
        raise ChangeUnrecorded(f"{error}; nothing can be recorded there") from error
    try:
        yield writer
    finally:
        writer.close()


def _journal(settings: Settings, writer: Writer) -> Journal:
    def record(change: Change) -> None:
        try:
            writer.store_blocking(describe_change(change), RECORD_TIMEOUT_S)
        except (LogUnavailable, EventRefused) as error:
            raise ChangeUnrecorded(f"`{settings.log_folder}`: {error}") from error

    return record


def _read_change(arguments: Mapping[str, Any]) -> Change:
    values = [arguments.get(name) for name in _FIELDS]
    agent, action, by, session = values
    if len(arguments) != len(_FIELDS) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"a change has the fields {', '.join(_FIELDS)}, each a text")
    for known in _ACTIONS:
        if action == known:
            return Change(str(agent), known, str(by), str(session))
    raise ValueError(f"`{action}` is not a change of credentials")
