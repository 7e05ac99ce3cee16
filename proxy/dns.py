"""A stub resolver for `--dns`: one name, one server, addresses of both families (RFC 1035, 3596).

    look_up(host) --A and AAAA over UDP--> first whole answers --truncated? TCP--> addresses

Rule 1: an answer counts only if it comes from the server asked, to the port that asked, with the
        random id and the question that were sent. Anything else is ignored, not trusted.
Rule 2: nothing is cached, no other name is asked: aliases are followed inside one answer.
Rule 3: sizes, counts, hops and time are bounded; names are compared label by label.
Rule 4: it blocks, in a thread of destination.py, and so works under every event loop.

The server is trusted with the answer, not with safety: every address is vetted like any other. No
DNSSEC, no encryption: the operator's network leads to the operator's server.
"""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from secrets import randbelow

from policies.model import Address
from proxy.settings import Endpoint

Labels = tuple[bytes, ...]

A, AAAA, CNAME, IN = 1, 28, 5, 1
ATTEMPTS = 3
LINGER_S = 1.0  # how long the second family may lag behind the first one's addresses
RECORDS_MAX = 64  # per answer; the caller keeps 16 addresses
ALIASES_MAX = 8
UDP_BYTES_MAX = 4096

_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!2H")
_RECORD = struct.Struct("!2HIH")
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSE, _CODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x000F
_NO_ERROR, _NO_SUCH_NAME = 0, 3


