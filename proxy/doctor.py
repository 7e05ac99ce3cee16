"""Everything the proxy stands on, looked at without starting it: one `Check` per thing.

    Settings --examine--> ok | warn | fail, what was found, what to do

Rule 1: nothing is changed. The disk is measured with a file of our own, which is removed.
Rule 2: a check that breaks is a failed check, never the end of the others.
Rule 3: `fail` is what keeps `serve` from starting or an agent from being served; `warn` is what an
        operator should know.
"""

import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Literal

from audit.reader import read_tail
from audit.verify import TAMPERED, UNCHECKED, verify
from policies.compile import compile_policy
from policies.model import PolicyRejected
from policies.sources import PolicyUnreadable
from proxy.control import CommandRefused, ServerNotRunning, ask
from proxy.credentials import CredentialStore
from proxy.fold import FoldBroken, fold_log
from proxy.settings import DESCRIPTORS_SPARE, Endpoint, Settings
from proxy.state import check_state, is_blank

Level = Literal["ok", "warn", "fail"]

PYTHONS = ((3, 12), (3, 13))  # what we are tested on
CLOCK_FLOOR = datetime(2026, 1, 1, tzinfo=UTC)  # no clock that is right shows less
CA_WARN = timedelta(days=60)  # agents' images are rebuilt that often
TOKEN_WARN = timedelta(days=7)  # time to rotate without haste
FLUSHES = 24
FLUSH_BYTES = 700  # a usual record
FLUSH_SLOW_S = 0.02  # a usual disk takes 0.2 to 5 ms
FLUSH_UNREAL_S = 0.000_02  # faster than any device: memory


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine(settings: Settings, now: datetime) -> Iterator[Check]:
    """Look at everything, one after the other. Never raises for what it finds."""
    for name, look in _CHECKS.items():
        try:
            level, found, remedy = look(settings, now)
        except Exception as error:  # noqa: BLE001  rule 2
            level, found = "fail", f"could not be checked: {type(error).__name__}: {error}"
            remedy = "report it, with this line"
        yield Check(name, level, found, remedy)


_Found = tuple[Level, str, str]


def _look_at_interpreter(_settings: Settings, _now: datetime) -> _Found:
    found = f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"
    if sys.version_info[:2] not in PYTHONS or sys.implementation.name != "cpython":
        return "fail", found, "run it with CPython 3.12 or 3.13; `make setup` finds one"
    return "ok", found, ""


def _look_at_versions(_settings: Settings, _now: datetime) -> _Found:
    from proxy.mitm.gates import GateClosed, check_gates  # mitmproxy: 300 ms

    try:
        passed = check_gates()
    except GateClosed as error:
        return "fail", str(error), "install from requirements.lock: `make setup`"
    found = ", ".join(f"{name} {version}" for name, version in passed.versions.items())
    if passed.notes:
        return "warn", "; ".join(passed.notes), "install from requirements.lock: `make setup`"
    return "ok", found, ""


def _look_at_state(settings: Settings, _now: datetime) -> _Found:
    if is_blank(settings.state):
        return "warn", f"{settings.state} is empty", "`tollkeeper init` fills it, and so does serve"
    problems = check_state(settings.state, group=settings.state_group)
    if problems:
        return (
            "fail",
            "; ".join(f"{one.place} {one.cause}" for one in problems),
            "; ".join(one.remedy for one in problems),
        )
    return "ok", f"{settings.state}: only its owner can write there", ""


def _look_at_ca(settings: Settings, now: datetime) -> _Found:
    from proxy.mitm.ca import CaUnusable, LeafMint

    if is_blank(settings.state):
        return "warn", "not made yet", "`tollkeeper init`"
    try:
        certificate = LeafMint.load(settings.ca_folder).certificate
    except CaUnusable as error:
        return "fail", str(error), "restore it from a backup, or remove both files and init again"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    found = f"{settings.ca_folder / 'ca.pem'}, good until {end:%Y-%m-%d}"
    if not begin <= now < end:
        return "fail", f"{found}, not now", "set the clock, or make a new CA for all agents"
    if end - now < CA_WARN:
        return "warn", found, "make a new CA, and give every agent its certificate before that day"
    return "ok", found, ""


def _look_at_credentials(settings: Settings, now: datetime) -> _Found:
    store = CredentialStore(settings.credentials_file)
    if store.problem:
        return "fail", store.problem, "restore it from a backup, or issue every token again"
    stored = store.list()
    valid = [one for one in stored if one.stand(now) == "valid"]
    found = f"{_count(stored, 'token')} issued, {len(valid)} of them good"
    soon = sorted(
        {one.agent for one in valid if one.expires is not None and one.expires - now < TOKEN_WARN}
    )
    if soon:
        return (
            "warn",
            f"{found}; some of {', '.join(soon)} end within {TOKEN_WARN.days} days",
            "`tollkeeper agent rotate NAME`",
        )
    return "ok", found, ""


def _look_at_clock(settings: Settings, now: datetime) -> _Found:
    found = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < CLOCK_FLOOR:
        return "fail", found, "set the clock: certificates and expiries hang on it"
    lines = [] if is_blank(settings.state) else _read_last(settings.log_folder)
    for last in lines:
        if last > now:
            behind = (last - now).total_seconds()
            return (
                "warn",
                f"{found}, {behind:.0f} s behind the last record",
                "set the clock; until then records repeat the last record's time",
            )
    return "ok", found, ""


