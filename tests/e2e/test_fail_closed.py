"""Whatever goes wrong inside, nothing leaves (threats.md section 2, house.md 2.4; A1 to A4).

Faults are put into the real server process (tests/kit/faulty.py), messages come over real sockets,
and what left is counted where it would arrive: connections and bytes at recording origins.
"""

import base64
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.faulty import ERRORS
from tests.kit.ingress import INGRESSES, Answer, Http1Way, open_plain, open_tunnel, read_answer
from tests.kit.proxy import wait_until
from tests.kit.world import HOST, Seen, World, describe, furnish

ANSWER_S = 1.0  # SPEC: a client is answered within one second ...
SLACK_S = 1.0  # ... and two busy cores may be late with it

EVERYTHING = (*ERRORS, "none")
AWAITED = (*EVERYTHING, "hang")

# Where a request is refused before anything is decided to leave. What is not listed for a place
# has no meaning there: `ledger.reserve` answers with None, and code that does not wait cannot hang.
BEFORE: dict[str, tuple[str, ...]] = {
    "hook.judge": AWAITED,
    "open": EVERYTHING,
    "judge": AWAITED,
    "identify": EVERYTHING,
    "read-call": EVERYTHING,
    "canonicalise": EVERYTHING,
    "describe-call": EVERYTHING,
    "screen": EVERYTHING,
    "resolve": AWAITED,
    "decide": (*EVERYTHING, "odd"),
    "reserve": AWAITED,
    "book-reserve": (*AWAITED, "odd"),
    "open-missing": (*ERRORS, "hang"),
    "ledger-clock": EVERYTHING,
    "find-state": EVERYTHING,
    "describe-decision": tuple(ERRORS),
    "step.head": tuple(ERRORS),
}
# Where the decision to allow stands in the log already: its outcome says that nothing was sent.
RECORDED: dict[str, tuple[str, ...]] = {
    "digest": EVERYTHING,
    "format-budget": tuple(ERRORS),
    "forward": tuple(ERRORS),
    "wire-request": tuple(ERRORS),
    "check-ticket-1": tuple(ERRORS),
    "dial": EVERYTHING,
    "connect": AWAITED,
}
WAYS = ("plain", "tunnel", "http2")
BUDGETS = "budgets: { life: { each: agent, limits: { bytes_in: 1GB, bytes_out: 1GB } } }\n"
POURING = "".join(
    f"  - {{ id: {name}, verdict: allow, match: {{ host: {HOST}, path: /pour/*, dest_ip: loopback,"
    f" {how} }} }}\n"
    for name, how in (("pour", "scheme: https"), ("pour-plain", "scheme: http, port: 80"))
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    wishes = ["set.dns_timeout_s=0.3", "set.connect_timeout_s=0.8"]
    folder = tmp_path_factory.mktemp("house")
    with furnish(folder, head=BUDGETS, rules=POURING, wishes=wishes) as made:
        yield made


def assert_answered_in_time(answer: Answer, seen: Seen, world: World) -> None:
    text = describe(answer, seen, world.proxy)
    assert seen.struck, f"the fault never happened\n{text}"
    assert answer.ended, text
    assert answer.seconds < ANSWER_S + SLACK_S, text


def attack(world: World, way_name: str, fault: str, path: str = "/ok/1") -> tuple[Answer, Seen]:
    """Connect, then let the fault in, then ask."""
    with world.attempt() as seen:
        way = INGRESSES[way_name](world.proxy, HOST)
        with world.proxy.fault(fault):
            answer = way.ask(path)
        way.close()
    return answer, seen


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", BEFORE)
def test_a_fault_before_the_verdict_denies(world: World, where: str, way: str) -> None:
    for what in BEFORE[where]:
        answer, seen = attack(world, way, f"{where}:{what}")
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        crashed = way == "http2" and where in ("describe-call", "step.head")
        assert answer.status in ((0, 403) if crashed else (403,)), text
        assert len(seen.refusals) == len(seen.events) - 1 == 1, text  # and the good request
        assert seen.untouched, text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", RECORDED)
def test_a_fault_between_the_record_and_the_first_byte_sends_nothing(
    world: World, where: str, way: str
) -> None:
    for what in RECORDED[where]:
        answer, seen = attack(world, way, f"{where}:{what}")
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        assert answer.status in (0, 403, 502, 504), text
        assert answer.status or way == "http2", text
        (decision,), (outcome,) = seen.of("decision"), seen.of("outcome")
        assert outcome["ref"] == decision["id"], text
        assert outcome["error"], text
        assert seen.bytes == 0, text


@pytest.mark.parametrize("way", WAYS)
def test_a_writer_that_fails_forwards_nothing(world: World, way: str) -> None:
    """The log itself is what is broken, so only what leaves is counted."""
    for what in AWAITED:
        answer, seen = attack(world, way, f"store:{what}")
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        assert answer.status == 403, text
        assert seen.untouched, text
        assert len(seen.events) == 1, text


@pytest.mark.parametrize("where", ["read-request-head", "framing", "split-head"])
def test_a_reader_that_crashes_answers_and_records(world: World, where: str) -> None:
    for way in ("http2",) if where == "split-head" else ("plain", "tunnel"):
        for what in ERRORS:
            answer, seen = attack(world, way, f"{where}:{what}")
            text = f"{what}: {describe(answer, seen, world.proxy)}"
            assert_answered_in_time(answer, seen, world)
            assert answer.status == (0 if way == "http2" else 403), text
            assert [event["kind"] for event in seen.refusals] == ["malformed"], text
            assert seen.untouched, text


@pytest.mark.parametrize(
    "where", ["hook.judge", "judge", "open", "identify", "screen", "read-call", "describe-decision"]
)
def test_a_fault_at_connect_opens_no_tunnel(world: World, where: str) -> None:
    whats = [*ERRORS, "hang"] if where in ("hook.judge", "judge") else list(ERRORS)
    for what in whats:
        with world.attempt() as seen, world.proxy.fault(f"{where}:{what}"):
            answer = connect(world, HOST)
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        assert answer.status == 403, text
        assert len(seen.refusals) == len(seen.events) - 1 == 1, text
        assert not seen.connects, text
        assert seen.untouched, text


def connect(world: World, host: str) -> Answer:
    """CONNECT, and whatever comes back."""
    with world.proxy.connect() as connection:
        began = time.monotonic()
        connection.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        return read_answer(connection, began, "CONNECT")


HANDSHAKE = {
    "hook.client-connected": tuple(ERRORS),
    "hook.next-layer": AWAITED,
    "hook.tls-clienthello": (*ERRORS, "hang"),
    "hook.tls-start-client": AWAITED,
    "hook.tls-established": (*ERRORS, "hang"),
}


@pytest.mark.parametrize("where", HANDSHAKE)
def test_a_fault_in_a_hook_before_the_request_closes_the_connection(
    world: World, where: str
) -> None:
    for what in (*HANDSHAKE[where], *(["hang"] if where == "hook.client-connected" else [])):
        began = time.monotonic()
        status = 0
        with world.attempt() as seen, world.proxy.fault(f"{where}:{what}"):
            try:
                way = open_tunnel(world.proxy, HOST)
                status = way.ask("/ok/1").status
                way.close()
            except (ConnectionError, ssl.SSLError):
                pass
            seconds = time.monotonic() - began
        assert seen.struck, what
        assert seconds < ANSWER_S + SLACK_S, what
        assert status == 0, what
        assert [event["kind"] for event in seen.refusals] == ["malformed"], (what, seen)
        assert seen.untouched, (what, seen)


def test_hooks_that_decide_nothing_may_be_silent(world: World) -> None:
    """These hooks have no answer to give; without them the connection goes on as it was set up."""
    for where in ("hook.client-connected", "hook.tls-clienthello", "hook.tls-established"):
        with world.attempt() as seen, world.proxy.fault(f"{where}:none"):
            way = open_tunnel(world.proxy, HOST)
            assert way.ask("/nowhere").status == 403
            way.close()
        assert seen.struck
        assert seen.untouched


@pytest.mark.parametrize("what", AWAITED)
def test_a_fault_in_the_hook_of_a_failed_handshake_still_leaves_a_record(
    world: World, what: str
) -> None:
    context = ssl.create_default_context()  # does not trust our CA
    with world.attempt() as seen, world.proxy.fault(f"hook.tls-failed-client:{what}"):
        with world.proxy.connect() as connection:
            connection.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
            assert read_answer(connection, time.monotonic(), "CONNECT").status == 200
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_hostname=HOST)
        assert wait_until(lambda: world.proxy.struck)
        if what != "none":
            assert wait_until(lambda: world.proxy.journal.events[-1]["kind"] == "malformed")
    assert len(seen.refusals) == (0 if what == "none" else 1), seen
    assert seen.untouched


