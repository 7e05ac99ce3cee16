"""The socket by which commands reach a running server: `state/control.sock`.

    tollkeeper agent revoke ... --ask--> {"command":"credential.changed","arguments":{...}}
                                <------- {"ok":true,"result":{...}}       one line each, then closed

Rule 1: only the same user (or root) is answered: the socket is 0600, and the kernel names the peer.
Rule 2: every connection is bounded in size, time and number; a client that hangs holds up nobody.
Rule 3: what a command does is the server's business; this file knows names and carries values.
Rule 4: a live server's socket is never taken away; a dead one's is replaced.

Whatever must be recorded goes through here while a server runs, since it holds the log's lock.
"""

import asyncio
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

REQUEST_BYTES_MAX = 64 * 1024
REPLY_BYTES_MAX = 1024 * 1024
CONNECTIONS_MAX = 16
READ_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0  # a reload compiles the policy and runs its tests

_PATH_BYTES_MAX = 100  # the kernel takes 107 in a socket's address
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred

Arguments = Mapping[str, Any]
Command = Callable[[Arguments], Awaitable[Mapping[str, Any]]]

log = structlog.get_logger()


class ServerNotRunning(RuntimeError):  # noqa: N818  named after the failure
    """No server answers on this state directory. The text says what to do."""


class CommandRefused(RuntimeError):  # noqa: N818  named after the failure
    """The server answered that it cannot. The text is the server's."""


class ControlServer:
    """Answers commands until it is closed. `commands` maps names to what performs them.

    A command raises ValueError to refuse, with a text for the person who asked; anything else it
    raises is a fault, logged here and not told. `ping` is always there.
    """

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands: dict[str, Command] = {"ping": _ping, **commands}
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            ValueError: another server listens there, or something else is in the way.
            OSError: the socket cannot be made.
        """
        listening = _listen(self._path)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listening, limit=REQUEST_BYTES_MAX
            )
        except BaseException:
            listening.close()
            raise

    async def close(self) -> None:
        """Stop listening and remove the socket; commands under way are not awaited."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS_MAX or not _is_ours(writer.get_extra_info("socket")):
                return
            reply = await self._answer(reader)
            async with asyncio.timeout(READ_TIMEOUT_S):
                writer.write(reply + b"\n")
                await writer.drain()
        except (OSError, TimeoutError):
            return  # the client went away, or reads nothing
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                line = await reader.readuntil(b"\n")
            name, arguments = _decode_request(line)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            return _encode_error("the request is not one line of at most 64 KiB")
        except ValueError as refusal:
            return _encode_error(str(refusal))
        command = self._commands.get(name)
        if command is None:
            return _encode_error("this server does not know the command; is it an older version?")
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                result = await command(arguments)
            reply = json.dumps({"ok": True, "result": dict(result)}).encode("ascii")
        except TimeoutError:
            return _encode_error("the server did not finish in time; see its log")
        except ValueError as refusal:
            return _encode_error(str(refusal))
        except Exception as failure:  # one command's bug is not the server's end
            log.error("control-failed", command=name, exc_info=failure)
            return _encode_error("the server failed; its log has the reason")
        if len(reply) > REPLY_BYTES_MAX:
            return _encode_error("the answer is too large")
        return reply


def ask(
    path: Path,
    command: str,
    arguments: Arguments | None = None,
    *,
    timeout_s: float = COMMAND_TIMEOUT_S + READ_TIMEOUT_S,
) -> dict[str, Any]:
    """Send one command to the server of this state directory; blocks until it is done.

    Raises:
        ServerNotRunning: nothing listens there.
        CommandRefused: the server said no, broke off, or took too long.
    """
    request = json.dumps({"command": command, "arguments": dict(arguments or {})}).encode("ascii")
    connected = False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            with _address(path) as address:
                client.connect(address)
            connected = True
            client.sendall(request + b"\n")
            reply = _read_reply(client)
    except OSError as failure:
        if connected:
            raise CommandRefused(f"`{path}`: the server broke off; see its log") from failure
        raise ServerNotRunning(_explain(path, failure)) from failure
    return _decode_reply(reply)


def _explain(path: Path, failure: OSError) -> str:
    if isinstance(failure, PermissionError):
        return f"`{path}`: is not yours; run the command as the user that runs the server"
    return f"`{path}`: no server is running here; start it with `tollkeeper serve`, or give --state"


def _read_reply(client: socket.socket) -> bytes:
    """All that comes, up to the line's end; cut beyond REPLY_BYTES_MAX, and then no JSON."""
    reply = bytearray()
    while not reply.endswith(b"\n") and len(reply) <= REPLY_BYTES_MAX:
        part = client.recv(65_536)
        if not part:
            break
        reply += part
    return bytes(reply)


def _decode_reply(reply: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(reply)
        ok, result, error = answer["ok"], answer.get("result"), answer.get("error")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as failure:
        raise CommandRefused("the server's answer was cut off; see its log") from failure
    if ok is not True or not isinstance(result, dict):
        raise CommandRefused(str(error))
    return result


def _decode_request(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
        name, arguments = request["command"], request["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("the request is not a command") from None
    if isinstance(name, str) and isinstance(arguments, dict):
        return name, arguments
    raise ValueError("the request is not a command")


def _encode_error(text: str) -> bytes:
    return json.dumps({"ok": False, "error": text}).encode("ascii")


async def _ping(_arguments: Arguments) -> Mapping[str, Any]:
    return {"pid": os.getpid()}


def _is_ours(peer: Any) -> bool:
    """Is the other end this user, or root? The kernel says so, not the client."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid in (os.geteuid(), 0)


def _listen(path: Path) -> socket.socket:
    """A listening socket that nobody else could have opened for a moment."""
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), 0o600)  # before bind: Linux takes the file's mode from it
        with _address(path) as address:
            listening.bind(address)
        path.chmod(0o600)
        listening.listen(CONNECTIONS_MAX)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _clear(path: Path) -> None:
    """Remove what a killed server left behind; refuse whatever is alive or no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"`{path}`: is in the way and no socket; move it away")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        suppress(ConnectionRefusedError),
    ):
        probe.settimeout(READ_TIMEOUT_S)
        with _address(path) as address:
            probe.connect(address)
        raise ValueError(
            f"`{path}`: another server is running on this state directory; stop it first"
        )
    path.unlink(missing_ok=True)


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the socket that fits into a socket's address, however deep the folder is."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
