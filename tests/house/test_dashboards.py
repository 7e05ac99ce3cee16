"""The board and the alerts ask for what exists, explain themselves, and say what to do.

What the queries answer on real data: tests/e2e/test_dashboards.py.
"""

import json
import re
import tomllib
from itertools import combinations
from typing import Any

import pytest
import yaml

from policies.ledger import Book
from proxy.metrics import Metrics
from tests.house.tree import ROOT

FOLDER = ROOT / "dashboards"
BOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "tollkeeper.json").read_text("utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
PAGE = (FOLDER / "README.md").read_text("utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
METRIC = re.compile(r"\btollkeeper_[a-z_]+")
TITLES = [panel["title"] for panel in PANELS]


def queries() -> str:
    """Every expression of the board and of the alerts."""
    texts = [target["expr"] for panel in PANELS for target in panel["targets"]]
    texts += [str(variable["query"]) for variable in BOARD["templating"]["list"]]
    return "\n".join([*texts, *(alert["expr"] for alert in ALERTS)])


def families() -> dict[str, set[str]]:
    """Of every metric that the code makes, the names under which it can be asked for."""
    metrics = Metrics()
    metrics.watch_book(Book, lambda: 0)
    found = {}
    for family in metrics.registry.collect():
        if family.type == "histogram":
            found[family.name] = {f"{family.name}_{word}" for word in ("bucket", "count", "sum")}
        else:
            name = family.name + ("_total" if family.type == "counter" else "")
            found[family.name] = {name}
    return found


def test_every_metric_that_is_asked_for_exists() -> None:
    assert set(METRIC.findall(queries())) - set[str]().union(*families().values()) == set()


def test_every_metric_that_exists_is_asked_for() -> None:
    asked = set(METRIC.findall(queries()))
    assert [family for family, names in families().items() if not names & asked] == []


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_panel_says_which_question_it_answers_on_the_board_and_on_the_page(
    panel: dict[str, Any],
) -> None:
    question, mark, _ = panel["description"].partition("?")
    assert mark
    assert f"| {panel['title']} | {question}? |" in PAGE
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]


def test_the_page_explains_no_panel_that_is_gone() -> None:
    named = re.findall(
        r"^\| ([^*|`][^|]*) \|", PAGE.partition("## Which question")[2], re.MULTILINE
    )
    assert named[0] == "panel"
    assert [title for title in named[1:] if title not in TITLES and title.strip("- ")] == []


def test_panels_lie_beside_each_other() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len(set(TITLES)) == len(TITLES)
    taken = []
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken.append((range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
    for one, other in combinations(taken, 2):
        beside = set(one[0]).isdisjoint(other[0])
        assert beside or set(one[1]).isdisjoint(other[1])


def test_data_source_and_agent_can_be_chosen() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["agent"]["multi"]
    assert variables["agent"]["allValue"] == ".*"
    assert set(re.findall(r"\$(\w+)", queries())) == {"agent", "__rate_interval"}


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert all(notes.values())
    page, _, anchor = notes["runbook"].partition("#")
    assert page == "docs/operations.md"
    headings = re.findall(r"^#+ (.*)$", OPERATIONS, re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert f"| `{alert['alert']}` |" in OPERATIONS


def test_the_operators_page_explains_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"`(Tollkeeper[A-Z]\w+)`", OPERATIONS)) == {
        alert["alert"] for alert in ALERTS
    }


def test_the_folder_is_no_package() -> None:
    assert list(FOLDER.rglob("*.py")) == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "dashboards" not in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
