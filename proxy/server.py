"""The composition root: builds each part once, starts, reloads, drains, stops.

    state -> gates -> policy -> log -> CA -> self-test -> port -> ... -> drain -> log.close

Rule 1: the port opens last. Whatever is wrong before leaves it closed, says where and why,
        and exits non-zero.
Rule 2: the log closes last. What was answered is recorded before `log.close`.
"""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

import structlog

from audit.denials import DenialBudget
from audit.verify import verify
from audit.writer import LogUnavailable, Writer, wall_clock
from policies.budget import State
from policies.compile import compile_policy
from policies.engine import screen
from policies.model import Address, ContractBroken, PolicyRejected, Verdict
from policies.sources import PolicyUnreadable
from proxy.admin.api import Status, build, ensure_token, open_listener, serve_admin
from proxy.books import Books
from proxy.changes import COMMAND, answer_changes
from proxy.control import Arguments, ControlServer
from proxy.credentials import CredentialStore
from proxy.destination import Resolver, is_own
from proxy.enforcer import Enforcer
from proxy.generation import PolicyKeeper
from proxy.metrics import Metrics
from proxy.oversight import Oversight
from proxy.settings import DESCRIPTORS_SPARE, Endpoint, Settings
from proxy.state import check_state, describe_software, is_blank
from proxy.vocabulary import Stage

log = structlog.get_logger()

if TYPE_CHECKING:
    from proxy.mitm.handler import Handler

Command = Callable[[Arguments], Awaitable[Mapping[str, object]]]

_DROPPED_S = 1.0
_TICK_S = 0.1
_TICKS_PER_S = 10


