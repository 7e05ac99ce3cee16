"""A git repository and a package index over TLS: git's own smart HTTP back end behind a small
server, and static files beside it."""

import http.server
import os
import ssl
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any, Self

_IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@test.example")


class FileServer:
    """Serves `folder`; what ends in `.git` is answered by `git http-backend`."""

    def __init__(self, folder: Path, tls: ssl.SSLContext) -> None:
        self.requests: list[str] = []
        handler = type("Bound", (_Handler,), {"folder": folder, "requests": self.requests})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.socket = tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    folder: Path
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, directory=str(self.folder), **keywords)

    def log_message(self, *_: object) -> None:
        self.requests.append(self.requestline)

    def do_GET(self) -> None:
        if ".git/" in self.path:
            self._run_git(b"")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._run_git(body)

    def _run_git(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        variables = {
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            env={**os.environ, **variables},
            capture_output=True,
            check=True,
            timeout=20,
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = [line.partition(": ")[::2] for line in head.decode().split("\r\n")]
        status = next((value for name, value in fields if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in fields:
            if name not in ("Status", "Content-Length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def make_repository(path: Path) -> Path:
    """A bare repository with one commit on `main`."""
    work = path.with_suffix(".work")
    _git("init", "-q", "-b", "main", str(work))
    (work / "README").write_text("fetched through the gate\n", encoding="utf-8")
    _git("-C", str(work), "add", "README")
    _git("-C", str(work), *_IDENTITY, "commit", "-q", "-m", "first")
    _git("clone", "-q", "--bare", str(work), str(path))
    return path


def make_index(folder: Path, name: str) -> None:
    """A simple package index that offers version 1.0 of one pure wheel."""
    wheel = f"{name}-1.0-py3-none-any.whl"
    (folder / "files").mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / "files" / wheel, "w") as archive:
        archive.writestr(f"{name}.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    page = folder / "simple" / name
    page.mkdir(parents=True)
    link = f'<!doctype html><a href="/files/{wheel}">{wheel}</a>\n'
    (page / "index.html").write_text(link, encoding="utf-8")


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True, timeout=20)
