"""Whatever goes wrong while a request is judged, the answer is no, in time, and it is recorded."""

import asyncio
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

import proxy.enforcer
import proxy.exchange
from audit.denials import DenialBudget
from audit.record import EventRefused
from audit.writer import LogUnavailable
from policies.ledger import LedgerUnavailable
from policies.ledger.memory import MemoryLedger
from policies.model import ContractBroken
from proxy.call import Call
from proxy.destination import Resolver
from proxy.enforcer import Admitted, Enforcer, Generation, Refused
from proxy.exchange import Exchange, State
from proxy.metrics import Metrics
from proxy.settings import Settings
from proxy.vocabulary import (
    Event,
    Failed,
    LedgerAnswered,
    RequestSent,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
)
from tests.kit.enforcement import (
    POLICY,
    SETTINGS,
    Faulty,
    Message,
    absolute,
    compiled,
    connect,
    furnish,
)
from tests.kit.recorder import Fault, MemoryRecorder

ANSWER_S = 0.95  # of the second in which a client is answered


class Strange(BaseException):
    """Neither an exception nor a wish to end."""


KINDS: dict[str, BaseException] = {
    "an exception": RuntimeError("injected"),
    "a timeout": TimeoutError(),
    "a cancellation": asyncio.CancelledError(),
    "a broken contract": ContractBroken("injected"),
    "no exception at all": Strange(),
    "the end of a generator": GeneratorExit(),
}


def run(enforcer: Enforcer, call: Call | None = None) -> Admitted | Refused:
    """The verdict, which must come within the second that a client waits."""

    async def judge() -> Admitted | Refused:
        asked = call or Message().call()
        async with asyncio.timeout(ANSWER_S):
            verdict = await enforcer.judge(enforcer.open(asked), asked)
        await enforcer.bookkeeper.flush()
        return verdict

    return asyncio.run(judge())


def feed(enforcer: Enforcer, exchange: Exchange, *events: Event) -> list[str | None]:
    """What the running stream is told, event by event; all settlements are made by then."""

    async def main() -> list[str | None]:
        told = []
        for event in events:
            told.append(enforcer.advance(exchange, event))
            await asyncio.sleep(0)
        await enforcer.bookkeeper.flush()
        return told

    return asyncio.run(main())


def refusal(verdict: Admitted | Refused) -> str:
    assert isinstance(verdict, Refused)
    assert verdict.denial.status >= 400
    return verdict.denial.reason


def check_idle(enforcer: Enforcer, recorder: MemoryRecorder) -> None:
    """Nothing is left open: no exchange, no reservation, no allow without its outcome."""
    assert enforcer.open_exchanges == 0
    assert getattr(enforcer.bookkeeper.ledger, "held", 0) == 0
    assert recorder.open_requests == set()


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: object, **_keywords: object) -> Any:
        raise error

    return fail


async def hang(*_args: object, **_keywords: object) -> Any:
    await asyncio.Event().wait()


# --- verdicts

VERDICTS: dict[str, tuple[Call, str]] = {
    "allowed": (Message().call(), ""),
    "allowed CONNECT": (connect(), ""),
    "another method": (Message(method="DELETE").call(), "no-rule-matched"),
    "denied by a rule": (Message("/ok/never").call(), "denied-by-rule"),
    "a host that no rule names": (Message(host="x.test").call(), "host-not-allowed"),
    "a CONNECT that no rule names": (connect("x.test"), "host-not-allowed"),
    "plain HTTP where https is meant": (absolute("http://api.test/ok/1"), "host-not-allowed"),
    "a private address": (Message(host="inside.test").call(), "address-not-public"),
    "an unknown caller": (Message(client="192.0.2.1").call(), "credential-missing"),
    "SNI of somebody else": (Message().call(sni="x.test"), "host-mismatch"),
    "no SNI": (Message().call(sni=None), "host-mismatch"),
    "Host of somebody else": (
        Message(host="x.test").call(tunnel=Message().call().tunnel, sni="api.test"),
        "host-mismatch",
    ),
    "a path that is no ASCII": (Message("/ok/\xff").call(), "path-not-canonical"),
    "an empty Host": (Message(host="").call(tunnel=Message().call().tunnel), "host-not-canonical"),
}


