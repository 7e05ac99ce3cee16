"""HTTP/1.1 as bytes: what is read, what is refused, and what leaves."""

import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest
from mitmproxy import http
from mitmproxy.proxy.layers.http._events import RequestHeaders

from policies.model import ContractBroken
from proxy.denial import BAD_REQUEST
from proxy.exchange import ticket_digest
from proxy.mitm.wire1 import TicketedHead, check_ticket, wire_request
from proxy.vocabulary import Ticket
from tests.kit.enforcement import Message
from tests.kit.exchanges import read
from tests.kit.gate import Gate
from tests.kit.http1 import Http1
from tests.kit.origin import Origin
from tests.proxy.mitm.conftest import OpenGate

URL = b"http://api.test"
HOST = b"Host: api.test\r\n"


def get(path: bytes = b"/ok", fields: bytes = HOST, method: bytes = b"GET") -> bytes:
    return method + b" " + URL + path + b" HTTP/1.1\r\n" + fields + b"\r\n"


def client(gate: Gate) -> Http1:
    return Http1(gate.connect())


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


MALFORMED: dict[str, bytes] = {
    "garbage": b"\x00\x01\x02 nonsense\r\n\r\n",
    "no version": b"GET http://api.test/ok\r\nHost: api.test\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0 on HTTP/1": get().replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/1.9": get().replace(b"HTTP/1.1", b"HTTP/1.9"),
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bare line feeds": b"GET http://api.test/ok HTTP/1.1\nHost: api.test\n\n",
    "a bare line feed inside": b"GET http://api.test/ok HTTP/1.1\r\nHost: api.test\nX: 1\r\n\r\n",
    "two spaces": get().replace(b"GET http", b"GET  http"),
    "a tab as separator": get().replace(b"GET http", b"GET\thttp"),
    "a space in the target": get(b"/ok HTTP/1.1 x"),
    "a folded field": get(fields=HOST + b"X: a\r\n b\r\n"),
    "a folded Host": get(fields=b"Host: api\r\n .test\r\n"),
    "a space before the colon": get(fields=b"Host : api.test\r\n"),
    "a field without a colon": get(fields=HOST + b"nonsense\r\n"),
    "a bare CR in a value": get(fields=HOST + b"X: a\rEvil: 1\r\n"),
    "NUL in a value": get(fields=HOST + b"X: a\0b\r\n"),
    "length and chunked": get(
        fields=HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", method=b"POST"
    ),
    "two lengths": get(fields=HOST + b"Content-Length: 4\r\nContent-Length: 5\r\n"),
    "a length with a sign": get(fields=HOST + b"Content-Length: +4\r\n"),
    "a list of lengths": get(fields=HOST + b"Content-Length: 4, 4\r\n"),
    "a coding that is almost chunked": get(fields=HOST + b"Transfer-Encoding: xchunked\r\n"),
    "two codings": get(fields=HOST + b"Transfer-Encoding: gzip, chunked\r\n"),
    "chunked in HTTP/1.0": get(fields=HOST + b"Transfer-Encoding: chunked\r\n").replace(
        b"HTTP/1.1", b"HTTP/1.0"
    ),
    "a body in CONNECT": b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n"
    b"Content-Length: 4\r\n\r\nabcd",
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
def test_a_head_with_more_than_one_reading_is_answered_400_and_recorded(
    message: bytes, open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    answer = gate.exchange(message)
    assert answer == BAD_REQUEST
    assert [event["kind"] for event in gate.recorder.events] == ["malformed"]
    assert origin.connections == 0


def test_a_request_passes_with_its_canonical_head(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        assert http1.ask("http://api.test/a/../ok/%7eme?q=1", "API.test:80").status == 200
    assert origin.requests[0].line == "GET /ok/~me?q=1 HTTP/1.1"
    assert origin.requests[0].values("host") == ["api.test"]


def test_fields_for_this_hop_do_not_leave(open_gate: OpenGate, origin: Origin) -> None:
    """C20, H6."""
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        headers = ["Proxy-Connection: keep-alive", "Connection: X-Hop", "X-Hop: 1", "Keep-Alive: 5"]
        assert http1.ask("http://api.test/ok", "api.test", headers=headers).status == 200
    names = {name.lower() for name, _ in origin.requests[0].headers}
    assert names.isdisjoint({"proxy-connection", "x-hop", "keep-alive"})


def test_a_head_may_come_byte_by_byte_and_behind_an_empty_line(
    open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        for byte in b"\r\n" + get():
            http1.connection.sendall(bytes([byte]))
        assert http1.read().status == 200


def test_a_connection_serves_many_requests(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        for number in range(3):
            assert http1.ask(f"http://api.test/{number}", "api.test").status == 200
    assert [line.split()[1] for line in origin.lines] == ["/0", "/1", "/2"]
    assert len(gate.wait_for("outcome", 3)) == 3
    assert len(gate.recorder.of("decision")) == 3


def test_what_is_sent_ahead_is_judged_on_its_own(open_gate: OpenGate, origin: Origin) -> None:
    """C21."""
    gate = open_gate(plain=origin.port)
    answer = gate.exchange(
        get(b"/one") + get(b"/two") + b"GET http://x.test/ HTTP/1.1\r\nHost: x.test\r\n\r\n"
    )
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"HTTP/1.1 403") == 1
    assert [line.split()[1] for line in origin.lines] == ["/one", "/two"]
    assert [e["verdict"] for e in gate.recorder.of("decision")] == ["allow", "allow", "deny"]


BODIES: dict[str, tuple[list[str], bytes, bytes]] = {
    "a length": (["Content-Length: 5"], b"hello", b"hello"),
    "chunks": (["Transfer-Encoding: chunked"], b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
    "chunk extensions end here": (
        ["Transfer-Encoding: chunked"],
        b"5;secret=1\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    "nothing": (["Content-Length: 0"], b"", b""),
}


@pytest.mark.parametrize(("fields", "raw", "body"), BODIES.values(), ids=BODIES)
def test_a_body_arrives_as_it_was_sent(
    fields: list[str], raw: bytes, body: bytes, open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        http1.send("http://api.test/echo", "api.test", method="POST", headers=fields)
        http1.connection.sendall(raw)
        answer = http1.read()
    assert (answer.status, answer.body) == (200, body)
    assert b"secret" not in origin.received[0]


def test_the_client_is_told_to_go_on_once_it_may(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    fields = ["Expect: 100-continue", "Content-Length: 5"]
    with client(gate) as http1:
        http1.send("http://api.test/echo", "api.test", method="POST", headers=fields)
        assert http1.read_head().status == 100
        http1.connection.sendall(b"hello")
        assert http1.read().body == b"hello"
    assert origin.requests[0].values("expect") == []


def test_a_denied_client_is_not_told_to_go_on(open_gate: OpenGate, origin: Origin) -> None:
    """A12: no 100, one record, and the body is not waited for."""
    gate = open_gate(plain=origin.port)
    fields = b"Host: x.test\r\nExpect: 100-continue\r\nContent-Length: 1048576\r\n"
    answer = gate.exchange(b"POST http://x.test/ HTTP/1.1\r\n" + fields + b"\r\n")
    assert status(answer) == 403
    assert b"100 Continue" not in answer
    assert len(gate.recorder.events) == 1


BROKEN_BODIES: dict[str, tuple[bytes, str]] = {
    "a chunk size that is none": (b"zz\r\nhello\r\n", "malformed"),
    "a chunk without its end": (b"5\r\nhelloXX0\r\n\r\n", "malformed"),
    "trailers": (b"5\r\nhello\r\n0\r\nX-Secret: 1\r\n\r\n", "trailer-refused"),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["in one piece", "behind its head"])
@pytest.mark.parametrize(("raw", "reason"), BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_a_body_that_breaks_its_framing_ends_the_request(
    raw: bytes, reason: str, at_once: bool, open_gate: OpenGate, origin: Origin
) -> None:
    """C11, C12: answered, one outcome, and the origin never sees a whole request."""
    gate = open_gate(plain=origin.port)
    head = get(b"/echo", HOST + b"Transfer-Encoding: chunked\r\n", b"POST")
    with client(gate) as http1:
        if at_once:
            http1.connection.sendall(head + raw)
        else:
            http1.connection.sendall(head)
            gate.wait_for("decision")
            http1.connection.sendall(raw)
        assert http1.read().status in (400, 403)
        assert http1.is_closed()
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] == reason
    assert b"0\r\n\r\n" not in (origin.received[0] if origin.received else b"")


@pytest.mark.parametrize("at_once", [True, False], ids=["in one piece", "behind its head"])
def test_a_client_that_leaves_in_a_body_leaves_an_outcome_and_no_connection(
    at_once: bool, open_gate: OpenGate, origin: Origin
) -> None:
    """A16."""
    gate = open_gate(plain=origin.port)
    head = get(b"/echo", HOST + b"Content-Length: 10\r\n", b"POST")
    with gate.connect() as connection:
        connection.sendall(head + b"abc" if at_once else head)
        if not at_once:
            gate.wait_for("decision")
            connection.sendall(b"abc")
        connection.shutdown(socket.SHUT_WR)
        (outcome,) = gate.wait_for("outcome")
        assert outcome["error"] == "client-gone"
        gate.wait_until_idle()


def test_a_head_without_end_is_refused_at_its_limit(open_gate: OpenGate, origin: Origin) -> None:
    """I2."""
    gate = open_gate(plain=origin.port, header_bytes_max=1024)
    answer = gate.exchange(b"GET http://api.test/ HTTP/1.1\r\nX: " + b"a" * 1100)
    assert answer == BAD_REQUEST
    assert gate.recorder.of("malformed")[0]["why"] == "head-too-large"


def test_too_many_fields_are_refused(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port, header_count_max=5)
    assert gate.exchange(get(fields=HOST + b"X: 1\r\n" * 5)) == BAD_REQUEST
    assert origin.connections == 0


def test_a_head_that_takes_too_long_is_refused(open_gate: OpenGate, origin: Origin) -> None:
    """I1."""
    gate = open_gate(plain=origin.port, header_timeout_s=0.1)
    assert gate.exchange(b"GET http://api.test/ HTTP/1.1\r\nX") == BAD_REQUEST
    assert "too long" in gate.recorder.of("malformed")[0]["why"]


def test_a_connection_that_ends_in_a_head_is_recorded(open_gate: OpenGate) -> None:
    gate = open_gate()
    gate.connect().close()  # nothing was sent: nothing to tell
    with gate.connect() as connection:
        connection.sendall(b"GET http://api.test/ HT")
    (event,) = gate.wait_for("malformed")
    assert event["why"] == "the head was not complete"
    gate.wait_until_idle()
    assert len(gate.recorder.events) == 1


# --- answers of origins

ANSWERS: dict[str, bytes] = {
    "no head": b"garbage\r\n\r\n",
    "a status that is none": b"HTTP/1.1 0 Zero\r\nContent-Length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "a folded field": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "a switch nobody asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: raw\r\n\r\nraw",
    "a request for our credentials": b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n"
    b"Content-Length: 0\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none_becomes_502(
    raw: bytes, open_gate: OpenGate, origin: Origin
) -> None:
    """C22 to C24, D3, H7."""
    origin.raw_answers["/bad"] = raw
    gate = open_gate(plain=origin.port)
    answer = gate.exchange(get(b"/bad"))
    assert status(answer) == 502
    assert b"Proxy-Authenticate" not in answer
    (outcome,) = gate.wait_for("outcome")
    assert outcome["error"] in ("upstream-protocol", "upgrade-unapproved")


def test_an_interim_answer_is_not_taken_for_the_answer(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        assert http1.ask("http://api.test/hints", "api.test").status == 200


def test_an_answer_that_ends_early_is_cut_and_not_completed(
    open_gate: OpenGate, origin: Origin
) -> None:
    origin.raw_answers["/half"] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    gate = open_gate(plain=origin.port)
    answer = gate.exchange(get(b"/half"))
    assert answer.endswith(b"\r\n\r\nhalf")
    (outcome,) = gate.wait_for("outcome")
    assert (outcome["status"], outcome["error"]) == (200, "upstream-protocol")


WAYS_TO_END: dict[str, tuple[str, bytes]] = {
    "with the connection": ("/close", b"until the end"),
    "with trailers, which are dropped": ("/trailers", b"ok"),
    "with its length": ("/big/5", b"bbbbb"),
}


@pytest.mark.parametrize(("path", "body"), WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_an_answer_ends_as_it_says(
    path: str, body: bytes, open_gate: OpenGate, origin: Origin
) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        answer = http1.ask(f"http://api.test{path}", "api.test")
        assert (answer.status, answer.body) == (200, body)
        assert http1.ask("http://api.test/ok", "api.test").status == 200
    assert len(gate.wait_for("outcome", 2)) == 2


def test_an_answer_to_head_has_no_body(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    with client(gate) as http1:
        answer = http1.ask("http://api.test/big/5", "api.test", method="HEAD")
        assert (answer.status, answer.value("content-length")) == (200, "5")
        assert http1.ask("http://api.test/ok", "api.test").status == 200


def test_a_client_of_http_1_0_gets_no_chunks(open_gate: OpenGate, origin: Origin) -> None:
    gate = open_gate(plain=origin.port)
    answer = gate.exchange(get(b"/close").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.endswith(b"\r\n\r\nuntil the end")
    assert b"chunked" not in answer.lower()


# --- the last look before a head leaves

REQUEST = read(Message("/ok/1?q=1", fields=((b"X-Mine", b"1"),)))
TICKET = Ticket("0" * 32, ticket_digest(REQUEST), (ip_address("93.184.216.34"),), 443)


def ticketed(request: http.Request, ticket: Ticket | None = TICKET) -> TicketedHead:
    event = TicketedHead(1, request, end_stream=True)
    event.ticket = ticket
    return event


def test_a_head_with_its_own_ticket_may_leave() -> None:
    check_ticket(ticketed(wire_request(REQUEST)))


def test_a_head_without_a_ticket_may_not_leave() -> None:
    plain = RequestHeaders(1, wire_request(REQUEST), end_stream=True)
    for event in (plain, ticketed(wire_request(REQUEST), None)):
        with pytest.raises(ContractBroken, match="without a ticket"):
            check_ticket(event)


CHANGED = {
    "method": lambda request: setattr(request, "method", "POST"),
    "path": lambda request: setattr(request, "path", "/other"),
    "query": lambda request: setattr(request, "path", "/ok/1?q=2"),
    "host": lambda request: setattr(request, "host", "other.test"),
    "port": lambda request: setattr(request, "port", 8443),
    "scheme": lambda request: setattr(request, "scheme", "http"),
    "a field more": lambda request: request.headers.add("x-more", "1"),
    "a field less": lambda request: request.headers.pop("x-mine"),
    "a value": lambda request: request.headers.__setitem__("x-mine", "2"),
    "the Host field": lambda request: request.headers.__setitem__("host", "other.test"),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_head_that_changed_after_its_ticket_may_not_leave(change: object) -> None:
    """A22: whatever rewrites a request between the decision and the wire is noticed."""
    request = wire_request(REQUEST)
    change(request)  # type: ignore[operator]  # a lambda over a request
    with pytest.raises(ContractBroken, match="not the one"):
        check_ticket(ticketed(request))


def test_a_ticket_of_another_request_is_no_ticket() -> None:
    other = replace(TICKET, digest=ticket_digest(replace(REQUEST, path="/ok/2")))
    with pytest.raises(ContractBroken):
        check_ticket(ticketed(wire_request(REQUEST), other))