class House:
    """One running proxy: every part, built once."""

    def __init__(self, settings: Settings) -> None:
        # imported here: `tollkeeper --help` does not need 300 ms of mitmproxy
        from proxy.mitm.ca import LeafMint
        from proxy.mitm.gates import check_gates
        from proxy.mitm.master import Master
        from proxy.mitm.options import freeze_options
        from proxy.mitm.tls import Originator, Terminator

        os.environ.pop("SSLKEYLOGFILE", None)  # session keys are nobody's (threats.md J10)
        os.environ.pop("MITMPROXY_SSLKEYLOGFILE", None)
        self.settings = settings
        self.passed = check_gates()
        compiled = compile_policy(settings.policies)
        self.metrics = Metrics(describe_software().partition("/")[2])
        mint = LeafMint.load(settings.state / "ca")
        self.terminator = Terminator(mint, http2=self.passed.http2)
        self.originator = Originator(settings.upstream_ca_files)
        self.options = freeze_options(
            idle_timeout_s=int(settings.idle_timeout_s), http2=self.passed.http2
        )
        self.credentials = CredentialStore(settings.state / "credentials.json")
        self.admin_token = (
            None if settings.admin.is_loopback else ensure_token(settings.state / "admin.token")
        )
        self.admin = open_listener(settings.admin)
        try:  # last of what can refuse: it takes the lock
            self.writer, self.books = _open_books(settings, self.metrics)
        except BaseException:
            self.admin.close()
            raise
        self.bookkeeper, recorder = self.books.bookkeeper, self.books.recorder
        self.bookkeeper.states.cut = self._cut_agent
        self.denials = DenialBudget()
        self.keeper = PolicyKeeper(
            settings,
            compiled,
            recorder=recorder,
            metrics=self.metrics,
            adopt=self.bookkeeper.adopt,
            swapped=self._tighten,
        )
        self.enforcer = Enforcer(
            settings,
            self.keeper.generation,
            recorder=recorder,
            bookkeeper=self.bookkeeper,
            resolver=Resolver(settings.resolve, dns=settings.dns, timeout_s=settings.dns_timeout_s),
            credentials=self.credentials,
            metrics=self.metrics,
            denials=self.denials,
        )
        self.master = Master(
            self.enforcer,
            self.terminator,
            self.originator,
            self.options,
            http2=self.passed.http2,
        )
        self.enforcer.owns = self.owns
        self.metrics.watch(
            connections_open=lambda: self.master.connections_open,
            audit_queue_depth=lambda: self.writer.queue_depth,
            audit_size_records=lambda: self.writer.size,
        )
        self.listening: Endpoint | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Endpoint:
        """Bring the policy into force, prove the gate on loopback, open the port.

        Raises:
            LogUnavailable, SelfTestFailed, OptionsTampered, OSError: the port stays closed.
        """
        from proxy.mitm.selftest import prove_gate

        # a run may have ended before it wrote down what its spending had reached
        self.bookkeeper.states.judge(self.books.folded.accounts.values())
        await self.keeper.start()
        await prove_gate(self.settings, self.terminator, self.options, http2=self.passed.http2)
        for note in self.passed.notes:
            log.warning("gate", note=note)
            await self.writer.store({"kind": "alert", "cause": "http2-off", "detail": note})
        listen = self.settings.listen
        self.listening = _endpoint(await self.master.listen((listen.host, listen.port)))
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self.keeper.watch()),
            loop.create_task(self._report_dropped()),
            loop.create_task(self._keep_time()),
        ]
        return self.listening

    async def stop(self) -> None:
        """Drain, then close the log."""
        self.enforcer.draining = True
        await self.master.drain(self.settings.drain_timeout_s)
        for task in self._tasks:
            task.cancel()
        self._submit_dropped()
        await self.books.close()
        await asyncio.to_thread(self.writer.close)

    def owns(self, address: Address, port: int) -> bool:
        """Whether this is a port of ours: no agent reaches the proxy or the admin through us."""
        ports = [_endpoint(self.admin.getsockname())]
        return is_own(address, port, [*ports, self.listening] if self.listening else ports)

    async def abort(self) -> None:
        """Give the log back where the start failed."""
        self.admin.close()
        await self.master.drain(0.0)
        await self.books.close()
        await asyncio.to_thread(self.writer.close)

    def hurry(self) -> None:
        """Do not wait for what is still under way."""
        self.master.cut(lambda _handler: True, "draining")

    def status(self) -> Status:
        """For /readyz: is there any reason why a request that the policy allows would be denied?"""
        generation = self.keeper.generation
        checks = {
            "log": self.writer.failure or "",
            "ledger": self.bookkeeper.problem,
            "policy": self.keeper.problem if generation.refusal else "",
            "sealed": self.master.sealed,
            "draining": "draining" if self.enforcer.draining else "",
            "listening": "" if self.listening else "not listening yet",
        }
        details = {
            "policy_digest": generation.policy_set.digest,
            "policy_serial": str(generation.serial),
            "policy_problem": self.keeper.problem,
            "mode": "observe" if generation.observe else "enforce",
            "connections": str(self.master.connections_open),
            "exchanges": str(self.enforcer.open_exchanges),
            "records": str(self.writer.size),
        }
        return Status(checks, details)

    async def reload(self) -> str:
        """What SIGHUP and the control socket ask for."""
        return await self.keeper.reload()

    def _tighten(self) -> None:
        """Cut what the new policy would no longer let out (policy.md 2.11), and what it meters
        and did not meter when it began."""
        policy_set = self.keeper.generation.policy_set
        self._cut_unmetered()
        if not policy_set.defaults.cut_on_tighten:
            return
        now = wall_clock()

        def is_denied(handler: "Handler") -> bool:
            for exchange in handler.session.exchanges.values():
                principal, target = exchange.principal, exchange.target
                if principal is None or exchange.stage is not Stage.REQUEST:
                    continue
                is_quarantined = self.bookkeeper.state(principal.agent) is State.QUARANTINED
                verdict = screen(
                    principal,
                    policy_set,
                    host=target.host,
                    port=target.port,
                    scheme=exchange.request.scheme if exchange.request else None,
                    now=now,
                    keep_rules=policy_set.keep_rules if is_quarantined else None,
                )
                observes = self.keeper.generation.observe and not is_quarantined
                if verdict.verdict is Verdict.DENY and not observes:
                    return True
            return False

        cut = self.master.cut(is_denied, "policy-changed")
        if cut:
            log.info("tightened", connections_cut=cut)

    def _cut_unmetered(self) -> None:
        """End streams that hold nothing of a byte budget which has come to apply to them."""
        limited = self.bookkeeper.map_limited()  # once: there may be many streams and accounts

        def is_unmetered(handler: "Handler") -> bool:
            for exchange in handler.session.exchanges.values():
                who = exchange.principal
                if who is not None and exchange.stage is Stage.REQUEST:
                    metered = exchange.allowance.granted.keys()
                    for session in {"", who.session}:
                        if not limited.get((who.agent, session), frozenset()) <= metered:
                            return True
            return False

        self.master.cut(is_unmetered, "policy-changed")

    def _cut_agent(self, agent: str, spared: frozenset[str], reason: str) -> int:
        """Cut the connections on which an agent has anything under way that no spared rule
        allows."""

        def is_hit(handler: "Handler") -> bool:
            return any(
                exchange.principal is not None
                and exchange.principal.agent == agent
                and not (exchange.decision and spared.intersection(exchange.decision.rules))
                for exchange in handler.session.exchanges.values()
            )

        return self.master.cut(is_hit, reason)

    async def _keep_time(self) -> None:
        """What no request brings along: deadlines of wall_time, states the log did not take."""
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            ticks += 1
            try:
                over = self.bookkeeper.find_overdue()
                if over:
                    self.master.cut(
                        lambda handler, over=over: not over.isdisjoint(handler.session.exchanges),  # type: ignore[misc]
                        "budget-exhausted",
                    )
                if ticks % _TICKS_PER_S == 0:
                    self.bookkeeper.states.record_missing()
                    await self.bookkeeper.recover()
                    await self.bookkeeper.judge_wall_time()
                    await self.books.check(idle=self._is_idle)
            except ContractBroken as error:
                self.enforcer.count_fault("books", error)
                self.bookkeeper.seal(str(error))
            except Exception as error:  # noqa: BLE001  the next tick tries again
                self.enforcer.count_fault("keep-time", error)

    def _is_idle(self) -> bool:
        return not self.enforcer.open_exchanges and self.bookkeeper.is_idle

    async def _report_dropped(self) -> None:
        while True:
            await asyncio.sleep(_DROPPED_S)
            self._submit_dropped()

    def _submit_dropped(self) -> None:
        for event in self.denials.drain():
            with contextlib.suppress(LogUnavailable):
                self.writer.submit(event)


