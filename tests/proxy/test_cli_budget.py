"""`tollkeeper budget`: what is spent, and the only way up, with or without a server."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.reader import Filter, read
from audit.verify import VALID, verify
from proxy.cli.budget import render
from tests.kit.command import complaint, invoke
from tests.kit.origin import Origin
from tests.kit.proxy import ROOT, Proxy, wait_until

HOST = "api.test.example"
POLICY = """\
version: 1
agents: {{ coder: {{}}, local: {{ identity: {{ source: ["127.0.0.0/8"] }} }} }}
rules:
  - id: api
    verdict: allow
    match: {{ host: api.test.example, scheme: http, port: [80], path: "/**", dest_ip: loopback }}
budgets:
  daily: {{ each: agent, window: {window}, limits: {{ requests: {requests}, bytes_out: 50MB }} }}
  life: {{ each: agent, limits: {{ steps: 0, wall_time: {wall_time} }} }}
"""


def write_policy(requests: int = 1000, wall_time: str = "2h", window: str = "1d") -> None:
    text = POLICY.format(requests=requests, wall_time=wall_time, window=window)
    Path("policies.yaml").write_text(text, encoding="utf-8")


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with policy and state, and we in it."""
    monkeypatch.chdir(tmp_path)
    assert invoke("init").exit_code == 0
    write_policy()
    return tmp_path


def show(*words: str) -> dict[str, dict[str, Any]]:
    """Accounts by their base name."""
    result = invoke("budget", "show", *words, "--json")
    assert result.exit_code == 0, result.stderr
    return {one["account"].partition("@")[0]: one for one in json.loads(result.stdout)}


def unit_of(account: dict[str, Any], unit: str) -> dict[str, Any]:
    [found] = [one for one in account["units"] if one["unit"] == unit]
    return dict(found)


def limit(base: str, unit: str) -> int:
    found: int = unit_of(show()[base], unit)["limit"]
    return found


def recorded(kind: str) -> list[dict[str, Any]]:
    wanted = Filter(kinds=frozenset({kind}))
    return [line.record.event for line in read(Path("state/log"), wanted)]


def log_bytes() -> bytes:
    [segment] = Path("state/log").glob("*.jsonl")
    return segment.read_bytes()


