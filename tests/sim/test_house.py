"""The whole house under random calls and faults, with a seed: after every step the real verifier
reads the log, and log, ledger and verdicts must tell one story (tests/kit/house.py, `check`).

A failing seed is printed; `SIM_SEED=n pytest tests/sim/test_house.py` runs it alone.
"""

import asyncio
import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from audit import appender
from audit.writer import LogUnavailable
from policies.budget import State
from policies.ledger import Book, Ledger, LedgerUnavailable
from policies.ledger.memory import MemoryLedger
from policies.ledger.sqlite import open_ledger
from proxy.destination import Resolver
from proxy.enforcer import Admitted
from proxy.vocabulary import (
    Event,
    Failed,
    RequestSent,
    ResponseEnd,
    ResponseHead,
    ResponseReceived,
    Stage,
)
from tests.kit.enforcement import POLICY, SETTINGS, Message, absolute, connect
from tests.kit.house import House

STEPS = 120
SEEDS = [int(os.environ["SIM_SEED"])] if "SIM_SEED" in os.environ else [1, 2, 3, 4, 5, 6]

AGENTS = ["a", "b", "c", "d"]
LAST = Message(client="198.51.100.99").call()  # an agent that nothing else touches
SIMULATED = (
    POLICY.replace(
        "agents: {",
        "agents: { "
        + "".join(
            f'{name}: {{ identity: {{ source: ["198.51.100.{number}"] }} }}, '
            for number, name in [*enumerate(AGENTS), (99, "last")]
        ),
    ).replace("path: /small }", "path: /small }, cost: { steps: 2, risk: 3 }")
    + """
quarantine: { keep_rules: [small] }
budgets:
  daily: { each: agent, window: 1d, limits: { requests: 25, bytes_in: 300kB, bytes_out: 20kB },
    at: [{ reached: 80%, do: warn }] }
  life: { each: agent, limits: { steps: 60, bytes_in: 1MB, wall_time: 3d },
    at: [{ reached: 90%, do: quarantine }] }
  purse: { each: agent, who: { agents: [c, d] }, limits: { risk: 9 },
    at: [{ reached: 50%, do: warn }, { reached: 100%, do: halt }] }
"""
)


def by(agent: str, path: str = "/ok/1", length: int = 0) -> Callable[[], Any]:
    """A call of one of the agents with budgets."""
    client = f"198.51.100.{AGENTS.index(agent)}"
    fields = ((b"Content-Length", b"%d" % length),) if length else ()
    return Message(path, "POST" if length else "GET", client=client, fields=fields).call


CALLS: list[Callable[[], Any]] = [
    *[Message().call] * 6,
    *[by(agent) for agent in AGENTS] * 2,
    *[by(agent, "/small") for agent in AGENTS],
    by("a", length=5_000),
    by("b", length=30_000),
    Message("/ok/up", "POST", fields=((b"Transfer-Encoding", b"chunked"),)).call,
    Message("/ok/2?q=secret").call,
    Message("/small", "POST", fields=((b"Content-Length", b"9"),)).call,
    Message("/small", "POST", fields=((b"Content-Length", b"99"),)).call,
    Message("/u/secret/x").call,
    Message("/rated").call,
    Message("/nope").call,
    Message("/ok/never").call,
    Message("/ok/\xff").call,
    Message(host="inside.test").call,
    Message(host="x.test").call,
    Message(client="192.0.2.1").call,
    connect,
    lambda: connect("x.test"),
    lambda: absolute("http://me:secret@api.test/ok/1"),
]
EVENTS: list[Event] = [
    RequestSent(100, body=False),
    RequestSent(4),
    RequestSent(9_000),
    ResponseHead(200, 80, None),
    ResponseHead(200, 80, 40_000),
    ResponseHead(204, 80, None, bodiless=True),
    ResponseReceived(6),
    ResponseReceived(20_000, divisible=False),
    ResponseReceived(150_000),
    ResponseEnd(),
    Failed("client-gone"),
    Failed("upstream-timeout"),
]
POLICIES = [
    *[SIMULATED] * 4,
    SIMULATED.replace("/ok/**", "/other/**"),
    SIMULATED.replace("api.test", "x.test"),
    SIMULATED.replace("requests: 25", "requests: 12").replace("1MB", "500kB"),  # falls
    SIMULATED.replace("requests: 25", "requests: 90").replace("steps: 60", "steps: 95"),  # waits
    SIMULATED.replace("window: 1d", "window: 1h"),
    SIMULATED.replace("  life:", "  living:"),
    SIMULATED.replace("wall_time: 3d", "requests: 500"),
    POLICY,
    "version: [",
]


