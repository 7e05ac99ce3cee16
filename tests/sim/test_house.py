"""The whole house under random calls and faults, with a seed: after every step the real verifier
reads the log, and log, ledger and verdicts must tell one story (tests/kit/house.py, `check`).

A failing seed is printed; `SIM_SEED=n pytest tests/sim/test_house.py` runs it alone.
"""

import asyncio
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
from policies.ledger import LedgerUnavailable
from policies.ledger.memory import MemoryLedger
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

CALLS: list[Callable[[], Any]] = [
    *[Message().call] * 6,
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
    ResponseHead(200, 80, None),
    ResponseReceived(6),
    ResponseEnd(),
    Failed("client-gone"),
    Failed("upstream-timeout"),
]
POLICIES = [
    *[POLICY] * 4,
    POLICY.replace("/ok/**", "/other/**"),
    POLICY.replace("api.test", "x.test"),
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
        self._reserve = MemoryLedger.reserve
        self.sealed = False  # only a restart opens the log again

    def change(self) -> str:
        """Something else breaks, or everything works again."""
        name = self._chance.choice(
            ["mend", "mend", "ledger-down", "ledger-hangs", "dns-down", "disk-full", "disk-bad"]
        )
        self.mend()
        match name:
            case "ledger-down":
                self._break_ledger(self._raise(LedgerUnavailable("down")))
            case "ledger-hangs":
                self._break_ledger(_hang)
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
        self._break_ledger(self._reserve)
        self._house.enforcer.resolver = Resolver(SETTINGS.resolve)
        if self.sealed and self._house.writer.failure is not None:
            self._house.stop()
            self._house.file.write_text(POLICY)  # without a good one no server starts
            self._house.start()
        self.sealed = False
        self._house.wait_until(lambda: self._house.writer.failure is None)

    def _break_ledger(self, reserve: Any) -> None:
        self._patch.setattr(MemoryLedger, "reserve", reserve)

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
    kind = chance.choices(
        ["ask", "burst", "advance", "end", "weather", "policy", "clock", "restart"],
        [30, 3, 25, 10, 10, 5, 3, 2],
    )[0]
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
        case "restart":
            weather.mend()  # on a bad disk no server starts
            house.stop()
            house.file.write_text(POLICY)
            house.start()
    return kind


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

    asyncio.run(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_log_tells_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"SIM_SEED={seed}")
    chance = random.Random(seed)
    house = House(tmp_path)
    weather = Weather(house, monkeypatch, chance)
    trace: list[str] = []
    try:
        for _ in range(STEPS):
            trace.append(step(house, weather, chance))
            if house.writer.failure is None:
                house.check()
        weather.mend()
        assert house.reload(POLICY) in ("applied", "unchanged")
        assert isinstance(house.ask(), Admitted)
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
    house.ledger.void(exchange.id)
    with pytest.raises(AssertionError, match="reservations"):
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

    asyncio.run(main())
    assert len(ticks) > 5
    house.check()
    house.stop()
