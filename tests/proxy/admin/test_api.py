"""The admin port over real sockets: alive, ready or not, counted, and closed to strangers."""

import asyncio
import logging
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
import uvloop

from proxy.admin.api import Status, build, ensure_token, open_listener, serve_admin
from proxy.metrics import Metrics
from proxy.settings import Endpoint

ANY_PORT = Endpoint(ip_address("127.0.0.1"), 0)
TOKEN = "t" * 32
READY = Status({"log": "", "policy": ""}, {"policy_digest": "ab" * 32})
SEALED = Status({"log": "no space left on device", "policy": ""})


@asynccontextmanager
async def admin(
    status: Callable[[], Status] = lambda: READY, token: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    listening = open_listener(ANY_PORT)
    port = listening.getsockname()[1]
    app = build(status, Metrics("0.1.0"), token=token)
    task = asyncio.ensure_future(serve_admin(app, listening))
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False
        ) as client:
            yield client
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_it_is_alive() -> None:
    async with admin(lambda: SEALED) as client:
        answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"alive": True})
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


async def test_it_is_ready_and_says_what_it_checked() -> None:
    async with admin() as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "checks": {"log": "", "policy": ""},
        "details": {"policy_digest": "ab" * 32, "metrics_failures": "0"},
    }


async def test_it_is_not_ready_and_says_why() -> None:
    async with admin(lambda: SEALED) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["checks"]["log"] == "no space left on device"


async def test_a_status_that_fails_is_not_ready() -> None:
    def status() -> Status:
        raise RuntimeError("secret detail")

    async with admin(status) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "RuntimeError" in answer.text
    assert "secret" not in answer.text


async def test_metrics_are_prometheus_text() -> None:
    async with admin() as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'tollkeeper_build_info{python="' in answer.text


async def test_the_description_is_there_and_the_pages_are_not() -> None:
    async with admin() as client:
        described = await client.get("/v1/openapi.json")
        assert set(described.json()["paths"]) == {"/healthz", "/readyz", "/metrics"}
        for page in ("/docs", "/redoc", "/openapi.json", "/", "/v1/", "/metrics/../x"):
            assert (await client.get(page)).status_code == 404
        assert (await client.post("/readyz")).status_code == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9090", "", "localhost.evil.example"]
)
async def test_a_name_that_was_rebound_to_loopback_reads_nothing(host: str) -> None:
    async with admin() as client:
        answer = await client.get("/metrics", headers={"Host": host})
    assert answer.status_code == 421
    assert "tollkeeper_" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "localhost:9090", "127.0.0.1:1", "[::1]:9090"])
async def test_addresses_and_localhost_are_answered(host: str) -> None:
    async with admin() as client:
        assert (await client.get("/metrics", headers={"Host": host})).status_code == 200


STRANGERS = {
    "nothing": {},
    "a wrong token": {"Authorization": "Bearer wrong"},
    "an empty token": {"Authorization": "Bearer"},
    "another scheme": {"Authorization": f"Basic {TOKEN}"},
    "no scheme": {"Authorization": TOKEN},
    "surplus": {"Authorization": f"Bearer {TOKEN} x"},
}


@pytest.mark.parametrize("headers", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("path", ["/readyz", "/metrics", "/v1/openapi.json", "/nothing"])
async def test_with_a_token_strangers_learn_nothing(path: str, headers: dict[str, str]) -> None:
    async with admin(token=TOKEN) as client:
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "tollkeeper_" not in answer.text
        assert (await client.get("/healthz")).status_code == 200


async def test_with_its_token_everything_is_answered_under_any_name() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "proxy.internal"}
    async with admin(token=TOKEN) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == 200


async def test_it_installs_no_signal_handler_and_logs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with caplog.at_level(logging.INFO):
        async with admin() as client:
            await client.get("/readyz")
            assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_it_works_under_uvloop() -> None:
    async def main() -> int:
        async with admin() as client:
            return (await client.get("/readyz")).status_code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == 200


def test_a_taken_port_is_said() -> None:
    with open_listener(ANY_PORT) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--admin 127.0.0.1:{port}`: address already in use"):
            open_listener(Endpoint(ip_address("127.0.0.1"), port))


def test_a_foreign_address_is_said() -> None:
    with pytest.raises(ValueError, match="choose another port"):
        open_listener(Endpoint(ip_address("192.0.2.1"), 1))


def test_a_token_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    token = ensure_token(path)
    assert len(token) == 32
    assert ensure_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        ensure_token(path)


@pytest.mark.parametrize("text", ["", "\n", "short", "é" * 40])
def test_a_file_without_a_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "admin.token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no token"):
        ensure_token(path)


def test_importing_it_costs_no_framework() -> None:
    code = (
        "import sys, proxy.admin.api; print({'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "set()\n"