@pytest.mark.parametrize(("call", "reason"), VERDICTS.values(), ids=VERDICTS)
def test_every_message_has_one_verdict_and_one_record(call: Call, reason: str) -> None:
    enforcer, recorder = furnish()
    verdict = run(enforcer, call)
    (decision,) = recorder.events
    assert decision["kind"] == "decision"
    assert decision["verdict"] == ("deny" if reason else "allow")
    if reason:
        assert isinstance(verdict, Refused)
        assert verdict.denial.decision_id == decision["id"]
        assert verdict.denial.reason == decision["reason"] == reason
        assert 400 <= verdict.denial.status < 500
        check_idle(enforcer, recorder)
    else:
        assert isinstance(verdict, Admitted)
        assert (verdict.ticket is None) is (call.head.method == b"CONNECT")


# --- faults in every part

Break = Callable[[pytest.MonkeyPatch, BaseException], dict[str, Any]]
PARTS: dict[str, tuple[Break, bool]] = {
    # how to break it, and whether a decision record is possible
    "identity": (
        lambda patch, error: patch.setattr(proxy.enforcer, "identify", raising(error)) or {},
        True,
    ),
    "canonical form": (
        lambda patch, error: patch.setattr(proxy.enforcer, "read_call", raising(error)) or {},
        True,
    ),
    "screening": (
        lambda patch, error: patch.setattr(proxy.exchange, "screen", raising(error)) or {},
        True,
    ),
    "the decision": (
        lambda patch, error: patch.setattr(proxy.exchange, "decide", raising(error)) or {},
        True,
    ),
    "the rate limiter": (
        lambda patch, error: patch.setattr("policies.rate.RateLimiter.admit", raising(error)) or {},
        True,
    ),
    "the resolver": (
        lambda _patch, error: {"resolver": Faulty(Resolver(()), resolve=error)},
        True,
    ),
    "the ledger": (lambda _patch, error: {"ledger": Faulty(MemoryLedger(), reserve=error)}, True),
    "the describing": (
        lambda patch, error: (
            patch.setattr(proxy.enforcer, "describe_decision", raising(error)) or {}
        ),
        False,
    ),
    "the ticket": (
        lambda patch, error: patch.setattr(proxy.exchange, "ticket_digest", raising(error)) or {},
        True,
    ),
    "the denial budget": (
        lambda patch, error: (
            patch.setattr(proxy.enforcer.Enforcer, "_is_recorded_singly", raising(error)) or {}
        ),
        False,
    ),
}


@pytest.mark.parametrize("error", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("break_it", "recorded"), PARTS.values(), ids=PARTS)
def test_a_fault_in_any_part_is_a_recorded_denial(
    break_it: Break, recorded: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    enforcer, recorder = furnish(**break_it(monkeypatch, error))
    verdict = run(enforcer, Message("/rated").call())
    assert refusal(verdict) in (
        "internal-error",
        "contract-broken",
        "deadline-exceeded",
        "ledger-unavailable",
    )
    monkeypatch.undo()
    check_idle(enforcer, recorder)
    assert len(recorder.of("decision")) == int(recorded)
    assert len(recorder.of("malformed")) == int(not recorded)
    assert b"tollkeeper_faults_total" in enforcer.metrics.exposition()


HANGING: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "the resolver": (
        lambda: {"resolver": Faulty(Resolver(()), resolve=hang)},
        "deadline-exceeded",
    ),
    "a look-up in its thread": (
        lambda: {
            "resolver": Resolver((), timeout_s=0.2, lookup=lambda _: threading.Event().wait(5))  # type: ignore[arg-type,return-value]
        },
        "dns-failed",
    ),
    "the ledger": (
        lambda: {"ledger": Faulty(MemoryLedger(), reserve=hang)},
        "ledger-unavailable",
    ),
}


@pytest.mark.parametrize(("parts", "reason"), HANGING.values(), ids=HANGING)
def test_a_part_that_hangs_is_a_recorded_denial_in_time(
    parts: Callable[[], dict[str, Any]], reason: str
) -> None:
    enforcer, recorder = furnish(**parts())
    assert refusal(run(enforcer)) == reason
    (decision,) = recorder.events
    assert (decision["verdict"], decision["reason"]) == ("deny", reason)
    check_idle(enforcer, recorder)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x"), ContractBroken("x"), asyncio.CancelledError(), GeneratorExit()],
    ids=repr,
)
def test_metrics_that_fail_change_no_verdict(error: BaseException) -> None:
    metrics = Metrics()
    for name in ("count_request", "count_rules", "observe_decision", "count_record"):
        setattr(metrics, name, raising(error))
    enforcer, recorder = furnish()
    enforcer.metrics = metrics
    assert isinstance(run(enforcer), Admitted)
    assert len(recorder.of("decision")) == 1


