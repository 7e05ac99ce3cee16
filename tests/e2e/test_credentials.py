"""Proxy credentials end to end: issued by the command, used by a client, judged per request."""

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.kit.agent import run_agent
from tests.kit.certificates import Authority
from tests.kit.http1 import Answer, Http1
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, run_command, wait_until, write_policy

API = "api.test.example"
AGENTS = """agents:
  coder: {}
  reviewer: {}
  gone: {}
"""
RULES = f"""
  - {{ id: coding, verdict: allow, who: {{ agents: coder }}, match: {{ host: {API}, path: "/ok/*", dest_ip: loopback }} }}
  - {{ id: reading, verdict: allow, who: {{ agents: reviewer }}, match: {{ host: {API}, path: "/read/*", dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best


@dataclass
class House:
    """Everything of this module, started once."""

    proxy: Proxy
    origin: Origin

    def agent(self, *command: str) -> dict[str, Any]:
        """`tollkeeper agent …` beside the running server."""
        state = ("--state", str(self.proxy.state))
        done = run_command("agent", *command, *state, "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def tunnel(self, authorization: str) -> Http1:
        """A tunnel under these credentials; raises ConnectionError with the answer if refused."""
        headers = f"Proxy-Authorization: {authorization}\r\n" if authorization else ""
        return Http1(self.proxy.tunnel(API, 443, headers=headers, timeout_s=15.0))

    def refusal(self, authorization: str) -> Answer:
        """The answer to a CONNECT that is refused."""
        headers = [f"Proxy-Authorization: {authorization}"] if authorization else []
        with Http1(self.proxy.connect()) as client:
            place = f"{API}:443"
            client.send(place, place, method="CONNECT", headers=headers)
            return client.read()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("credentials")
    authority = Authority(folder / "origin")
    policy = write_policy(folder / "policies.yaml", RULES, agents=AGENTS)
    with Origin(tls=authority.server_context(API)) as origin:
        pins = [f"{API}:443:127.0.0.1:{origin.port}"]
        with Proxy(folder, policy, resolve=pins, upstream_ca=authority.pem) as proxy:
            yield House(proxy, origin)


def basic(agent: str, token: str) -> str:
    """The value of Proxy-Authorization."""
    return "Basic " + base64.b64encode(f"{agent}:{token}".encode()).decode()


def token_of(issued: dict[str, Any]) -> str:
    """The token that was shown, once."""
    return str(issued["token"])


def test_the_url_that_is_printed_works_in_a_client(house: House) -> None:
    issued = house.agent("add", "coder", "--listen", f"127.0.0.1:{house.proxy.port}")
    curl = shutil.which("curl")
    assert curl, "curl is not installed: run `make test`"
    command = [curl, "-sS", "-m", "20", "-w", "%{http_code}", "-o", "/dev/null"]
    command += ["--cacert", str(house.proxy.ca), f"https://{API}/ok/curl"]
    done = run_agent({"https_proxy": issued["proxy_url"]}, *command)
    assert (done.returncode, done.stdout) == (0, "200"), done.stderr
    record = house.proxy.records("decision")[-1]
    assert record["agent"] == {"id": "coder", "session": issued["session"]}


def test_without_credentials_the_answer_is_407(house: House) -> None:
    answer = house.refusal("")
    assert answer.status == 407
    assert answer.value("proxy-authenticate") == 'Basic realm="tollkeeper"'
    assert json.loads(answer.body)["reason"] == "credential-missing"


@pytest.mark.parametrize(
    "authorization",
    [
        basic("coder", "tk_" + "A" * 32),
        basic("nobody", "tk_" + "A" * 32),
        basic("coder", ""),
        "Basic !!!",
        "Bearer tk_" + "A" * 32,
    ],
)
def test_wrong_credentials_are_407_and_nothing_else(house: House, authorization: str) -> None:
    before = house.origin.connections
    answer = house.refusal(authorization)
    assert answer.status == 407
    assert json.loads(answer.body)["reason"] == "credential-wrong"
    assert house.origin.connections == before


def test_plain_http_asks_for_credentials_too(house: House) -> None:
    with Http1(house.proxy.connect()) as client:
        answer = client.ask(f"http://{API}/ok/plain", API)
    assert (answer.status, json.loads(answer.body)["reason"]) == (407, "credential-missing")


def test_an_agent_has_its_own_rules_and_no_others(house: House) -> None:
    reviewer = basic("reviewer", token_of(house.agent("add", "reviewer")))
    with house.tunnel(reviewer) as client:
        assert client.ask("/read/1", API).status == 200
        answer = client.ask("/ok/1", API)
    assert answer.status == 403
    told = json.loads(answer.body)
    assert (told["agent"], told["reason"]) == ("reviewer", "no-rule-matched")
    assert "coding" not in answer.body.decode()


def test_an_agent_with_a_token_but_not_in_the_policy_is_denied(house: House) -> None:
    stranger = basic("stranger", token_of(house.agent("add", "stranger")))
    answer = house.refusal(stranger)
    assert (answer.status, json.loads(answer.body)["reason"]) == (403, "agent-unknown")


def test_the_credential_never_reaches_the_origin(house: House) -> None:
    token = token_of(house.agent("rotate", "coder"))
    authorization = basic("coder", token)
    with house.tunnel(authorization) as client:
        again = [f"Proxy-Authorization: {authorization}", "X-Mine: kept"]
        assert client.ask("/ok/inside", API, headers=again).status == 200
    seen = house.origin.requests[-1]
    assert seen.values("x-mine") == ["kept"]
    assert not seen.values("proxy-authorization")
    received = b"".join(bytes(log) for log in house.origin.received)
    assert authorization.encode() not in received
    assert token.encode() not in received


def test_during_a_rotation_both_tokens_are_good(house: House) -> None:
    """And a revocation ends an open tunnel: its next request is 407."""
    old = house.agent("rotate", "coder")
    new = house.agent("rotate", "coder")
    with (
        house.tunnel(basic("coder", token_of(old))) as before,
        house.tunnel(basic("coder", token_of(new))) as after,
    ):
        assert before.ask("/ok/old", API).status == 200
        assert after.ask("/ok/new", API).status == 200
        house.agent("revoke", old["id"])
        answer = before.ask("/ok/old-revoked", API)
        assert (answer.status, json.loads(answer.body)["reason"]) == (407, "credential-revoked")
        assert before.is_closed()
        assert after.ask("/ok/new-still", API).status == 200
        house.agent("revoke", "coder")
        assert after.ask("/ok/new-revoked", API).status == 407
    assert not [line for line in house.origin.lines if "revoked" in line]
    assert house.refusal(basic("coder", token_of(new))).status == 407


def test_a_token_expires_in_an_open_tunnel(house: House) -> None:
    short = token_of(house.agent("add", "gone", "--expires", "2s"))

    def status() -> int:
        return house.refusal(basic("gone", short)).status

    assert status() in (200, 403)  # known; the tunnel is opened to tell what it may not
    assert wait_until(lambda: status() == 407, timeout_s=6.0)
    told = json.loads(house.refusal(basic("gone", short)).body)
    assert told["reason"] == "credential-expired"


def test_every_change_is_in_the_log_and_no_token_is(house: House) -> None:
    issued = house.agent("rotate", "reviewer")
    changes = [
        (event["agent"], event["action"]) for event in house.proxy.records("credential.change")
    ]
    assert ("reviewer", "add") in changes
    assert changes[-1] == ("reviewer", "rotate")
    log = b"".join(path.read_bytes() for path in (house.proxy.state / "log").iterdir())
    assert token_of(issued).encode() not in log
    assert token_of(issued) not in (house.proxy.state / "credentials.json").read_text("utf-8")
    assert house.proxy.verify("--allow-open").returncode == 0
