"""Many live streams of one agent in one thread, watched until each of them ends.

    streams = LiveStreams()
    streams.open("sse", house.tunnel(token))     as many as wanted, of KINDS
    streams.run_until(lambda: ...)               bytes go back and forth
    streams.ended                                [(kind, when the client saw the end, monotonic s)]

One thread and a selector: a hundred threads that fight for one interpreter would measure that.
"""

import contextlib
import selectors
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.kit.counting_house import API
from tests.kit.http1 import Http1, format_request

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
_EVERY_S = 0.05
_CHUNK = b"400\r\n" + b"u" * 1024 + b"\r\n"
_FRAME = b"\x82\x84\0\0\0\0ping"  # binary, masked with zeros
_BLOCK = 65_536


@dataclass
class _Stream:
    kind: str
    client: Http1
    sends: bytes  # again and again; b"" for those who only read
    received: int = 0


class LiveStreams:
    """Opened one by one, then run together. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, float]] = []
        self._selector = selectors.DefaultSelector()
        self._live: dict[int, _Stream] = {}
        self._next_s = 0.0

    @property
    def live(self) -> Counter[str]:
        """How many of each kind go on."""
        return Counter(stream.kind for stream in self._live.values())

    def open(self, kind: str, client: Http1, *, prefix: str = "") -> None:
        """Begin a stream; it has had its first bytes, or taken its first, when this returns."""
        sends = b""
        if kind == "upload":
            head = format_request(f"{prefix}/echo", API, "POST", ["Transfer-Encoding: chunked"])
            client.connection.sendall(head + _CHUNK)
            sends = _CHUNK
        elif kind == "websocket":
            answer = client.ask("/ws", API, headers=UPGRADE)
            if answer.status != 101:
                raise ConnectionError(answer)
            sends = _FRAME
        else:
            client.send(f"{prefix}/{'drip/0.05' if kind == 'sse' else 'trickle/100000'}", API)
            if client.read_head().status != 200:
                raise ConnectionError("no stream")
        client.connection.setblocking(False)
        self._live[client.connection.fileno()] = _Stream(kind, client, sends)
        self._selector.register(client.connection, selectors.EVENT_READ)

    def run_until(self, is_over: Callable[[], object], timeout_s: float = 10.0) -> bool:
        """Read and write until `is_over()`; False when the time is over."""
        until = time.monotonic() + timeout_s
        while not is_over():
            if time.monotonic() > until:
                return False
            for key, _ in self._selector.select(0.005):
                self._read(key.fd)
            if time.monotonic() >= self._next_s:
                self._next_s = time.monotonic() + _EVERY_S
                for number in list(self._live):
                    self._write(number)
        return True

    def close(self) -> None:
        """Hang up whatever goes on."""
        for stream in self._live.values():
            stream.client.connection.close()
        self._live.clear()
        self._selector.close()

    def _read(self, number: int) -> None:
        stream = self._live[number]
        try:
            while data := stream.client.connection.recv(_BLOCK):
                stream.received += len(data)
        except ssl.SSLWantReadError:
            return
        except OSError:
            pass
        self._end(number)

    def _write(self, number: int) -> None:
        stream = self._live[number]
        if not stream.sends:
            return
        try:
            stream.client.connection.send(stream.sends)
        except (ssl.SSLWantWriteError, BlockingIOError):
            return
        except OSError:
            self._end(number)

    def _end(self, number: int) -> None:
        stream = self._live.pop(number)
        self.ended.append((stream.kind, time.monotonic()))
        self._selector.unregister(stream.client.connection)
        stream.client.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()