class Weather:
    """What is broken at the moment, and how to break and mend it; real parts, real errors."""

    def __init__(self, house: House, patch: pytest.MonkeyPatch, chance: random.Random) -> None:
        self._house = house
        self._patch = patch
        self._chance = chance
        self._fdatasync = os.fdatasync
        self._write = os.write
        self._kind = type(house.ledger)
        self._methods = {
            name: getattr(self._kind, name) for name in ("reserve", "settle", "change")
        }
        self.sealed = False  # only a restart opens the log again

    def change(self) -> str:
        """Something else breaks, or everything works again."""
        name = self._chance.choice(
            [
                *("mend", "mend", "mend", "ledger-down", "ledger-hangs", "no-settlements"),
                *("no-changes", "dns-down", "disk-full", "disk-bad"),
            ]
        )
        self.mend()
        down = self._raise(LedgerUnavailable("down"))
        match name:
            case "ledger-down":
                self._break_ledger(reserve=down, settle=down, change=down)
            case "ledger-hangs":
                self._break_ledger(reserve=_hang)
            case "no-settlements":
                self._break_ledger(settle=down)
            case "no-changes":
                self._break_ledger(change=down)
            case "dns-down":
                self._house.enforcer.resolver = Resolver((), lookup=_no_dns)
            case "disk-full":
                full = OSError(errno.ENOSPC, "full")
                self._patch.setattr("audit.appender.os.write", _raise_now(full))
            case "disk-bad":
                bad = OSError(errno.EIO, "bad")
                self._patch.setattr("audit.appender.os.fdatasync", _raise_now(bad))
                self.sealed = True
        return name

    def mend(self) -> None:
        """All parts work; a log that needs a restart gets one, one that recovers is waited for."""
        self._patch.setattr("audit.appender.os.fdatasync", self._fdatasync)
        self._patch.setattr("audit.appender.os.write", self._write)
        self._break_ledger(**self._methods)
        self._house.enforcer.resolver = Resolver(SETTINGS.resolve)
        if self.sealed and self._house.writer.failure is not None:
            self._house.stop()
            self._house.file.write_text(SIMULATED)  # without a good one no server starts
            self._house.start()
        self.sealed = False
        self._house.wait_until(lambda: self._house.writer.failure is None)
        self._house.tick()
        self._house.wait_until(lambda: self._house.bookkeeper.is_idle)

    def _break_ledger(self, **methods: Any) -> None:
        for name, method in methods.items():
            self._patch.setattr(self._kind, name, method)

    @staticmethod
    def _raise(error: Exception) -> Any:
        async def fail(*_: object) -> None:
            raise error

        return fail


async def _hang(*_: object) -> None:
    await asyncio.Event().wait()


def _no_dns(_host: str) -> list[str]:
    raise OSError("down")