@pytest.mark.parametrize("what", AWAITED)
def test_a_fault_in_the_hooks_of_the_upstream_handshake_sends_no_request(
    world: World, what: str
) -> None:
    for where, way in (("hook.tls-start-server", "tunnel"), ("hook.tls-start-server", "http2")):
        answer, seen = attack(world, way, f"{where}:{what}")
        assert_answered_in_time(answer, seen, world)
        assert answer.status == 502
        assert (len(seen.of("decision")), len(seen.of("outcome"))) == (1, 1)
        assert seen.bytes == seen.touched == 0


@pytest.mark.parametrize("what", [*ERRORS, "none", "hang"])
def test_an_upstream_that_is_not_trusted_gets_no_request_whatever_its_hook_does(
    world: World, what: str
) -> None:
    with world.attempt() as seen:
        way = open_tunnel(world.proxy, "untrusted.test.example")
        with world.proxy.fault(f"hook.tls-failed-server:{what}"):
            answer = way.ask("/ok/1")
        way.close()
    assert_answered_in_time(answer, seen, world)
    assert answer.status in (403, 502)
    assert (len(seen.of("decision")), len(seen.of("outcome"))) == (1, 1)
    assert seen.bytes == 0


@pytest.mark.parametrize("what", AWAITED)
def test_a_fault_at_the_end_of_a_connection_costs_no_outcome(world: World, what: str) -> None:
    with world.attempt() as seen, world.proxy.fault(f"hook.client-disconnected:{what}"):
        way = open_plain(world.proxy, HOST)
        way.connection.sendall(request("/trickle/100"))
        assert way.connection.recv(65_536)
        way.close()
        assert wait_until(lambda: world.proxy.struck)
        assert wait_until(lambda: world.proxy.journal.events[-1].get("error") == "client-gone")
    assert (len(seen.of("decision")), len(seen.of("outcome"))) == (1, 1)


