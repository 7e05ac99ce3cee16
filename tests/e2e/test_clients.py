"""Real clients through the real proxy: each gets an allowed 200 and a denied 403 over TLS.

They trust the CA that `tollkeeper init` made and are told nothing but the environment that `init`
prints. A client that is not installed fails its test: what was not tried is not known to work.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.agent import read_environment, run_agent
from tests.kit.certificates import Authority
from tests.kit.file_server import FileServer, make_index, make_repository
from tests.kit.nginx import Nginx
from tests.kit.origin import Origin
from tests.kit.proxy import Proxy, run_command, write_policy

API, FILES, WEB = "api.test.example", "files.test.example", "web.test.example"
ALLOWED, DENIED, UNKNOWN = (
    f"https://{API}/ok",
    f"https://{API}/denied",
    "https://other.test.example/",
)

RULES = f"""
  - {{ id: api, verdict: allow, match: {{ host: {API}, path: [/ok, /echo], methods: [GET, POST], dest_ip: loopback }} }}
  - {{ id: talk, verdict: allow, match: {{ host: {API}, path: /ws, websocket: true, dest_ip: loopback }} }}
  - id: clone
    verdict: allow
    match: {{ host: {FILES}, path: "/open.git/**", methods: [GET, POST], dest_ip: loopback }}
  - id: packages
    verdict: allow
    match: {{ host: {FILES}, path: ["/simple/tollgate/", "/files/**"], methods: [GET, HEAD], dest_ip: loopback }}
  - {{ id: web, verdict: allow, match: {{ host: {WEB}, path: [/version, /page, /large], methods: GET, dest_ip: loopback }} }}
"""  # noqa: E501  one rule per line reads best


@dataclass
class House:
    """Everything of this module, started once."""

    proxy: Proxy
    origin: Origin
    files: FileServer
    nginx: Nginx | None
    environment: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("clients")
    authority = Authority(folder / "origin")
    served = folder / "served"
    make_index(served, "tollgate")
    make_index(served, "forbidden")
    for name in ("open.git", "closed.git"):
        make_repository(served / name)
    run_command("init", str(folder / "house"))
    policy = write_policy(folder / "house" / "policies.yaml", RULES)
    with ExitStack() as stack:
        origin = stack.enter_context(Origin(tls=authority.server_context(API)))
        files = stack.enter_context(FileServer(served, authority.server_context(FILES)))
        nginx = None
        if Nginx.find():
            nginx = stack.enter_context(Nginx(folder / "nginx", *authority.issue(WEB)))
            (nginx.folder / "www" / "page").write_text("a page", encoding="utf-8")
            (nginx.folder / "www" / "large").write_bytes(b"n" * 3_000_000)
        ports = {API: origin.port, FILES: files.port, WEB: nginx.port if nginx else 1}
        pins = [f"{host}:443:127.0.0.1:{port}" for host, port in ports.items()]
        proxy = Proxy(folder / "house", policy, resolve=pins, upstream_ca=authority.pem)
        stack.enter_context(proxy)
        work = folder / "work"
        work.mkdir()
        yield House(proxy, origin, files, nginx, read_environment(proxy), work)


def find_client(name: str) -> str:
    """The path of a client; missing is a failure, not a skip."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"`{name}` is not installed: run `make test`, which installs it on Debian")
    return found