def _raise_now(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def step(house: House, weather: Weather, chance: random.Random) -> str:
    """One thing that happens; returns what, for the trace of a failing seed."""
    kinds = {
        "ask": 30,
        "burst": 3,
        "advance": 25,
        "end": 10,
        "weather": 10,
        "policy": 5,
        "clock": 3,
        "restart": 2,
        "crash": 2,
        "raise": 3,
        "halt": 1,
        "time": 4,
        "tick": 4,
    }
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    match kind:
        case "ask":
            verdict = house.ask(chance.choice(CALLS)())
            return f"ask: {type(verdict).__name__}"
        case "burst":
            burst(house, chance)
        case "advance" | "end" if house.open:
            exchange = house.open[chance.choice(sorted(house.open))]
            event = ResponseEnd() if kind == "end" else chance.choice(EVENTS)
            house.advance(exchange, event)
            return f"{kind}: {event}"
        case "weather":
            return f"weather: {weather.change()}"
        case "policy":
            return f"policy: {house.reload(chance.choice(POLICIES))}"
        case "clock":
            house.move_clock(timedelta(seconds=chance.choice([-31_536_000, -7, 1, 90, 31_536_000])))
        case "restart" | "crash":
            weather.mend()  # on a bad disk no server starts
            house.file.write_text(SIMULATED)  # without a good one no server starts
            if kind == "crash":
                house.crash()
            else:
                house.stop()
                house.start()
        case "raise":
            return f"raise: {raise_something(house, chance)}"
        case "halt":
            agent = chance.choice(AGENTS)
            with contextlib.suppress(LogUnavailable):
                house.halt(agent)
            assert house.bookkeeper.state(agent) is State.HALTED
        case "time":
            house.pass_time(chance.choice([1_000, 3_600_000, 90_000_000]))
        case "tick":
            house.tick()
    return kind


def raise_something(house: House, chance: random.Random) -> object:
    """What the file says now, or one value."""
    budget = chance.choice(["daily", "life", "living", "purse"])
    by_hand = {"unit": "bytes_in", "to": chance.choice([400_000, 2_000_000])}
    try:
        return house.run(
            house.bookkeeper.raise_budget(budget, "uid 0", **chance.choice([{}, by_hand]))
        )
    except (ValueError, LogUnavailable, LedgerUnavailable) as error:
        return error


def burst(house: House, chance: random.Random) -> None:
    """Many at once, so that their records share a flush."""

    async def main() -> None:
        calls = [chance.choice(CALLS)() for _ in range(8)]
        exchanges = [house.enforcer.open(call) for call in calls]
        verdicts = await asyncio.gather(
            *(house.enforcer.judge(e, c) for e, c in zip(exchanges, calls, strict=True))
        )
        for verdict in verdicts:
            exchange = verdict.exchange
            if isinstance(verdict, Admitted):
                house.admitted.add(exchange.id)
                if exchange.stage is Stage.REQUEST:
                    house.open[exchange.id] = exchange
            else:
                house.refused.add(exchange.id)
                if house.writer.failure is not None:
                    house.unsure.add(exchange.id)

    house.run(main())


def make_ledger(seed: int, folder: Path) -> Callable[[Book], Ledger]:
    """One kind or the other."""
    path = folder / "ledger.db"
    return (lambda book: open_ledger(path, book, deadline_s=2.0)[0]) if seed % 2 else MemoryLedger


@pytest.fixture(autouse=True)
def try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.bookkeeper._RETRY_S", 0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_log_tells_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"SIM_SEED={seed}")
    chance = random.Random(seed)
    house = House(tmp_path, SIMULATED, make_ledger(seed, tmp_path))
    weather = Weather(house, monkeypatch, chance)
    trace: list[str] = []
    try:
        for _ in range(STEPS):
            trace.append(step(house, weather, chance))
            if house.writer.failure is None:
                house.check()
        weather.mend()
        assert house.reload(SIMULATED) in ("applied", "unchanged")
        assert isinstance(house.ask(LAST), Admitted)
        house.stop()
        house.check(closed=True)
    except BaseException:
        print("\n".join(f"{number:3} {line}" for number, line in enumerate(trace)))
        raise
    assert house.open == {}
    assert len(house.admitted) > 3
    assert len(house.refused) > 3


def test_a_check_that_finds_nothing_wrong_would_find_something(tmp_path: Path) -> None:
    """The simulator's own eyes: each story that does not fit is noticed."""
    house = House(tmp_path)
    verdict = house.ask()
    house.check()
    house.admitted.add("f" * 32)
    with pytest.raises(AssertionError, match="without its allow"):
        house.check()
    house.admitted.remove("f" * 32)
    exchange = house.open.pop(verdict.exchange.id)
    with pytest.raises(AssertionError, match="without an outcome"):
        house.check()
    house.open[exchange.id] = exchange
    house.run(house.ledger.settle(exchange.id, ()))
    with pytest.raises(AssertionError, match="reservations"):
        house.check()
    house.stop()


def test_a_ledger_that_was_tampered_with_is_noticed_by_the_check(tmp_path: Path) -> None:
    house = House(tmp_path, SIMULATED)
    verdict = house.ask(LAST)
    house.advance(verdict.exchange, RequestSent(100, body=False))
    house.advance(verdict.exchange, ResponseEnd())
    house.check()
    assert isinstance(house.ledger, MemoryLedger)
    account = house.ledger._accounts["last"]["daily/last"]
    account.spent["requests"] += 1
    with pytest.raises(AssertionError, match="I6"):
        house.check()
    account.spent["requests"] -= 1
    with pytest.raises(AssertionError, match="I1"):
        house.check()
    account.held["requests"] = 1_000
    with pytest.raises(AssertionError, match=r"I1|I2"):
        house.check()
    house.stop()


def test_a_crash_spends_what_was_held(tmp_path: Path) -> None:
    house = House(tmp_path, SIMULATED)
    verdict = house.ask(LAST)
    house.halt("a")
    house.crash()
    account = house.run(house.ledger.read()).accounts["daily/last"]
    reserved = {
        amount["unit"]: amount["amount"]
        for amount in house.events("decision")[0]["reserve"]
        if amount["account"].startswith("daily/")
    }
    assert (account.spent, account.held) == (reserved, {})
    assert verdict.exchange.id in house.unsure
    assert house.bookkeeper.state("a") is State.HALTED
    house.check()
    house.stop()


def test_a_flipped_byte_is_noticed_by_the_check(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.ask()
    house.stop()
    house.check(closed=True)
    (segment,) = house.log.glob("*.jsonl")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(bytes(data))
    with pytest.raises((AssertionError, ValueError)):
        house.check(closed=True)


def test_many_at_once_are_each_recorded_once(tmp_path: Path) -> None:
    house = House(tmp_path)
    for seed in range(5):
        burst(house, random.Random(seed))
    house.check()
    ids = [event["id"] for event in house.events("decision")]
    assert len(ids) == len(set(ids)) == 40
    house.stop()


def test_a_slow_disk_holds_no_other_loop_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk works on a thread of its own: while it stalls, the loop runs."""
    house = House(tmp_path)
    sync, ticks = appender._sync, []

    def stall(fd: int) -> None:
        threading.Event().wait(0.15)
        sync(fd)

    monkeypatch.setattr(appender, "_sync", stall)

    async def main() -> None:
        call = Message().call()
        exchange = house.enforcer.open(call)
        task = asyncio.ensure_future(house.enforcer.judge(exchange, call))
        while not task.done():
            ticks.append(1)
            await asyncio.sleep(0.005)
        verdict = await task
        assert isinstance(verdict, Admitted)
        house.admitted.add(exchange.id)
        house.open[exchange.id] = exchange

    house.run(main())
    assert len(ticks) > 5
    house.check()
    house.stop()