def request(path: str) -> bytes:
    return f"GET http://{HOST}{path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


# --- answering


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["deny", "render", "refuse", "talk", "describe-decision"])
def test_a_fault_while_a_denial_is_made_still_denies(world: World, where: str, way: str) -> None:
    for what in ERRORS:
        answer, seen = attack(world, way, f"{where}:{what}", "/forbidden")
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        crashed = way == "http2" and where in ("deny", "refuse")  # then there is nothing to say
        assert answer.status == (0 if crashed else 403), text
        assert len(seen.refusals) == len(seen.events) - 1 == 1, text
        assert seen.untouched, text


# --- what must not change a verdict


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["metrics", "talk", "fault-talk"])
def test_counting_and_talk_change_no_verdict(world: World, where: str, way: str) -> None:
    for what in EVERYTHING:
        for path, status in (("/ok/1", 200), ("/forbidden", 403)):
            answer, seen = attack(world, way, f"{where}:{what}", path)
            text = f"{what}: {describe(answer, seen, world.proxy)}"
            assert answer.seconds < ANSWER_S + SLACK_S, text
            assert answer.status == status, text
            assert len(seen.of("decision")) == 1, text
            assert len(seen.of("outcome")) == (1 if status == 200 else 0), text


@pytest.mark.parametrize("what", EVERYTHING)
def test_the_word_about_a_fault_may_fail_too(world: World, what: str) -> None:
    with world.attempt() as seen:
        way = open_plain(world.proxy, HOST)
        with world.proxy.fault("decide:raise", f"fault-talk:{what}", f"metrics:{what}"):
            answer = way.ask("/ok/1")
        way.close()
    assert_answered_in_time(answer, seen, world)
    assert answer.status == 403
    assert len(seen.refusals) == 1
    assert seen.untouched


