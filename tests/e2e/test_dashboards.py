"""Debian's Prometheus on a real proxy under real traffic: allowed and denied requests, a budget
that runs out, an agent that is halted. Every query of the board and every alert is asked there.
"""

import json
import math
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.certificates import Authority
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.prometheus import Prometheus, check
from tests.kit.proxy import ROOT, Proxy, run_command, wait_until, write_policy

RULES_FILE = ROOT / "dashboards" / "alerts.rules.yml"
BOARD: dict[str, Any] = json.loads(
    (ROOT / "dashboards" / "grafana" / "tollkeeper.json").read_text("utf-8")
)
QUERIES = [
    (panel["title"], target["expr"])
    for panel in BOARD["panels"]
    for target in panel.get("targets", ())
]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES_FILE.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
# what Grafana would put in for *All*, with data of some seconds
VARIABLES = {"$agent": ".*", "$__rate_interval": "1m"}
# nothing went wrong here: no fault, no lost record
EMPTY = {"Refused", "Faults by place"}
# these must have noticed; the others must not
NOTICED = {
    "TollkeeperDenialSpike",
    "TollkeeperBudgetBurn",
    "TollkeeperBudgetEnding",
    "TollkeeperBudgetExhausted",
    "TollkeeperAgentHalted",
    "TollkeeperAgentQuarantined",
}
# says how fast this machine's disk is
MACHINE = {"TollkeeperAuditSlow"}

API = "api.test.example"
AGENTS = """agents:
  worker: { identity: { source: ["127.0.0.1/32"] } }
  spender: { identity: { source: ["127.0.0.2/32"] } }
  rogue: { identity: { source: ["127.0.0.3/32"] } }
  greedy: { identity: { source: ["127.0.0.4/32"] } }
  watched: { identity: { source: ["127.0.0.5/32"] } }
"""
BUDGETS = """budgets:
  daily: { each: agent, who: { agents: [worker, spender] }, window: 1d,
    limits: { requests: 20, steps: 1000, bytes_out: 1MB, bytes_in: 1MB, wall_time: 2h } }
  life: { each: agent, who: { agents: greedy }, limits: { requests: 5 },
    at: [ { reached: 100%, do: halt } ] }
  close: { each: agent, who: { agents: watched }, limits: { risk: 10, effort: 100 },
    at: [ { reached: 10%, do: warn }, { reached: 50%, do: quarantine } ] }
"""
RULES = """
  - { id: api, verdict: allow, match: { host: api.test.example, path: "/ok/*", dest_ip: loopback },
      cost: { steps: 2, risk: 1 } }
  - { id: never, verdict: deny, match: { host: api.test.example, path: "/never" } }
"""
SOURCES = {"worker": 1, "spender": 2, "rogue": 3, "greedy": 4, "watched": 5}


@dataclass
class House:
    """Everything of this module, started once and used up once."""

    proxy: Proxy
    statuses: dict[str, list[int]]
    prometheus: Prometheus = field(init=False)

    @property
    def token_file(self) -> Path:
        """The admin port is not on loopback: Prometheus needs the token."""
        return self.proxy.state / "admin.token"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("dashboards")
    authority = Authority(folder / "origin")
    policy = write_policy(
        folder / "policies.yaml",
        RULES,
        agents=AGENTS,
        head=BUDGETS + "defaults: { explain_denials: false }\n",
    )
    with Origin(tls=authority.server_context(API)) as origin:
        pins = [f"{API}:443:127.0.0.1:{origin.port}"]
        with Proxy(
            folder, policy, "--admin", "0.0.0.0:0", resolve=pins, upstream_ca=authority.pem
        ) as proxy:
            made = House(proxy, {agent: [] for agent in SOURCES})
            target = f"127.0.0.1:{proxy.admin_port}"
            with Prometheus(
                folder / "prometheus", target, token_file=made.token_file, rules=[RULES_FILE]
            ) as made.prometheus:
                live(made)
                yield made