def test_a_fault_after_the_record_denies_and_has_its_outcome() -> None:
    """The allow stands in the log, and so does what became of it."""
    enforcer, recorder = furnish()
    enforcer.runs.count = raising(Strange())  # type: ignore[method-assign]
    assert refusal(run(enforcer)) == "internal-error"
    assert [event["kind"] for event in recorder.events] == ["decision", "outcome"]
    check_idle(enforcer, recorder)


# --- faults of the log

LOG_FAULTS: dict[str, tuple[Fault, str, list[str]]] = {
    # what the agent reads, and what stands in the log
    "it is closed": (Fault(LogUnavailable("audit-unavailable", "x")), "audit-unavailable", []),
    "the disk is full": (Fault(LogUnavailable("audit-disk-full", "x")), "audit-disk-full", []),
    "the queue is full": (
        Fault(LogUnavailable("audit-backpressure", "x")),
        "audit-backpressure",
        [],
    ),
    "it hangs": (Fault(hang=True), "audit-unavailable", []),
    "it is slow, and records": (
        Fault(hang=True, recorded=True),
        "audit-unavailable",
        ["decision", "outcome"],
    ),
    "it records and then raises": (
        Fault(RuntimeError("x"), recorded=True),
        "internal-error",
        ["decision", "outcome"],
    ),
    "it records and is cancelled": (
        Fault(asyncio.CancelledError(), recorded=True),
        "internal-error",
        ["decision", "outcome"],
    ),
    "it raises": (Fault(RuntimeError("x")), "internal-error", []),
    "it refuses the event": (Fault(EventRefused("x")), "internal-error", ["malformed"]),
    "it is no log at all": (Fault(Strange()), "internal-error", []),
}


@pytest.mark.parametrize(("fault", "reason", "kinds"), LOG_FAULTS.values(), ids=LOG_FAULTS)
def test_a_log_that_fails_denies(fault: Fault, reason: str, kinds: list[str]) -> None:
    enforcer, recorder = furnish()
    recorder.faults["decision"] = fault
    assert refusal(run(enforcer)) == reason
    assert [event["kind"] for event in recorder.events] == kinds
    if "outcome" in kinds:
        assert recorder.of("outcome")[0]["status"] == 403
    check_idle(enforcer, recorder)


@pytest.mark.parametrize(("fault", "reason", "kinds"), LOG_FAULTS.values(), ids=LOG_FAULTS)
def test_a_denial_is_a_denial_without_a_log(fault: Fault, reason: str, kinds: list[str]) -> None:
    enforcer, recorder = furnish()
    recorder.faults["decision"] = fault
    assert refusal(run(enforcer, Message("/nope").call())) in (reason, "no-rule-matched")
    assert [e["kind"] for e in recorder.events] == [k for k in kinds if k != "outcome"]
    check_idle(enforcer, recorder)


@pytest.mark.parametrize(
    "error", [LogUnavailable("audit-disk-full", "x"), RuntimeError("x")], ids=repr
)
def test_a_lost_outcome_ends_its_exchange_all_the_same(error: Exception) -> None:
    enforcer, recorder = furnish()
    verdict = run(enforcer)
    recorder.faults["outcome"] = Fault(error)
    feed(enforcer, verdict.exchange, ResponseEnd())
    check_idle(enforcer, MemoryRecorder())


def test_a_log_that_gives_no_receipt_denies() -> None:
    """L2: only what the log says is stored is stored."""
    enforcer, recorder = furnish()
    store = recorder.store

    async def store_silently(event: Any) -> None:
        await store(event)

    recorder.store = store_silently  # type: ignore[assignment,method-assign]
    assert refusal(run(enforcer)) == "contract-broken"
    check_idle(enforcer, recorder)