# --- after the request left

CUT = ("advance", "prepare-answer", "step.request-end", "step.response-head", "step.response-data")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", CUT)
def test_a_fault_while_it_is_under_way_cuts(world: World, where: str, way: str) -> None:
    for what in ERRORS:
        with world.attempt() as seen:
            opened = INGRESSES[way](world.proxy, HOST)
            with world.proxy.fault(f"{where}:{what}"):
                answer = opened.ask("/trickle/200")  # ten seconds, if nobody cuts it
            opened.close()
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        assert not (answer.status == 200 and answer.whole), text
        assert answer.status in (0, 200, 403, 502), text
        assert len(seen.of("decision")) == len(seen.of("outcome")) == 1, text
        assert not seen.refusals, text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "where", ["settle", "book-settle", "step.response-end", "describe-outcome", "submit"]
)
def test_a_fault_at_the_very_end_leaves_at_most_one_outcome(
    world: World, where: str, way: str
) -> None:
    for what in ERRORS:
        with world.attempt() as seen:
            opened = INGRESSES[way](world.proxy, HOST)
            with world.proxy.fault(f"{where}:{what}"):
                answer = opened.ask("/ok/1")
                assert wait_until(lambda: world.proxy.struck)
            opened.close()
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        assert_answered_in_time(answer, seen, world)
        assert answer.status == 200, text
        assert len(seen.of("decision")) == 1, text
        lost = where in ("describe-outcome", "submit")  # the outcome is what fails
        assert len(seen.of("outcome")) == (0 if lost else 1), text


# Where a stream asks for more of its budget than it holds.
MORE: dict[str, tuple[str, ...]] = {
    "hook.extend": AWAITED,
    "extend": AWAITED,
    "book-extend": (*AWAITED, "odd"),
    "describe-reserve": tuple(ERRORS),
}


def sum_reserved(seen: Seen) -> int:
    """Bytes of answers that the log says were held."""
    held = [one for event in seen.of("decision", "reserve") for one in event["reserve"]]
    return sum(one["amount"] for one in held if one["unit"] == "bytes_in")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", MORE)
@pytest.mark.parametrize("path", ["/big/2000000", "/pour/24"])
def test_a_stream_that_gets_no_more_ends_within_what_is_held(
    world: World, where: str, way: str, path: str
) -> None:
    for what in MORE[where]:
        answer, seen = attack(world, way, f"{where}:{what}", path)
        text = f"{what}: {describe(answer, seen, world.proxy)}"
        asked_in_time = path.startswith("/pour") and where in ("hook.extend", "extend")
        assert seen.struck or asked_in_time, text  # who asks ahead need not wait
        assert answer.ended, text
        assert answer.status in (0, 200, 403, 502), text
        held = sum_reserved(seen)
        # without framing; what has another status is our denial
        received = answer.body.count(path[1:2].encode()) if answer.status == 200 else 0
        assert received <= held, text
        (outcome,) = seen.of("outcome")
        settled = sum(one["amount"] for one in outcome["settle"] if one["unit"] == "bytes_in")
        assert settled <= held, text
        assert received <= settled, text
        if path.startswith("/big"):  # its whole length is asked for at once
            assert outcome["cut"] or outcome["error"], text


def test_a_fault_in_an_upload_cuts_it(world: World) -> None:
    for way in WAYS:
        for what in ERRORS:
            with world.attempt() as seen:
                opened = INGRESSES[way](world.proxy, HOST)
                with world.proxy.fault(f"step.request-data:{what}"):
                    answer = opened.ask("/ok/1", method="POST", body=b"u" * 30_000)
                opened.close()
            text = f"{way} {what}: {describe(answer, seen, world.proxy)}"
            assert_answered_in_time(answer, seen, world)
            assert answer.status in (0, 403), text
            assert seen.bytes < 1000, text  # the head, and nothing of the body
            assert len(seen.of("decision")) == len(seen.of("outcome")) == 1, text


