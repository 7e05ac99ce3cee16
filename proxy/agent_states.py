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
        self._recording: set[str] = set()  # a record is on its way
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
            self._move(agent, State.HALTED, reason)
            self._metrics.safely(lambda m: m.count_halt("operator"))
            await self._record(agent, self._describe(agent, by=by))
            await self._tell(agent)
        return before

    def judge(self, accounts: Iterable[Account], *, session: str = "", ref: str = "") -> None:
        """Move the agents whose spending has reached a threshold."""
        for account in accounts:
            found = find_threshold(account, self._now_ms())
            if found is None or found[0].state <= self.find(account.agent).state:
                continue
            threshold, unit = found
            cause = f"budget {account.base} {unit} {threshold.reached_percent}%"
            self._move(account.agent, threshold.state, cause)
            if threshold.state is State.HALTED:
                self._metrics.safely(lambda m: m.count_halt("budget"))
            event = self._describe(account.agent, session=session, ref=ref)
            self._spawn(self._try_record(account.agent, event))
            self._spawn(self._tell(account.agent))

    def record_missing(self) -> None:
        """Once more, what the log did not take: a halt must survive a restart."""
        for agent, standing in self._standings.items():
            known = self._recorded.get(agent, State.ACTIVE)
            if known < standing.state and agent not in self._recording:
                self._spawn(self._try_record(agent, self._describe(agent)))

    def _move(self, agent: str, to: State, cause: str) -> None:
        before = self.find(agent).state
        if to <= before:
            raise ContractBroken("I4: a state moves right only")
        self._standings[agent] = Standing(to, cause)
        log.warning("agent-state", agent=agent, before=before.word, state=to.word, cause=cause)
        if to is State.HALTED:
            self.cut(agent, frozenset(), "halted")
        elif to is State.QUARANTINED:
            self.cut(agent, self.keep_rules, "quarantined")

    def _describe(
        self, agent: str, *, session: str = "", ref: str = "", by: str = ""
    ) -> AuditEvent:
        """From the state that the log knows: it is behind while it cannot be written."""
        standing, known = self.find(agent), self._recorded.get(agent, State.ACTIVE)
        further = {"session": session, "ref": ref, "by": by}
        return describe_state(agent, known, standing.state, standing.cause, **further)

    async def _record(self, agent: str, event: AuditEvent) -> None:
        """Write a move down. Until that is durable, `record_missing` will try again."""
        state = self.find(agent).state
        self._recording.add(agent)
        try:
            await self._recorder.store(event)
        finally:
            self._recording.discard(agent)
        self._recorded[agent] = state
        self._metrics.safely(lambda m: m.count_record("state"))

    async def _try_record(self, agent: str, event: AuditEvent) -> None:
        try:
            await self._record(agent, event)
        except LogUnavailable as error:
            code = error.code
            self._metrics.safely(lambda m: m.failed(code))

    async def _tell(self, agent: str) -> None:
        await self._insist(lambda: self._ledger.change(PutStanding(agent, self.find(agent))))


_ACTIVE = Standing()