def raise_(*words: str) -> list[dict[str, Any]]:
    result = invoke("budget", "raise", *words, "--json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


# --- looking


def test_looking_shows_what_the_next_start_begins_with_and_writes_nothing() -> None:
    before = log_bytes()
    accounts = show()
    assert sorted(accounts) == ["daily/coder", "daily/local", "life/coder", "life/local"]
    assert unit_of(accounts["daily/coder"], "bytes_out") == {
        "unit": "bytes_out",
        "limit": 50_000_000,
        "spent": 0,
        "held": 0,
        "available": 50_000_000,
        "pending": False,
        "filed": 50_000_000,
    }
    assert sorted(show("--agent", "coder")) == ["daily/coder", "life/coder"]
    assert log_bytes() == before


def test_the_table_has_a_row_for_each_limit() -> None:
    header, *rows = invoke("budget", "show").stdout.splitlines()
    assert header.split() == [
        *("agent", "state", "account", "unit", "spent", "held", "left", "limit", "resets")
    ]
    assert len(rows) == 8
    assert rows[1].split()[:8] == [
        *("coder", "active", "daily/coder", "bytes_out", "0B", "0B", "50MB", "50MB")
    ]
    assert rows[5].split() == [
        *("coder", "active", "life/coder", "wall_time", "0s", "0s", "2h", "2h", "never")
    ]


def test_without_budgets_it_says_so() -> None:
    Path("policies.yaml").write_text("version: 1\nagents: { coder: {} }\nrules: []\n")
    result = invoke("budget", "show")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no account yet; write `budgets:`" in result.stderr


def test_with_a_broken_policy_file_it_shows_the_log_and_says_so() -> None:
    raise_("daily", "--unit", "requests", "--to", "5000", "--agent", "coder")
    Path("policies.yaml").write_text("version: 2\n")
    result = invoke("budget", "show", "--json")
    assert "note: policies.yaml: the policy has errors" in result.stderr
    assert limit("daily/coder", "requests") == 5000


BROKEN: dict[str, tuple[bytes, str]] = {
    "a flipped bit": (b"~", "tollkeeper audit verify"),
    "a line that is none": (b"\n", "tollkeeper audit verify"),
}


@pytest.mark.parametrize(("bite", "words"), BROKEN.values(), ids=BROKEN)
def test_a_log_that_does_not_verify_is_not_summed(bite: bytes, words: str) -> None:
    [segment] = Path("state/log").glob("*.jsonl")
    segment.write_bytes(log_bytes()[:100] + bite + log_bytes()[101:])
    assert words in complaint(invoke("budget", "show"))
    assert words in complaint(invoke("budget", "raise", "life", "--unit", "steps", "--to", "5"))


# --- raising


def test_a_value_raises_one_limit_and_is_recorded_with_who() -> None:
    text = invoke("budget", "raise", "life", "--agent", "coder", "--unit", "steps", "--to", "500")
    assert text.stdout == "raised life/coder steps 0 -> 500\n"
    [event] = recorded("budget.raise")
    assert event.pop("by").startswith("cli:")
    assert event == {
        "kind": "budget.raise",
        "account": "life/coder",
        "unit": "steps",
        "from": 0,
        "to": 500,
    }
    assert recorded("ledger.snapshot")[-1]["cause"] == "changed"
    assert (limit("life/coder", "steps"), limit("life/local", "steps")) == (500, 0)
    assert verify(Path("state/log")).exit_code == VALID


VALUES = {
    "bytes": ("daily", "bytes_out", "60MiB", 60 * 2**20),
    "a time": ("life", "wall_time", "1d", 86_400_000),
    "a count": ("daily", "requests", "1001", 1001),
}


@pytest.mark.parametrize(("name", "unit", "text", "value"), VALUES.values(), ids=VALUES)
def test_a_value_is_written_as_in_the_policy(name: str, unit: str, text: str, value: int) -> None:
    raised = raise_(name, "--unit", unit, "--to", text)
    assert sorted(one["account"] for one in raised) == [f"{name}/coder", f"{name}/local"]
    assert {one["to"] for one in raised} == {value}
    assert limit(f"{name}/coder", unit) == value


def test_a_value_that_one_account_refuses_raises_none() -> None:
    raise_("daily", "--agent", "coder", "--unit", "requests", "--to", "5000")
    before = log_bytes()
    refused = invoke("budget", "raise", "daily", "--unit", "requests", "--to", "4000")
    assert "4000 is not higher than the limit in force, 5000" in complaint(refused)
    assert log_bytes() == before
    assert limit("daily/local", "requests") == 1000


def test_what_the_file_says_is_accepted_when_it_is_asked_for() -> None:
    raise_("daily", "--unit", "bytes_out", "--to", "60MB")
    write_policy(requests=2000, wall_time="1h")
    table = invoke("budget", "show", "--agent", "coder").stdout
    assert " 1000 -> 2000 (budget raise) " in table
    assert limit("daily/coder", "requests") == 1000
    assert limit("life/coder", "wall_time") == 3_600_000  # lower counts at once
    raised = raise_("daily")
    assert sorted((one["account"], one["unit"], one["from"], one["to"]) for one in raised) == [
        ("daily/coder", "requests", 1000, 2000),
        ("daily/local", "requests", 1000, 2000),
    ]
    assert limit("daily/coder", "requests") == 2000
    assert limit("daily/coder", "bytes_out") == 60_000_000  # raised by hand, and not taken back


def test_another_window_and_a_removed_budget_wait_until_they_are_accepted() -> None:
    raise_("life", "--unit", "steps", "--to", "5")
    write_policy(window="1h")
    assert " -> other window (budget raise)" in invoke("budget", "show").stdout
    result = invoke("budget", "raise", "daily", "--agent", "coder")
    assert result.stdout == "raised daily/coder window 1d -> 1h\n"
    text = Path("policies.yaml").read_text()
    Path("policies.yaml").write_text(text[: text.index("  life:")])
    assert " 5 -> no limit (budget raise) " in invoke("budget", "show").stdout
    assert {one["to"] for one in raise_("life", "--agent", "coder")} == {None}
    assert show()["life/coder"]["units"] == []
    assert "no limit" in invoke("budget", "show", "--agent", "coder").stdout
    assert verify(Path("state/log")).exit_code == VALID


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing waits": (("raise", "daily"), "nothing of `daily` waits to be raised"),
    "no such budget": (("raise", "dayly"), "no account of `dayly`; there are: daily, life"),
    "no such agent": (("raise", "daily", "--agent", "x"), "no account of `daily`"),
    "no such session": (("raise", "daily", "--session", "x"), "no account of `daily`"),
    "a unit without a value": (("raise", "daily", "--unit", "requests"), "go together"),
    "a value without a unit": (("raise", "daily", "--to", "5"), "go together"),
    "a unit that is none": (("raise", "daily", "--unit", "money", "--to", "5"), "'money' is not"),
    "a unit without limit": (
        ("raise", "daily", "--unit", "risk", "--to", "5"),
        "`risk` is not limited here",
    ),
    "a lower value": (
        ("raise", "daily", "--unit", "requests", "--to", "5"),
        "5 is not higher than the limit in force, 1000",
    ),
    "a size without unit": (
        ("raise", "daily", "--unit", "bytes_out", "--to", "5"),
        "`--to 5`: `5` has no unit; write 10MB",
    ),
    "a count with one": (
        ("raise", "daily", "--unit", "requests", "--to", "5MB"),
        "`--to 5MB`: expected a whole number",
    ),
    "a negative count": (
        ("raise", "daily", "--unit", "requests", "--to", "-5"),
        "`--to -5`: expected a whole number",
    ),
    "a count without end": (
        ("raise", "daily", "--unit", "requests", "--to", "9007199254740992"),
        "`--to 9007199254740992`",
    ),
    "an agent to show that is none": (("show", "--agent", "codr"), "did you mean `coder`?"),
    "a state that is none": (("show", "--state", "nowhere"), "nowhere"),
    "a raise in a state that is none": (
        ("raise", "daily", "--state", "nowhere"),
        "run `tollkeeper init`, or give --state",
    ),
    "a policy that is none": (
        ("raise", "daily", "--policies", "nowhere.yaml"),
        "give --policies",
    ),
}


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(words: tuple[str, ...], text: str) -> None:
    before = log_bytes()
    assert text in complaint(invoke("budget", *words))
    assert log_bytes() == before