@pytest.mark.parametrize("what", ERRORS)
def test_a_fault_in_the_relay_of_frames_closes_both_sides(world: World, what: str) -> None:
    with world.attempt() as seen:
        way = open_tunnel(world.proxy, HOST)
        upgrade(way)
        frames = len(world.tls.frames)
        with world.proxy.fault(f"relay:{what}"):
            began = time.monotonic()
            way.connection.sendall(b"\x81\x85\x00\x00\x00\x00hello")
            assert way.connection.recv(100) == b""
            seconds = time.monotonic() - began
        way.close()
    assert seen.struck
    assert seconds < ANSWER_S + SLACK_S
    assert len(world.tls.frames) == frames
    assert len(seen.of("decision")) == len(seen.of("outcome")) == 1, seen


def upgrade(way: Http1Way) -> None:
    """A WebSocket handshake that is allowed."""
    key = base64.b64encode(b"k" * 16).decode()
    answer = way.ask(
        "/ws",
        fields="Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n",
    )
    assert answer.status == 101, answer


# --- a build that is wrong: permission without a ticket

BUILDS = ("no-ticket", "other-ticket", "blind", "own-connection")


@pytest.mark.parametrize("way", [*WAYS, "clear-tunnel", "websocket"])
@pytest.mark.parametrize("build", BUILDS)
def test_an_allow_without_a_ticket_sends_zero_bytes_upstream(
    world: World, build: str, way: str
) -> None:
    """The decision says yes to everything; that alone moves nothing."""
    origin = world.plain if way in ("plain", "clear-tunnel") else world.tls
    fields = f"X-Origin-Port: {origin.port}\r\n"
    if way == "websocket":
        fields += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        fields += f"Sec-WebSocket-Key: {base64.b64encode(b'k' * 16).decode()}\r\n"
    with world.attempt() as seen:
        opened = INGRESSES["tunnel" if way == "websocket" else way](world.proxy, HOST)
        with world.proxy.fault(f"build:{build}"):
            answer = opened.ask("/ws" if way == "websocket" else "/forbidden", fields=fields)
        opened.close()
    text = describe(answer, seen, world.proxy)
    assert_answered_in_time(answer, seen, world)
    assert answer.status in (0, 403, 502), text
    assert seen.bytes == 0, text
    if build != "other-ticket":  # that one names an address, which may be connected to
        assert seen.untouched, text


@pytest.mark.parametrize("way", [*WAYS, "clear-tunnel"])
def test_a_warm_upstream_connection_takes_no_head_without_a_ticket(world: World, way: str) -> None:
    with world.attempt() as seen:
        opened = INGRESSES[way](world.proxy, HOST)
        assert opened.ask("/ok/warm").status == 200
        before = world.count()
        with world.proxy.fault("build:warm"):
            answer = opened.ask("/forbidden", fields="X-Origin-Port: 1\r\n")
        assert world.count() == before, describe(answer, seen, world.proxy)
        opened.close()
    assert_answered_in_time(answer, seen, world)
    assert answer.status in (0, 403)


# --- names


def test_a_denied_connect_asks_no_name_server_and_sends_no_packet(tmp_path: Path) -> None:
    lookups = tmp_path / "lookups"
    lookups.touch()
    head = "defaults: { explain_denials: false }\n"
    with furnish(tmp_path, head=head, wishes=[f"lookups={lookups}"]) as world:
        noted = lookups.read_text(encoding="utf-8")
        with world.attempt() as seen:
            for host in ("stranger.test.example", "localhost", "metadata.google.internal"):
                answer = connect(world, host)
                assert answer.status == 403
        assert len(seen.refusals) == 3
        assert seen.untouched
        assert lookups.read_text(encoding="utf-8") == noted
        with open_tunnel(world.proxy, "unpinned.test.example") as way:
            assert way.ask("/ok/1").status == 502  # allowed, and only now asked for
        assert "unpinned.test.example" in lookups.read_text(encoding="utf-8")
