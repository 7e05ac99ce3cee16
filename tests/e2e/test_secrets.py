"""A canary in every place where a credential may stand appears in nothing that we write or answer:
stderr, the log folder, metrics, denials, the archive.
"""

import base64
from pathlib import Path

import pytest

from tests.kit.certificates import Authority
from tests.kit.http1 import Http1
from tests.kit.http2 import Http2
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, wait_until, write_policy

API = "api.test.example"
RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: {API}, path: "/ok/**", methods: [GET, POST], dest_ip: loopback }} }}
  - {{ id: hidden, verdict: allow, match: {{ host: {API}, path: "/bot/*/send", methods: [GET, POST], dest_ip: loopback }}, with: {{ redact_path: [2] }} }}
  - {{ id: down, verdict: allow, match: {{ host: down.test.example, dest_ip: loopback }} }}
  - {{ id: plain, verdict: allow, match: {{ host: {API}, scheme: http, port: 80, path: "/ok/**", dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best
CANARY = "c4n4ry"
PLACES = ("header", "cookie", "query", "body", "proxy", "userinfo", "path", "field")


def canary(place: str) -> str:
    """What is searched for; the place tells which one got out."""
    return f"{CANARY}-{place}-7f3a"


def canaries() -> dict[str, str]:
    """Every form in which a canary could come out, and where it was put in."""
    plain = {canary(place): place for place in PLACES}
    coded = base64.b64encode(f"agent:{canary('proxy')}".encode()).decode()
    return plain | {coded: "proxy"}


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_secret_is_written_anywhere(tmp_path: Path, log_format: str) -> None:
    authority = Authority(tmp_path / "origin")
    policy = write_policy(tmp_path / "policies.yaml", RULES)
    answers: list[bytes] = []
    with Origin(tls=authority.server_context(API)) as origin, Origin() as plain:
        pins = [
            f"{API}:443:127.0.0.1:{origin.port}",
            f"{API}:80:127.0.0.1:{plain.port}",
            "down.test.example:443:127.0.0.1:1",
        ]
        options = ("--log-format", log_format)
        with Proxy(tmp_path, policy, *options, resolve=pins, upstream_ca=authority.pem) as proxy:
            send_everything(proxy, answers)
            metrics = proxy.scrape("/metrics")[1] + proxy.scrape("/readyz")[1]
            assert wait_until(lambda: len(proxy.records("outcome")) >= 4)
        received = b"".join(bytes(log) for log in origin.received)
        assert canary("header").encode() in received, "the origin gets what is meant for it"
        written = {"stderr": proxy.stderr.encode(), "metrics": metrics.encode()}
        written["answers"] = b"".join(answers)
        for path in [*proxy.state.rglob("*")]:
            if path.is_file():
                written[str(path.relative_to(proxy.state))] = path.read_bytes()
        found = [
            f"{where}: {place}"
            for where, data in written.items()
            for text, place in canaries().items()
            if text.encode() in data
        ]
        assert found == []


def send_everything(proxy: Proxy, answers: list[bytes]) -> None:
    """Allowed, denied, failing and broken requests, each with every canary; keeps the denials."""
    # wrong credentials are 407, so this one goes alone
    coded = base64.b64encode(f"agent:{canary('proxy')}".encode()).decode()
    answers.append(
        proxy.exchange(
            f"CONNECT {API}:443 HTTP/1.1\r\nHost: {API}:443\r\n"
            f"Proxy-Authorization: Basic {coded}\r\n\r\n".encode()
        )
    )
    headers = [
        f"Authorization: Bearer {canary('header')}",
        f"Cookie: session={canary('cookie')}",
        f"X-Api-Key: {canary('field')}",
    ]
    query = f"?access_token={canary('query')}&q={canary('query')}"
    hidden = f"/bot/{canary('path')}/send"
    for host, path in (
        (API, "/ok/1"), (API, "/denied"), (API, hidden), ("other.test.example", "/"),
        ("down.test.example", "/"),
    ):  # fmt: skip
        with Http1(proxy.tunnel(host, 443)) as client:
            target, body = path + query, canary("body").encode()
            answer = client.ask(target, host, method="POST", headers=headers, body=body)
            answers.append(str(answer).encode() if answer.status != 200 else b"")
    with proxy.tunnel(API, 443, protocols=["h2"]) as connection:
        client2 = Http2(connection)
        fields = [
            ("authorization", f"Bearer {canary('header')}"),
            ("cookie", canary("cookie")),
        ]
        for path in ("/ok/2", "/denied/2"):
            answer = client2.ask(path + query, API, headers=fields)
            answers.append(str(answer).encode() if answer.status != 200 else b"")
    lines = "".join(f"{header}\r\n" for header in headers)
    user = f"user:{canary('userinfo')}@"
    for message in (
        f"GET http://{user}{API}/ok/3{query} HTTP/1.1\r\nHost: {API}\r\n{lines}\r\n",
        f"GET http://{API}/ok/4{query} HTTP/1.1\r\nHost: {API}\r\n{lines}\r\n",
        f"GET http://{API}/ok/5{query} HTTP/1.1\r\nHost: {API}\r\n{lines}Bad Field\r\n\r\n",
        f"GET /?{canary('query')} HTTP/9.9\r\n{lines}\r\n",
        f"Authorization: Bearer {canary('header')}\r\n\r\n",
        f"CONNECT {user}{API}:443 HTTP/1.1\r\nHost: {API}\r\n\r\n",
    ):
        said = proxy.exchange(message.encode(), timeout_s=2.0)
        answers.append(b"" if b" 200 " in said[:20] else said)
