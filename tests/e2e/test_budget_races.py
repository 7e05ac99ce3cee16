"""Budgets of a running server: many at once, over every way in, and what is charged to whom.

The origin keeps its answers back until every denial has arrived: that nobody waits for a denial
needs no clock, and everything that was let through is held at the same time.
"""

import asyncio
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from audit.writer import wall_clock
from proxy.credentials import CredentialStore
from tests.kit.counting_house import (
    API,
    CREDENTIALED,
    GONE,
    RULES,
    CountingHouse,
    basic,
    open_house,
    reason_of,
)
from tests.kit.http1 import Answer, Http1
from tests.kit.http2 import Http2
from tests.kit.origin import Seen
from tests.kit.proxy import wait_until

CALLS = 200
BUDGET = 10
SMALL = f"small: {{ each: agent, limits: {{ requests: {BUDGET} }} }}"
PATIENCE_S = 30.0
DAY_MS = 86_400_000


class Gate:
    """Keeps an origin's answers back until it is opened."""

    def __init__(self, house: CountingHouse) -> None:
        self._open = threading.Event()
        house.origin.on_head = self._keep_back

    def _keep_back(self, _seen: Seen) -> None:
        self._open.wait(PATIENCE_S)

    def open(self) -> None:
        self._open.set()


class Tally:
    """Answers as they come; opens the gate at the denial that makes them enough."""

    def __init__(self, gate: Gate, *, denials: int) -> None:
        self.statuses: Counter[tuple[int, str]] = Counter()
        self.denied_before_all_others = False
        self._gate = gate
        self._wanted = denials
        self._denials = 0
        self._lock = threading.Lock()

    def add(self, status: int, reason: str) -> None:
        with self._lock:
            self.statuses[status, reason] += 1
            self._denials += status == 403
            if status == 403 and self._denials == self._wanted:
                self.denied_before_all_others = not self.statuses[200, ""]
                self._gate.open()