def live(house: House) -> None:
    """A short life: each agent does a little, and a scrape later a lot more of the same."""
    for agent in SOURCES:
        ask(house, agent, "/ok/1")
    ask(house, "spender", "/never")
    wait_for_scrapes(house, 2)
    with Http1(tunnel(house.proxy, "worker")) as client:
        house.statuses["worker"] += [client.ask(f"/ok/{n}", API).status for n in range(9)]
    for _ in range(22):
        ask(house, "spender", "/ok/1")
    for _ in range(80):
        ask(house, "spender", "/never")
    for agent in ("greedy", "watched"):
        for _ in range(6):
            ask(house, agent, "/ok/1")
    run_command("halt", "rogue", "--reason", "seen enough", "--state", str(house.proxy.state))
    ask(house, "rogue", "/ok/1")
    house.proxy.process.send_signal(1)  # SIGHUP: a reload to show
    wait_for_scrapes(house, 3)


def ask(house: House, agent: str, path: str) -> None:
    """One request on a connection of its own; a CONNECT that is denied counts as its answer."""
    try:
        with Http1(tunnel(house.proxy, agent)) as client:
            status = client.ask(path, API).status
    except ConnectionError as refused:
        status = int(str(refused).split()[1])
    house.statuses[agent].append(status)


def tunnel(proxy: Proxy, agent: str) -> socket.socket:
    """CONNECT from the agent's own address, then TLS."""
    source = (f"127.0.0.{SOURCES[agent]}", 0)
    connection = socket.create_connection(("127.0.0.1", proxy.port), 5, source)
    client = Http1(connection)
    client.send(f"{API}:443", f"{API}:443", method="CONNECT")
    answer = client.read_head()
    if answer.status != 200:
        connection.close()
        raise ConnectionError(f"HTTP/1.1 {answer.status}")
    return proxy.secure(connection, API)


def wait_for_scrapes(house: House, count: int) -> None:
    """Until so many scrapes that began after now were stored, and alerts evaluated on them."""
    began = time.time()  # noqa: TID251  the scrapes carry wall time

    def stored() -> bool:
        found = house.prometheus.query(f"count_over_time(up[{math.ceil(time.time() - began)}s])")  # noqa: TID251
        return bool(found) and found[0][1] > count

    assert wait_until(stored, 20)
    time.sleep(1.1)  # one evaluation