def _read_last(log: Path) -> list[datetime]:
    try:
        return [datetime.fromisoformat(line.record.ts) for line in read_tail(log, 1)[0]]
    except (OSError, ValueError, RuntimeError):
        return []  # the log's own check says what is wrong with it


def _look_at_disk(settings: Settings, _now: datetime) -> _Found:
    folder = settings.state.absolute()
    while not folder.is_dir():
        folder = folder.parent
    times = _measure_flushes(folder)
    typical, worst = median(times), max(times)
    found = f"{typical * 1000:.2f} ms a flush, {worst * 1000:.2f} ms the slowest, at {folder}"
    if typical < FLUSH_UNREAL_S:
        return (
            "warn",
            f"{found}: that is memory",
            "put --state on a disk",
        )
    if worst >= settings.audit_deadline_s:
        return "fail", found, "use a faster disk: every request waits for one flush"
    if typical > FLUSH_SLOW_S:
        return "warn", found, "use a faster disk: every request waits for one flush"
    return "ok", found, ""


def _measure_flushes(folder: Path) -> list[float]:
    """Seconds for each write + fdatasync of one record, in a file that is gone afterwards."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FLUSHES):
            began = time.perf_counter()
            os.write(file.fileno(), b"x" * FLUSH_BYTES)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return times


def _look_at_descriptors(settings: Settings, _now: datetime) -> _Found:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # `serve` raises the soft one itself
    needed = 2 * settings.connections_max + DESCRIPTORS_SPARE
    found = f"{limit} may be open, {settings.connections_max} connections need {needed}"
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return "ok", found, ""
    return "warn", found, f"`ulimit -Hn {needed}`, or a smaller --max-connections"


def _look_at_port(flag: str, endpoint: Endpoint, settings: Settings) -> _Found:
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((endpoint.host, endpoint.port))
    except OSError as error:
        try:
            pid = ask(settings.control_socket, "ping", timeout_s=2)["pid"]
        except (ServerNotRunning, CommandRefused, KeyError):
            cause = (error.strerror or str(error)).lower()
            return "fail", f"{endpoint}: {cause}", f"stop what has it, or choose another {flag}"
        return "ok", f"{endpoint}: taken, and our server (pid {pid}) is running", ""
    return "ok", f"{endpoint}: free", ""


def _look_at_policy(settings: Settings, _now: datetime) -> _Found:
    try:
        compiled = compile_policy(settings.policies)
    except PolicyUnreadable as error:
        return "fail", str(error), "run `tollkeeper init`, or give --policies"
    except PolicyRejected as error:
        errors = [one for one in error.findings if one.severity == "error"]
        return (
            "fail",
            f"{settings.policies}: {_count(errors, 'error')}",
            f"`tollkeeper policy check {settings.policies}` lists them",
        )
    policy_set = compiled.policy_set
    rules, agents = _count(policy_set.rules, "rule"), _count(policy_set.agents, "agent")
    found = f"{settings.policies}: {rules}, {agents}"
    warnings = [one for one in compiled.findings if one.severity == "warning"]
    if warnings:
        return (
            "warn",
            f"{found}, {_count(warnings, 'warning')}",
            f"`tollkeeper policy check {settings.policies}` lists them",
        )
    return "ok", found, ""


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'s'[: len(things) != 1]}"


def _look_at_log(settings: Settings, _now: datetime) -> _Found:
    if is_blank(settings.state):
        return "warn", "not made yet", "`tollkeeper init`"
    report = verify(settings.log_folder, allow_open=True)
    place = f":{report.line}" if report.line else ""
    if report.exit_code in (TAMPERED, UNCHECKED):
        return (
            "fail",
            f"{report.path}{place}: {report.problem}",
            f"keep a copy; `tollkeeper audit verify {settings.log_folder}` says more",
        )
    found = f"{report.records} records hold, the last of {report.last_ts}"
    if report.exit_code:
        return "warn", f"{found}; {report.problem}", "the next start of the server records it"
    return "ok", found, ""


def _look_at_ledger(settings: Settings, _now: datetime) -> _Found:
    """A running server says how its ledger is; without one, what the next would begin with."""
    if is_blank(settings.state):
        return "warn", "not made yet", "`tollkeeper init`"
    try:
        book = fold_log(settings.log_folder).book(live=False)
    except FoldBroken as error:
        return "fail", str(error), "budgets cannot be told from this log; keep a copy and report it"
    found = f"{_count(book.accounts, 'account')}, {_count(book.standings, 'agent')} not active"
    try:
        problem = ask(settings.control_socket, "status")["checks"].get("ledger", "")
    except (ServerNotRunning, CommandRefused):
        return "ok", f"{found}, by the log; the file is made anew from it at the next start", ""
    if problem:
        return "fail", problem, "everything is denied until it answers; a restart makes it anew"
    return "ok", f"{found}; the server's ledger answers", ""


def _port_check(flag: Literal["listen", "admin"]) -> Callable[[Settings, datetime], _Found]:
    return lambda settings, _now: _look_at_port(
        f"--{flag}", settings.listen if flag == "listen" else settings.admin, settings
    )


_CHECKS: dict[str, Callable[[Settings, datetime], _Found]] = {
    "interpreter": _look_at_interpreter,
    "versions": _look_at_versions,
    "state": _look_at_state,
    "ca": _look_at_ca,
    "credentials": _look_at_credentials,
    "clock": _look_at_clock,
    "disk": _look_at_disk,
    "descriptors": _look_at_descriptors,
    "port": _port_check("listen"),
    "admin-port": _port_check("admin"),
    "policy": _look_at_policy,
    "log": _look_at_log,
    "ledger": _look_at_ledger,
}
