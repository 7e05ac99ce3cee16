"""Which policy is in force: loads, watches and swaps it whole or not at all (policy.md 2.11).

    file changes / SIGHUP -> compile in a thread -> archive -> record policy.load -> swap one
    reference
                                   |
                                   +-- rejected: record policy.reject, keep the last valid one, say
                                   so loudly

Rule 1: what is in force was recorded and archived first.
Rule 2: a bad candidate changes nothing, except that `on_bad_reload: deny` or an expired
        `stale_limit` denies all.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from audit.writer import LogUnavailable
from policies.compile import Compiled, compile_policy
from policies.ledger import LedgerUnavailable
from policies.model import ContractBroken, PolicyRejected
from policies.policy_set import PolicySet
from policies.sources import PolicyUnreadable
from proxy.enforcer import Generation
from proxy.journal import store_patiently
from proxy.metrics import Metrics
from proxy.recording import AuditEvent, Recorder
from proxy.settings import Settings

log = structlog.get_logger()

WATCH_S = 0.5
_FINDINGS_MAX = 50  # in one record
_START_RETRIES = 4
_START_PAUSE_S = 0.25


class PolicyKeeper:
    """Owns the generation; the enforcer reads it for every request."""

    def __init__(
        self,
        settings: Settings,
        first: Compiled,
        *,
        recorder: Recorder,
        metrics: Metrics,
        adopt: Callable[[PolicySet], Awaitable[None]],
        swapped: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._recorder = recorder
        self._metrics = metrics
        self._adopt = adopt
        self._swapped = swapped
        self._archive_folder = settings.state / "policies"
        self._compiled = first
        self._watched = frozenset(first.sources)  # every file whose change may matter
        self._seen: Mapping[str, object] = {}
        self._is_waiting = False  # a good candidate that the log or the archive did not take
        self._stale_since: float | None = None
        self._recorded: AuditEvent | None = None  # the last `policy.load`
        self._lock = asyncio.Lock()
        self.problem = ""  # of the last reload; "" when it was fine
        self.generation = Generation(first.policy_set, 0)

    async def start(self) -> None:
        """Bring the first policy into force: archived and recorded.

        Raises:
            LogUnavailable, LedgerUnavailable: nothing is in force.
        """
        self._seen = self._look()
        for _ in range(_START_RETRIES):  # its deadline is a request's; a busy machine misses it
            try:
                return await self._apply(self._compiled)
            except LedgerUnavailable as error:
                log.warning("ledger-late", error=str(error))
                await asyncio.sleep(_START_PAUSE_S)
        return await self._apply(self._compiled)

    async def reload(self) -> str:
        """Read the files again. Returns `applied`, `unchanged` or `rejected`."""
        async with self._lock:
            self._seen = self._look()
            self._is_waiting = False
            try:
                compiled = await asyncio.to_thread(compile_policy, self._settings.policies)
            except Exception as error:  # noqa: BLE001  whatever it is, nothing changes
                self._reject(error)
                return "rejected"
            self._watched = frozenset(compiled.sources)
            if compiled.policy_set.digest == self._compiled.policy_set.digest:
                self._compiled = compiled  # the same rules may stand in other files now
                self.generation.refusal = ""
                result = "unchanged"
            else:
                try:
                    await self._apply(compiled)
                except (ContractBroken, LogUnavailable, LedgerUnavailable, OSError) as error:
                    self.problem = f"the new policy could not be brought into force: {error}"
                    self._is_waiting = True
                    self._stay_stale()
                    return "rejected"
                result = "applied"
            self.problem = ""
            self._stale_since = None
            self._metrics.safely(lambda m: m.show_stale(False))
            self._metrics.safely(lambda m: m.count_reload(result))
            return result

    async def watch(self) -> None:
        """Reload whenever a policy file changes, through includes and symlink swaps; for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                waits = self._is_waiting and self._recorder.failure is None
                if waits or self._look() != self._seen:
                    await asyncio.sleep(WATCH_S / 5)  # let an editor finish
                    result = await self.reload()
                    log.info("policy-reload", result=result, problem=self.problem or None)
                self._expire()
            except Exception as error:
                self._metrics.safely(lambda m: m.count_fault("policy-watch"))
                log.error("fault", where="policy-watch", exc_info=error)

    def _expire(self) -> None:
        limit_ms = self.generation.policy_set.defaults.stale_limit_ms
        if self._stale_since is None or limit_ms is None or self.generation.refusal:
            return
        if (time.monotonic() - self._stale_since) * 1000 > limit_ms:
            self.generation.refusal = "policy-stale"
            log.critical("policy-stale", remedy="fix the policy file; everything is denied")

    def _stay_stale(self) -> None:
        if self._stale_since is None:
            self._stale_since = time.monotonic()
        if self.generation.policy_set.defaults.on_bad_reload == "deny":
            self.generation.refusal = "policy-stale"
        self._metrics.safely(lambda m: m.show_stale(True))
        self._metrics.safely(lambda m: m.count_reload("rejected"))

    def _reject(self, error: Exception) -> None:
        lines = _describe(error)
        self.problem = lines[0] if lines else str(error)
        self._watched = frozenset(self._compiled.sources) | _list_sources(error)
        self._stay_stale()
        log.error("policy-rejected", findings=len(lines), first=self.problem)
        try:
            self._recorder.submit({"kind": "policy.reject", "findings": lines[:_FINDINGS_MAX]})
        except LogUnavailable as failure:
            code = failure.code
            self._metrics.safely(lambda m: m.failed(code))

    async def _apply(self, compiled: Compiled) -> None:
        policy_set = compiled.policy_set
        wants_observe = policy_set.defaults.mode == "observe"
        observe = wants_observe and self._settings.observe
        if wants_observe is not self._settings.observe:
            log.warning(
                "observe-needs-both",
                key=wants_observe,
                flag=self._settings.observe,
                effect="the policy is enforced",
            )
        await asyncio.to_thread(_archive, self._archive_folder, compiled)
        serial = self.generation.serial + 1
        mode = "observe" if observe else "enforce"
        event = {
            "kind": "policy.load",
            "digest": policy_set.digest,
            "serial": serial,
            "mode": mode,
        }
        if event != self._recorded:  # else only its limits wait, and it is tried twice a second
            await self._record(event)
        await self._adopt(policy_set)  # limits that it lowers hold before its rules do
        self._compiled = compiled
        # one reference assignment each; exchanges took what they need at their start
        self.generation.policy_set = policy_set
        self.generation.serial = serial
        self.generation.observe = observe
        self.generation.refusal = ""
        self._metrics.safely(
            lambda m: m.show_policy(
                policy_set.digest,
                serial,
                agents=policy_set.agents,
                rules=[rule.id for rule in policy_set.rules],
            )
        )
        log.info("policy-load", digest=policy_set.digest, serial=serial, mode=mode)
        if observe:
            log.warning(
                "observe", effect="what no rule allows is forwarded and recorded as would: deny"
            )
        self._swapped()

    async def _record(self, event: AuditEvent) -> None:
        self._recorded = None
        await store_patiently(self._recorder, event)
        self._recorded = event

    def _look(self) -> Mapping[str, object]:
        """What tells a changed file: identity, size and time of every file the policy was read
        from."""
        seen: dict[str, object] = {}
        for name in {str(self._settings.policies), *self._watched}:
            try:
                status = Path(name).stat()
                seen[name] = (status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns)
            except OSError:
                seen[name] = None
        return seen


def _archive(folder: Path, compiled: Compiled) -> None:
    """Keep the applied policy under its digest; written once, durable before it is in force."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{compiled.policy_set.digest}.yaml"
    if path.exists():
        return
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(compiled.archive)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    handle = os.open(folder, os.O_RDONLY)  # the name is durable once its folder is
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _list_sources(error: Exception) -> frozenset[str]:
    """The files of a candidate that was rejected: mending any of them must be noticed."""
    match error:
        case PolicyRejected():
            return frozenset(error.sources)
        case PolicyUnreadable():
            return frozenset({error.file})
    return frozenset()


def _describe(error: Exception) -> list[str]:
    match error:
        case PolicyRejected():
            return [
                f"{f.file}:{f.line}:{f.column}: {f.severity}[{f.code}]: {f.message}"
                for f in error.findings
            ]
        case PolicyUnreadable():
            return [str(error)]
    return [f"a fault of the policy compiler: {type(error).__name__}"]
