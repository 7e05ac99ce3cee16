"""The ways in which a request can reach the proxy, each as a client that looks at every byte.

opened = INGRESSES["tunnel"](proxy, world)   connect, CONNECT and TLS where that is the way
answer = opened.ask("/ok")                   one request; never raises for what the proxy does
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from tests.kit.proxy import Proxy

ANSWER_S = 6.0  # a client's patience; what is bounded more tightly is measured


@dataclass
class Answer:
    """What came back. `status` 0: nothing that is HTTP."""

    status: int
    body: bytes
    seconds: float
    whole: bool  # as long as it said it would be
    ended: bool  # answered, or closed; False: the client's patience ended first
    head: bytes = b""


class Way(Protocol):
    """An open way in."""

    connection: socket.socket

    def ask(
        self, path: str, *, method: str = "GET", fields: str = "", body: bytes = b""
    ) -> Answer: ...

    def begin(self, path: str) -> None:
        """Send a GET, and read nothing."""

    def close(self) -> None: ...


class Http1Way:
    """HTTP/1.1 on a socket: straight to the proxy, or inside a tunnel."""

    def __init__(self, connection: socket.socket, host: str, *, absolute: bool = False) -> None:
        self.connection = connection
        self._host = host
        self._absolute = absolute

    def ask(self, path: str, *, method: str = "GET", fields: str = "", body: bytes = b"") -> Answer:
        """One request and its answer."""
        target = f"http://{self._host}{path}" if self._absolute else path
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\n{length}{fields}\r\n"
        return self.send(head.encode("latin-1") + body, method)

    def begin(self, path: str) -> None:
        """Send a GET, and read nothing."""
        target = f"http://{self._host}{path}" if self._absolute else path
        self.connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())

    def send(self, message: bytes, method: str = "GET") -> Answer:
        """Any bytes, then one answer."""
        began = time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.sendall(message)
        return read_answer(self.connection, began, method)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_answer(connection: socket.socket, began: float, method: str = "GET") -> Answer:
    """One HTTP/1 answer, or what there is of it when the connection ends."""
    data, ended = b"", False
    needed: int | None = None
    connection.settimeout(ANSWER_S)
    while not ended:
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            needed = _length(data[:end], end + 4, method)
            if needed is not None and len(data) >= needed:
                break
            if needed is None and data.endswith(b"0\r\n\r\n"):
                break
        if time.monotonic() - began > ANSWER_S:
            break
        try:
            more = connection.recv(65_536)
        except TimeoutError:
            break
        except OSError:  # reset, or TLS without its farewell
            more = b""
        data += more
        ended = not more
    seconds = time.monotonic() - began
    head, separator, body = data.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") and separator else 0
    whole = bool(separator) and (
        len(data) >= needed if needed is not None else data.endswith(b"0\r\n\r\n")
    )
    return Answer(status, body, seconds, whole, ended or whole, head)


def _length(head: bytes, head_bytes: int, method: str) -> int | None:
    """Bytes of the whole answer; None: chunked, or until the end."""
    if method == "HEAD" or head[9:10] == b"1" or (method == "CONNECT" and head[9:10] == b"2"):
        return head_bytes
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return head_bytes + int(value)
    return None


class Http2Way:
    """HTTP/2 inside TLS inside a tunnel."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.connection = connection
        self._host = host
        config = h2.config.H2Configuration(
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.connection.sendall(self.h2.data_to_send())

    def ask(self, path: str, *, method: str = "GET", fields: str = "", body: bytes = b"") -> Answer:
        """One request on a stream of its own."""
        began = time.monotonic()
        headers = [
            (":method", method), (":scheme", "https"), (":authority", self._host), (":path", path),
            *_pairs(fields),
        ]  # fmt: skip
        stream = self.h2.get_next_available_stream_id()
        with contextlib.suppress(OSError):
            self.h2.send_headers(stream, headers, end_stream=not body)
            self.connection.sendall(self.h2.data_to_send())
            while body and (room := self.h2.local_flow_control_window(stream)):
                part, body = body[: min(room, 16_384)], body[min(room, 16_384) :]
                self.h2.send_data(stream, part, end_stream=not body)
                self.connection.sendall(self.h2.data_to_send())
        return self.read(stream, began)

    def begin(self, path: str) -> None:
        """Send a GET, and read nothing."""
        headers = [
            (":method", "GET"), (":scheme", "https"), (":authority", self._host), (":path", path)
        ]  # fmt: skip
        self.h2.send_headers(self.h2.get_next_available_stream_id(), headers, end_stream=True)
        self.connection.sendall(self.h2.data_to_send())

    def read(self, stream: int, began: float) -> Answer:
        """Until the stream or the connection ends."""
        status, body, whole, ended = 0, b"", False, False
        self.connection.settimeout(ANSWER_S)
        while not ended and time.monotonic() - began < ANSWER_S:
            try:
                data = self.connection.recv(65_536)
            except TimeoutError:
                break
            except OSError:
                data = b""
            ended = not data
            try:
                events = self.h2.receive_data(data) if data else []
            except h2.exceptions.ProtocolError:
                break
            for event in events:
                if isinstance(event, h2.events.ConnectionTerminated):
                    ended = True
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(_value(event.headers or [], ":status"))
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                elif isinstance(event, h2.events.StreamEnded):
                    whole = ended = True
                elif isinstance(event, h2.events.StreamReset):
                    ended = True
            with contextlib.suppress(OSError):
                self.connection.sendall(self.h2.data_to_send())
        return Answer(status, body, time.monotonic() - began, whole, ended)

    def close(self) -> None:
        self.connection.close()


def _pairs(fields: str) -> list[tuple[str, str]]:
    lines = (line.lower().partition(": ") for line in fields.split("\r\n") if line)
    return [(name, value) for name, _, value in lines]


def _value(headers: Iterable[Any], name: str) -> str:
    return next(str(value) for key, value in headers if key == name)


def open_plain(proxy: Proxy, host: str) -> Http1Way:
    """Absolute form, no TLS."""
    return Http1Way(proxy.connect(ANSWER_S), host, absolute=True)


def open_tunnel(proxy: Proxy, host: str) -> Http1Way:
    """HTTP/1.1 in TLS in CONNECT."""
    return Http1Way(proxy.tunnel(host, 443, protocols=["http/1.1"], timeout_s=ANSWER_S), host)


def open_http2(proxy: Proxy, host: str) -> Http2Way:
    """HTTP/2 in TLS in CONNECT."""
    return Http2Way(proxy.tunnel(host, 443, protocols=["h2"], timeout_s=ANSWER_S), host)


def open_clear_tunnel(proxy: Proxy, host: str) -> Http1Way:
    """HTTP/1.1 in CONNECT, without TLS."""
    connection = proxy.connect(ANSWER_S)
    connection.sendall(f"CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n".encode())
    answer = read_answer(connection, time.monotonic(), "CONNECT")
    if answer.status != 200:
        connection.close()
        raise ConnectionError(answer)
    return Http1Way(connection, host)


INGRESSES: dict[str, Callable[[Proxy, str], Way]] = {
    "plain": open_plain,
    "tunnel": open_tunnel,
    "http2": open_http2,
    "clear-tunnel": open_clear_tunnel,
}
