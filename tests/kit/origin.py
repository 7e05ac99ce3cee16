"""A local origin that records every byte it receives, over plain TCP or TLS, on a thread per
connection.

What it answers is a function of the path:

    /sse          three events, 0.2 s apart, chunked          /big/N      N bytes
    /pour/N       N chunks of 64 KiB
    /echo         the request body                            /slow/S     answers after S seconds
    /switch       101 to whatever came                        /status/N   that status
    /hints        103, then 200                               /trailers   a body with a trailer
    /close        a body that ends with the connection        /drip/S     a chunk every S seconds,
    /ws           a WebSocket that echoes                                 for ever
    anything      200 and a small JSON body                   or what `raw_answers` holds for it
"""

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

_Send = Callable[[bytes], None]
_POUR_BYTES = 65_536
_WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass
class Seen:
    """One request as the origin read it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """All values of a header field."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Origin:
    """Start with `with`; `port` is where it listens, `received` all bytes by connection."""

    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    raw_answers: dict[str, bytes] = field(default_factory=dict)
    on_head: Callable[["Seen"], None] = lambda _seen: None  # called for each head, before all else
    requests: list[Seen] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)
    sent: list[bytearray] = field(default_factory=list)  # by connection, like `received`
    connections: int = 0
    touched: int = 0  # connections on which anything arrived, be it only a ClientHello
    port: int = 0

    def __enter__(self) -> Self:
        self._socket = socket.create_server((self.host, 0), backlog=512)
        self.port = self._socket.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._marks: set[tuple[str, int]] = set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def catch_up(self, timeout_s: float = 5.0) -> None:
        """Return when every connection that was made so far is counted: ours is behind them all."""
        with socket.socket() as mark:
            mark.settimeout(timeout_s)
            mark.bind((self.host, 0))
            self._marks.add(mark.getsockname())
            mark.connect((self.host, self.port))
            mark.recv(1)  # closed as soon as it is its turn

    @property
    def open_connections(self) -> int:
        """Those that neither end has closed."""
        return len(self._open)

    @property
    def bytes_received(self) -> int:
        """Over all connections, after TLS."""
        return sum(map(len, self.received))

    @property
    def lines(self) -> list[str]:
        """The request lines, in order of arrival."""
        return [seen.line for seen in self.requests]

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                return
            if peer in self._marks:
                self._marks.remove(peer)
                connection.close()
                continue
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        log = bytearray()
        sent = bytearray()
        self.received.append(log)
        self.sent.append(sent)
        connection = plain
        self._open.add(connection)
        try:
            if plain.recv(1, socket.MSG_PEEK):
                self.touched += 1
            if self.tls is not None:
                connection = self.tls.wrap_socket(plain, server_side=True)
                self._open.discard(plain)
                self._open.add(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = _Reader(connection, log)

            def send(data: bytes) -> None:
                connection.sendall(data)
                sent.extend(data)

            while self._answer_one(send, reader):
                pass
        except (OSError, ValueError):
            pass
        finally:
            self._open.discard(connection)
            with contextlib.suppress(OSError):
                connection.close()

    def _answer_one(self, send: _Send, reader: "_Reader") -> bool:
        head = reader.until(b"\r\n\r\n")
        if not head:
            return False
        line, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers = [(n.strip(), v.strip()) for n, _, v in (f.partition(":") for f in fields)]
        seen = Seen(line, headers)
        self.on_head(seen)
        self.requests.append(seen)
        method, target, _ = line.split(" ", 2)
        path = target.partition("?")[0]
        lengths = seen.values("content-length")
        if seen.values("transfer-encoding"):
            seen.body = b"".join(reader.chunks())
        elif lengths:
            seen.body = reader.exactly(int(lengths[0]))
        return self._answer(send, reader, method, path, seen)

    def _answer(self, send: _Send, reader: "_Reader", method: str, path: str, seen: Seen) -> bool:
        if path in self.raw_answers:
            send(self.raw_answers[path])
            return False
        if path == "/sse":
            return self._send_events(send)
        if path.startswith("/drip/"):
            send(_head("200 OK", "Transfer-Encoding: chunked"))
            while True:
                send(b"5\r\ndrip\n\r\n")
                time.sleep(float(path[6:]))
        if path.startswith("/pour/"):
            send(_head("200 OK", "Transfer-Encoding: chunked"))
            piece = b"%x\r\n%s\r\n" % (_POUR_BYTES, b"p" * _POUR_BYTES)
            for _ in range(int(path[6:])):
                send(piece)
            send(b"0\r\n\r\n")
            return True
        if path == "/ws":
            return self._echo_frames(send, reader, seen)
        if path == "/switch":
            send(_head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: raw") + b"raw")
            reader.until(b"never")
            return False
        if path == "/hints":
            send(_head("103 Early Hints", "Link: </a>"))
        if path == "/trailers":
            send(_head("200 OK", "Transfer-Encoding: chunked"))
            send(b"2\r\nok\r\n0\r\nX-T: 1\r\n\r\n")
            return True
        if path == "/close":
            send(_head("200 OK", "Connection: close") + b"until the end")
            return False
        if path.startswith("/trickle/"):
            return self._trickle(send, int(path[9:]))
        if path.startswith("/slow/"):
            time.sleep(float(path[6:]))
        status, body = 200, json.dumps({"path": path}).encode()
        if path.startswith("/status/"):
            status = int(path[8:])
        if path == "/echo":
            body = seen.body
        if path.startswith("/big/"):
            body = b"b" * int(path[5:])
        if status in (204, 304):
            send(_head(f"{status} Answer", "X-Origin: yes"))
            return True
        send(_head(f"{status} Answer", f"Content-Length: {len(body)}", "X-Origin: yes"))
        if method != "HEAD":
            send(body)
        return True

    def _trickle(self, send: _Send, count: int) -> bool:
        send(_head("200 OK", f"Content-Length: {count}"))
        for _ in range(count):
            time.sleep(0.05)
            send(b"t")
        return True

    def _send_events(self, send: _Send) -> bool:
        send(_head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        for number in range(3):
            event = b"data: %d\n\n" % number
            send(b"%x\r\n%s\r\n" % (len(event), event))
            time.sleep(0.2)
        send(b"0\r\n\r\n")
        return True

    def _echo_frames(self, send: _Send, reader: "_Reader", seen: Seen) -> bool:
        key = (seen.values("sec-websocket-key") or [""])[0]
        accept = base64.b64encode(hashlib.sha1((key + _WEBSOCKET_GUID).encode()).digest())
        send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        while head := reader.exactly(2):
            size = head[1] & 0x7F
            if size == 126:
                size = int.from_bytes(reader.exactly(2))
            elif size == 127:
                size = int.from_bytes(reader.exactly(8))
            mask = reader.exactly(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(reader.exactly(size)))
            self.frames.append((head[0], data))
            if size > 0xFFFF:
                short = b"\x7f" + size.to_bytes(8)
            else:
                short = b"\x7e" + size.to_bytes(2) if size > 125 else bytes([size])
            send(head[:1] + short + data)
            if head[0] & 0x0F == 8:
                return False
        return False

    frames: list[tuple[int, bytes]] = field(default_factory=list)


def _head(status: str, *fields: str) -> bytes:
    return ("\r\n".join([f"HTTP/1.1 {status}", *fields]) + "\r\n\r\n").encode()


class _Reader:
    def __init__(self, connection: socket.socket, log: bytearray) -> None:
        self._connection = connection
        self._log = log
        self._held = bytearray()

    def _more(self) -> bool:
        data = self._connection.recv(65_536)
        self._log += data
        self._held += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def until(self, end: bytes) -> bytes:
        while (at := self._held.find(end)) < 0:
            if not self._more():
                return b""
        return self._take(at + len(end))

    def exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            if not self._more():
                return b""
        return self._take(size)

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.until(b"\r\n").split(b";")[0] or b"0", 16):
            yield self.exactly(size)
            self.exactly(2)
        while self.until(b"\r\n").strip():
            pass