def test_the_clock_failing_after_the_record_leaves_an_outcome() -> None:
    enforcer, recorder = furnish()
    store = recorder.store

    async def store_and_stop_the_clock(event: Any) -> Any:
        enforcer._now = raising(OverflowError("x"))
        return await store(event)

    recorder.store = store_and_stop_the_clock  # type: ignore[method-assign]
    assert refusal(run(enforcer)) == "internal-error"
    assert [event["kind"] for event in recorder.events] == ["decision", "outcome"]
    check_idle(enforcer, recorder)


# --- the ledger


def test_a_ledger_that_is_down_is_recorded_with_its_reason() -> None:
    enforcer, recorder = furnish(ledger=Faulty(MemoryLedger(), reserve=LedgerUnavailable("x")))
    assert refusal(run(enforcer)) == "ledger-unavailable"
    assert recorder.of("decision")[0]["reason"] == "ledger-unavailable"


@pytest.mark.parametrize("event", [ResponseEnd(), Failed("client-gone")], ids=["end", "failure"])
@pytest.mark.parametrize("error", [RuntimeError("x"), LedgerUnavailable("x")], ids=repr)
def test_a_ledger_that_fails_at_the_end_costs_no_outcome(error: Exception, event: Event) -> None:
    enforcer, recorder = furnish(ledger=Faulty(MemoryLedger(), settle=error))
    verdict = run(enforcer)
    assert isinstance(verdict, Admitted)
    feed(enforcer, verdict.exchange, event)
    assert len(recorder.of("outcome")) == 1
    assert enforcer.open_exchanges == 0
    assert b'faults_total{where="ledger"} 1.0' in enforcer.metrics.exposition()


# --- who ends whom


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_a_wish_to_end_is_recorded_and_passed_on(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy.exchange, "decide", raising(error))
    enforcer, recorder = furnish()
    call = Message().call()
    exchange = enforcer.open(call)
    with pytest.raises(type(error)):
        asyncio.run(enforcer.judge(exchange, call))
    assert recorder.of("decision")[0]["verdict"] == "deny"
    check_idle(enforcer, recorder)


def test_a_task_that_is_cancelled_leaves_a_record_and_ends() -> None:
    async def main() -> None:
        enforcer, recorder = furnish(resolver=Faulty(Resolver(()), resolve=hang))
        call = Message().call()
        task = asyncio.ensure_future(enforcer.judge(enforcer.open(call), call))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert recorder.of("decision")[0]["verdict"] == "deny"
        await enforcer.bookkeeper.flush()
        check_idle(enforcer, recorder)

    asyncio.run(main())


def test_abandoning_twice_records_once() -> None:
    enforcer, recorder = furnish()
    exchange = enforcer.open(Message().call())
    first = enforcer.abandon(exchange, TimeoutError())
    second = enforcer.abandon(exchange, asyncio.CancelledError())
    assert first.denial.reason == "deadline-exceeded"
    assert second.denial.status == 403
    assert len(recorder.events) == 1
    check_idle(enforcer, recorder)


def test_abandoning_what_was_forwarded_gives_it_its_outcome() -> None:
    enforcer, recorder = furnish()
    exchange = run(enforcer).exchange

    async def main() -> None:
        assert enforcer.abandon(exchange, TimeoutError()).denial.status == 403
        await enforcer.bookkeeper.flush()

    asyncio.run(main())
    assert recorder.of("outcome")[0]["error"] == "deadline-exceeded"
    check_idle(enforcer, recorder)


def test_an_exchange_that_is_broken_still_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    enforcer, _ = furnish()
    monkeypatch.setattr(proxy.exchange.Exchange, "handle", raising(RuntimeError("x")))
    assert refusal(run(enforcer)) == "internal-error"
    assert enforcer.open_exchanges == 0


def test_an_exchange_that_forgives_failures_still_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    """L3, seen from outside: an exchange that asks for nothing is not an allow."""
    monkeypatch.setattr(proxy.exchange.Exchange, "_fail", lambda _self, _event: [])
    monkeypatch.setattr(proxy.exchange, "decide", raising(RuntimeError("x")))
    enforcer, _ = furnish()
    assert refusal(run(enforcer)) == "internal-error"


# --- while it is under way


def test_a_stream_is_counted_and_ends_in_one_outcome() -> None:
    enforcer, recorder = furnish()
    exchange = run(enforcer).exchange
    told = feed(
        enforcer,
        exchange,
        RequestSent(100, body=False),
        RequestSent(5),
        ResponseHead(200, 60, None),
        ResponseReceived(7),
        ResponseEnd(),
        ResponseEnd(),
        Failed("client-gone"),
    )
    assert told == [None] * 7
    (outcome,) = recorder.of("outcome")
    assert (outcome["status"], outcome["bytes_out"], outcome["bytes_in"]) == (200, 105, 67)
    assert "error" not in outcome
    check_idle(enforcer, recorder)


