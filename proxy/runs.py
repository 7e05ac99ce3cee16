"""What is under way: book-keeping of open exchanges that is not part of their life.

Counting and the one line per exchange stand here too: they tell what happened, they never decide.
"""

import time
from dataclasses import dataclass

import structlog

from proxy.denial import Denial
from proxy.exchange import Exchange
from proxy.metrics import Metrics

log = structlog.get_logger()


@dataclass(slots=True)
class Run:
    """One open exchange."""

    client: str
    started: float
    serial: int
    upstream_started: float = 0.0
    resolving: bool = False
    asked: bool = False  # the decision's record was handed over: it is, or may become, durable
    denial: Denial | None = None


class Runs:
    """All open exchanges by id."""

    def __init__(self, metrics: Metrics, *, quiet: bool) -> None:
        self._metrics = metrics
        self._quiet = quiet  # the self-test's exchanges are not news
        self._open: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, exchange: Exchange, client: str, serial: int) -> None:
        """An exchange begins."""
        self._open[exchange.id] = Run(client, time.monotonic(), serial)

    def find(self, exchange: Exchange) -> Run | None:
        """Its run; None: it ended."""
        return self._open.get(exchange.id)

    def of(self, exchange: Exchange) -> Run:
        """Its run.

        Raises:
            KeyError: it ended.
        """
        return self._open[exchange.id]

    def drop(self, exchange: Exchange) -> None:
        """Forget it without a word."""
        self._open.pop(exchange.id, None)

    def elapsed_ms(self, exchange: Exchange) -> int:
        """Since its head."""
        run = self.find(exchange)
        return 0 if run is None else int((time.monotonic() - run.started) * 1000)

    def count(self, exchange: Exchange, verdict: str, reason: str) -> None:
        """One decision."""
        agent = exchange.principal.agent if exchange.principal else ""
        rules = exchange.decision.rules if exchange.decision else ()
        self._metrics.safely(lambda m: m.count_request(agent, verdict, reason))
        self._metrics.safely(lambda m: m.count_rules(rules))

    def finish(self, exchange: Exchange, status: int | None, verdict: str, reason: str) -> None:
        """It is over: its durations and its line. A second call does nothing."""
        run = self._open.pop(exchange.id, None)
        if run is None:
            return
        seconds = time.monotonic() - run.started
        agent = exchange.principal.agent if exchange.principal else ""
        self._metrics.safely(lambda m: m.observe_request(agent, verdict, seconds))
        if run.upstream_started:
            upstream_s = time.monotonic() - run.upstream_started
            self._metrics.safely(lambda m: m.observe_upstream(upstream_s))
        if self._quiet:
            return
        log.info(
            "exchange",
            decision=exchange.id,
            agent=agent or None,
            verdict=verdict,
            reason=reason,
            method=exchange.target.method,
            host=exchange.target.host,
            port=exchange.target.port,
            stage=exchange.stage.value,
            status=status,
            ms=int(seconds * 1000),
            bytes_out=exchange.bytes_out,
            bytes_in=exchange.bytes_in,
        )
