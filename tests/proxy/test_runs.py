"""What is under way is found, counted once, and forgotten when it is over."""

from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs

from policies.model import Decision, Principal, Verdict
from proxy.exchange import Exchange
from proxy.metrics import Metrics
from proxy.runs import Runs
from proxy.vocabulary import Stage, Target
from tests.kit.enforcement import compiled

POLICY = compiled()


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def begin(*, quiet: bool = False) -> tuple[Runs, Exchange, Metrics]:
    metrics = Metrics()
    metrics.show_policy(POLICY.digest, 1, agents=["local"], rules=["read"])
    runs = Runs(metrics, quiet=quiet)
    exchange = Exchange("0" * 32, Stage.REQUEST, POLICY)
    exchange.target = Target("GET", "api.test", 443)
    exchange.principal = Principal("local", "", "127.0.0.1")
    exchange.decision = Decision(Verdict.ALLOW, "allowed", ("read",))
    runs.open(exchange, "127.0.0.1", 7)
    return runs, exchange, metrics


def test_an_open_exchange_is_found_until_it_is_over() -> None:
    runs, exchange, _ = begin(quiet=True)
    assert len(runs) == 1
    assert runs.of(exchange) is runs.find(exchange)
    assert (runs.of(exchange).client, runs.of(exchange).serial) == ("127.0.0.1", 7)
    assert runs.elapsed_ms(exchange) >= 0
    runs.finish(exchange, 200, "allow", "allowed")
    assert len(runs) == 0
    assert runs.find(exchange) is None
    assert runs.elapsed_ms(exchange) == 0
    with pytest.raises(KeyError):
        runs.of(exchange)


def test_the_end_is_one_line_and_a_second_end_is_none() -> None:
    runs, exchange, _ = begin()
    with capture_logs() as lines:
        runs.finish(exchange, 204, "allow", "allowed")
        runs.finish(exchange, 403, "deny", "internal-error")
    (line,) = lines
    assert line["event"] == "exchange"
    assert (line["agent"], line["verdict"], line["status"]) == ("local", "allow", 204)
    assert (line["host"], line["port"], line["bytes_out"]) == ("api.test", 443, 0)


def test_a_quiet_run_is_no_news_and_counted_all_the_same() -> None:
    runs, exchange, metrics = begin(quiet=True)
    runs.of(exchange).upstream_started = 1.0
    with capture_logs() as lines:
        runs.finish(exchange, 200, "allow", "allowed")
    assert lines == []
    assert b"upstream" in metrics.exposition()


def test_what_is_dropped_leaves_no_line() -> None:
    runs, exchange, _ = begin()
    with capture_logs() as lines:
        runs.drop(exchange)
        runs.drop(exchange)
    assert (len(runs), lines) == (0, [])


def test_a_decision_is_counted_with_its_agent_and_its_rules() -> None:
    runs, exchange, metrics = begin()
    runs.count(exchange, "allow", "allowed")
    shown = metrics.exposition().decode()
    assert 'agent="local"' in shown
    assert 'rule="read"' in shown