def _open_books(settings: Settings, metrics: Metrics) -> tuple[Writer, Books]:
    """The log, and what it comes to."""
    writer = Writer.open(
        settings.state / "log",
        software=describe_software(),
        heartbeat_s=settings.heartbeat_s,
        observer=metrics,
    )
    try:
        return writer, Books(settings, recorder=writer, metrics=metrics)
    except BaseException:
        writer.close()
        raise


async def serve(settings: Settings, *, announce: Callable[[str], None]) -> int:
    """Run until SIGTERM or SIGINT, then drain. Returns the exit code.

    `announce` gets the lines for the person who started it. SIGHUP reloads the policy; a second
    SIGTERM or SIGINT ends at once, with the log still closed in order.

    Raises:
        PolicyRejected, PolicyUnreadable, CaUnusable, GateClosed, SelfTestFailed, OptionsTampered,
        LogMissing, LogBusy, LogBroken, LogUnavailable, OSError: the port was never opened.
    """
    signals = Signals()  # first: a stop that comes while we start is a stop, too
    raise_descriptor_limit(2 * settings.connections_max + DESCRIPTORS_SPARE)
    house = House(settings)
    try:
        listening = await house.start()
    except BaseException:
        await house.abort()
        raise
    control = ControlServer(settings.state / "control.sock", list_commands(house))
    admin: asyncio.Task[None] | None = None
    try:
        await control.start()
        admin = asyncio.get_running_loop().create_task(_serve_admin(house))
        announce(f"admin on http://{_endpoint(house.admin.getsockname())}")
        announce(f"listening on {listening}")
        await signals.wait(house)
    finally:
        announce("draining")
        signals.hurry(house)
        await house.stop()
        await control.close()
        if admin is not None:
            admin.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await admin
    return 0


