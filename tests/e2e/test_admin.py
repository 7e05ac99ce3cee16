"""The admin port of a running server, and that no agent reaches it, or the proxy, through the
proxy (threats F7)."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.certificates import Authority
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, wait_until, write_policy

API = "api.test.example"
RULES = """
  - { id: api, verdict: allow, match: { host: api.test.example, path: "/ok/*", dest_ip: loopback } }
  - id: open-house
    verdict: allow
    match:
      host: ["loop.test.example", 127.0.0.1, "::1", localhost]
      scheme: [http, https]
      port: [PORTS]
      dest_ip: [loopback, private, link_local]
"""


@dataclass
class House:
    """Everything of this module, started once."""

    proxy: Proxy
    origin: Origin


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("admin")
    authority = Authority(folder / "origin")
    ports = [free_port(), free_port()]
    rules = RULES.replace("PORTS", ", ".join(map(str, ports)))
    policy = write_policy(folder / "policies.yaml", rules)
    with Origin(tls=authority.server_context(API)) as origin:
        pins = [f"{API}:443:127.0.0.1:{origin.port}"]
        pins += [f"loop.test.example:{port}:127.0.0.1:{port}" for port in ports]
        listen = ("--listen", f"127.0.0.1:{ports[0]}", "--admin", f"127.0.0.1:{ports[1]}")
        with Proxy(folder, policy, *listen, resolve=pins, upstream_ca=authority.pem) as proxy:
            assert [proxy.port, proxy.admin_port] == ports
            yield House(proxy, origin)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def samples(text: str) -> dict[str, float]:
    """Prometheus text as name with labels -> value."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def test_it_is_alive_and_ready(house: House) -> None:
    assert house.proxy.scrape("/healthz") == (200, '{"alive":true}')
    status, body = house.proxy.scrape("/readyz")
    ready = json.loads(body)
    assert (status, ready["ready"]) == (200, True)
    assert not any(ready["checks"].values())
    assert re.fullmatch("[0-9a-f]{64}", ready["details"]["policy_digest"])


def test_what_happened_is_counted(house: House) -> None:
    """Real scrape names after real traffic: what a dashboard asks for is there."""
    before = samples(house.proxy.scrape("/metrics")[1])
    with Http1(house.proxy.tunnel(API, 443)) as client:
        assert client.ask("/ok/1", API).status == 200
        assert client.ask("/ok/2", API).status == 200
        assert client.ask("/denied", API).status == 403
    allowed = 'tollkeeper_requests_total{agent="local",reason="allowed",verdict="allow"}'
    denied = 'tollkeeper_requests_total{agent="local",reason="no-rule-matched",verdict="deny"}'
    upstream = "tollkeeper_upstream_duration_seconds_count"

    def rose(name: str) -> float:
        return samples(house.proxy.scrape("/metrics")[1])[name] - before.get(name, 0.0)

    assert wait_until(lambda: rose(upstream) == 2)
    assert rose(allowed) == 3  # the tunnel is one
    assert rose(denied) == 1
    assert rose('tollkeeper_rule_matches_total{rule="api"}') >= 2
    assert rose("tollkeeper_decision_seconds_count") == 4
    assert rose('tollkeeper_audit_records_total{kind="decision"}') == 4
    assert wait_until(lambda: rose('tollkeeper_audit_records_total{kind="outcome"}') == 2)
    now = samples(house.proxy.scrape("/metrics")[1])
    assert now["tollkeeper_audit_size_records"] == len(house.proxy.records())
    assert now["tollkeeper_policy_stale"] == 0
    assert now["tollkeeper_audit_commit_seconds_count"] > 0
    for name in ("policy_info", "build_info", "connections_open", "audit_queue_depth"):
        assert any(sample.startswith(f"tollkeeper_{name}") for sample in now), name
    assert not [sample for sample in now if API in sample or "/ok" in sample]


def test_a_name_that_was_rebound_reads_nothing(house: House) -> None:
    status, _ = house.proxy.scrape("/metrics", "Host: evil.test.example")
    assert status == 421


def test_nothing_else_is_there_and_nothing_can_be_changed(house: House) -> None:
    for path in ("/", "/v1/agents", "/docs", "/metrics/../readyz"):
        assert house.proxy.scrape(path)[0] == 404
    with Http1(socket.create_connection(("127.0.0.1", house.proxy.admin_port), 5)) as client:
        assert client.ask("/readyz", "127.0.0.1", method="POST").status == 405


@pytest.mark.parametrize("port", ["proxy", "admin"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "loop.test.example", "[::1]"])
def test_no_agent_reaches_us_through_us(house: House, host: str, port: str) -> None:
    """F7: a rule that opens loopback on every port does not open our own."""
    number = house.proxy.port if port == "proxy" else house.proxy.admin_port
    place = f"{host}:{number}"
    with Http1(house.proxy.connect()) as client:
        answer = client.ask(f"http://{place}/metrics", place)
    assert answer.status in (403, 502)
    assert "tollkeeper_requests_total" not in answer.body.decode()
    if host != "[::1]":  # nothing of ours listens there
        assert json.loads(answer.body)["reason"] == "address-not-public"


@pytest.mark.parametrize("port", ["proxy", "admin"])
def test_no_agent_tunnels_to_us(house: House, port: str) -> None:
    number = house.proxy.port if port == "proxy" else house.proxy.admin_port
    with Http1(house.proxy.connect()) as client:
        place = f"127.0.0.1:{number}"
        client.send(place, place, method="CONNECT")
        assert client.read_head().status == 200
        client.send("/metrics", place)
        answer = client.read()
    assert answer.status == 403
    assert json.loads(answer.body)["reason"] == "address-not-public"


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policies.yaml", RULES.replace("PORTS", "443"))
    with Proxy(tmp_path, policy, "--admin", "0.0.0.0:0") as proxy:
        assert proxy.scrape("/healthz")[0] == 200
        token_file = proxy.state / "admin.token"
        assert token_file.stat().st_mode & 0o777 == 0o600
        token = token_file.read_text(encoding="ascii").strip()
        for path in ("/readyz", "/metrics", "/v1/openapi.json"):
            assert proxy.scrape(path)[0] == 401
            assert proxy.scrape(path, "Authorization: Bearer wrong")[0] == 401
            assert proxy.scrape(path, f"Authorization: Bearer {token}")[0] == 200
        assert token not in proxy.stderr