def run_threads(work: Callable[[int], None], count: int) -> None:
    """All of them begin at once."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait(PATIENCE_S)
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(begin, number) for number in range(count)]:
            done.result(PATIENCE_S)


def check_close(house: CountingHouse) -> None:
    """The log of it all verifies."""
    assert house.proxy.stop() == 0
    assert house.proxy.verify().returncode == 0, house.proxy.verify().stdout


# --- 200 at once on a budget of ten


def ask_over_fresh_connections(house: CountingHouse, tally: Tally) -> None:
    def one(_number: int) -> None:
        answer = house.ask("/ok/fresh")
        tally.add(answer.status, reason_of(answer))

    run_threads(one, CALLS)


def ask_over_open_tunnels(house: CountingHouse, tally: Tally) -> None:
    """CONNECT and TLS are over when they begin; each asks twice, where it may keep the tunnel."""
    tunnels = [house.tunnel() for _ in range(CALLS // 2)]

    def two(number: int) -> None:
        client = tunnels[number]
        for _ in range(2):
            answer = client.ask("/ok/kept", API)
            tally.add(answer.status, reason_of(answer))
            if answer.value("connection") == "close":
                client.connection.close()
                client = house.tunnel()
        client.connection.close()

    run_threads(two, len(tunnels))


def ask_over_streams(house: CountingHouse, tally: Tally) -> None:
    """Fifty on each of four connections."""

    def fifty(_number: int) -> None:
        with house.tunnel(protocols=["h2"]) as client:
            streams = Http2(client.connection)
            waiting = {streams.send("/ok/stream", API) for _ in range(CALLS // 4)}
            while waiting:
                number, answer = streams.read_next(*waiting, timeout_s=PATIENCE_S)
                waiting.discard(number)
                tally.add(answer.status, reason_of(answer))

    run_threads(fifty, 4)


@pytest.mark.parametrize(
    ("ask", "waiting"),
    [
        (ask_over_fresh_connections, BUDGET),
        (ask_over_open_tunnels, 2 * BUDGET),  # whose second request comes behind the first answer
        (ask_over_streams, BUDGET),
    ],
)
def test_ten_of_two_hundred_pass_and_the_others_are_denied_at_once(
    tmp_path: Path, ask: Callable[[CountingHouse, Tally], None], waiting: int
) -> None:
    with open_house(tmp_path, SMALL) as house:
        tally = Tally(Gate(house), denials=CALLS - waiting)
        ask(house, tally)
        assert tally.statuses == {(200, ""): BUDGET, (403, "budget-exhausted"): CALLS - BUDGET}
        assert tally.denied_before_all_others
        assert len(house.origin.requests) == BUDGET
        assert house.check_books() == {"small/local": {"requests": BUDGET}}
        check_close(house)


def test_a_real_client_gets_ten_answers_on_its_streams(tmp_path: Path) -> None:
    """httpx puts all 200 on at most four connections."""

    async def run(house: CountingHouse) -> Counter[tuple[int, str]]:
        context = ssl.create_default_context(cafile=str(house.proxy.ca))
        async with httpx.AsyncClient(
            http2=True,
            proxy=house.proxy.url,
            verify=context,
            trust_env=False,
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_connections=4),
        ) as client:
            url = f"https://{API}/ok/stream"
            answers = await asyncio.gather(*(client.get(url) for _ in range(CALLS)))
        assert {one.http_version for one in answers} == {"HTTP/2"}
        return Counter((one.status_code, one.json().get("reason", "")) for one in answers)

    with open_house(tmp_path, SMALL) as house:
        statuses = asyncio.run(run(house))
        assert statuses == {(200, ""): BUDGET, (403, "budget-exhausted"): CALLS - BUDGET}
        connects = [one for one in house.proxy.records("decision") if one["stage"] == "connect"]
        assert len(connects) <= 4
        assert len(house.origin.requests) == BUDGET
        assert house.check_books() == {"small/local": {"requests": BUDGET}}


def test_two_budgets_are_drawn_together_or_not_at_all(tmp_path: Path) -> None:
    """The narrow one refuses; the wide one has lost nothing by it."""
    wide = "wide: { each: agent, limits: { requests: 10, steps: 100, bytes_out: 1MB } }"
    narrow = "narrow: { each: agent, window: 1d, limits: { requests: 4 } }"
    with open_house(tmp_path, wide, narrow) as house:
        tally = Tally(Gate(house), denials=46)

        def one(_number: int) -> None:
            answer = house.ask("/ok/both")
            tally.add(answer.status, reason_of(answer))

        run_threads(one, 50)
        assert tally.statuses == {(200, ""): 4, (403, "budget-exhausted"): 46}
        assert len(house.origin.requests) == 4
        house.check_books()
        assert house.spent("narrow/local") == {"requests": 4}
        spent = house.spent("wide/local")
        assert spent == {"requests": 4, "steps": 4, "bytes_out": house.origin.bytes_received}
        check_close(house)


def test_each_session_has_its_own_and_all_share_what_is_the_agents(tmp_path: Path) -> None:
    own = "own: { each: session, limits: { requests: 6 } }"
    shared = "shared: { each: agent, who: { agents: coder }, limits: { requests: 8 } }"
    with open_house(tmp_path, own, shared, agents=CREDENTIALED) as house:
        first, second, other = (house.issue(name) for name in ("coder", "coder", "reviewer"))
        statuses: Counter[tuple[str, int]] = Counter()

        def one(number: int) -> None:
            token = (first, second, other)[number % 3]
            answer = house.ask("/ok/session", token)
            statuses[token, answer.status] += 1

        run_threads(one, 60)
        assert max(statuses[first, 200], statuses[second, 200]) <= 6
        assert statuses[first, 200] + statuses[second, 200] == 8
        assert (statuses[other, 200], statuses[other, 403]) == (6, 14)
        assert sum(statuses.values()) == 60
        spent = house.check_books()
        assert spent.pop("shared/coder") == {"requests": 8}
        assert sorted(name.partition("/")[2].partition("/")[0] for name in spent) == [
            "coder", "coder", "reviewer",
        ]  # fmt: skip
        sessions = [one["requests"] for one in spent.values()]
        assert sum(sessions) == 14 == len(house.origin.requests)
        assert max(sessions) == 6
        check_close(house)


# --- what a request costs


def test_costs_of_all_matching_rules_are_drawn_and_never_clipped(tmp_path: Path) -> None:
    """Steps and effort add up, the largest risk counts; what does not fit is refused whole."""
    costs = ("{ steps: 3, effort: 7, risk: 2 }", "{ steps: 1, effort: 0, risk: 5 }")
    rules = [
        f"{{ id: r{number}, verdict: allow, match: {{ host: {API}, path: [/cheap,{path}],"
        f" dest_ip: loopback }}, cost: {cost} }}"
        for number, (path, cost) in enumerate(zip(("/dear", "/dear"), costs, strict=True))
    ]
    rules += [RULES[0].replace("/**", "/free").replace("} }", "}, cost: { steps: 0, effort: 0 } }")]
    rules[0] = rules[0].replace("/cheap,", "")
    budget = "points: { each: agent, limits: { steps: 10, effort: 100, risk: 50 } }"
    with open_house(tmp_path, budget, rules=rules) as house:
        assert [house.ask("/dear").status for _ in range(2)] == [200, 200]
        assert house.check_books() == {"points/local": {"steps": 8, "effort": 14, "risk": 10}}
        refused = house.ask("/dear")
        assert reason_of(refused) == "budget-exhausted"
        left = json.loads(refused.body)["remaining"]["points"]
        assert left == {"steps": 2, "effort": 86, "risk": 40}
        assert [house.ask("/cheap").status for _ in range(3)] == [200, 200, 403]
        assert house.ask("/free").status == 200
        assert house.check_books() == {"points/local": {"steps": 10, "effort": 14, "risk": 20}}
        check_close(house)


def test_a_limit_of_zero_denies_everything(tmp_path: Path) -> None:
    """Of every unit: an answer, too, has at least one byte. Nothing is asked of the origin."""
    units = ("requests", "steps", "effort", "bytes_out", "bytes_in", "wall_time")
    names = [unit.replace("_", "-") for unit in units]
    budgets = (
        f"{name}: {{ each: agent, who: {{ agents: {name} }}, limits: {{ {unit}: 0 }} }}"
        for name, unit in zip(names, units, strict=True)
    )
    with open_house(tmp_path, *budgets, agents=", ".join(f"{one}: {{}}" for one in names)) as house:
        store = CredentialStore(house.proxy.state / "credentials.json")
        for name, unit in zip(names, units, strict=True):
            answer = house.ask("/ok/never", basic(name, store.add(name, now=wall_clock()).token))
            assert reason_of(answer) == "budget-exhausted"
            body = json.loads(answer.body)
            assert body["remaining"] == {name: {unit: 0}}
            assert body["guidance"] == "do not retry; the operator has to raise the budget"
        assert house.origin.connections == 0
        assert not any(house.check_books().values())


def test_no_risk_allowed_is_no_risk_and_everything_else(tmp_path: Path) -> None:
    risky = RULES[0].replace("id: api", "id: risky").replace("/**", "/risky")
    rules = (risky.replace("} }", "}, cost: { risk: 1 } }"), *RULES)
    with open_house(tmp_path, "calm: { each: agent, limits: { risk: 0 } }", rules=rules) as house:
        assert [house.ask(path).status for path in ("/risky", "/ok", "/risky")] == [403, 200, 403]
        assert house.check_books() == {"calm/local": {}}


# --- what an agent is told


def test_a_windowed_budget_says_when_it_opens_again_and_what_is_left(tmp_path: Path) -> None:
    budgets = (
        "daily: { each: agent, window: 1d, limits: { requests: 1, bytes_in: 1MB } }",
        "total: { each: agent, limits: { requests: 9 } }",
    )
    with open_house(tmp_path, *budgets) as house:
        assert house.ask("/ok/1").status == 200
        spent = house.check_books()
        answer = house.ask("/ok/2")
        name, opens_ms = next(
            (name, one["until_ms"]) for name, one in house.show().items() if one["until_ms"]
        )
        if name not in spent:
            pytest.skip("it was midnight: the budget had opened again")
        body = json.loads(answer.body)
        assert (answer.status, body["reason"]) == (403, "budget-exhausted")
        assert body["retryable"] is False
        assert opens_ms % DAY_MS == 0
        assert opens_ms - house.show()[name]["from_ms"] == DAY_MS
        opens = datetime.fromtimestamp(opens_ms / 1000, UTC).strftime("%Y-%m-%dT00:00:00Z")
        assert body["guidance"] == f"the budget opens again at {opens}; do not retry before"
        assert body["remaining"] == {
            "daily": {"requests": 0, "bytes_in": 1_000_000 - spent[name]["bytes_in"]},
            "total": {"requests": 8},
        }


def test_a_window_that_is_over_opens_the_next_one(tmp_path: Path) -> None:
    """Recorded as closed and opened; nothing is carried over, nothing is forgiven."""
    with open_house(
        tmp_path, "short: { each: agent, window: 1s, limits: { requests: 2 } }"
    ) as house:
        statuses: Counter[int] = Counter()
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            statuses[house.ask("/ok/w").status] += 1
        spent = [
            (one["account"], one["cause"], one["spent"])
            for one in house.proxy.records("ledger.snapshot")
        ]
        periods = {name for name, cause, _ in spent if cause == "opened"}
        assert 3 <= len(periods) <= 4
        two = [{"amount": 2, "unit": "requests"}]
        closed = [what for _, cause, what in spent if cause == "closed"]
        assert closed[1:] == [two] * (len(closed) - 1)  # the first had perhaps no time for two
        assert all(what == [] for _, cause, what in spent if cause == "opened")
        assert statuses[200] == len(house.origin.requests) <= 2 * len(periods)
        assert statuses[200] >= 2 * (len(periods) - 1)
        assert statuses[403] > 0
        house.check_books()
        check_close(house)


def test_the_header_is_on_answers_only_where_a_rule_shows_it(tmp_path: Path) -> None:
    shown = RULES[0].replace("id: api", "id: shown").replace("/**", "/shown")
    shown = shown.replace("} }", "}, with: { show_budget: true } }")
    budgets = (
        "daily: { each: agent, window: 1d, limits: { requests: 5 } }",
        "total: { each: agent, limits: { requests: 9 } }",
    )
    with open_house(tmp_path, *budgets, rules=(shown, *RULES)) as house:
        assert house.ask("/ok").values("tollkeeper-budget") == []
        (value,) = house.ask("/shown").values("tollkeeper-budget")
        daily, total = value.split(", ")
        assert daily.startswith('"daily";requests=3;reset=')
        assert 0 < int(daily.rpartition("=")[2]) <= 86_400
        assert total == '"total";requests=7'
        assert house.ask("/never").values("tollkeeper-budget") == []


# --- what is charged, and what is not


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingHouse]:
    """Wide open; each test looks at how much is spent before and after."""
    limits = "requests: 100000, steps: 100000, bytes_out: 1GB, bytes_in: 1GB"
    wide = f"wide: {{ each: agent, limits: {{ {limits} }} }}"
    with open_house(tmp_path_factory.mktemp("charges"), wide) as running:
        yield running
        running.check_books()
        check_close(running)


def charged(house: CountingHouse, act: Callable[[], Any]) -> dict[str, int]:
    """What `act` cost, by unit."""
    before = house.check_books()["wide/local"]
    act()
    after = house.check_books()["wide/local"]
    return {unit: after[unit] - before.get(unit, 0) for unit in after if after != before}


def test_a_denied_request_charges_nothing(house: CountingHouse) -> None:
    def act() -> None:
        for _ in range(5):
            assert reason_of(house.ask("/never")) == "denied-by-rule"
            assert reason_of(house.ask("/ok", method="DELETE")) == "no-rule-matched"

    assert charged(house, act) == {}


def test_connect_charges_nothing(house: CountingHouse) -> None:
    def act() -> None:
        for _ in range(5):
            house.tunnel().connection.close()

    assert charged(house, act) == {}


def test_an_upstream_that_cannot_be_reached_charges_nothing(house: CountingHouse) -> None:
    def act() -> None:
        assert [house.ask("/ok", host=GONE).status for _ in range(3)] == [502] * 3

    assert charged(house, act) == {}
    outcomes = [one for one in house.proxy.records("outcome") if one["settle"] == []]
    assert len(outcomes) >= 3


def test_an_answer_of_500_is_charged_like_any_other(house: CountingHouse) -> None:
    spent = charged(house, lambda: house.ask("/status/500"))
    assert (spent["requests"], spent["steps"]) == (1, 1)
    assert spent["bytes_out"] > 0 < spent["bytes_in"]


def test_a_client_that_hangs_up_before_the_answer_still_pays(house: CountingHouse) -> None:
    def act() -> None:
        seen = len(house.origin.requests)
        with house.tunnel() as client:
            client.send("/slow/0.3", API)
            assert wait_until(lambda: len(house.origin.requests) > seen)

    spent = charged(house, act)
    assert (spent["requests"], spent["steps"]) == (1, 1)
    assert spent["bytes_out"] == len(house.origin.received[-1])


def test_a_client_that_hangs_up_in_mid_stream_pays_for_what_came(house: CountingHouse) -> None:
    read = 0

    def act() -> None:
        nonlocal read
        with house.tunnel() as client:
            client.send("/drip/0.01", API)
            assert client.read_head().status == 200
            for chunk, _ in zip(client.chunks(), range(10), strict=False):
                read += len(chunk)

    spent = charged(house, act)
    assert spent["requests"] == 1
    assert spent["bytes_in"] >= read > 0


def test_bytes_are_what_the_origin_counted(house: CountingHouse) -> None:
    sent = 0

    def act() -> None:
        nonlocal sent
        before = house.origin.bytes_received
        with house.tunnel() as client:
            for size in (0, 1, 70_000, 600_000):
                assert client.ask("/echo", API, method="POST", body=b"u" * size).status == 200
        sent = house.origin.bytes_received - before

    spent = charged(house, act)
    assert spent["requests"] == 4
    assert spent["bytes_out"] == sent
    assert spent["bytes_in"] > 670_001


def test_a_storm_of_retries_costs_nothing(tmp_path: Path) -> None:
    """1,000 denied calls over kept connections: streams here, tunnels there."""
    with open_house(tmp_path, "one: { each: agent, limits: { requests: 1, bytes_out: 1MB } }") as h:
        assert h.ask("/ok/first").status == 200
        spent = h.check_books()
        answers: list[Answer] = []
        for _ in range(3):
            with Http1(h.proxy.tunnel(API, 443, protocols=["h2"], timeout_s=20.0)) as client:
                streams = Http2(client.connection)
                for _ in range(6):
                    sent = [streams.send("/ok/retry", API) for _ in range(50)]
                    answers += streams.read(*sent, timeout_s=PATIENCE_S)
        answers += [h.ask("/ok/again") for _ in range(100)]
        assert len(answers) == 1_000
        assert {(one.status, reason_of(one)) for one in answers} == {(403, "budget-exhausted")}
        assert h.check_books() == spent
        assert len(h.origin.requests) == h.origin.connections == 1
        check_close(h)
