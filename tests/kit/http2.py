"""Both ends of HTTP/2 on top of the `h2` package: a client on an open TLS socket, and an origin.

What the origin answers is a function of the path:

    /echo     the request body               /big/N    N bytes
    /rpc      a body, then gRPC trailers     /slow/S   answers after S seconds
    anything  200 and a small JSON body
"""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.kit.http1 import Answer

_READ_BYTES = 65_536


@dataclass
class _Open:
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    reset: int | None = None
    done: bool = False


class Http2:
    """A client: many requests on one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.closed = False
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(2**30)  # the streams' own windows stay at 64 KiB
        self._streams: dict[int, _Open] = {}
        self.unread: set[int] = set()  # streams whose windows are not opened again
        self._flush()

    def send(
        self,
        path: str,
        host: str,
        *,
        method: str = "GET",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> int:
        """Begin a request; returns its stream id."""
        stream: int = self._h2.get_next_available_stream_id()
        self._streams[stream] = _Open()
        head = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
        self._h2.send_headers(stream, [*head, *headers], end_stream=not body)
        for at in range(0, len(body), 16_384):
            self._h2.send_data(stream, body[at : at + 16_384])
        if body:
            self._h2.end_stream(stream)
        self._flush()
        return stream

    def begin(self, path: str, host: str) -> int:
        """The head of an upload whose body comes later; returns its stream id."""
        stream: int = self._h2.get_next_available_stream_id()
        self._streams[stream] = _Open()
        head = [(":method", "POST"), (":scheme", "https"), (":authority", host), (":path", path)]
        self._h2.send_headers(stream, head)
        self._flush()
        return stream

    def upload(self, stream: int, block: bytes, *, times: int) -> int:
        """Send a block so often; returns how often until the peer reset the stream."""
        for sent in range(times):
            try:
                self._h2.send_data(stream, block)
            except h2.exceptions.ProtocolError:
                return sent
            self._flush()
            self.connection.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                self._receive()
        return times

    def read(self, *streams: int, timeout_s: float = 10.0) -> list[Answer]:
        """The answers on these streams. A stream that was reset has status 0."""
        until = time.monotonic() + timeout_s
        while not all(self._streams[stream].done for stream in streams) and not self.closed:
            self.connection.settimeout(max(0.05, until - time.monotonic()))
            self._receive()
            if time.monotonic() > until:
                raise TimeoutError(f"no answer on {streams}")
        return [self._answer(stream) for stream in streams]

    def read_some(self, stream: int, bytes_min: int) -> bytes:
        """So much of a body, or more; less where the stream or the connection ends."""
        state = self._streams[stream]
        while len(state.body) < bytes_min and not state.done and not self.closed:
            self._receive()
        return bytes(state.body)

    def read_next(self, *streams: int, timeout_s: float = 10.0) -> tuple[int, Answer]:
        """The first of these streams that is answered, and its answer."""
        until = time.monotonic() + timeout_s
        while True:
            for stream in streams:
                if self._streams[stream].done or self.closed:
                    return stream, self._answer(stream)
            if time.monotonic() > until:
                raise TimeoutError(f"no answer on {streams}")
            self.connection.settimeout(max(0.05, until - time.monotonic()))
            self._receive()

    def ask(self, path: str, host: str, *, timeout_s: float = 10.0, **rest: Any) -> Answer:
        """Send, and read the answer."""
        return self.read(self.send(path, host, **rest), timeout_s=timeout_s)[0]

    def _receive(self) -> None:
        data = self.connection.recv(_READ_BYTES)
        if not data:
            self.closed = True
            return
        for event in self._h2.receive_data(data):
            self._note(event)
        self._flush()

    def _note(self, event: Any) -> None:
        stream = self._streams.get(getattr(event, "stream_id", 0) or 0, _Open())
        match event:
            case h2.events.ResponseReceived():
                stream.headers = _text(event.headers)
            case h2.events.TrailersReceived():
                stream.trailers = _text(event.headers)
            case h2.events.DataReceived():
                stream.body += event.data
                if event.stream_id not in self.unread:
                    size = event.flow_controlled_length
                    self._h2.acknowledge_received_data(size, event.stream_id)
            case h2.events.StreamEnded():
                stream.done = True
            case h2.events.StreamReset():
                stream.done, stream.reset = True, event.error_code
            case h2.events.ConnectionTerminated():
                self.closed = True

    def _answer(self, number: int) -> Answer:
        stream = self._streams[number]
        fields = dict(stream.headers)
        status = 0 if stream.reset is not None else int(fields.get(":status", 0))
        return Answer(
            status,
            "",
            tuple((n, v) for n, v in stream.headers if not n.startswith(":")),
            bytes(stream.body),
            tuple(stream.trailers),
        )

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self.connection.sendall(data)


def _text(headers: Iterable[Any]) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in headers]


@dataclass
class Http2Origin:
    """Start with `with`; `requests` are (method, path, header fields, body) in order of arrival."""

    tls: ssl.SSLContext
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError), plain:
            plain.settimeout(30)
            with self.tls.wrap_socket(plain, server_side=True) as connection:
                _Service(self, connection).run()


class _Service:
    def __init__(self, origin: Http2Origin, connection: ssl.SSLSocket) -> None:
        self._origin = origin
        self._connection = connection
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._open: dict[int, _Open] = {}
        self._unsent: dict[int, tuple[bytearray, list[tuple[str, str]]]] = {}

    def run(self) -> None:
        self._h2.initiate_connection()
        self._flush()
        while data := self._connection.recv(_READ_BYTES):
            for event in self._h2.receive_data(data):
                self._note(event)
            self._send_bodies()
            self._flush()

    def _note(self, event: Any) -> None:
        match event:
            case h2.events.RequestReceived():
                self._open[event.stream_id] = _Open(_text(event.headers))
            case h2.events.DataReceived():
                self._open[event.stream_id].body += event.data
                size = event.flow_controlled_length
                self._h2.acknowledge_received_data(size, event.stream_id)
            case h2.events.StreamEnded():
                self._answer(event.stream_id, self._open.pop(event.stream_id))
            case h2.events.StreamReset():
                self._open.pop(event.stream_id, None)
                self._unsent.pop(event.stream_id, None)

    def _answer(self, stream: int, request: _Open) -> None:
        fields = dict(request.headers)
        path = fields[":path"].partition("?")[0]
        received = bytes(request.body)
        self._origin.requests.append((fields[":method"], path, fields, received))
        body, kind, trailers = json.dumps({"path": path}).encode(), "application/json", []
        if path.startswith("/slow/"):
            self._flush()
            time.sleep(float(path[6:]))
        if path == "/echo":
            body = received
        if path.startswith("/big/"):
            body = b"b" * int(path[5:])
        if path == "/rpc":
            body, kind = received, "application/grpc"
            trailers = [("grpc-status", "0"), ("grpc-message", "fine")]
        head = [(":status", "200"), ("content-type", kind), ("x-origin", "h2")]
        self._h2.send_headers(stream, head, end_stream=False)
        self._unsent[stream] = (bytearray(body), trailers)

    def _send_bodies(self) -> None:
        for stream, (body, trailers) in list(self._unsent.items()):
            while body and (room := self._room(stream)):
                self._h2.send_data(stream, bytes(body[:room]))
                del body[:room]
            if body:
                continue
            del self._unsent[stream]
            if trailers:
                self._h2.send_headers(stream, trailers, end_stream=True)
            else:
                self._h2.end_stream(stream)

    def _room(self, stream: int) -> int:
        size: int = min(
            self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size
        )
        return size

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._connection.sendall(data)
