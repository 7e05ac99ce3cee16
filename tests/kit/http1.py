"""A small HTTP/1.1 client on a socket that somebody else opened: it sends what it is told, and
reads answers one by one."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    trailers: tuple[tuple[str, str], ...] = ()

    def values(self, name: str) -> list[str]:
        """All values of a header field."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def value(self, name: str) -> str:
        """The only value of a header field, or ""."""
        return (self.values(name) or [""])[0]


class Http1:
    """Requests and answers on one connection, plain or TLS."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._held = bytearray()
        self.received_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(
        self,
        target: str,
        host: str,
        *,
        method: str = "GET",
        headers: Iterable[str] = (),
        body: bytes = b"",
    ) -> None:
        """One request with a Content-Length where there is a body."""
        self.connection.sendall(format_request(target, host, method, headers, body))

    def ask(self, target: str, host: str, *, method: str = "GET", **rest: Any) -> Answer:
        """Send, and read the answer."""
        self.send(target, host, method=method, **rest)
        return self.read(method)

    def read_head(self) -> Answer:
        """Status line and fields of the next answer."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        _, status, reason = (*line.split(" ", 2), "")[:3]
        pairs = (field.partition(":") for field in fields)
        return Answer(int(status), reason, tuple((n, v.strip()) for n, _, v in pairs))

    def read(self, method: str = "GET") -> Answer:
        """The next answer, whole."""
        head = self.read_head()
        if method == "HEAD" or head.status in (101, 204, 304) or head.status < 200:
            return head
        if head.value("transfer-encoding"):
            body = b"".join(self.chunks())
        elif head.value("content-length"):
            body = self.exactly(int(head.value("content-length")))
        else:
            body = self.rest()
        return Answer(head.status, head.reason, head.headers, body)

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a body, each as it comes."""
        while size := int(self.until(b"\r\n").split(b";")[0], 16):
            yield self.exactly(size)
            self.exactly(2)
        while self.until(b"\r\n").strip():
            pass

    def until(self, end: bytes) -> bytes:
        """Everything up to and with `end`."""
        while (at := self._held.find(end)) < 0:
            self._more()
        return self._take(at + len(end))

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self._held) < size:
            self._more()
        return self._take(size)

    def rest(self) -> bytes:
        """Everything until the peer ends."""
        while data := self.connection.recv(65_536):
            self._held += data
        return self._take(len(self._held))

    def is_closed(self) -> bool:
        """Whether the peer ends the connection, without a further byte, within its timeout."""
        try:
            return not self._held and not self.connection.recv(1)
        except TimeoutError:
            return False
        except OSError:
            return True

    def _more(self) -> None:
        data = self.connection.recv(65_536)
        if not data:
            raise ConnectionError(f"the connection ended behind {bytes(self._held[:200])!r}")
        self._held += data
        self.received_bytes += len(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


def format_request(
    target: str, host: str, method: str = "GET", headers: Iterable[str] = (), body: bytes = b""
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