def test_a_stream_over_its_limit_is_told_to_stop() -> None:
    enforcer, recorder = furnish()
    exchange = run(enforcer, Message("/small").call()).exchange
    assert feed(enforcer, exchange, ResponseReceived(11)) == ["response-too-large"]
    assert recorder.of("outcome")[0]["cut"] == "response-too-large"
    check_idle(enforcer, recorder)


def test_an_event_that_does_not_fit_cuts() -> None:
    enforcer, _ = furnish()
    exchange = run(enforcer).exchange
    assert feed(enforcer, exchange, LedgerAnswered()) == ["contract-broken"]


# --- destinations


def test_this_proxy_itself_is_no_destination() -> None:
    enforcer, recorder = furnish(owns=lambda address, port: (str(address), port) == OWN)
    assert refusal(run(enforcer)) == "address-not-public"
    assert recorder.events[0]["findings"] == ["the destination is this proxy itself"]


OWN = ("93.184.216.34", 443)


def test_a_connection_that_stands_is_judged_by_its_peer() -> None:
    """No look-up: what would be reached is what is judged."""
    peer = (ip_address("93.184.216.99"), 8443)
    enforcer, recorder = furnish(resolver=Faulty(Resolver(()), resolve=RuntimeError("asked")))
    verdict = run(enforcer, Message().call(standing_peer=lambda *_: peer))
    assert isinstance(verdict, Admitted)
    assert verdict.ticket is not None
    assert (verdict.ticket.addresses, verdict.ticket.dial_port) == ((peer[0],), 8443)
    assert recorder.events[0]["target"]["ip"] == "93.184.216.99"


def test_a_standing_peer_that_is_private_is_refused() -> None:
    enforcer, _ = furnish()
    verdict = run(enforcer, Message().call(standing_peer=lambda *_: (ip_address("10.0.0.1"), 443)))
    assert refusal(verdict) == "address-not-public"


def test_a_look_up_may_outlast_the_deadline_of_a_hook() -> None:
    async def main() -> None:
        settings = Settings(
            hook_deadline_s=0.3, ledger_deadline_s=0.1, audit_deadline_s=0.15, dns_timeout_s=2.0
        )
        resolver = Resolver(SETTINGS.resolve)

        async def look_up(host: str, port: int) -> object:
            await asyncio.sleep(0.4)
            assert enforcer.is_resolving(exchange)
            return await resolver.resolve(host, port)

        enforcer, _ = furnish(settings=settings, resolver=Faulty(resolver, resolve=look_up))
        call = Message().call()
        exchange = enforcer.open(call)
        assert isinstance(await enforcer.judge(exchange, call), Admitted)
        assert not enforcer.is_resolving(exchange)

    asyncio.run(main())


# --- the state of the house


def test_draining_and_a_stale_policy_deny() -> None:
    enforcer, recorder = furnish()
    enforcer.generation.refusal = "policy-stale"
    assert refusal(run(enforcer)) == "policy-stale"
    enforcer.draining = True
    assert refusal(run(enforcer)) == "draining"
    assert len(recorder.of("decision")) == 2


def test_nobody_learns_from_a_stale_policy_who_is_not_identified() -> None:
    enforcer, _ = furnish()
    enforcer.generation.refusal = "policy-stale"
    assert refusal(run(enforcer, Message(client="192.0.2.1").call())) == "credential-missing"


def test_a_reload_while_the_record_is_written_stops_the_request() -> None:
    enforcer, recorder = furnish()
    store = recorder.store

    async def store_and_reload(event: Any) -> Any:
        enforcer.generation.policy_set = compiled(POLICY.replace("/ok/**", "/other/**"))
        return await store(event)

    recorder.store = store_and_reload  # type: ignore[method-assign]
    verdict = run(enforcer)
    assert refusal(verdict) == "policy-changed"
    assert isinstance(verdict, Refused)
    assert verdict.denial.agent == "local"
    (outcome,) = recorder.of("outcome")
    assert (outcome["status"], outcome["error"]) == (403, "policy-changed")
    check_idle(enforcer, recorder)