# --- for people


def row(**other: Any) -> dict[str, Any]:
    unit = {
        **dict.fromkeys(("spent", "held", "available", "limit"), 0),
        "unit": "requests",
        "pending": False,
        "filed": 0,
    }
    return {
        "account": "daily/coder@2026-11-21T00:00:00Z",
        "agent": "coder",
        "until_ms": 0,
        "units": [{**unit, **other}],
        "window_pending": False,
        "state": "active",
        "cause": "",
    }


BARS = {
    "nothing": ((0, 0, 100), "[....................]   0%", "\x1b[32m"),
    "a third": ((30, 3, 100), "[######..............]  33%", "\x1b[32m"),
    "nearly all": ((80, 0, 100), "[################....]  80%", "\x1b[33m"),
    "all": ((100, 0, 100), "[####################] 100%", "\x1b[31m"),
    "more than a limit that fell": ((150, 0, 100), "[####################] 150%", "\x1b[31m"),
    "all of nothing": ((0, 0, 0), "[####################] 100%", "\x1b[31m"),
}


@pytest.mark.parametrize(("used", "bar", "colour"), BARS.values(), ids=BARS)
def test_a_terminal_gets_bars_and_colours(
    used: tuple[int, int, int], bar: str, colour: str
) -> None:
    spent, held, most = used
    shown = [row(spent=spent, held=held, limit=most)]
    assert f"{colour}{bar}\x1b[0m" in "\n".join(render(shown, terminal=True))
    plain = "\n".join(render(shown, terminal=False))
    assert "\x1b" not in plain
    assert "#" not in plain


AMOUNTS = {
    "bytes": ("bytes_in", 999, "999B"),
    "exactly a unit": ("bytes_in", 1000, "1kB"),
    "never rounded up": ("bytes_in", 49_999_999, "49.999MB"),
    "the largest": ("bytes_in", 2**53 - 1, "9007.199TB"),
    "no time": ("wall_time", 0, "0s"),
    "two units of time": ("wall_time", 93_784_005, "1d2h"),
    "less than a second": ("wall_time", 5, "5ms"),
    "a count": ("steps", 12_345, "12345"),
}