async def _serve_admin(house: House) -> None:
    app = build(
        house.status, house.metrics, token=house.admin_token, refresh=house.bookkeeper.refresh
    )
    await serve_admin(app, house.admin)


def _endpoint(bound: tuple[str, int]) -> Endpoint:
    return Endpoint(ip_address(bound[0].partition("%")[0]), bound[1])


def list_commands(house: House) -> dict[str, Command]:
    """What a running server does for the command line (proxy/control.py)."""

    async def reload(_arguments: Arguments) -> Mapping[str, object]:
        return {"result": await house.reload(), "problem": house.keeper.problem}

    async def status(_arguments: Arguments) -> Mapping[str, object]:
        current = house.status()
        return {"checks": dict(current.checks), "details": dict(current.details)}

    oversight = Oversight(
        house.bookkeeper, house.credentials, lambda: house.keeper.generation.policy_set.agents
    )
    return {
        "reload": reload,
        "status": status,
        COMMAND: answer_changes(house.writer),
        **oversight.commands,
    }


def raise_descriptor_limit(needed: int) -> None:
    """Ask for as many descriptors as `--max-connections` needs; most systems' soft limit is lower.

    Where the hard limit is lower too, master.py caps the connections and `doctor` says so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Signals:
    """SIGTERM and SIGINT stop, SIGHUP reloads; caught from the moment this is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._house: House | None = None  # while it can reload
        self._reload_asked = False
        self._reloads: set[asyncio.Task[str]] = set()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)

    async def wait(self, house: House) -> None:
        """Until the first stop; reloads meanwhile."""
        self._house = house
        if self._reload_asked:
            self._reload()
        await self._stop.wait()
        self._house = None

    def hurry(self, house: House) -> None:
        """From now on another stop cuts what is still under way."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, house.hurry)

    def _reload(self) -> None:
        """Its default would end us: before and after, a hangup is only noted."""
        if self._house is None:
            self._reload_asked = True
            return
        task = self._loop.create_task(self._house.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def check(settings: Settings) -> list[str]:
    """Everything `serve` looks at before it opens a port. Returns the problems, none if it would.

    Nothing is written: the log is verified, not opened.
    """
    from proxy.mitm.ca import CaUnusable, LeafMint
    from proxy.mitm.gates import GateClosed, check_gates
    from proxy.mitm.tls import Originator, UpstreamCaUnusable

    problems: list[str] = []
    try:
        check_gates()
    except GateClosed as error:
        problems.append(str(error))
    try:
        compile_policy(settings.policies)
    except PolicyRejected as error:
        problems += [
            f"{f.file}:{f.line}:{f.column}: {f.severity}[{f.code}]: {f.message}"
            for f in error.findings
        ]
    except PolicyUnreadable as error:
        problems.append(str(error))
    if not is_blank(settings.state):
        found = check_state(settings.state, group=settings.state_group)
        problems += [str(problem) for problem in found]
        folder = settings.state / "log"
        report = verify(folder, allow_open=True)
        if report.exit_code not in (0, 3):
            problems.append(f"{folder}: {report.problem}; `tollkeeper audit verify` says more")
        try:
            LeafMint.load(settings.state / "ca")
        except CaUnusable as error:
            problems.append(str(error))
    try:
        Originator(settings.upstream_ca_files)
    except UpstreamCaUnusable as error:
        problems.append(str(error))
    return problems
