"""The proxy as users run it: `python -m proxy serve` in a process of its own, on ports of its
own."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
_READY = re.compile(r"listening on ([0-9.]+):([0-9]+)")
_ADMIN = re.compile(r"admin on http://([0-9.]+):([0-9]+)")

LOCAL_AGENT = 'agents: { local: { identity: { source: ["127.0.0.0/8", "::1/128"] } } }\n'


def write_policy(path: Path, rules: str, *, agents: str = LOCAL_AGENT, head: str = "") -> Path:
    """A policy file with one local agent and these rules (YAML list items)."""
    path.write_text(f"version: 1\n{head}{agents}rules:\n{rules}", encoding="utf-8")
    return path


def run_command(
    *arguments: str, check: bool = True, **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """Run `tollkeeper ARGUMENTS` as a process."""
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
        **keywords,
    )


class Proxy:
    """One running server. `with Proxy(...) as proxy:` waits until its port is open."""

    def __init__(
        self,
        folder: Path,
        policy: Path,
        *options: str,
        resolve: Sequence[str] = (),
        upstream_ca: Path | None = None,
        env: Mapping[str, str] | None = None,
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        self.folder = folder
        self.policy = policy
        self.state = folder / "state"
        self.options = list(options)
        for pin in resolve:
            self.options += ["--resolve", pin]
        if upstream_ca is not None:
            self.options += ["--upstream-ca", str(upstream_ca)]
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self._python = list(python)
        self.stderr = ""
        self.port = 0
        self.admin_port = 0

    def start(self, *, wait: bool = True) -> Self:
        """Start the process; with `wait`, until the port is open or the process ended."""
        self.port = self.admin_port = 0
        self.stderr = ""
        self.process = subprocess.Popen(
            [
                *self._python, "-m", "proxy", "serve", "--policies", str(self.policy),
                "--state", str(self.state), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                *self.options,
            ],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        if wait:
            self._ready.wait(30)
            if not self.port:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"the proxy did not start:\n{self.stderr}")
        return self

    def _listen(self) -> None:
        stream = self.process.stderr
        for line in stream or ():
            self.stderr += line
            if found := _ADMIN.search(line):
                self.admin_port = int(found[2])
            if found := _READY.search(line):
                self.port = int(found[2])
                self._ready.set()
        self._ready.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._thread.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        print(self.stderr, file=sys.stderr)  # pytest shows it where the test fails
        return code

    @property
    def url(self) -> str:
        """What HTTPS_PROXY is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """What an agent must trust."""
        return self.state / "ca" / "ca.pem"

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events on disk, in order."""
        found = []
        for segment in sorted((self.state / "log").glob("*.jsonl")):
            for line in segment.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line)["event"])
        return [event for event in found if kind is None or event["kind"] == kind]

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """The events of a kind, once there are `count` of them."""
        until = time.monotonic() + timeout_s
        while len(found := self.records(kind)) < count and time.monotonic() < until:
            time.sleep(0.02)
        return found

    def scrape(self, path: str, *headers: str, timeout_s: float = 5.0) -> tuple[int, str]:
        """Ask the admin port: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=timeout_s)
        with contextlib.closing(connection):
            fields = dict(header.split(": ", 1) for header in headers)
            connection.request("GET", path, headers=fields)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def verify(self, *options: str) -> subprocess.CompletedProcess[str]:
        """`python -I -m audit verify` of the log."""
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from audit.cli import audit; audit()"
        )
        return subprocess.run(
            [sys.executable, "-I", "-c", code, "verify", str(self.state / "log"), *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def exchange(self, message: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Send raw bytes, return everything that comes back until the connection closes."""
        with self.connect(timeout_s) as connection:
            connection.sendall(message)
            return read_all(connection)

    def connect(self, timeout_s: float = 5.0) -> socket.socket:
        """A plain connection to the proxy port."""
        return socket.create_connection(("127.0.0.1", self.port), timeout_s)

    def tunnel(
        self,
        host: str,
        port: int,
        *,
        sni: str | None = None,
        protocols: Sequence[str] = (),
        headers: str = "",
        timeout_s: float = 5.0,
    ) -> ssl.SSLSocket:
        """CONNECT, then TLS that trusts the proxy's CA (the name is not checked: SNI may be odd on
        purpose)."""
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(self.connect(timeout_s))
            connection.sendall(
                f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}\r\n".encode()
            )
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                data = connection.recv(1)
                if not data:
                    raise ConnectionError(answer)
                answer += data
            if b" 200 " not in answer.split(b"\r\n")[0]:
                raise ConnectionError(answer.decode("latin-1"))
            secured = self.secure(connection, sni if sni is not None else host, protocols)
            undo.pop_all()
            return secured

    def secure(
        self, connection: socket.socket, name: str, protocols: Sequence[str] = ()
    ) -> ssl.SSLSocket:
        """TLS on an open tunnel."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.check_hostname = False
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context.wrap_socket(connection, server_hostname=name)


def wait_until(check: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Poll until `check()` is true; False when the time is over."""
    until = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def read_all(connection: socket.socket) -> bytes:
    """Everything until the peer closes, resets or the timeout passes."""
    received = b""
    with contextlib.suppress(OSError):
        while data := connection.recv(65_536):
            received += data
    return received