@pytest.mark.parametrize(("unit", "amount", "text"), AMOUNTS.values(), ids=AMOUNTS)
def test_amounts_are_shown_for_people(unit: str, amount: int, text: str) -> None:
    [_, line] = render([row(unit=unit, spent=amount, limit=1)], terminal=False)
    assert line.split()[4] == text


def test_the_state_of_an_agent_comes_with_its_cause() -> None:
    halted = {**row(), "state": "halted", "cause": "it loops"}
    alone = {**halted, "account": "", "agent": "former", "units": []}
    lines = render([halted, alone], terminal=True)
    assert "\x1b[31m\x1b[1mhalted" in lines[1]
    assert lines[-2:] == ["coder: halted: it loops", "former: halted: it loops"]


def test_on_a_terminal_the_command_shows_bars(house: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "budget", "show", "--agent", "coder"],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=theirs,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 65_536)
    os.close(ours)
    assert done.returncode == 0
    assert b"[....................]" in shown


# --- with a server


def sum_log(folder: Path) -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "tests/kit/sum_log.py"), str(folder)],
        capture_output=True,
        check=True,
        timeout=30,
    )
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def ask(proxy: Proxy, path: str) -> bytes:
    head = f"GET http://{HOST}{path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    return proxy.exchange(head.encode())


def test_a_running_server_shows_and_raises(house: Path) -> None:
    raise_("life", "--unit", "steps", "--to", "100")
    with (
        Origin() as origin,
        Proxy(
            house, house / "policies.yaml", resolve=[f"{HOST}:80:127.0.0.1:{origin.port}"]
        ) as proxy,
    ):
        for number in range(3):
            assert b" 200 " in ask(proxy, f"/ok/{number}").partition(b"\r\n")[0]
        assert wait_until(lambda: unit_of(show()["daily/local"], "requests")["spent"] == 3)
        assert unit_of(show()["daily/coder"], "requests")["spent"] == 0
        assert unit_of(show()["daily/local"], "bytes_out")["spent"] == 3 * 46
        assert {one["to"] for one in raise_("life", "--unit", "steps", "--to", "200")} == {200}
        assert "not higher" in complaint(
            invoke("budget", "raise", "life", "--unit", "steps", "--to", "200")
        )
        assert len(proxy.records("budget.raise")) == 4
        spent = unit_of(show()["daily/local"], "bytes_out")["spent"]
    assert unit_of(show()["daily/local"], "bytes_out")["spent"] == spent
    assert verify(Path("state/log")).exit_code == VALID


def test_after_a_kill_nothing_is_forgotten_and_what_was_under_way_counts(house: Path) -> None:
    raise_("life", "--unit", "steps", "--to", "100")
    with Origin() as origin:
        pins = [f"{HOST}:80:127.0.0.1:{origin.port}"]
        proxy = Proxy(house, house / "policies.yaml", resolve=pins).start()
        ask(proxy, "/ok/1")
        wait_until(lambda: unit_of(show()["daily/local"], "requests")["spent"] == 1)
        with proxy.connect() as client:
            client.sendall(
                f"GET http://{HOST}/trickle/1000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
            )
            assert wait_until(lambda: unit_of(show()["daily/local"], "requests")["held"] == 1)
            # held comes first, then its record, then the request leaves: from here on it counts
            assert wait_until(lambda: len(origin.requests) == 2)
            proxy.stop(signal.SIGKILL)
        assert verify(Path("state/log"), allow_open=True).exit_code == VALID
        assert unit_of(show()["daily/local"], "requests")["spent"] == 2
        with Proxy(house, house / "policies.yaml", resolve=pins):
            accounts = show()
            summed = sum_log(Path("state/log"))
    for account in accounts.values():
        for unit in account["units"]:
            if unit["unit"] != "wall_time":
                spent = summed.get(account["account"], {}).get(unit["unit"], 0)
                assert (unit["spent"], unit["held"]) == (spent, 0), (account["account"], unit)