def test_in_flight_exchanges_keep_the_policy_they_began_with() -> None:
    enforcer, recorder = furnish()
    call = Message().call()
    exchange = enforcer.open(call)
    enforcer.generation = Generation(compiled(POLICY.replace("/ok/**", "/other/**")), 2)
    assert exchange.policy_set is not enforcer.generation.policy_set
    verdict = asyncio.run(enforcer.judge(exchange, call))
    assert refusal(verdict) == "policy-changed"
    assert recorder.of("decision")[0]["policy"]["serial"] == 1


def test_a_rate_that_is_used_up_says_when_to_come_back() -> None:
    enforcer, recorder = furnish()
    call = Message("/rated").call()
    assert isinstance(run(enforcer, call), Admitted)
    verdict = run(enforcer, call)
    assert refusal(verdict) == "rate-limited"
    assert isinstance(verdict, Refused)
    assert verdict.denial.status == 429
    assert verdict.denial.retry_after_ms is not None
    assert 0 < verdict.denial.retry_after_ms <= 3_600_000
    assert len(recorder.of("decision")) == 2


def test_a_flood_of_denials_is_counted_and_never_an_allow() -> None:
    denials = DenialBudget(rate_per_s=0.001, burst=2)
    enforcer, recorder = furnish(denials=denials)
    for _ in range(5):
        assert refusal(run(enforcer, Message("/nope").call())) == "no-rule-matched"
    assert isinstance(run(enforcer), Admitted)
    assert len(recorder.of("decision")) == 3
    (dropped,) = denials.drain()
    assert (dropped["n"], dropped["agent"]) == (3, "local")
    assert recorder.of("malformed") == []


# --- what a record shows


@pytest.mark.parametrize(
    "call",
    [
        Message(fields=((b"Proxy-Authorization", b"Basic c2VjcmV0"),), client="192.0.2.1").call(),
        absolute("http://c2VjcmV0:c2VjcmV0@api.test/ok/1"),
        connect("c2VjcmV0:c2VjcmV0@api.test"),
        Message("/ok/1?token=c2VjcmV0").call(),
        Message("/nope?token=c2VjcmV0", fields=((b"Authorization", b"c2VjcmV0"),)).call(),
        absolute("http://api.test/ok/1?token=c2VjcmV0&%zz"),
    ],
    ids=["credential", "user info", "user info in CONNECT", "query", "denied query", "bad query"],
)
def test_a_record_shows_names_and_no_values(call: Call) -> None:
    enforcer, recorder = furnish()
    run(enforcer, call)
    assert len(recorder.events) == 1
    assert "c2VjcmV0" not in str(recorder.events)


def test_the_record_of_a_fault_names_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.enforcer, "identify", raising(RuntimeError("x")))
    enforcer, recorder = furnish()
    run(enforcer, Message("/ok/1?x=1").call())
    assert recorder.events[0]["target"]["host"] == "api.test"
    assert recorder.events[0]["target"]["path"] == "/ok/1"


def test_a_message_nobody_could_parse_is_one_record() -> None:
    enforcer, recorder = furnish()
    enforcer.record_malformed("127.0.0.1", "bare line feed", b"GET /\xff\nX: 1\n")
    (event,) = recorder.events
    assert (event["kind"], event["why"], event["bytes"]) == ("malformed", "bare line feed", 12)


def test_a_flood_of_garbage_is_counted() -> None:
    denials = DenialBudget(rate_per_s=0.001, burst=2)
    enforcer, recorder = furnish(denials=denials)
    for _ in range(5):
        enforcer.record_malformed("127.0.0.1", "bare line feed", b"x")
    assert len(recorder.of("malformed")) == 2
    assert denials.drain() == [{"kind": "dropped", "n": 3, "reason": "malformed"}]


def test_an_explanation_is_offered_only_to_who_is_known() -> None:
    enforcer, _ = furnish()
    verdicts = [run(enforcer, connect("x.test")), run(enforcer, Message(client="192.0.2.1").call())]
    assert [getattr(verdict, "softenable", None) for verdict in verdicts] == [True, False]


def test_a_new_exchange_waits_in_its_first_state() -> None:
    enforcer, _ = furnish()
    exchange = enforcer.open(Message().call())
    assert exchange.state is State.NEW
    assert enforcer.open_exchanges == 1
