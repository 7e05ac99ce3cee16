"""Where every agent stands: active, warned, quarantined, halted; moved right only, and recorded.

    settlement reaches a threshold --+
    tollkeeper halt -----------------+--> in force here --> live streams cut --> record `state`
                                                        --> ledger

Rule 1: a state is in force in this process before it is durable: halting must not wait for a disk.
        What the log did not take is written once it works again, and a start judges anew.
Rule 2: states only move right (I4); there is no way back but a new agent id.
"""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from audit.writer import LogUnavailable
from policies.budget import Account, State, find_threshold
from policies.ledger import Ledger, PutStanding, Standing
from policies.model import ContractBroken
from proxy.accounting import describe_state
from proxy.journal import store_patiently
from proxy.metrics import Metrics
from proxy.recording import AuditEvent, Recorder

log = structlog.get_logger()

# agent, rules whose streams may go on (None: none), reason; returns how many connections were cut
Cut = Callable[[str, frozenset[str], str], int]
Spawn = Callable[[Coroutine[Any, Any, None]], None]


class AgentStates:
    """Those of one process; the command line uses it too where no server runs."""

    def __init__(
        self,
        ledger: Ledger,
        standings: dict[str, Standing],
        *,
        recorder: Recorder,
        metrics: Metrics,
        now_ms: Callable[[], int],
        insist: Callable[[Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]],
        spawn: Spawn,
    ) -> None:
        self.cut: Cut = lambda _agent, _spared, _reason: 0
        self.keep_rules: frozenset[str] = frozenset()
        self._ledger = ledger
        self._standings = dict(standings)
        self._recorded = {agent: one.state for agent, one in standings.items()}
        self._recording: dict[str, list[State]] = {}  # records that are on their way
        self._further: dict[str, dict[str, str]] = {}  # what else the record of a move tells
        self._recorder = recorder
        self._metrics = metrics
        self._now_ms = now_ms
        self._insist = insist
        self._spawn = spawn

    @property
    def standings(self) -> dict[str, Standing]:
        """Every agent that is not active any more."""
        return dict(self._standings)

    def find(self, agent: str) -> Standing:
        """Where an agent stands, and why."""
        return self._standings.get(agent, _ACTIVE)

    async def halt(self, agent: str, reason: str, by: str) -> State:
        """Stop an agent for good; returns the state it was in.

        Raises:
            LogUnavailable: it is halted here and now, and recorded once the log works again.
        """
        before = self.find(agent).state
        if before is not State.HALTED:
            self._move(agent, State.HALTED, reason, by=by)
            self._metrics.safely(lambda m: m.count_halt("operator"))
            self._spawn(self._tell(agent))  # a ledger that is down must not hold us up
            await self._record(agent, State.HALTED, self._describe(agent))
        return before

    def judge(self, accounts: Iterable[Account], *, session: str = "", ref: str = "") -> None:
        """Move the agents whose spending has reached a threshold."""
        for account in accounts:
            found = find_threshold(account, self._now_ms())
            if found is None or found[0].state <= self.find(account.agent).state:
                continue
            threshold, unit = found
            cause = f"budget {account.base} {unit} {threshold.reached_percent}%"
            self._move(account.agent, threshold.state, cause, session=session, ref=ref)
            if threshold.state is State.HALTED:
                self._metrics.safely(lambda m: m.count_halt("budget"))
            self._write(account.agent)

    def record_missing(self) -> None:
        """Once more, what the log did not take: a halt must survive a restart."""
        for agent, standing in self._standings.items():
            if max(self._recorded.get(agent, State.ACTIVE), self._asked(agent)) < standing.state:
                self._write(agent)

    def _move(self, agent: str, to: State, cause: str, **further: str) -> None:
        before = self.find(agent).state
        if to <= before:
            raise ContractBroken("I4: a state moves right only")
        self._standings[agent] = Standing(to, cause)
        self._further[agent] = further
        log.warning("agent-state", agent=agent, before=before.word, state=to.word, cause=cause)
        if to is State.HALTED:
            self.cut(agent, frozenset(), "halted")
        elif to is State.QUARANTINED:
            self.cut(agent, self.keep_rules, "quarantined")

    def _describe(self, agent: str) -> AuditEvent:
        """From the state that the log knows: it is behind while it cannot be written."""
        standing, known = self.find(agent), self._recorded.get(agent, State.ACTIVE)
        further = self._further.get(agent, {})
        return describe_state(agent, known, standing.state, standing.cause, **further)

    def _write(self, agent: str) -> None:
        work = self._try_record(agent, self.find(agent).state, self._describe(agent))
        self._spawn(work)
        self._spawn(self._tell(agent))

    async def _record(self, agent: str, state: State, event: AuditEvent) -> None:
        """Write a move down. Until that is durable, `record_missing` will try again."""
        asking = self._recording.setdefault(agent, [])
        if state <= max(self._recorded.get(agent, State.ACTIVE), self._asked(agent)):
            return  # a farther one was asked for first, and the log moves right only
        asking.append(state)
        try:
            await store_patiently(self._recorder, event)
        finally:
            asking.remove(state)
        self._recorded[agent] = max(self._recorded.get(agent, State.ACTIVE), state)
        self._metrics.safely(lambda m: m.count_record("state"))

    def _asked(self, agent: str) -> State:
        """The farthest state whose record is on its way."""
        return max(self._recording.get(agent, ()), default=State.ACTIVE)

    async def _try_record(self, agent: str, state: State, event: AuditEvent) -> None:
        try:
            await self._record(agent, state, event)
        except LogUnavailable as error:
            code = error.code
            self._metrics.safely(lambda m: m.failed(code))

    async def _tell(self, agent: str) -> None:
        await self._insist(lambda: self._ledger.change(PutStanding(agent, self.find(agent))))


_ACTIVE = Standing()
