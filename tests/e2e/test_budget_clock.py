"""Clocks that are set while the server runs, and while it does not: nobody gets more for it, and
nothing that was spent is forgotten.

The wall clock of the process is libfaketime's (tests/kit/clock.py); the test's own is the true one.
"""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.accounting import parse_time
from tests.kit.clock import WallClock
from tests.kit.http1 import Answer, Http1
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, wait_until, write_policy
from tests.kit.sum_log import sum_log

HOST = "api.test.example"
RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: {HOST}, scheme: http, port: 80, path: "/**", dest_ip: loopback }} }}
"""  # noqa: E501
DAY_MS = 86_400_000
CUT_S = 0.25
SLACK_S = 0.25  # of a busy machine: ours to notice, theirs to cut

STEPS: dict[str, Callable[[WallClock], None]] = {
    "a day back": lambda clock: clock.shift(days=-1),
    "a day on": lambda clock: clock.shift(days=1),
    "1970": lambda clock: clock.set("1970-01-01 00:10:00"),
    "a year on": lambda clock: clock.shift(days=366),
    "summer time begins": lambda clock: clock.set("2026-03-29 01:59:59"),
    "summer time ends": lambda clock: clock.set("2026-10-25 02:59:59"),
}


class Shop:
    """One server with a clock of its own, over plain HTTP: certificates have dates, too."""

    def __init__(self, folder: Path, origin: Origin, budgets: str) -> None:
        self.clock = WallClock(folder / "clock", zone="Europe/Berlin")
        self.origin = origin
        policy = write_policy(folder / "policies.yaml", f"{RULES}budgets:\n{budgets}")
        pins = [f"{HOST}:80:127.0.0.1:{origin.port}"]
        self.proxy = Proxy(folder, policy, resolve=pins, env=self.clock.environment)

    def open(self, path: str) -> Http1:
        """Send a request, and read nothing."""
        connection = self.proxy.connect(10.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Http1(connection)
        client.send(f"http://{HOST}{path}", HOST)
        return client

    def ask(self, path: str = "/ok/1") -> Answer:
        """One request on a connection of its own; again where a busy machine made us say so."""
        for _ in range(8):
            with self.open(path) as client:
                answer = client.read()
            if answer.status != 403 or not json.loads(answer.body)["retryable"]:
                break
            time.sleep(0.1)
        return answer

    def spend(self, most: int = 50) -> int:
        """Requests until one is denied; how many were not."""
        for count in range(most):
            if self.ask().status == 403:
                return count
        return most

    def spent(self) -> dict[str, dict[str, int]]:
        """By account and unit, out of the log."""
        return sum_log(self.proxy.state / "log")

    def check(self) -> None:
        """Ready, and a log that verifies."""
        status, text = self.proxy.scrape("/readyz")
        assert status == 200, text
        done = self.proxy.verify("--allow-open")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Callable[[str], Shop]]:
    made: list[Shop] = []
    with Origin() as origin:

        def build(budgets: str) -> Shop:
            made.append(Shop(tmp_path, origin, budgets))
            return made[-1]

        yield build
        for one in made:
            if hasattr(one.proxy, "process"):
                assert one.proxy.stop() == 0
                assert one.proxy.verify().returncode == 0, one.proxy.verify().stdout
                assert "ContractBroken" not in one.proxy.stderr


def daily(requests: int, more: str = "") -> str:
    return f"  daily: {{ each: agent, window: 1d, limits: {{ requests: {requests}{more} }} }}\n"


def test_the_fake_clock_moves_the_wall_clock_and_nothing_else(tmp_path: Path) -> None:
    """`proxy/ledger_clock.py` reads CLOCK_BOOTTIME: were it moved too, the tests here would say
    nothing."""
    wall, monotonic, boot = WallClock(tmp_path / "clock").probe()
    assert -86_401 < wall < -86_390
    assert 0 <= monotonic < 10 > boot >= 0


def test_no_step_of_the_clock_gives_a_second_day(shop: Callable[[str], Shop]) -> None:
    one = shop(daily(4))
    one.proxy.start()
    assert one.spend() == 4
    (account,) = one.spent()
    for name, step in STEPS.items():
        step(one.clock)
        time.sleep(0.05)
        assert one.ask().status == 403, name
        one.check()
    one.clock.restore()
    assert one.ask().status == 403
    assert one.spent() == {account: {"requests": 4}}
    assert {event["account"] for event in one.proxy.records("ledger.snapshot")} == {account}


def test_steps_between_requests_cost_nothing_and_give_nothing(shop: Callable[[str], Shop]) -> None:
    """The same number passes, whatever the clock does before each, and the log's own order of
    times is the true one."""
    one = shop(daily(len(STEPS)))
    one.proxy.start()
    for step in STEPS.values():
        step(one.clock)
        assert one.ask().status == 200
    assert one.ask().status == 403
    one.check()
    times = [event["time"] for event in one.proxy.records("decision") if event["reserve"]]
    assert times == sorted(times)
    assert len(times) >= len(STEPS)


def test_a_short_window_rolls_in_true_time_whatever_the_clock_does(
    shop: Callable[[str], Shop],
) -> None:
    window_s, limit = 2, 3
    one = shop(
        f"  short: {{ each: agent, window: {window_s}s, limits: {{ requests: {limit} }} }}\n"
    )
    one.proxy.start()
    began = time.monotonic()
    passed, steps = 0, list(STEPS.values())
    turns = 0
    while time.monotonic() - began < 2 * window_s + 0.5:
        passed += one.spend()
        steps[turns % len(steps)](one.clock)
        turns += 1
        time.sleep(0.05)
    span_s = time.monotonic() - began
    periods = list(one.spent())
    assert len(periods) <= int(span_s // window_s) + 2
    assert limit < passed <= (int(span_s // window_s) + 2) * limit  # and it does roll
    one.check()


# --- wall_time

WALL = "  short: {{ each: agent, limits: {{ requests: 1000, wall_time: {} }} }}\n"


def test_wall_time_cuts_what_runs_and_denies_what_comes(shop: Callable[[str], Shop]) -> None:
    """While the clock jumps about."""
    one = shop(WALL.format("1500ms"))
    one.proxy.start()
    ends: dict[str, float] = {}

    def stream(path: str) -> None:
        received = b'"retryable":true'
        while b'"retryable":true' in received:  # a busy machine
            with one.open(path) as client:
                received = read_rest(client)
        ends[path] = datetime.now(UTC).timestamp()  # noqa: TID251  what the records name

    paths = ("/drip/0.02", "/trickle/1000", "/slow/5")
    threads = [threading.Thread(target=stream, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    for step in [*STEPS.values(), WallClock.restore]:
        time.sleep(0.15)
        step(one.clock)
    for thread in threads:
        thread.join(10)
    assert set(ends) == set(paths)
    first = next(event for event in one.proxy.records("decision") if event["reserve"])
    due = parse_time(first["time"]) / 1000 + 1.5  # the ledger's clock began with the true time
    assert due - 0.01 < min(ends.values()) < max(ends.values()) < due + CUT_S + SLACK_S, ends
    answer = one.ask()
    assert (answer.status, json.loads(answer.body)["reason"]) == (403, "budget-exhausted")
    assert json.loads(answer.body)["remaining"]["short"]["wall_time"] == 0
    outcomes = one.proxy.wait_for("outcome", len(paths))
    causes = [(outcome.get("cut"), outcome.get("error")) for outcome in outcomes]
    assert all("budget-exhausted" in cause for cause in causes), causes


def read_rest(client: Http1) -> bytes:
    received = b""
    try:
        while data := client.connection.recv(65_536):
            received += data
    except OSError:
        pass
    return received


def test_wall_time_is_recomputed_after_a_restart(shop: Callable[[str], Shop]) -> None:
    one = shop(WALL.format("3s"))
    one.proxy.start()
    began = time.monotonic()
    assert one.ask().status == 200
    one.proxy.stop(signal.SIGKILL)
    one.proxy.start()
    ready = time.monotonic()
    assert wait_until(lambda: one.ask().status == 403, timeout_s=8.0)
    assert began + 2.9 < time.monotonic() < max(began + 3.0, ready) + 2.0
    one.proxy.stop(signal.SIGKILL)
    one.proxy.start()
    assert one.ask().status == 403


def test_a_restart_with_the_clock_in_the_past_does_not_reset_wall_time(
    shop: Callable[[str], Shop],
) -> None:
    """What was measured stays measured; the time in between is unknown to such a machine."""
    one = shop(WALL.format("1500ms"))
    one.proxy.start()
    assert one.ask().status == 200
    assert wait_until(lambda: one.ask().status == 403)
    one.proxy.stop()
    one.clock.set("1970-01-01 00:10:00")
    one.proxy.start()
    left_s = 1.5 - span_of_records(one)
    began = time.monotonic()
    assert wait_until(lambda: one.ask().status == 403, timeout_s=3.0)
    assert time.monotonic() - began <= left_s + 1.0
    one.check()


def span_of_records(one: Shop) -> float:
    """Seconds between the first and the last request that the budget let pass, by its own clock."""
    times = [
        parse_time(event["time"]) for event in one.proxy.records("decision") if event["reserve"]
    ]
    return (times[-1] - times[0]) / 1000


# --- restarts


def test_a_restart_at_1970_and_back_loses_nothing_and_opens_no_second_day(
    shop: Callable[[str], Shop],
) -> None:
    one = shop(daily(5))
    one.proxy.start()
    assert [one.ask().status for _ in range(2)] == [200, 200]
    (account,) = one.spent()
    one.proxy.stop(signal.SIGKILL)
    one.clock.set("1970-01-01 00:10:00")
    one.proxy.start()
    one.check()
    assert [one.ask().status for _ in range(2)] == [200, 200]
    one.proxy.stop(signal.SIGKILL)
    one.clock.restore()
    one.proxy.start()
    assert [one.ask().status for _ in range(2)] == [200, 403]
    one.check()
    assert one.spent() == {account: {"requests": 5}}


def test_a_restart_a_day_ahead_opens_that_day_once_and_it_never_comes_again(
    shop: Callable[[str], Shop],
) -> None:
    """A machine whose clock is ahead at the start is believed; each day still opens once."""
    one = shop(daily(2))
    one.proxy.start()
    assert one.spend() == 2
    one.proxy.stop()
    one.clock.shift(days=1)
    one.proxy.start()
    assert one.spend() == 2
    one.proxy.stop()
    one.clock.restore()
    one.proxy.start()
    assert one.spend() == 0
    assert sorted(used["requests"] for used in one.spent().values()) == [2, 2]
    one.check()


def test_what_ran_at_a_crash_counts_in_full_under_any_clock(shop: Callable[[str], Shop]) -> None:
    one = shop(daily(5, ", bytes_in: 1MB"))
    one.proxy.start()
    assert wait_until(lambda: one.ask("/ok/1").status == 200)  # what is first may be slow
    with one.open("/drip/0.02") as client:
        assert client.read_head().status == 200
        one.proxy.stop(signal.SIGKILL)
    one.clock.set("1970-01-01 00:10:00")
    one.proxy.start()
    ((account, used),) = one.spent().items()
    assert used["requests"] == 2
    assert 262_144 < used["bytes_in"] < 262_144 + 500  # the first answer, and all that was held
    shown = wait_for_metrics(one, account.partition("@")[0])
    assert shown["spent_total"] == used
    one.check()


def wait_for_metrics(one: Shop, account: str) -> dict[str, dict[str, int]]:
    """The books by series and unit, from /metrics."""
    found: dict[str, dict[str, int]] = {}
    for line in one.proxy.scrape("/metrics")[1].splitlines():
        if line.startswith("tollkeeper_budget_") and f'account="{account}"' in line:
            series, _, rest = line.removeprefix("tollkeeper_budget_").partition("{")
            unit = rest.partition('unit="')[2].partition('"')[0]
            found.setdefault(series, {})[unit] = int(float(rest.rsplit(" ", 1)[1]))
    return found
