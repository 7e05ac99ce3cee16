"""A real nginx as an origin: TLS, HTTP/1.1 and HTTP/2, in a folder of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

_CONFIGURATION = """
daemon off; master_process off; worker_processes 1; {user} pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log; default_type text/plain; server_tokens off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {chain}; ssl_certificate_key {key};
    root {folder}/www;
    location /version {{ return 200 "$server_protocol"; }}
  }}
}}
"""


class Nginx:
    """Start with `with`; files lie in `folder`/www, `/version` answers with the protocol seen."""

    def __init__(self, folder: Path, chain: Path, key: Path) -> None:
        self.folder = folder
        self._tls = (chain, key)
        self.port = 0

    @staticmethod
    def find() -> str | None:
        """The binary; Debian keeps it outside a user's PATH."""
        return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    def __enter__(self) -> Self:
        binary = self.find()
        if binary is None:
            raise RuntimeError("there is no nginx")
        (self.folder / "www").mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        chain, key = self._tls
        configuration = _CONFIGURATION.format(
            folder=self.folder, port=self.port, chain=chain, key=key,
            user="user root;" if os.geteuid() == 0 else "",
        )  # fmt: skip
        path = self.folder / "nginx.conf"
        path.write_text(configuration, encoding="utf-8")
        self._process = subprocess.Popen(
            [binary, "-p", str(self.folder), "-c", str(path), "-e", str(self.folder / "error.log")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return self
            time.sleep(0.02)
        self.__exit__()
        log = (self.folder / "error.log").read_text(encoding="utf-8")
        raise RuntimeError(f"nginx did not start: {log}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
