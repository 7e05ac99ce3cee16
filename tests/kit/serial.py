"""A TLS socket that two threads may use: one reads, another writes.

OpenSSL's objects are not made for that, and Python 3.12.1 and 3.13.0 do not lock them: about one
handshake in a hundred of a client that reads on a thread of its own lost what it had sent.
"""

import select
import ssl
import threading
from typing import Any

_TIMEOUT_S = 5.0


class SerialSocket:
    """Calls into TLS happen one at a time; waiting for bytes happens outside."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._lock = threading.Lock()

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        while True:
            with self._lock:
                self._tls.settimeout(0)
                try:
                    return self._tls.recv(size)
                except ssl.SSLWantReadError:
                    pass
            readable, _, _ = select.select([self._tls], [], [], _TIMEOUT_S)
            if not readable:
                raise TimeoutError

    def sendall(self, data: bytes) -> None:
        """As a socket's."""
        with self._lock:
            self._tls.settimeout(_TIMEOUT_S)
            self._tls.sendall(data)

    def settimeout(self, _seconds: float | None) -> None:
        """Ours stay: they are set for each call."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)
