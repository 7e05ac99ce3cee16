"""The fault table of the house: what goes wrong, what the agent reads, what stands in the log,
whether the house is still ready, and what brings it back.

Every row runs against the real policy keeper, enforcer, ledger and log. After each one the request
that the policy allows passes again, and the log verifies.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import proxy.enforcer
import proxy.exchange
from audit import appender
from policies.ledger import LedgerUnavailable
from policies.policy_set import PolicySet
from policies.reasons import REASONS
from proxy.call import Call
from proxy.destination import Resolver
from proxy.enforcer import Admitted, Refused
from proxy.vocabulary import RecordStored
from tests.kit.enforcement import (
    POLICY,
    SETTINGS,
    Message,
    compiled,
    connect,
)
from tests.kit.house import House

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    reason: str  # "" for: allowed all the same
    records: tuple[str, ...]  # the kinds it leaves behind
    ready: bool  # while it lasts
    recovery: str  # what ends it: "itself", "a restart", or who has to do what
    inject: Callable[[House, Patch], None] = lambda _house, _patch: None
    call: Call = field(default_factory=Message().call)
    recover: Callable[[House], None] = lambda _house: None


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


async def hang(*_: object, **__: object) -> Any:
    await asyncio.Event().wait()


def no_space(_house: House, patch: Patch) -> None:
    def full(_fd: int, _data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr("audit.appender.os.write", full)


def bad_disk(_house: House, patch: Patch) -> None:
    bad = OSError(errno.EIO, os.strerror(errno.EIO))
    patch.setattr("audit.appender.os.fdatasync", raising(bad))


def slow_disk(_house: House, patch: Patch) -> None:
    sync = appender._sync

    def wait(fd: int) -> None:
        threading.Event().wait(0.35)
        sync(fd)

    patch.setattr(appender, "_sync", wait)


def remove_log(house: House, _patch: Patch) -> None:
    (segment,) = house.log.glob("*.jsonl")
    segment.rename(house.folder / "stolen.jsonl")


def put_log_back(house: House) -> None:
    """Somebody gives the segment back; the run that lost it stays sealed."""
    (house.folder / "stolen.jsonl").rename(house.log / _segment_name(house))
    restart(house)


def _segment_name(house: House) -> str:
    return f"{house.writer.log_id}-{0:020}.jsonl"


def restart(house: House) -> None:
    house.writer.close()
    house.start()


def until_ready(house: House) -> None:
    house.wait_until(lambda: house.ready)


def settle(house: House) -> None:
    house.settle()


def spoil(name: str, error: BaseException | Callable[..., Any]) -> Callable[[House, Patch], None]:
    """Another end for one method of the ledger."""

    def inject(house: House, patch: Patch) -> None:
        change = raising(error) if isinstance(error, BaseException) else error
        patch.setattr(house.ledger, name, change)

    return inject


def notice(house: House) -> None:
    """The server looks once a second whether a ledger that failed is back."""
    house.tick()


def spoil_policy(house: House, _patch: Patch) -> None:
    assert house.reload("version: [") == "rejected"


def mend_policy(house: House) -> None:
    house.reload(house.policy)


def halt_behind_the_record(house: House, patch: Patch) -> None:
    """The decision is durable, and nothing has left: the re-check finds the halt."""
    store = house.writer.store

    async def store_and_halt(event: Any) -> Any:
        stored = await store(event)
        if event["kind"] == "decision":
            await house.bookkeeper.halt("other", "told to", "uid 0")
        return stored

    patch.setattr(house.writer, "store", store_and_halt)


BUDGETED = (
    POLICY.replace(
        "agents: {", 'agents: { other: { identity: { source: ["198.51.100.0/24"] } },'
    ).replace(
        "  - { id: never",
        "  - { id: dear, verdict: allow, match: { host: api.test, path: /dear },"
        " cost: { risk: 51 } }\n  - { id: never",
    )
    + "budgets: { life: { each: agent, limits: { requests: 99, risk: 50, bytes_in: 1MB } } }\n"
)
OTHER = Message(client="198.51.100.1").call()
DENY_CLOSED = POLICY.replace(
    "explain_denials: false", "explain_denials: false, on_bad_reload: deny"
)
ALLOWED_THEN_STOPPED = ("decision", "outcome")

TABLE: dict[str, Row] = {
    "unknown caller": Row(
        "credential-missing", ("decision",), True, "credentials for the agent",
        call=Message(client="192.0.2.1").call(),
    ),
    "not what is allowed": Row(
        "no-rule-matched", ("decision",), True, "a rule", call=Message("/nope").call()
    ),
    "private address": Row(
        "address-not-public", ("decision",), True, "`dest_ip` in the rule",
        call=Message(host="inside.test").call(),
    ),
    "no answer from DNS": Row(
        "dns-failed", ("decision",), True, "the resolver",
        inject=lambda house, patch: patch.setattr(
            house.enforcer, "resolver", Resolver((), lookup=raising(OSError("down")))
        ),
    ),
    "DNS that hangs": Row(
        "dns-failed", ("decision",), True, "the resolver",
        inject=lambda house, patch: patch.setattr(
            house.enforcer, "resolver",
            Resolver((), timeout_s=0.1, lookup=lambda _: [str(threading.Event().wait(0.3))]),
        ),
    ),
    "body over its limit": Row(
        "request-too-large", ("decision",), True, "a smaller body, or `max_request`",
        call=Message("/small", "POST", fields=((b"Content-Length", b"99"),)).call(),
    ),
    "a decision that raises": Row(
        "internal-error", ("decision",), True, "a fix",
        inject=lambda _house, patch: patch.setattr(
            proxy.exchange, "decide", raising(ValueError("x"))
        ),
    ),
    "identity that raises": Row(
        "internal-error", ("decision",), True, "a fix",
        inject=lambda _house, patch: patch.setattr(
            proxy.enforcer, "identify", raising(KeyError("x"))
        ),
    ),
    "a record that cannot be described": Row(
        "internal-error", ("malformed",), True, "a fix",
        inject=lambda _house, patch: patch.setattr(
            proxy.enforcer, "describe_decision", raising(TypeError("x"))
        ),
    ),
    "a record that no verifier would take": Row(
        "internal-error", ("malformed",), True, "a fix",
        inject=lambda _house, patch: patch.setattr(
            proxy.enforcer, "describe_decision",
            lambda *_, **__: {"kind": "decision", "id": "not an id"},
        ),
    ),
    "ledger down": Row(
        "ledger-unavailable", ("decision",), False, "the ledger",
        inject=spoil("reserve", LedgerUnavailable("x")), recover=notice,
    ),
    "ledger slow": Row(
        "ledger-unavailable", ("decision",), False, "the ledger",
        inject=spoil("reserve", hang), recover=notice,
    ),
    "ledger with a bug": Row(
        "internal-error", ("decision",), True, "a fix",
        inject=spoil("reserve", ZeroDivisionError("x")),
    ),
    "ledger that cannot void": Row(
        "address-not-public", ("decision",), True, "nothing: it is tried again",
        inject=spoil("settle", LedgerUnavailable("x")), call=Message(host="inside.test").call(),
    ),
    "ledger's clock that raises": Row(
        "internal-error", ("decision",), True, "a fix",
        inject=lambda house, patch: patch.setattr(
            house.bookkeeper, "now_ms", raising(OverflowError("x"))
        ),
    ),
    "books that were sealed": Row(
        "contract-broken", ("decision",), False, "a restart, which folds the log anew",
        inject=lambda house, _patch: house.bookkeeper.seal("I6: x"), recover=restart,
    ),
    "a budget that is used up": Row(
        "budget-exhausted", ("decision",), True, "the next window, or `budget raise`",
        call=Message("/dear").call(),
    ),
    "a state that cannot be read": Row(
        "internal-error", ("decision",), True, "a fix",
        inject=lambda house, patch: patch.setattr(
            house.bookkeeper.states, "find", raising(KeyError("x"))
        ),
    ),
    "halted by an operator": Row(
        "halted", ("state", "decision"), True, "a new agent id",
        inject=lambda house, _patch: house.halt("other"), call=OTHER,
    ),
    "log full": Row(
        "audit-disk-full", (), False, "space; the log tries again by itself",
        inject=no_space, recover=until_ready,
    ),
    "log on a bad disk": Row(
        # the bytes are there, but nobody knows for how long: not acknowledged, so not allowed
        "audit-unavailable", ("decision",), False, "a restart, on a good disk",
        inject=bad_disk, recover=restart,
    ),
    "log with a bug": Row(
        "audit-unavailable", ("decision",), False, "a restart, and a fix",
        inject=lambda _house, patch: patch.setattr(
            appender, "_sync", raising(ZeroDivisionError("x"))
        ),
        recover=restart,
    ),
    "log slow": Row(
        "audit-unavailable", ALLOWED_THEN_STOPPED, True, "itself",
        inject=slow_disk, recover=settle,
    ),
    "log removed": Row(
        "audit-unavailable", (), False, "the segment back in its place, and a restart",
        inject=remove_log, recover=put_log_back,
    ),
    "log closed": Row(
        "audit-unavailable", (), False, "a restart",
        inject=lambda house, _patch: house.writer.close(), recover=lambda house: house.start(),
    ),
    "queue of the log full": Row(
        "audit-backpressure", (), True, "itself",
        inject=lambda house, patch: patch.setattr(house.writer, "_queue_records_max", 0),
        recover=settle,
    ),
    "clock a year back": Row(
        "", ("clock.step", "decision"), True, "nothing",
        inject=lambda house, _patch: house.move_clock(timedelta(days=-365)),
    ),
    "clock a year ahead": Row(
        "", ("clock.step", "decision"), True, "nothing",
        inject=lambda house, _patch: house.move_clock(timedelta(days=365)),
    ),
    "clock that raises": Row(
        "internal-error", ("decision",), True, "a fix",
        inject=lambda house, patch: patch.setattr(
            house.enforcer, "_now", raising(OverflowError("x"))
        ),
    ),
    "metrics that raise": Row(
        "", ("decision",), True, "a fix; no verdict depends on it",
        inject=lambda house, patch: patch.setattr(
            house.metrics, "count_request", raising(RuntimeError("x"))
        ),
    ),
    "bad policy, the old one stays": Row(
        "", ("policy.reject", "decision"), True, "a good policy file",
        inject=spoil_policy, recover=mend_policy,
    ),
    "policy changed while the record was written": Row(
        "policy-changed", ALLOWED_THEN_STOPPED, True, "nothing: the new policy says so",
        inject=lambda house, patch: patch.setattr(
            proxy.enforcer,
            "RecordStored",
            lambda _policy_set, *rest: RecordStored(_closed(house), *rest),
        ),
    ),
    "halted behind the record": Row(
        "halted", ("decision", "state", "outcome"), True, "a new agent id",
        inject=halt_behind_the_record, call=OTHER,
    ),
    "shutting down": Row(
        "draining", ("decision",), False, "the next run",
        inject=lambda house, patch: patch.setattr(house.enforcer, "draining", True),
    ),
    "not HTTP": Row(
        "method-not-allowed", ("decision",), True, "HTTP", call=Message(method="SSH-2.0-x").call()
    ),
    "a tunnel nobody allowed": Row(
        "host-not-allowed", ("decision",), True, "a rule", call=connect("x.test")
    ),
}  # fmt: skip


def _closed(house: House) -> PolicySet:
    return compiled(house.policy.replace("/ok/**", "/other/**"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, BUDGETED)
    yield made
    made.stop()


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_each_fault_has_its_answer_its_record_and_its_end(
    row: Row, house: House, monkeypatch: Patch
) -> None:
    house.settle()
    before = len(house.events())
    with monkeypatch.context() as patch:
        row.inject(house, patch)
        verdict = house.ask(row.call)
        if row.reason:
            assert isinstance(verdict, Refused)
            assert verdict.denial.reason == row.reason
            assert verdict.denial.status == REASONS[row.reason].status
        else:
            assert isinstance(verdict, Admitted)
        house.wait_until(lambda: house.ready is row.ready)
        house.settle()
        if not (house.folder / "stolen.jsonl").exists():
            kinds = [event["kind"] for event in house.events()[before:]]
            assert [kind for kind in kinds if kind != "log.close"] == list(row.records)
    row.recover(house)
    assert house.ready
    assert isinstance(house.ask(), Admitted)
    house.check()


def test_a_policy_that_denies_while_it_is_bad(tmp_path: Path) -> None:
    house = House(tmp_path, DENY_CLOSED)
    states = [house.ready, house.reload("version: ["), house.ready]
    verdict = house.ask()
    states += [house.reload(house.policy), house.ready]
    assert states == [True, "rejected", False, "unchanged", True]
    assert isinstance(verdict, Refused)
    assert verdict.denial.reason == "policy-stale"
    assert isinstance(house.ask(), Admitted)
    house.stop()
    house.check(closed=True)


def test_every_row_says_how_it_ends() -> None:
    assert all(row.recovery for row in TABLE.values())
    assert SETTINGS.hook_deadline_s < 1.0
