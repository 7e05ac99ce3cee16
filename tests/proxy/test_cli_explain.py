"""`tollkeeper policy explain`: a request that is asked about, or a decision that was recorded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from audit.writer import Writer
from policies.compile import compile_policy
from tests.kit.command import complaint, invoke

POLICY = """
version: 1
agents: { local: { identity: { source: "127.0.0.0/8" } }, coder: {} }
rules:
  - { id: read, verdict: allow, match: { host: api.example.com, methods: GET, path: /v1/** } }
  - { id: never, verdict: deny, match: { path: /v1/secret } }
  - id: inside
    verdict: allow
    who: { agents: coder }
    match: { host: db.example.com, dest_ip: 10.0.0.0/8, headers: { x-team: blue } }
"""
URL = "https://api.example.com/v1/x"


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("policies.yaml").write_text(POLICY)
    assert invoke("init").exit_code == 0
    return tmp_path


def explain(*words: str) -> dict[str, Any]:
    result = invoke("policy", "explain", *words, "--json")
    assert result.exit_code == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


ASKED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "an allow": ((URL,), "allow", "allowed"),
    "a method that no rule has": (("-X", "POST", URL), "deny", "no-rule-matched"),
    "a deny wins": (("https://api.example.com/v1/secret",), "deny", "denied-by-rule"),
    "as the proxy reads it": (("https://API.example.com:443/v1/./x",), "allow", "allowed"),
    "another scheme": (("http://api.example.com/v1/x",), "deny", "no-rule-matched"),
    "an address that is not public": ((URL, "--address", "10.0.0.1"), "deny", "address-not-public"),
    "one address of two": (
        (URL, "--address", "1.1.1.1", "--address", "127.0.0.1"),
        "deny",
        "address-not-public",
    ),
    "an agent that is not in the file": ((URL, "--agent", "x"), "deny", "agent-unknown"),
    "a fragment is never sent": ((f"{URL}#part",), "allow", "allowed"),
}


@pytest.mark.parametrize(("words", "verdict", "reason"), ASKED.values(), ids=ASKED)
def test_a_request_gets_the_engines_answer(
    words: tuple[str, ...], verdict: str, reason: str
) -> None:
    told = explain("--agent", "local", *words)
    assert (told["verdict"], told["reason"]) == (verdict, reason)


def test_a_header_is_part_of_the_request() -> None:
    words = ("--agent", "coder", "--address", "10.1.2.3", "https://db.example.com/")
    assert explain(*words)["verdict"] == "deny"
    assert explain(*words, "-H", "X-Team: blue")["verdict"] == "allow"


def test_the_nearest_miss_is_named_with_what_it_missed_by() -> None:
    result = invoke("policy", "explain", "-X", "DELETE", URL, "--agent", "local")
    assert "nearest: rule `read` (allow, line 5), missed by 1 of" in result.stdout
    [miss] = [line for line in result.stdout.splitlines() if line.startswith("  MISS")]
    assert "match.methods" in miss
    assert "got DELETE" in miss
    assert "not resolved" in result.stderr


NOT_CANONICAL = {
    "a path above the root": ("https://api.example.com/../x", "path-not-canonical"),
    "an encoded slash": ("https://api.example.com/a%2Fb", "path-not-canonical"),
    "a user name": ("https://u@api.example.com/", "host-not-canonical"),
    "no host": ("https:///x", "host-not-canonical"),
}


@pytest.mark.parametrize(("url", "reason"), NOT_CANONICAL.values(), ids=NOT_CANONICAL)
def test_what_the_proxy_would_not_judge_says_why(url: str, reason: str) -> None:
    assert explain("--agent", "local", url)["deny"].startswith(reason)
    assert "what to do: " in invoke("policy", "explain", "--agent", "local", url).stdout


BROKEN_FLAGS = {
    "no agent named of two": ((URL,), "which agent asks? the policy has `local`, `coder`"),
    "another scheme": (("ftp://a.example/", "--agent", "local"), "is no http or https URL"),
    "an address that is none": ((URL, "--agent", "local", "--address", "x"), "`--address x`: is"),
    "a header without a name": ((URL, "--agent", "local", "-H", "blue"), "`--header blue`: has no"),
    "no such record": (("99",), "`99`: state/log has no such record"),
    "no such decision": (("ab" * 16,), "has no such record; see `tollkeeper audit tail"),
    "a record that is no decision": (("0",), "is a `log.open` record and no decision"),
    "no log": (("0", "--state", "none"), "none/log"),
    "no policy": ((URL, "--policies", "none.yaml"), "cannot read `none.yaml`"),
}


@pytest.mark.parametrize(("words", "text"), BROKEN_FLAGS.values(), ids=BROKEN_FLAGS)
def test_a_broken_flag_is_refused(words: tuple[str, ...], text: str) -> None:
    assert text in complaint(invoke("policy", "explain", *words))


def test_a_policy_with_errors_shows_its_findings() -> None:
    Path("policies.yaml").write_text("version: 1\nrulez: []\n")
    text = complaint(invoke("policy", "explain", URL))
    assert "policies.yaml:2:1: error[AP006]" in text
    assert text.endswith("policies.yaml: the policy has errors; see above")


# --- recorded decisions

ID = "9f" * 16


def decide(**changes: Any) -> Mapping[str, Any]:
    """A `decision` event as the proxy records it."""
    target = {"host": "api.example.com", "port": 443, "scheme": "https", "ip": "93.184.215.14"}
    return {
        "kind": "decision",
        "id": ID,
        "agent": {"id": "local"},
        "client": "127.0.0.1",
        "stage": "request",
        "target": {**target, "method": "GET", "path": "/v1/x"},
        "req": {},
        "policy": {"digest": "", "rules": ["read"], "serial": 1},
        "verdict": "allow",
        "reason": "allowed",
        "read": [],
        "reserve": [],
        "redacted": [],
        **changes,
    }


def record(*events: Mapping[str, Any]) -> None:
    """Bring the policy into force, as the server does, and record the events under it."""
    compiled = compile_policy(Path("policies.yaml"))
    digest = compiled.policy_set.digest
    Path(f"state/policies/{digest}.yaml").write_text(compiled.archive)
    writer = Writer.open(Path("state/log"), software="test")
    load = {"kind": "policy.load", "digest": digest, "serial": 1, "mode": "enforce"}
    writer.store_blocking(load, 5)
    for event in events:
        cited = {"policy": {**event["policy"], "digest": digest}} if "policy" in event else {}
        writer.store_blocking({**event, **cited}, 5)
    writer.close()


def test_a_decision_is_explained_under_the_policy_that_was_in_force() -> None:
    record(decide())
    Path("policies.yaml").write_text("version: 1\nagents: { local: {} }\nrules: []\n")
    told = explain(ID)
    assert (told["verdict"], told["rules"]) == ("allow", ["read"])
    assert told["addresses"] == ["93.184.215.14"]


def test_a_record_is_found_by_its_number_and_by_its_outcome() -> None:
    outcome = {
        "kind": "outcome",
        "ref": ID,
        "status": 200,
        "bytes_in": 1,
        "bytes_out": 1,
        "ms": 3,
        "settle": [],
    }
    record(decide(), outcome)
    assert explain("4") == explain("5") == explain(ID)


def test_a_refused_tunnel_names_the_nearest_rule() -> None:
    target = {"host": "other.example.com", "port": 443, "method": "CONNECT"}
    policy = {"digest": "", "rules": [], "serial": 1}
    denied = {"verdict": "deny", "reason": "host-not-allowed", "policy": policy}
    record(decide(stage="connect", target=target, **denied))
    result = invoke("policy", "explain", ID)
    assert "nearest: rule `read`" in result.stdout
    assert "says deny: host-not-allowed" in result.stderr
    assert "it was a CONNECT" in result.stderr


def test_a_message_that_was_never_judged_says_why_it_was_refused() -> None:
    policy = {"digest": "", "rules": [], "serial": 1}
    refused = {"verdict": "deny", "reason": "path-not-canonical", "policy": policy}
    record(decide(target={"host": "a.example"}, findings=["dot segments above root"], **refused))
    told = explain(ID)
    assert told["deny"] == "path-not-canonical"
    assert told["because"] == "dot segments above root"


def test_what_the_record_does_not_hold_is_said_to_be_missing() -> None:
    target = {"host": "db.example.com", "port": 443, "scheme": "https", "ip": "10.1.2.3"}
    policy = {"digest": "", "rules": ["inside"], "serial": 1}
    asked = {**target, "method": "GET", "path": "/"}
    record(decide(agent={"id": "coder"}, target=asked, policy=policy))
    result = invoke("policy", "explain", ID)
    assert "header fields and values of the query are taken as absent" in result.stderr
    assert "with what is recorded, the rules give deny: no-rule-matched" in result.stderr


def test_a_policy_that_is_not_in_the_archive_is_named() -> None:
    record(decide())
    [archived] = Path("state/policies").iterdir()
    archived.unlink()
    assert f"cannot read `{archived}`" in complaint(invoke("policy", "explain", ID))


def test_a_broken_line_is_no_source_of_truth() -> None:
    record(decide())
    [segment] = Path("state/log").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b"/v1/x", b"/v1/y"))
    assert "the line is not a valid record" in complaint(invoke("policy", "explain", ID))


# --- budgets and quarantine

SPENDING = """
budgets:
  daily: { each: agent, window: 1d, limits: { requests: 1000, bytes_out: 50MB } }
  careful:
    { each: agent, who: { agents: coder }, limits: { risk: 3 }, at: { reached: 80%, do: warn } }
quarantine: { keep_rules: [read] }
"""


def write_spending() -> None:
    priced = POLICY.replace("path: /v1/** } }", "path: /v1/** }, cost: { steps: 2, risk: 1 } }")
    Path("policies.yaml").write_text(priced + SPENDING)


def test_an_allowed_request_says_what_it_costs_and_whom_it_charges() -> None:
    write_spending()
    result = invoke("policy", "explain", URL, "--agent", "coder")
    lines = result.stdout.splitlines()
    assert "  cost     1 request, 2 steps, 1 effort, 1 risk, and bytes and time" in lines
    assert "  budget   careful, each agent: risk 3; warn at 80%" in lines
    assert "  budget   daily, each agent every 1d: requests 1000, bytes_out 50MB" in lines
    told = explain(URL, "--agent", "local")
    assert told["cost"] == {"requests": 1, "steps": 2, "effort": 1, "risk": 1}
    assert told["budgets"] == [
        {
            "budget": "daily",
            "each": "agent",
            "limits": {"requests": 1000, "bytes_out": 50_000_000},
            "window_ms": 86_400_000,
            "at": [],
        }
    ]


def test_a_denied_request_costs_nothing() -> None:
    write_spending()
    told = explain("-X", "POST", URL, "--agent", "coder")
    assert (told["cost"], told["budgets"]) == (None, [])


def test_quarantine_can_be_tried_out() -> None:
    write_spending()
    assert explain(URL, "--agent", "coder", "--quarantined")["verdict"] == "allow"
    words = ("--agent", "coder", "--address", "10.1.2.3", "https://db.example.com/")
    header = ("-H", "X-Team: blue")
    assert explain(*words, *header)["verdict"] == "allow"
    told = explain(*words, *header, "--quarantined")
    assert (told["verdict"], told["reason"]) == ("deny", "quarantined")
    assert told["suspended"] == ["inside"]
    shown = invoke("policy", "explain", *words, *header, "--quarantined").stdout
    assert "suspended: rule `inside` (allow, line 7), quarantine does not keep it" in shown


def test_a_recorded_quarantine_is_explained_as_one() -> None:
    write_spending()
    target = {"host": "api.example.com", "port": 443, "method": "GET", "path": "/other"}
    policy = {"digest": "", "rules": [], "serial": 1}
    record(decide(target=target, verdict="deny", reason="quarantined", policy=policy))
    result = invoke("policy", "explain", ID)
    assert result.stdout.startswith("deny: quarantined")
    assert "the rules give" not in result.stderr


def test_a_decision_of_the_ledger_is_not_blamed_on_the_rules() -> None:
    write_spending()
    policy = {"digest": "", "rules": ["read"], "serial": 1}
    record(decide(verdict="deny", reason="budget-exhausted", policy=policy))
    result = invoke("policy", "explain", ID)
    assert "the rules were not what denied it: `tollkeeper budget show`" in result.stderr
    assert "with what is recorded, the rules give allow: allowed" in result.stderr
    assert "budget   daily, each agent every 1d" in result.stdout