def filled(expression: str) -> str:
    """The expression as Grafana sends it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def test_the_traffic_was_what_the_tests_below_take_it_for(house: House) -> None:
    assert house.statuses == {
        "worker": [200] * 10,
        "spender": [200, 403] + [200] * 19 + [403] * 83,
        "rogue": [200, 403],
        "greedy": [200] * 5 + [403] * 2,
        "watched": [200] * 5 + [403] * 2,
    }


def test_promtool_accepts_the_rules_and_the_metrics(house: House) -> None:
    code, said = check("check", "rules", str(RULES_FILE))
    assert (code, f"{len(ALERTS)} rules found" in said) == (0, True), said
    token = house.token_file.read_text("ascii").strip()
    status, text = house.proxy.scrape("/metrics", f"Authorization: Bearer {token}")
    assert status == 200
    assert check("check", "metrics", given=text) == (0, "")


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_panel_shows_data(house: House, title: str, expression: str) -> None:
    found = house.prometheus.query(filled(expression))
    assert all(value >= 0 or math.isnan(value) for _, value in found), found
    if title in EMPTY:
        assert found == []
    else:
        assert any(math.isfinite(value) for _, value in found), found


@pytest.mark.parametrize("agent", SOURCES)
def test_the_agent_variable_chooses(house: House, agent: str) -> None:
    named = house.prometheus.ask("label/agent/values")
    assert agent in named
    (query,) = (expr for title, expr in QUERIES if title == "Remaining")
    found = house.prometheus.query(query.replace("$agent", agent))
    accounts = {labels["account"] for labels, _ in found}
    assert {account.split("/")[1] for account in accounts} <= {agent}
    assert bool(accounts) == (agent != "rogue")


def test_the_board_says_what_happened(house: House) -> None:
    def value(title: str, **wanted: str) -> float:
        (query,) = (expr for name, expr in QUERIES if name == title)
        found = [
            number
            for labels, number in house.prometheus.query(filled(query))
            if wanted.items() <= labels.items()
        ]
        assert len(found) == 1, (title, found)
        return found[0]

    assert value("Halted") == 2
    assert value("States", agent="worker") == 0
    assert value("States", agent="watched") == 2
    assert value("States", agent="greedy") == value("States", agent="rogue") == 3
    assert value("Used up", account="daily/spender", unit="requests") == 1
    assert value("Remaining", account="daily/worker", unit="requests") == 10
    assert value("Held", account="daily/worker", unit="requests") == 0
    assert value("Time to exhaustion", account="daily/spender", unit="requests") == 0
    assert value("Ran out", account="daily/spender", unit="requests") > 0
    assert value("Halts by reason", reason="operator") > 0
    assert value("Halts by reason", reason="budget") > 0
    assert value("Reloads", result="unchanged") >= 0
    assert (
        0.2 < value("Denied") < 0.6
    )  # every request inside a tunnel comes with an allowed CONNECT
    assert value("Policy") == 0
    assert value("Faults, 1 h") == value("Records refused, 1 h") == 0


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_notices_what_happened_and_nothing_else(house: House, name: str) -> None:
    rule = house.prometheus.alerts()[name]
    assert (rule["health"], rule.get("lastError", "")) == ("ok", "")
    found = house.prometheus.query(ALERTS[name]["expr"])
    if name in MACHINE:
        return
    if name in NOTICED:
        assert found
        assert rule["state"] in ("pending", "firing")
        for alert in rule["alerts"]:
            assert "{{" not in json.dumps(alert["annotations"])
            assert "no value" not in json.dumps(alert["annotations"])
    else:
        assert found == []
        assert rule["state"] == "inactive"


def test_alerts_name_whom_they_mean(house: House) -> None:
    def named(alert: str, label: str) -> set[str]:
        return {labels[label] for labels, _ in house.prometheus.query(ALERTS[alert]["expr"])}

    assert named("TollkeeperAgentHalted", "agent") == {"rogue", "greedy"}
    assert named("TollkeeperAgentQuarantined", "agent") == {"watched"}
    assert named("TollkeeperDenialSpike", "agent") == {"spender"}
    assert "daily/spender" in named("TollkeeperBudgetExhausted", "account")
    assert "daily/worker" not in named("TollkeeperBudgetExhausted", "account")


PAGE = (ROOT / "dashboards" / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", [text for text in EXAMPLES if "scrape_configs" in text])
def test_the_page_shows_configurations_that_prometheus_accepts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(text, encoding="utf-8")
    code, said = check("check", "config", "--syntax-only", str(path))
    assert code == 0, said


# --- what takes hours, by promtool's own clock

AT = 'instance="a",job="tollkeeper"'
STEADY = "0+60x200"  # so much per minute, for 200 minutes
UNIT = f'{{account="daily/coder",unit="requests",{AT}}}'
SPENT, LIMIT = f"tollkeeper_budget_spent_total{UNIT}", f"tollkeeper_budget_limit{UNIT}"
LEFT = f"tollkeeper_budget_remaining{UNIT}"
DENIED = f'tollkeeper_requests_total{{agent="coder",verdict="deny",{AT}}}'
# name -> series, minute, alert, whether it has to be firing by then
HOURS: dict[str, tuple[dict[str, str], str, str, bool]] = {
    "down for two minutes": ({f"up{{{AT}}}": "1x10 0x5"}, "13m", "TollkeeperDown", True),
    "up": ({f"up{{{AT}}}": "1x20"}, "13m", "TollkeeperDown", False),
    "nobody scrapes it": ({"other": "1x20"}, "13m", "TollkeeperDown", True),
    "the first fault": (
        {f'tollkeeper_faults_total{{where="hook",{AT}}}': "_x9 1x20"},
        "11m",
        "TollkeeperFaults",
        True,
    ),
    "another fault": (
        {f'tollkeeper_faults_total{{where="hook",{AT}}}': "1x20 2x20"},
        "22m",
        "TollkeeperFaults",
        True,
    ),
    "a fault long ago": (
        {f'tollkeeper_faults_total{{where="hook",{AT}}}': "1x60"},
        "50m",
        "TollkeeperFaults",
        False,
    ),
    "many connections": (
        {f"tollkeeper_connections_open{{{AT}}}": "900x20"},
        "10m",
        "TollkeeperNearlyFull",
        True,
    ),
    "a reload that was rejected": (
        {f"tollkeeper_policy_stale{{{AT}}}": "0x5 1x20"},
        "20m",
        "TollkeeperPolicyStale",
        True,
    ),
    "a reload that was rejected and repaired": (
        {f"tollkeeper_policy_stale{{{AT}}}": "0x5 1x5 0x20"},
        "20m",
        "TollkeeperPolicyStale",
        False,
    ),
    "the disk is full": (
        {f'tollkeeper_audit_failures_total{{cause="disk-full",{AT}}}': "_x9 1x20"},
        "11m",
        "TollkeeperAuditFailure",
        True,
    ),
    "a slow disk": (
        {
            f'tollkeeper_audit_commit_seconds_bucket{{le="{le}",{AT}}}': f"0+{count}x60"
            for le, count in {"0.1": 50, "0.25": 100, "+Inf": 100}.items()
        },
        "30m",
        "TollkeeperAuditSlow",
        True,
    ),
    "a long queue": (
        {f"tollkeeper_audit_queue_depth{{{AT}}}": "2000x20"},
        "5m",
        "TollkeeperAuditQueue",
        True,
    ),
    "as many denials as always": ({DENIED: STEADY}, "190m", "TollkeeperDenialSpike", False),
    "few denials": ({DENIED: "0x100 0+1x20"}, "110m", "TollkeeperDenialSpike", False),
    "many more denials than before": (
        {DENIED: "0+1x100 101+60x20"},
        "106m",
        "TollkeeperDenialSpike",
        True,
    ),
    "a fast spender": (
        {SPENT: "0+5x20", LIMIT: "100x20"},
        "10m",
        "TollkeeperBudgetBurn",
        True,
    ),
    "a slow spender": (
        {SPENT: "0+1x60", LIMIT: "1000x60"},
        "50m",
        "TollkeeperBudgetBurn",
        False,
    ),
    "half an hour left": (
        {SPENT: "0+1x90", LIMIT: "100x90", LEFT: "100-1x90"},
        "70m",
        "TollkeeperBudgetEnding",
        True,
    ),
    "days left": (
        {SPENT: "0+1x90", LIMIT: "100000x90", LEFT: "100000-1x90"},
        "70m",
        "TollkeeperBudgetEnding",
        False,
    ),
    "a new period": (
        {SPENT: "0+1x80 0x40", LIMIT: "100x120", LEFT: "100-1x80 100x40"},
        "90m",
        "TollkeeperBudgetEnding",
        False,
    ),
    "ran out": (
        {f"tollkeeper_budget_exhausted_total{UNIT}": "0x20 3x20"},
        "22m",
        "TollkeeperBudgetExhausted",
        True,
    ),
    "ran out long ago": (
        {f"tollkeeper_budget_exhausted_total{UNIT}": "0x20 3x60"},
        "60m",
        "TollkeeperBudgetExhausted",
        False,
    ),
    "halted just now": (
        {f'tollkeeper_agent_state{{agent="coder",state="halted",{AT}}}': "0x80 1x80"},
        "85m",
        "TollkeeperAgentHalted",
        True,
    ),
    "halted hours ago": (
        {f'tollkeeper_agent_state{{agent="coder",state="halted",{AT}}}': "0x80 1x180"},
        "200m",
        "TollkeeperAgentHalted",
        False,
    ),
    "in quarantine since a minute": (
        {f'tollkeeper_agent_state{{agent="coder",state="quarantined",{AT}}}': "0x80 1x80"},
        "82m",
        "TollkeeperAgentQuarantined",
        True,
    ),
}


def test_alerts_fire_when_they_should_and_rest_otherwise(tmp_path: Path) -> None:
    """promtool reports what fired by the labels; here only whether anything did counts."""
    assert {alert for _, _, alert, fires in HOURS.values() if fires} == ALERTS.keys()
    wrong = {}
    for number, (name, (series, minute, alert, fires)) in enumerate(HOURS.items()):
        expected = {"eval_time": minute, "alertname": alert, "exp_alerts": []}
        case = {
            "rule_files": [str(RULES_FILE)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": s, "values": v} for s, v in series.items()],
                    "alert_rule_test": [expected],
                }
            ],
        }
        path = tmp_path / f"{number}.yml"
        path.write_text(yaml.safe_dump(case), encoding="utf-8")
        code, said = check("test", "rules", str(path))
        got = re.search(r"got:\[(.*)", said, re.DOTALL)
        if (code != 0) is not fires or (fires and not (got and alert in got[1])):
            wrong[name] = said
    assert wrong == {}
