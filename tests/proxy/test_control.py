"""Commands reach a running server: same user only, bounded, and never by taking its socket."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy import control
from proxy.control import (
    CONNECTIONS_MAX,
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    CommandRefused,
    ControlServer,
    ServerNotRunning,
    ask,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def echo(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"echo": dict(arguments)}


async def refuse(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ValueError("`coder` is no agent; `tollkeeper agent list` shows all")


async def fail(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("secret detail")


async def hang(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    await asyncio.sleep(60)
    return {}


async def flood(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"x": "y" * REPLY_BYTES_MAX}


async def large(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"x": "y" * (REPLY_BYTES_MAX - 1000)}


COMMANDS = {
    "echo": echo, "refuse": refuse, "fail": fail, "hang": hang, "flood": flood, "large": large,
}  # fmt: skip


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, COMMANDS)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def send(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, path, command, arguments)


async def send_raw(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def test_a_command_is_performed_and_answered(path: Path) -> None:
    async with serving(path):
        assert await send(path, "echo", name="bücher\n") == {"echo": {"name": "bücher\n"}}
        assert await send(path, "ping") == {"pid": os.getpid()}


async def test_large_answers_arrive_whole(path: Path) -> None:
    async with serving(path):
        assert len((await send(path, "large"))["x"]) > 1_000_000


async def test_the_socket_is_ours_alone(path: Path) -> None:
    async with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


PING_AS = """
import contextlib, os, socket, sys
os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionError):
    client.connect(sys.argv[1])
    client.sendall(b'{"command":"ping","arguments":{}}\\n')
    sys.stdout.buffer.write(client.recv(99))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_not_answered_even_where_the_socket_lets_him_in() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "control.sock"
        async with serving(path):
            path.chmod(0o666)
            for user, answer in ((65534, b""), (0, b'{"ok": true')):
                done = await asyncio.to_thread(
                    subprocess.run,
                    [sys.executable, "-c", PING_AS, str(path), str(user)],
                    capture_output=True,
                    check=True,
                )
                assert done.stdout.startswith(answer)
                assert bool(done.stdout) == bool(answer)


async def test_a_refusal_carries_the_servers_text(path: Path) -> None:
    async with serving(path):
        with pytest.raises(CommandRefused, match="agent list"):
            await send(path, "refuse")


async def test_a_fault_is_not_told_and_does_not_end_the_server(path: Path) -> None:
    async with serving(path):
        with pytest.raises(CommandRefused, match="its log has the reason") as refused:
            await send(path, "fail")
        assert "secret" not in str(refused.value)
        assert await send(path, "ping")


async def test_an_unknown_command_is_refused(path: Path) -> None:
    async with serving(path):
        with pytest.raises(CommandRefused, match="does not know"):
            await send(path, "halt")


async def test_an_answer_that_is_too_large_is_refused(path: Path) -> None:
    async with serving(path):
        with pytest.raises(CommandRefused, match="too large"):
            await send(path, "flood")


async def test_a_command_that_hangs_ends_at_its_deadline(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "COMMAND_TIMEOUT_S", 0.05)
    async with serving(path):
        with pytest.raises(CommandRefused, match="in time"):
            await send(path, "hang")


@pytest.mark.parametrize(
    "data",
    [
        b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b'{"command":1,"arguments":{}}\n',
        b'{"command":"ping","arguments":[]}\n', b'{"command":"ping"}\n', b"[" * 60_000 + b"\n",
        b"", b"no line", b"x" * (2 * REQUEST_BYTES_MAX),
    ],
    ids=lambda data: repr(data[:32]),
)  # fmt: skip
async def test_whatever_is_sent_is_refused_and_the_server_lives(path: Path, data: bytes) -> None:
    async with serving(path):
        try:
            reply = await send_raw(path, data)
        except ConnectionError:  # it stopped reading what is too long
            reply = b""
        assert not reply or json.loads(reply)["ok"] is False
        assert await send(path, "ping")


async def test_silent_clients_hold_up_nobody_and_are_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "READ_TIMEOUT_S", 0.3)
    async with serving(path):
        silent = [await asyncio.open_unix_connection(str(path)) for _ in range(CONNECTIONS_MAX - 1)]
        assert await send(path, "ping")
        replies = await asyncio.gather(*(reader.read() for reader, _ in silent))
        assert all(json.loads(reply)["ok"] is False for reply in replies)
        for _, writer in silent:
            writer.close()


async def test_without_a_server_the_text_says_what_to_do(path: Path) -> None:
    with pytest.raises(ServerNotRunning, match="tollkeeper serve"):
        await send(path, "ping")
    async with serving(path):
        pass
    assert not path.exists()
    with pytest.raises(ServerNotRunning, match=str(path)):
        await send(path, "ping")


async def test_what_a_killed_server_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ServerNotRunning):
        await send(path, "ping")
    async with serving(path):
        assert await send(path, "ping")


async def test_a_live_servers_socket_is_not_taken(path: Path) -> None:
    async with serving(path):
        with pytest.raises(ValueError, match="another server"):
            await ControlServer(path, {}).start()
        assert await send(path, "echo") == {"echo": {}}


async def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ValueError, match="move it away"):
        await ControlServer(path, {}).start()
    assert path.read_text() == "precious"


async def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    folder.mkdir(parents=True)
    path = folder / "control.sock"
    async with serving(path):
        assert await send(path, "ping")
        with pytest.raises(ValueError, match="another server"):
            await ControlServer(path, {}).start()
    assert not path.exists()


def test_it_works_under_uvloop(path: Path) -> None:
    async def main() -> dict[str, Any]:
        async with serving(path):
            return await send(path, "echo", x=1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == {"echo": {"x": 1}}
    assert not path.exists()
