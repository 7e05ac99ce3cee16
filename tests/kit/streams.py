"""Streams without an end, for origins and clients of tests: chunks, WebSocket frames, and
what a rogue origin does on `/take` (reads and never answers), `/pour` (chunks for ever) and
`/pour-close` (a body that would end with the connection).
"""

import json
import ssl
from typing import Any

from tests.kit.http1 import Http1
from tests.kit.proxy import read_all
from tests.kit.purse import API, Purse, count_head

SLICE = 262_144  # bytes: what a stream of unknown length holds at a time
CHUNKED = "transfer-encoding: chunked"
POUR_CHUNK = len(b"64\r\n") + 100 + len(b"\r\n")  # on the wire, of 100 bytes


def head_of(line: str, *fields: str, host: str = API) -> int:
    """Bytes of a request's head as it leaves."""
    return count_head(f"{line} HTTP/1.1", f"host: {host}", *fields)


TAKEN: dict[str, bytearray] = {}  # what came behind the head, by the request's query


def dechunk(data: bytes) -> bytes:
    """The payload of a chunked body, also of one that broke off."""
    payload = b""
    while b"\r\n" in data:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        payload += data[:size]
        if len(data) < size + 2 or not size:
            break
        data = data[size + 2 :]
    return payload


def query_of(head: bytes) -> str:
    return head.split(b" ")[1].partition(b"?")[2].decode()


def take(connection: ssl.SSLSocket, head: bytes) -> None:
    """Read for ever, answer nothing."""
    taken = TAKEN.setdefault(query_of(head), bytearray())
    while data := connection.recv(65_536):
        taken += data


def pour(connection: ssl.SSLSocket, head: bytes) -> None:
    """A chunked body without end, as fast as it goes."""
    kind = b"text/event-stream" if query_of(head).startswith("sse") else b"text/plain"
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % kind
    )
    while True:
        connection.sendall(b"64\r\n" + b"data: " + b"p" * 92 + b"\n\n" + b"\r\n")


def pour_until_closed(connection: ssl.SSLSocket, _head: bytes) -> None:
    """A body that ends with the connection, without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(b"q" * 100)


SCRIPTS = {"/take": take, "/pour": pour, "/pour-close": pour_until_closed}


def body_of(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer)
    return found


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def read_rest(client: Http1) -> bytes:
    """Everything until the peer ends, however it ends."""
    return bytes(client._take(len(client._held))) + read_all(client.connection)


def open_socket(purse: Purse) -> Http1:
    """A WebSocket to the origin that echoes."""
    client = purse.http1()
    client.send(
        "/ws",
        API,
        headers=[
            "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ],
    )  # fmt: skip
    assert client.read_head().status == 101
    return client


def frame(data: bytes, opcode: int = 2, *, final: bool = True) -> bytes:
    """A masked frame, masked with zeros."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
    return bytes([(0x80 if final else 0) | opcode]) + size + b"\0\0\0\0" + data


def read_frame(client: Http1) -> tuple[int, bytes]:
    """Opcode and payload."""
    head = client.exactly(2)
    size = head[1] & 0x7F
    if size == 126:
        size = int.from_bytes(client.exactly(2))
    return head[0] & 0x0F, client.exactly(size)


def close_of(client: Http1) -> int:
    """Reads on to the close frame; its code."""
    while True:
        opcode, data = read_frame(client)
        if opcode == 8:
            return int.from_bytes(data[:2])