def run_python(house: House, code: str, *arguments: str) -> list[str]:
    """Lines printed by a Python client, which must end well."""
    done = run_agent(house.environment, sys.executable, "-c", code, *arguments, cwd=house.folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- curl


@pytest.mark.parametrize(("flag", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_curl_gets_its_answer_and_its_denial(house: House, flag: str, version: str) -> None:
    shown = "%{http_code} %{http_version} %header{proxy-status}\n"
    done = run_agent(
        house.environment, find_client("curl"), "-sS", "-m", "20", flag, "-o", "/dev/null",
        "-w", shown, ALLOWED, "-o", "/dev/null", DENIED,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    allowed, denied = done.stdout.splitlines()
    assert allowed.split()[:2] == ["200", version]
    assert denied.split()[:2] == ["403", version]
    assert 'details="no-rule-matched"' in denied


@pytest.mark.parametrize("flag", ["--http1.1", "--http2"])
def test_curl_with_a_large_upload_sees_the_denial(house: House, flag: str) -> None:
    """It is in the middle of sending when the answer comes."""
    large = house.folder / "large-upload"
    large.write_bytes(b"u" * 24_000_000)
    done = run_agent(
        house.environment, find_client("curl"), "-sS", "-m", "30", flag, "-w", "%{http_code}",
        "--data-binary", f"@{large}", "-o", "/dev/null", DENIED,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "403"), done.stderr


def test_curl_is_told_why_a_whole_host_is_denied(house: House) -> None:
    """The tunnel is opened only to explain: the body names the reason, nothing was contacted."""
    before = house.origin.connections
    curl = find_client("curl")
    done = run_agent(house.environment, curl, "-sS", "-m", "20", "-w", "%{http_code}", UNKNOWN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("403")
    assert "urn:tollkeeper:reason:host-not-allowed" in done.stdout
    assert house.origin.connections == before


# --- Python


def test_requests_gets_its_answer_and_its_denial(house: House) -> None:
    code = """
import requests, sys
for url in sys.argv[1:]:
    answer = requests.get(url, timeout=20)
    print(answer.status_code, answer.json().get("reason"))
"""
    assert run_python(house, code, ALLOWED, DENIED, UNKNOWN) == [
        "200 None", "403 no-rule-matched", "403 host-not-allowed",
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_httpx_gets_its_answer_and_its_denial(house: House, version: str) -> None:
    code = """
import httpx, sys
with httpx.Client(http2=sys.argv[1] == "HTTP/2", timeout=20) as client:
    for url in sys.argv[2:]:
        answer = client.get(url)
        print(answer.http_version, answer.status_code, answer.json().get("reason"))
    answer = client.post(sys.argv[2].replace("/ok", "/echo"), content=iter([b"a" * 9000, b"b"]))
    print(len(answer.content))
"""
    assert run_python(house, code, version, ALLOWED, DENIED, UNKNOWN) == [
        f"{version} 200 None",
        f"{version} 403 no-rule-matched",
        f"{version} 403 host-not-allowed",
        "9001",
    ]


def test_aiohttp_gets_its_answer_and_its_denial(house: House) -> None:
    code = """
import aiohttp, asyncio, sys
async def main():
    limit = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(trust_env=True, timeout=limit) as session:
        for url in sys.argv[1:]:
            async with session.get(url) as answer:
                found = await answer.json(content_type=None)
                print(answer.status, found.get("reason"))
asyncio.run(main())
"""
    assert run_python(house, code, ALLOWED, DENIED, UNKNOWN) == [
        "200 None", "403 no-rule-matched", "403 host-not-allowed",
    ]  # fmt: skip


def test_urllib_gets_its_answer_and_its_denial(house: House) -> None:
    code = """
import sys, urllib.error, urllib.request
for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            print(answer.status)
    except urllib.error.HTTPError as error:
        print(error.code, error.headers["Proxy-Status"])
        error.close()
"""
    allowed, denied = run_python(house, code, ALLOWED, DENIED)
    assert allowed == "200"
    assert denied.startswith("403 tollkeeper; error=http_request_denied")


def test_websockets_gets_its_answer_and_its_denial(house: House) -> None:
    code = """
import asyncio, sys, websockets
async def main():
    host = sys.argv[1]
    async with websockets.connect(f"wss://{host}/ws", open_timeout=20) as socket:
        await socket.send("through the gate")
        print(await asyncio.wait_for(socket.recv(), 20))
    try:
        await websockets.connect(f"wss://{host}/denied", open_timeout=20)
    except websockets.exceptions.InvalidStatus as refused:
        print(refused.response.status_code, b"no-rule-matched" in refused.response.body)
asyncio.run(main())
"""
    assert run_python(house, code, API) == ["through the gate", "403 True"]


# --- Node.js


def test_the_fetch_of_node_gets_its_answer_and_its_denial(house: House) -> None:
    """Node's own `fetch` takes the proxy from the environment through undici's agent."""
    node = find_client("node")
    here = Path(__file__).parent
    if not (here / "node_modules" / "undici").is_dir():
        pytest.fail(f"undici is not installed: run `make test`, or `npm ci` in {here}")
    code = """
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";
setGlobalDispatcher(new EnvHttpProxyAgent());
for (const url of process.argv.slice(1)) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(20000) });
  const body = await answer.json();
  console.log(answer.status, body.reason ?? "-");
}
process.exit(0);
"""
    done = run_agent(
        house.environment, node, "--input-type=module", "-e", code, ALLOWED, DENIED, UNKNOWN,
        cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200 -", "403 no-rule-matched", "403 host-not-allowed"]


# --- tools


def test_git_gets_its_answer_and_its_denial(house: House) -> None:
    git = find_client("git")
    target = house.folder / "cloned"
    done = run_agent(house.environment, git, "clone", f"https://{FILES}/open.git", str(target))
    assert done.returncode == 0, done.stderr
    assert (target / "README").read_text(encoding="utf-8") == "fetched through the gate\n"
    denied = run_agent(house.environment, git, "ls-remote", f"https://{FILES}/closed.git")
    assert denied.returncode == 128
    assert "403" in denied.stderr
    assert not [line for line in house.files.requests if "closed.git" in line]


def test_pip_gets_its_answer_and_its_denial(house: House) -> None:
    index = f"https://{FILES}/simple"
    target = house.folder / "wheels"
    command = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir",
        "--no-deps", "--retries", "0", "--index-url", index, "--dest", str(target),
    ]  # fmt: skip
    done = run_agent(house.environment, *command, "tollgate==1.0")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in target.iterdir()] == ["tollgate-1.0-py3-none-any.whl"]
    denied = run_agent(house.environment, *command, "-vv", "forbidden==1.0")
    assert denied.returncode == 1
    assert "403" in denied.stdout + denied.stderr
    assert not [line for line in house.files.requests if "forbidden" in line]


# --- a real server at the other end


@pytest.mark.parametrize(("flag", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_a_real_nginx_is_reached_in_its_own_protocol(house: House, flag: str, version: str) -> None:
    """The protocol of the agent is the protocol of the origin, where the origin speaks it."""
    if house.nginx is None:
        pytest.skip("nginx is not installed: `apt-get install nginx-light`")
    shown = "%{http_code} %{http_version} %{size_download}\n"
    command = [find_client("curl"), "-sS", "-m", "30", flag, "-w", shown]
    for name in ("version", "page", "large", "secret"):
        command += [f"https://{WEB}/{name}", "-o", f"nginx-{name}"]
    done = run_agent(house.environment, *command, cwd=house.folder)
    assert done.returncode == 0, done.stderr
    *allowed, denied = done.stdout.splitlines()
    protocol = {"1.1": "HTTP/1.1", "2": "HTTP/2.0"}[version]
    assert allowed == [f"200 {version} 8", f"200 {version} 6", f"200 {version} 3000000"]
    assert denied.startswith(f"403 {version}")
    assert (house.folder / "nginx-version").read_text(encoding="utf-8") == protocol
    assert "/secret" not in (house.nginx.folder / "access.log").read_text(encoding="utf-8")


# --- what is left behind


def test_what_the_clients_did_is_recorded_and_verifies(house: House) -> None:
    """Runs last in this module: every request that reached the origin has its allow."""
    curl = find_client("curl")
    run_agent(house.environment, curl, "-sS", "-m", "20", "-o", "/dev/null", ALLOWED)
    allowed = [
        event["target"]["path"]
        for event in house.proxy.records("decision")
        if event["verdict"] == "allow"
        and event["stage"] == "request"
        and event["target"]["host"] == API
    ]
    seen = [seen.line.split()[1] for seen in house.origin.requests]
    assert sorted(allowed) == sorted(seen)
    assert house.proxy.verify("--allow-open").returncode == 0
