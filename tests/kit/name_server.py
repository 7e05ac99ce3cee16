"""A small real name server on loopback, UDP and TCP: answers from a table, oddly if asked to.

with NameServer({"api.example.com": ["192.0.2.1", "2001:db8::1"]}) as server:
    DnsClient(server.endpoint, timeout_s=1).look_up("api.example.com")
"""

import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Self

from proxy.settings import Endpoint

Reply = Callable[[bytes], list[bytes]]  # one query's message -> the datagrams to send back


def encode_name(name: str) -> bytes:
    """A name as labels."""
    return b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0"


def encode_address(text: str, name: bytes = b"\xc0\x0c") -> bytes:
    """One record; the owner is the question's name unless given."""
    address = ip_address(text)
    kind = 1 if isinstance(address, IPv4Address) else 28
    return name + struct.pack("!2HIH", kind, 1, 60, len(address.packed)) + address.packed


def encode_alias(owner: bytes, target: str) -> bytes:
    """A CNAME record."""
    data = encode_name(target)
    return owner + struct.pack("!2HIH", 5, 1, 60, len(data)) + data


def read_question(query: bytes) -> tuple[str, int]:
    """The name (lower case) and kind that a query asks for."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size])
        at += 1 + size
    return b".".join(labels).decode().lower(), struct.unpack_from("!H", query, at + 1)[0]


def encode_reply(query: bytes, records: list[bytes], *, code: int = 0, flags: int = 0) -> bytes:
    """An answer to the query: its id, its question, these records."""
    header = struct.pack("!2s5H", query[:2], 0x8180 | flags | code, 1, len(records), 0, 0)
    return header + query[12:] + b"".join(records)


class NameServer:
    """Answers until closed. `odd` takes over for UDP; TCP always answers from the table."""

    def __init__(self, table: dict[str, list[str]], odd: Reply | None = None) -> None:
        self.table = table
        self.asked: list[str] = []  # names in the order they were asked for, over UDP
        self._odd = odd
        self._udp, self._tcp = _bind_both()
        self.endpoint = Endpoint(ip_address("127.0.0.1"), self._udp.getsockname()[1])
        self._threads = [
            threading.Thread(target=serve, daemon=True)
            for serve in (self._serve_udp, self._serve_tcp)
        ]

    def reply(self, query: bytes) -> bytes:
        """What the table says."""
        name, kind = read_question(query)
        if name not in self.table:
            return encode_reply(query, [], code=3)
        version = {1: 4, 28: 6}[kind]
        found = [text for text in self.table[name] if ip_address(text).version == version]
        return encode_reply(query, [encode_address(text) for text in found])

    def _serve_udp(self) -> None:
        while True:
            query, client = self._udp.recvfrom(4096)
            if not query:
                return
            self.asked.append(read_question(query)[0])
            for message in self._odd(query) if self._odd else [self.reply(query)]:
                self._udp.sendto(message, client)

    def _serve_tcp(self) -> None:
        while True:
            link, _ = self._tcp.accept()
            with link:
                size = link.recv(2)
                if not size:
                    return
                message = self.reply(link.recv(struct.unpack("!H", size)[0]))
                link.sendall(struct.pack("!H", len(message)) + message)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._udp.getsockname())
        with socket.create_connection(self._udp.getsockname()):
            pass
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()


def _bind_both() -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on one port: free for one, it may be taken for the other."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        udp.bind(("127.0.0.1", 0))
        try:
            tcp.bind(udp.getsockname())
            tcp.listen()
        except OSError:
            udp.close()
            tcp.close()
            continue
        return udp, tcp
