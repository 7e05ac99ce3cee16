"""Edits of budgets in a running server: what falls, falls at once; what rises waits for
a person."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kit.counting_house import (
    API,
    CREDENTIALED,
    RULES,
    CountingHouse,
    open_house,
    reason_of,
)
from tests.kit.live_streams import LiveStreams
from tests.kit.proxy import wait_until


def budget(requests: int, *, name: str = "b", more: str = "") -> str:
    return f"{name}: {{ each: agent, limits: {{ requests: {requests}{more} }} }}"


def spend(house: CountingHouse, count: int) -> None:
    assert [house.ask("/ok").status for _ in range(count)] == [200] * count
    house.check_books()


def raise_(house: CountingHouse, *words: str) -> list[dict[str, Any]]:
    """`tollkeeper budget raise`: what it says it has raised."""
    raised: list[dict[str, Any]] = json.loads(house.command("budget", "raise", *words).stdout)
    return raised


def test_a_lower_limit_holds_at_once(tmp_path: Path) -> None:
    """Also below what is spent already, and for requests under way: they may end, none begins."""
    with open_house(tmp_path, budget(10)) as house, LiveStreams() as streams:
        streams.open("sse", house.tunnel())
        spend_without_end(house, 3)
        house.load(budget(4))
        assert house.limits("b/local") == {"requests": 4}
        refused = house.ask("/ok")
        assert reason_of(refused) == "budget-exhausted"
        assert json.loads(refused.body)["remaining"] == {"b": {"requests": 0}}
        house.load(budget(2))
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        streams.run_until(lambda: False, timeout_s=0.2)
        assert streams.live == {"sse": 1}
        streams.close()
        house.check_books()
        assert house.spent("b/local") == {"requests": 4}
        house.load(budget(10))
        assert house.limits("b/local") == {"requests": 2}
        (changed,) = {
            tuple(one["limits"][0].items()) for one in house.proxy.records("ledger.snapshot")[-1:]
        }
        assert dict(changed) == {"filed": 10, "limit": 2, "unit": "requests"}
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


def spend_without_end(house: CountingHouse, count: int) -> None:
    """While a stream is under way, which keeps the books open."""
    assert [house.ask("/ok").status for _ in range(count)] == [200] * count


def test_a_lower_byte_limit_cuts_a_stream_that_runs(tmp_path: Path) -> None:
    """It goes on for what it holds: one slice, where nobody knows its length."""
    chunk = b"10000\r\n" + b"c" * 65_536 + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with open_house(tmp_path, "bytes: { each: agent, limits: { bytes_in: 1GB } }") as house:
        house.origin.raw_answers["/endless"] = head + chunk * 1_000
        with house.tunnel() as client:
            client.send("/endless", API)
            assert client.read_head().status == 200
            house.load("bytes: { each: agent, limits: { bytes_in: 1kB } }")
            with pytest.raises(OSError):
                list(client.chunks())
        (outcome,) = house.proxy.wait_for("outcome")
        assert outcome["cut"] == "budget-exhausted"
        assert outcome["bytes_in"] < 40_000_000
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        assert house.check_books() == {"bytes/local": {"bytes_in": outcome["bytes_in"]}}


def test_a_stream_that_began_without_a_byte_budget_is_cut_when_one_comes(tmp_path: Path) -> None:
    """It holds nothing, so nothing would meter it."""
    with open_house(tmp_path, budget(100)) as house, house.tunnel() as client:
        client.send("/drip/0.01", API)
        assert client.read_head().status == 200
        house.load("bytes: { each: agent, limits: { bytes_in: 1MB } }")
        with pytest.raises(OSError):
            list(client.chunks())
        (outcome,) = house.proxy.wait_for("outcome")
        assert outcome["error"] == "policy-changed"


def test_a_higher_limit_waits_for_a_person(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(2)) as house:
        spend(house, 2)
        house.load(budget(5))
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        (unit,) = house.show()["b/local"]["units"]
        assert (unit["limit"], unit["filed"], unit["pending"]) == (2, 5, True)
        house.proxy.stop()
        house.proxy.start()
        assert "budget-pending" in house.proxy.stderr
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        raised = raise_(house, "b")
        assert raised == [{"account": "b/local", "unit": "requests", "from": 2, "to": 5}]
        spend(house, 3)
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        assert house.spent("b/local") == {"requests": 5}
        (recorded,) = house.proxy.records("budget.raise")
        assert (recorded["from"], recorded["to"]) == (2, 5)
        assert recorded["by"]
        nothing = house.command("budget", "raise", "b", check=False)
        assert nothing.returncode == 2
        assert house.proxy.stop() == 0
        assert raise_(house, "b", "--unit", "requests", "--to", "6")[0]["to"] == 6  # no server
        house.proxy.start()
        spend(house, 1)
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


def test_a_value_can_be_given_and_a_lower_one_in_the_file_takes_it_back(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(2)) as house:
        spend(house, 2)
        assert raise_(house, "b", "--unit", "requests", "--to", "4")[0]["to"] == 4
        spend(house, 2)
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        for value in ("4", "3", "-1", "1.5"):
            refused = house.command(
                "budget", "raise", "b", "--unit", "requests", "--to", value, check=False
            )
            assert refused.returncode == 2, value
        house.load(budget(2, more=", steps: 100"))  # the same value as before: no new lowering
        assert house.limits("b/local")["requests"] == 4
        house.load(budget(1))
        assert house.limits("b/local")["requests"] == 1
        assert [one["to"] for one in house.proxy.records("budget.raise")] == [4]


def test_a_renamed_budget_keeps_the_old_limit_beside_the_new_one(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(3)) as house:
        spend(house, 2)
        house.load(budget(3, name="other"))
        spend(house, 1)
        refused = house.ask("/ok")
        assert json.loads(refused.body)["remaining"] == {
            "b": {"requests": 0}, "other": {"requests": 2},
        }  # fmt: skip
        assert raise_(house, "b") == [
            {"account": "b/local", "unit": "requests", "from": 3, "to": None}
        ]
        spend(house, 2)
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        house.load(budget(3))
        assert house.show()["b/local"]["units"], "it is back, with its limit"
        assert house.spent("other/local") == {"requests": 3}
        (recorded,) = house.proxy.records("budget.raise")
        assert "to" not in recorded
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


def test_a_removed_budget_keeps_its_limit_until_that_is_accepted(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(2), budget(50, name="wide")) as house:
        spend(house, 2)
        house.load(budget(50, name="wide"))
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        assert raise_(house, "b")[0]["to"] is None
        spend(house, 3)
        assert house.spent("wide/local") == {"requests": 5}
        house.load(budget(2), budget(50, name="wide"))
        assert reason_of(house.ask("/ok")) == "budget-exhausted", "what was spent stays spent"


@pytest.mark.parametrize("window", ["window: 1h, ", ""])
def test_another_window_waits_for_a_person(tmp_path: Path, window: str) -> None:
    """A shorter window would be a new allowance; none at all would end its renewal."""
    daily = "b: { each: agent, window: 7d, limits: { requests: 2 } }"
    with open_house(tmp_path, daily) as house:
        spend(house, 2)
        house.load(f"b: {{ each: agent, {window}limits: {{ requests: 2 }} }}")
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        (shown,) = house.show().values()
        assert shown["window_pending"] is True
        assert shown["until_ms"] - shown["from_ms"] == 7 * 86_400_000
        (raised,) = raise_(house, "b")
        assert (raised["unit"], raised["from"]) == ("window", 7 * 86_400_000)
        assert house.spent("b/local") == {"requests": 2}, "what was spent stays spent"
        assert house.proxy.records("budget.raise")[0]["by"]
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


def test_a_new_unit_of_a_budget_is_in_force_at_once(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(100)) as house:
        spend(house, 2)
        house.load(budget(100, more=", steps: 1"))
        spend(house, 1)
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        house.load(budget(100))
        assert reason_of(house.ask("/ok")) == "budget-exhausted", "a unit left out is a raise"
        assert raise_(house, "b")[0] == {
            "account": "b/local", "unit": "steps", "from": 1, "to": None,
        }  # fmt: skip
        spend(house, 1)


def test_editing_renaming_and_reordering_rules_leaves_spending_alone(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(10)) as house:
        spend(house, 3)
        before = house.show()["b/local"]
        renamed = RULES[0].replace("id: api", "id: renamed")
        edited = RULES[0].replace("[GET, POST, PUT]", "[GET, POST]")
        for rules in (RULES[::-1], (renamed, *RULES[1:]), (edited, renamed), RULES):
            house.load(budget(10), rules=rules)
            assert house.show()["b/local"] == before
        spend(house, 7)
        assert reason_of(house.ask("/ok")) == "budget-exhausted"


def test_raising_one_agents_budget_leaves_the_others_alone(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(1), agents=CREDENTIALED) as house:
        coder, reviewer = house.issue("coder"), house.issue("reviewer")
        words = ("b", "--agent", "coder", "--unit", "requests", "--to", "3")
        assert raise_(house, *words) == [
            {"account": "b/coder", "unit": "requests", "from": 1, "to": 3}
        ]
        assert [house.ask("/ok", coder).status for _ in range(4)] == [200] * 3 + [403]
        assert [house.ask("/ok", reviewer).status for _ in range(2)] == [200, 403]


def test_edits_during_a_race_give_nobody_more(tmp_path: Path) -> None:
    """The file goes up and down while eight clients spend: the lowest limit it ever had holds."""
    with open_house(tmp_path, budget(60)) as house:
        passed: list[int] = []
        stop = threading.Event()

        def one() -> None:
            while not stop.is_set():
                passed.append(house.ask("/ok").status)

        clients = [threading.Thread(target=one) for _ in range(8)]
        for client in clients:
            client.start()
        try:
            for limit in (50, 500, 45, 1000):
                house.load(budget(limit))
            assert wait_until(lambda: passed.count(403) > 20, timeout_s=30.0)
        finally:
            stop.set()
            for client in clients:
                client.join(20)
        assert passed.count(200) == len(house.origin.requests)
        spent = house.check_books()["b/local"]["requests"]
        assert spent == len(house.origin.requests)
        assert house.limits("b/local") == {"requests": 45}
        assert 45 <= spent <= 60  # what was let out before it fell stays out


def test_doctor_asks_the_running_server_how_its_ledger_is(tmp_path: Path) -> None:
    with open_house(tmp_path, budget(10)) as house:

        def look() -> dict[str, str]:
            checks = json.loads(house.command("doctor", check=False).stdout)
            return next(dict(check) for check in checks if check["name"] == "ledger")

        assert (look()["level"], look()["found"].rpartition("; ")[2]) == (
            "ok",
            "the server's ledger answers",
        )
        (house.proxy.state / "ledger.db").unlink()
        assert reason_of(house.ask("/ok")) == "ledger-unavailable"
        found = look()
        assert found["level"] == "fail"
        assert "restart" in found["remedy"]
