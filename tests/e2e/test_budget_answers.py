"""What an agent is told of its budgets by a real proxy: in the denial, in the field, and by nobody
else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.certificates import Authority
from tests.kit.http1 import Answer, Http1
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, write_policy

API = "api.test.example"
RULES = """
  - { id: shown, verdict: allow, match: { host: api.test.example, path: "/shown/*", dest_ip: loopback },
      with: { show_budget: true } }
  - { id: quiet, verdict: allow, match: { host: api.test.example, path: "/quiet/*", dest_ip: loopback } }
"""  # noqa: E501  one rule, one line
BUDGETS = """budgets:
  daily: { each: agent, window: 30d, limits: { requests: 4, bytes_out: 1MB } }
  life: { each: agent, limits: { steps: 9 } }
  others: { each: agent, who: { agents: other }, limits: { requests: 7 } }
"""
AGENTS = """agents:
  local: { identity: { source: ["127.0.0.1/32"] } }
  other: { identity: { source: ["127.0.0.2/32"] } }
"""
LIE = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTollkeeper-Budget: "daily";requests=999999\r\n\r\n{}'
)
SHOWN = re.compile(r'"daily";requests=(\d);bytes_out=(\d{6});reset=(\d{1,7}), "life";steps=(\d)')


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answer]]:
    """One short life: four requests, and then there is nothing left."""
    folder: Path = tmp_path_factory.mktemp("budget-answers")
    authority = Authority(folder / "origin")
    policy = write_policy(folder / "policies.yaml", RULES, agents=AGENTS, head=BUDGETS)
    lies = {"/shown/lie": LIE, "/quiet/lie": LIE}
    with Origin(tls=authority.server_context(API), raw_answers=lies) as origin:
        pins = [f"{API}:443:127.0.0.1:{origin.port}"]
        with Proxy(folder, policy, resolve=pins, upstream_ca=authority.pem) as proxy:

            def ask(path: str, *headers: str) -> Answer:
                with Http1(proxy.tunnel(API, 443)) as client:
                    return client.ask(path, API, headers=headers)

            yield {
                "shown": ask("/shown/1"),
                "quiet": ask("/quiet/1"),
                "shown lie": ask("/shown/lie"),
                "quiet lie": ask("/quiet/lie"),
                "used up": ask("/shown/1"),
                "page": ask("/shown/1", "Accept: text/html"),
                "grpc": ask("/shown/1", "Content-Type: application/grpc"),
            }


def test_four_requests_pass_and_no_more(answers: dict[str, Answer]) -> None:
    assert [answer.status for answer in answers.values()] == [200] * 4 + [403] * 3


def test_only_rules_that_say_so_show_what_is_left(answers: dict[str, Answer]) -> None:
    first = SHOWN.fullmatch(answers["shown"].value("tollkeeper-budget"))
    second = SHOWN.fullmatch(answers["shown lie"].value("tollkeeper-budget"))
    assert first
    assert second
    assert (first[1], first[4]) == ("3", "8")
    assert (second[1], second[4]) == ("1", "6")
    assert int(first[3]) <= 30 * 86_400
    assert answers["quiet"].values("tollkeeper-budget") == []


def test_no_origin_says_what_is_left(answers: dict[str, Answer]) -> None:
    assert len(answers["shown lie"].values("tollkeeper-budget")) == 1
    assert answers["quiet lie"].values("tollkeeper-budget") == []


def test_a_used_up_budget_says_what_is_left_and_when_it_opens_again(
    answers: dict[str, Answer],
) -> None:
    denied = answers["used up"]
    body = json.loads(denied.body)
    left = body["remaining"]["daily"].pop("bytes_out")
    assert 999_000 < left < 1_000_000
    assert body["remaining"] == {"daily": {"requests": 0}, "life": {"steps": 5}}
    assert (body["reason"], body["retryable"]) == ("budget-exhausted", False)
    assert re.fullmatch(
        r"the budget opens again at \d{4}-\d\d-\d\dT00:00:00Z; do not retry before",
        body["guidance"],
    )
    assert denied.values("retry-after") == []
    assert "others" not in denied.body.decode()


def test_page_and_grpc_status_say_the_same(answers: dict[str, Answer]) -> None:
    page = answers["page"].body.decode()
    assert "opens again at" in page
    assert "daily: 0 requests" in page
    assert answers["grpc"].value("grpc-status") == "7"
    assert "opens again at" in answers["grpc"].value("grpc-message")
