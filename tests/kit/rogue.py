"""An origin that conspires with the agent: for each path a function that may do anything on the
open TLS connection once the head has arrived."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

Script = Callable[[ssl.SSLSocket, bytes], None]
_HEAD_BYTES_MAX = 200_000


@dataclass
class Rogue:
    """Start with `with`. `scripts` maps paths to what happens; `heads` are all heads that came."""

    tls: ssl.SSLContext
    scripts: dict[str, Script] = field(default_factory=dict)
    on_http2: Callable[[ssl.SSLSocket], None] | None = None  # where ALPN chose h2
    heads: list[bytes] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def answer(self, path: str, data: bytes) -> None:
        """Answer `path` with these bytes, then end the connection."""
        self.scripts[path] = lambda connection, _head: connection.sendall(data)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), plain:
            plain.settimeout(30)
            with self.tls.wrap_socket(plain, server_side=True) as connection:
                if connection.selected_alpn_protocol() == "h2":
                    if self.on_http2 is not None:
                        self.on_http2(connection)
                    return
                self._answer(connection)

    def _answer(self, connection: ssl.SSLSocket) -> None:
        held = b""
        while True:
            while b"\r\n\r\n" not in held and len(held) < _HEAD_BYTES_MAX:
                data = connection.recv(65_536)
                if not data:
                    return
                held += data
            head, _, held = held.partition(b"\r\n\r\n")
            self.heads.append(head)
            path = head.split(b" ")[1].partition(b"?")[0].decode("latin-1")
            script = self.scripts.get(path)
            if script is not None:
                script(connection, head)
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
