"""`tollkeeper halt`: for good, recorded once, with or without a server."""

import json
from pathlib import Path
from typing import Any

import pytest

from audit.reader import Filter, read
from audit.verify import VALID, verify
from tests.kit.command import complaint, invoke
from tests.kit.proxy import Proxy

POLICY = """\
version: 1
agents: { coder: {}, local: { identity: { source: ["127.0.0.0/8", "::1/128"] } } }
rules:
  - { id: read, verdict: allow, match: { host: api.example.com } }
"""


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with policy and state, and we in it."""
    monkeypatch.chdir(tmp_path)
    assert invoke("init").exit_code == 0
    Path("policies.yaml").write_text(POLICY, encoding="utf-8")
    return tmp_path


def recorded() -> list[dict[str, Any]]:
    wanted = Filter(kinds=frozenset({"state"}))
    return [line.record.event for line in read(Path("state/log"), wanted)]


def log_bytes() -> bytes:
    [segment] = Path("state/log").glob("*.jsonl")
    return segment.read_bytes()


def test_a_halt_is_recorded_with_reason_and_who() -> None:
    result = invoke("halt", "coder", "--reason", "läuft im Kreis")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "halted coder\n", "")
    [event] = recorded()
    assert event.pop("by").startswith("cli:")
    assert event == {
        "kind": "state",
        "agent": "coder",
        "from": "active",
        "to": "halted",
        "cause": "läuft im Kreis",
    }
    assert verify(Path("state/log")).exit_code == VALID


def test_a_second_halt_changes_nothing_and_says_so() -> None:
    invoke("halt", "coder", "--reason", "first")
    before = log_bytes()
    result = invoke("halt", "coder", "--reason", "second")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`coder` was halted before; nothing was changed" in result.stderr
    told = json.loads(invoke("halt", "coder", "--reason", "third", "--json").stdout)
    assert told == {"agent": "coder", "before": "halted", "state": "halted"}
    assert log_bytes() == before


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "an agent that nobody knows": (("codr", "--reason", "x"), "did you mean `coder`?"),
    "nothing like any agent": (("zzzzzz", "--reason", "x"), "`tollkeeper agent list` has those"),
    "no reason": (("coder",), "missing option '--reason'"),
    "an empty reason": (("coder", "--reason", ""), "a halt needs a reason"),
    "a blank reason": (("coder", "--reason", " \t "), "a halt needs a reason"),
    "a reason without end": (("coder", "--reason", "x" * 501), "at most 500 characters"),
    "a reason of two lines": (("coder", "--reason", "a\nb"), "is one line"),
    "a reason that moves the cursor": (("coder", "--reason", "a\x1b[2J"), "is one line"),
    "a state that is none": (("coder", "--reason", "x", "--state", "no"), "run `tollkeeper init`"),
}


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_leaves_no_record(words: tuple[str, ...], text: str) -> None:
    before = log_bytes()
    assert text in complaint(invoke("halt", *words))
    assert log_bytes() == before


KNOWN_FROM = {
    "the policy": "coder",
    "the credentials": "reviewer",
    "the log": "former",
}


@pytest.mark.parametrize("agent", KNOWN_FROM.values(), ids=KNOWN_FROM)
def test_an_agent_is_known_from(agent: str) -> None:
    if agent == "reviewer":
        invoke("agent", "add", "reviewer")
    if agent == "former":
        budgets = "budgets:\n  life: { each: agent, limits: { requests: 0 } }\n"
        with_former = POLICY.replace("coder: {}", "coder: {}, former: {}") + budgets
        Path("policies.yaml").write_text(with_former, encoding="utf-8")
        raised = ("--unit", "requests", "--to", "5")
        assert invoke("budget", "raise", "life", *raised).exit_code == 0
        Path("policies.yaml").write_text(POLICY, encoding="utf-8")
    assert invoke("halt", agent, "--reason", "x").stdout == f"halted {agent}\n"


def test_a_broken_policy_file_stops_no_halt() -> None:
    invoke("agent", "add", "coder")
    Path("policies.yaml").write_text("version: 2\n", encoding="utf-8")
    assert invoke("halt", "coder", "--reason", "x").exit_code == 0


def test_a_broken_log_is_left_as_it_is() -> None:
    [segment] = Path("state/log").glob("*.jsonl")
    broken = log_bytes()[:100] + b"~" + log_bytes()[101:]
    segment.write_bytes(broken)
    assert "does not verify" in complaint(invoke("halt", "coder", "--reason", "x"))
    assert log_bytes() == broken


def test_a_halted_id_is_never_issued_again() -> None:
    invoke("agent", "add", "coder")
    invoke("halt", "coder", "--reason", "x")
    text = complaint(invoke("agent", "add", "coder"))
    assert (
        "`coder` is halted, and halted ids are never used again; add the agent under a new" in text
    )
    rotated = invoke("agent", "rotate", "coder")
    assert rotated.exit_code == 0
    assert "note: `coder` is halted: no token of it opens anything" in rotated.stderr
    assert invoke("agent", "add", "coder-2").exit_code == 0
    told = json.loads(invoke("agent", "list", "--json").stdout)
    assert [(one["agent"], one["state"]) for one in told] == [
        ("coder", "halted"),
        ("coder", "halted"),
        ("coder-2", "active"),
    ]
    assert " valid     halted  " in invoke("agent", "list").stdout


def test_the_list_is_shown_where_the_log_cannot_tell_a_state() -> None:
    invoke("agent", "add", "coder")
    [segment] = Path("state/log").glob("*.jsonl")
    segment.unlink()
    result = invoke("agent", "list")
    assert "coder" in result.stdout
    assert "unknown" in result.stdout
    assert "note: the agents' states are not known" in result.stderr


def test_a_running_server_halts_and_refuses_the_same(house: Path) -> None:
    with Proxy(house, house / "policies.yaml") as proxy:
        assert "did you mean `coder`?" in complaint(invoke("halt", "codr", "--reason", "x"))
        assert invoke("halt", "coder", "--reason", "läuft im Kreis").stdout == "halted coder\n"
        again = invoke("halt", "coder", "--reason", "second")
        assert (again.exit_code, "was halted before" in again.stderr) == (0, True)
        [event] = proxy.records("state")
        assert (event["agent"], event["to"]) == ("coder", "halted")
        assert event["cause"] == "läuft im Kreis"
        assert "never used again" in complaint(invoke("agent", "add", "coder"))
        assert invoke("agent", "add", "local").exit_code == 0
        assert " active " in invoke("agent", "list").stdout
    assert "never used again" in complaint(invoke("agent", "add", "coder"))
    with Proxy(house, house / "policies.yaml"):
        assert "never used again" in complaint(invoke("agent", "add", "coder"))