@dataclass(frozen=True, slots=True)
class Query:
    """One question on its way."""

    id: int
    labels: Labels  # lower case
    kind: int  # A or AAAA

    def encode(self) -> bytes:
        """The message."""
        name = b"".join(bytes([len(label)]) + label for label in self.labels)
        question = name + b"\0" + _QUESTION.pack(self.kind, IN)
        return _HEADER.pack(self.id, _RECURSE, 1, 0, 0, 0) + question


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one question."""

    addresses: tuple[Address, ...] = ()  # empty: the name has none of this family, or is unknown
    truncated: bool = False  # ask again over TCP
    failed: bool = False  # the server could not or would not say


def ask(host: str, kind: int) -> Query:
    """A question with a fresh random id.

    Raises:
        ValueError: not a name that DNS can carry.
    """
    labels = tuple(host.lower().encode("ascii").split(b"."))
    if len(host) > 253 or not all(1 <= len(label) <= 63 for label in labels):
        raise ValueError("not a host name")
    return Query(randbelow(65_536), labels, kind)


def read_answer(message: bytes, query: Query) -> Answer | None:
    """What the message answers to this question; None if it does not, or is no DNS message."""
    try:
        number, flags, questions, records, _, _ = _HEADER.unpack_from(message)
        if number != query.id or flags & (_RESPONSE | _OPCODE) != _RESPONSE or questions != 1:
            return None
        labels, at = _read_name(message, _HEADER.size)
        kind, class_ = _QUESTION.unpack_from(message, at)
        if (labels, kind, class_) != (query.labels, query.kind, IN):
            return None
        if flags & _TRUNCATED:
            return Answer(truncated=True)
        code = flags & _CODE
        if code not in (_NO_ERROR, _NO_SUCH_NAME):
            return Answer(failed=True)
        found = list(_read_records(message, at + _QUESTION.size, min(records, RECORDS_MAX)))
        return Answer(_follow(found, message, query))
    except (struct.error, ValueError, IndexError):
        return None


class DnsClient:
    """Asks one server. `look_up` may run in many threads at once."""

    def __init__(self, server: Endpoint, *, timeout_s: float) -> None:
        self._place = (server.host, server.port)
        self._family = socket.AF_INET6 if server.address.version == 6 else socket.AF_INET
        self._timeout_s = timeout_s

    def look_up(self, host: str) -> list[str]:
        """Addresses of a canonical host, IPv4 first: it works in more places.

        Raises:
            socket.gaierror: no such name or no address (EAI_NONAME); the server failed (EAI_AGAIN).
            TimeoutError: no answer came.
            OSError, ValueError: the server cannot be reached; the name cannot be asked.
        """
        deadline = time.monotonic() + self._timeout_s
        queries = [ask(host, A), ask(host, AAAA)]
        answers = self._ask_udp(queries, deadline)
        for query, answer in list(answers.items()):
            if answer.truncated:
                answers[query] = self._ask_tcp(query, deadline)
        addresses = [
            str(address)
            for query in queries
            if query in answers
            for address in answers[query].addresses
        ]
        if addresses:
            return addresses
        if any(answer.failed for answer in answers.values()):
            raise socket.gaierror(socket.EAI_AGAIN, "the name server failed")
        if len(answers) < len(queries):
            raise TimeoutError
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    def _ask_udp(self, queries: list[Query], deadline: float) -> dict[Query, Answer]:
        """The answers that came in time; a question without an answer is asked again."""
        answers: dict[Query, Answer] = {}
        with socket.socket(self._family, socket.SOCK_DGRAM) as link:
            link.connect(self._place)  # the kernel drops what anybody else sends
            for attempt in range(ATTEMPTS):
                for query in queries:
                    if query not in answers:
                        link.send(query.encode())
                left = deadline - time.monotonic()
                until = time.monotonic() + left / (ATTEMPTS - attempt)
                while len(answers) < len(queries) and (message := _receive(link, until)):
                    for query in queries:
                        answer = read_answer(message, query)
                        if answer is not None:
                            answers.setdefault(query, answer)
                            if answer.addresses:
                                until = min(until, time.monotonic() + LINGER_S)
                if len(answers) == len(queries) or any(a.addresses for a in answers.values()):
                    break
        return answers

    def _ask_tcp(self, query: Query, deadline: float) -> Answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        with socket.create_connection(self._place, timeout=left) as link:
            message = query.encode()
            link.sendall(struct.pack("!H", len(message)) + message)
            (size,) = struct.unpack("!H", _read_exactly(link, 2, deadline))
            answer = read_answer(_read_exactly(link, size, deadline), query)
        if answer is None or answer.truncated:
            return Answer(failed=True)
        return answer


def _receive(link: socket.socket, until: float) -> bytes:
    """The next datagram, b"" when the time is over."""
    left = until - time.monotonic()
    if left <= 0:
        return b""
    link.settimeout(left)  # not `select`: it cannot watch descriptors above 1023
    try:
        return link.recv(UDP_BYTES_MAX) or b"\0"
    except TimeoutError:
        return b""


def _read_exactly(link: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        link.settimeout(left)
        part = link.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the name server broke off")
        data += part
    return bytes(data)


def _read_records(message: bytes, at: int, count: int) -> Iterator[tuple[Labels, int, int, int]]:
    """(owner, kind, start, end of its data) of each answer of class IN."""
    for _ in range(count):
        owner, at = _read_name(message, at)
        kind, class_, _ttl, size = _RECORD.unpack_from(message, at)
        start = at + _RECORD.size
        at = start + size
        if at > len(message):
            raise ValueError("a record beyond the end")
        if class_ == IN:
            yield owner, kind, start, at


def _follow(
    records: list[tuple[Labels, int, int, int]], message: bytes, query: Query
) -> tuple[Address, ...]:
    """The addresses at the end of the chain of aliases that begins at the name asked for."""
    aliases: dict[Labels, Labels] = {}
    for owner, kind, start, _ in records:
        if kind == CNAME:
            aliases.setdefault(owner, _read_name(message, start)[0])
    name = query.labels
    for _ in range(ALIASES_MAX):
        name = aliases.get(name, name)
    if name in aliases:
        raise ValueError("a chain of aliases that is too long, or a circle")
    make = IPv4Address if query.kind == A else IPv6Address
    return tuple(
        make(message[start:end])
        for owner, kind, start, end in records
        if owner == name and kind == query.kind
    )


def _read_name(message: bytes, at: int) -> tuple[Labels, int]:
    """A name in lower case, and where the message goes on. Pointers lead backwards only."""
    labels: list[bytes] = []
    after, lowest, length = None, at, 0
    while size := message[at]:
        if size >= 0xC0:
            target = (size & 0x3F) << 8 | message[at + 1]
            after = at + 2 if after is None else after
            if target >= lowest:
                raise ValueError("a pointer that does not lead back")
            at = lowest = target
            continue
        length += size + 1
        if size > 63 or length > 254 or at + 1 + size > len(message):
            raise ValueError("a label too long")
        labels.append(message[at + 1 : at + 1 + size].lower())
        at += 1 + size
    return tuple(labels), at + 1 if after is None else after
