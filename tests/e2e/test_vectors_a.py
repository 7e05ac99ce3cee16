"""Ways round through the machinery: threats.md A1 to A26, each against the real process.

A15 (check-then-act budgets) comes with budgets. The whole matrix of faults behind A1 to A4 is in
test_fail_closed.py; here each vector stands once under its own number.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.faulty import ERRORS
from tests.kit.ingress import (
    INGRESSES,
    Answer,
    Http1Way,
    Http2Way,
    open_http2,
    open_plain,
    open_tunnel,
    read_answer,
)
from tests.kit.origin import Origin
from tests.kit.proxy import ROOT, read_all, wait_until
from tests.kit.world import HOST, Seen, World, furnish

MEBIBYTE = 1 << 20
IN_TIME_S = 2.0  # one second, and what two busy cores may add
LIMITED = "limited.test.example"
REGEX = "regex.test.example"
WAYS = ("plain", "tunnel", "http2")
RULES = """
  - id: limited
    verdict: allow
    match:
      host: limited.test.example
      scheme: [http, https]
      port: [80, 443]
      path: ["/ws", "/ok/**"]
      websocket: true
      dest_ip: loopback
    with: { max_request: 1kB }
  - id: regex
    verdict: allow
    match:
      host: regex.test.example
      path_re: "/((a+)+)+b"
      query: { q: { re: "(x+x+)+y" } }
      dest_ip: loopback
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with furnish(
        tmp_path_factory.mktemp("house"),
        head="defaults: { explain_denials: false }\n",
        rules=RULES,
        hosts=[LIMITED, REGEX],
        wishes=["set.dns_timeout_s=0.3", "set.connect_timeout_s=0.8"],
    ) as made:
        yield made


def attack(world: World, way_name: str, *faults: str, path: str = "/ok/1") -> tuple[Answer, Seen]:
    with world.attempt() as seen:
        way = INGRESSES[way_name](world.proxy, HOST)
        with world.proxy.fault(*faults):
            answer = way.ask(path)
        way.close()
    assert seen.struck
    assert answer.ended
    assert answer.seconds < IN_TIME_S
    return answer, seen


def assert_one_refusal(seen: Seen) -> None:
    """One record about what was refused, and nothing at any origin."""
    assert len(seen.refusals) == len(seen.events) - 1 == 1, seen.events
    assert seen.untouched


def statuses(answer: bytes) -> list[int]:
    """Of every HTTP/1 answer in these bytes."""
    lines = [part for part in answer.split(b"\r\n") if part.startswith(b"HTTP/1.1 ")]
    return [int(line[9:12]) for line in lines]


# --- A1 to A4: exceptions


@pytest.mark.parametrize("way", WAYS)
def test_a1_an_exception_in_the_hook_that_judges_denies(world: World, way: str) -> None:
    answer, seen = attack(world, way, "hook.judge:raise")
    assert answer.status == 403
    assert_one_refusal(seen)


@pytest.mark.parametrize("way", WAYS)
def test_a2_a_halt_of_the_chain_denies(world: World, way: str) -> None:
    answer, seen = attack(world, way, "decide:halt")
    assert answer.status == 403
    assert_one_refusal(seen)


@pytest.mark.parametrize("where", ["resolve", "reserve", "judge", "hook.judge"])
def test_a3_what_does_not_answer_in_time_denies(world: World, where: str) -> None:
    for what in ("hang", "timeout"):
        answer, seen = attack(world, "tunnel", f"{where}:{what}")
        assert answer.status == 403
        assert_one_refusal(seen)


@pytest.mark.parametrize("what", ["cancel", "generator-exit", "options-error"])
def test_a4_what_escapes_ordinary_nets_denies(world: World, what: str) -> None:
    for where in ("hook.judge", "judge", "identify", "canonicalise", "screen", "decide", "resolve"):
        for way in WAYS:
            answer, seen = attack(world, way, f"{where}:{what}")
            assert answer.status == 403
            assert_one_refusal(seen)


# --- A5 to A7: policy code that changes or vanishes while it runs


def test_a5_a6_code_that_is_corrupted_or_deleted_while_running_still_denies(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    for room in ("audit", "policies", "proxy"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "kit", copy / "tests" / "kit")
    (copy / "tests" / "__init__.py").touch()
    modules = tmp_path / "modules"
    wishes = [f"modules={modules}"]
    with furnish(tmp_path, wishes=wishes, env={"PYTHONPATH": str(copy)}) as world:
        for change in (corrupt, Path.unlink):
            for path in sorted((copy / "policies").glob("*.py")):
                change(path)
            for way in WAYS:
                with world.attempt() as seen:
                    opened = INGRESSES[way](world.proxy, HOST)
                    assert opened.ask("/forbidden").status == 403
                    opened.close()
                assert_one_refusal(seen)
    assert f"policies.engine {copy}/" in modules.read_text(encoding="utf-8")  # the copy is what ran


def corrupt(path: Path) -> None:
    path.write_text("def decide(: nonsense", encoding="utf-8")


def test_a7_a22_a23_no_script_addon_or_replay_of_mitmproxy_is_ever_loaded(tmp_path: Path) -> None:
    """A configuration of mitmproxy that would switch everything off lies where it looks for it."""
    home = tmp_path / "home" / ".mitmproxy"
    home.mkdir(parents=True)
    marker, modules = tmp_path / "marker", tmp_path / "modules"
    script = home / "script.py"
    script.write_text(f"open({str(marker)!r}, 'w').close()\nraise RuntimeError\n", encoding="utf-8")
    (home / "config.yaml").write_text(
        f"scripts: [{script}]\nignore_hosts: ['.*']\nallow_hosts: []\nrawtcp: true\n"
        "map_remote: ['|.*|http://127.0.0.1/']\nclient_replay: [/dev/null]\nssl_insecure: true\n"
        "connection_strategy: eager\nstream_large_bodies: '1'\n",
        encoding="utf-8",
    )
    wishes = [f"modules={modules}"]
    with furnish(tmp_path, wishes=wishes, env={"HOME": str(home.parent)}) as world:
        for way in WAYS:
            with world.attempt() as seen:
                opened = INGRESSES[way](world.proxy, HOST)
                assert opened.ask("/forbidden", method="POST", body=b"x" * 9000).status == 403
                opened.close()
            assert_one_refusal(seen)
    assert not marker.exists()
    lines = modules.read_text(encoding="utf-8").splitlines()
    loaded = [line.split(" ")[0] for line in lines]
    assert "mitmproxy.proxy.server" in loaded
    foreign = ("mitmproxy.addon", "mitmproxy.command", "mitmproxy.master", "mitmproxy.script",
               "mitmproxy.tools", "mitmproxy.io", "tornado", "urwid", "flask")  # fmt: skip
    assert [name for name in loaded if name.startswith(foreign)] == []


# --- A8 to A14: denying for real


def test_a8_a_websocket_is_denied_in_the_middle_and_the_frame_does_not_arrive(
    world: World,
) -> None:
    with world.attempt() as seen, open_tunnel(world.proxy, LIMITED) as way:
        assert way.ask("/ws", fields=WEBSOCKET).status == 101
        way.connection.sendall(frame(b"small"))
        assert read_frame(way.connection) == b"small"
        frames = len(world.tls.frames)
        way.connection.sendall(frame(b"s" * 2000))
        read_all(way.connection)  # until it is closed
    arrived = [data for head, data in world.tls.frames[frames:] if head & 0x0F < 8]
    assert arrived == []
    (outcome,) = seen.of("outcome")
    assert outcome["cut"] == "request-too-large"


def test_a8_what_is_no_http_in_a_tunnel_is_not_passed_on(world: World) -> None:
    for bytes_inside in (
        b"SSH-2.0-x\r\n",
        b"\x00\x01\x02\x03" * 8,
        b"EHLO x\r\n\r\n",
        b"GET\x00/ H\r\n",
    ):
        with world.attempt() as seen, connected(world) as connection:
            connection.sendall(bytes_inside)
            assert statuses(read_all(connection)) in ([], [400])
        assert_one_refusal(seen)


WEBSOCKET = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: a2tra2tra2tra2tra2traw==\r\n"
)


def frame(data: bytes, opcode: int = 1) -> bytes:
    """A masked frame of a client."""
    length = (
        bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    )
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + data


def read_frame(connection: socket.socket) -> bytes:
    """The payload of one short frame of a server."""
    data = connection.recv(4096)
    while len(data) < 2 + (data[1] & 0x7F if len(data) > 1 else 1):
        data += connection.recv(4096)
    return data[2:]


def connected(world: World, host: str = HOST) -> socket.socket:
    """A tunnel in which nothing was said yet."""
    connection = world.proxy.connect()
    connection.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
    assert read_answer(connection, time.monotonic(), "CONNECT").status == 200
    return connection


@pytest.mark.parametrize("way", WAYS)
def test_a9_a_large_upload_to_a_denied_place_is_answered_and_goes_nowhere(
    world: World, way: str
) -> None:
    with world.attempt() as seen:
        opened = INGRESSES[way](world.proxy, HOST)
        answer = opened.ask("/forbidden", method="POST", body=b"u" * MEBIBYTE)
        opened.close()
    assert answer.status == 403
    assert answer.seconds < IN_TIME_S
    assert_one_refusal(seen)


def test_a10_a_chunked_upload_to_a_denied_place_goes_nowhere(world: World) -> None:
    chunks = b"10000\r\n" + b"c" * 65_536 + b"\r\n"
    for way in ("plain", "tunnel"):
        target = f"http://{HOST}/forbidden" if way == "plain" else "/forbidden"
        head = f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
        with world.attempt() as seen:
            opened = INGRESSES[way](world.proxy, HOST)
            assert isinstance(opened, Http1Way)
            answer = opened.send(head.encode() + chunks * 16 + b"0\r\n\r\n")
            opened.close()
        assert answer.status == 403
        assert_one_refusal(seen)


def test_a11_a_denied_stream_is_answered_at_once(world: World) -> None:
    """The body never ends; the answer does not wait for it."""
    head = f"POST http://{HOST}/forbidden HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n"
    with world.attempt() as seen, open_plain(world.proxy, HOST) as way:
        answer = way.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
    assert answer.status == 403
    assert answer.whole
    assert answer.seconds < IN_TIME_S
    assert_one_refusal(seen)


@pytest.mark.parametrize("way", ["plain", "tunnel"])
def test_a12_a_denied_upload_gets_no_continue_and_one_record(world: World, way: str) -> None:
    with world.attempt() as seen:
        opened = INGRESSES[way](world.proxy, HOST)
        connection = opened.connection
        target = f"http://{HOST}/forbidden" if way == "plain" else "/forbidden"
        head = f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {MEBIBYTE}\r\n"
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        first = connection.recv(65_536)
        connection.sendall(b"u" * 65_536)  # sent all the same
        received = first + read_all(connection)
        opened.close()
    assert statuses(received) == [403]
    assert_one_refusal(seen)


GARBAGE = {
    "garbage": b"\x16\x00 nonsense\r\n\r\n",
    "a line that is no request": b"HELLO\r\n\r\n",
    "user information": b"GET http://user:pass@" + HOST.encode() + b"/ok/1 HTTP/1.1\r\nHost: "
    + HOST.encode() + b"\r\n\r\n",
    "a link-local address with a zone": b"GET http://[fe80::1%25lo]/ HTTP/1.1\r\n"
    b"Host: [fe80::1%25lo]\r\n\r\n",
    "a link-local address": b"GET http://[fe80::1]/ HTTP/1.1\r\nHost: [fe80::1]\r\n\r\n",
    "a link-local address, bare": b"GET http://fe80::1/ HTTP/1.1\r\nHost: fe80::1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a head that never ends": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9000,
    "a head that breaks off": b"GET http://" + HOST.encode() + b"/ok/1 HTT",
    "origin form": b"GET /ok/1 HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n\r\n",
    "a TLS ClientHello": b"\x16\x03\x01\x00\x05hello\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("message", GARBAGE.values(), ids=GARBAGE)
def test_a13_what_fires_no_hook_is_recorded_all_the_same(world: World, message: bytes) -> None:
    with world.attempt() as seen, world.proxy.connect() as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert all(status in (400, 403) for status in statuses(received))
    assert_one_refusal(seen)


def break_stream(way: Http2Way) -> bytes:
    return b"\x00\x00\x04\x00\x00\x00\x00\x00\x00" + b"data"  # DATA on stream 0


def break_frame(way: Http2Way) -> bytes:
    return b"\x00\x00\x05\x06\x00\x00\x00\x00\x00" + b"x" * 5  # PING of five bytes


def connect_inside(way: Http2Way) -> bytes:
    return headers(way, [(":method", "CONNECT"), (":authority", f"{HOST}:443")])


def double_path(way: Http2Way) -> bytes:
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/ok/1")]
    return headers(way, [*fields, (":path", "/ok/2")])


def upper_case(way: Http2Way) -> bytes:
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/ok/1")]
    return headers(way, [*fields, ("X-Upper", "1")])


def headers(way: Http2Way, fields: list[tuple[str, str]]) -> bytes:
    connection: Any = way.h2
    connection.config.validate_outbound_headers = False
    connection.config.normalize_outbound_headers = False
    connection.send_headers(connection.get_next_available_stream_id(), fields, end_stream=True)
    data: bytes = connection.data_to_send()
    return data


@pytest.mark.parametrize(
    "make", [break_stream, break_frame, connect_inside, double_path, upper_case]
)
def test_a13_errors_of_http2_are_recorded(world: World, make: Any) -> None:
    with world.attempt() as seen:
        way = open_http2(world.proxy, HOST)
        way.connection.sendall(make(way))
        assert way.read(1, time.monotonic()).ended
        way.close()
    assert_one_refusal(seen)


def test_a13_another_protocol_than_was_negotiated_is_recorded(world: World) -> None:
    with (
        world.attempt() as seen,
        world.proxy.tunnel(HOST, 443, protocols=["h2"]) as connection,
    ):
        connection.sendall(b"GET /ok/1 HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n\r\n")
        read_all(connection)
    assert_one_refusal(seen)


def test_a13_pings_of_websockets_are_answered_here_and_not_relayed(world: World) -> None:
    with world.attempt(), open_tunnel(world.proxy, HOST) as way:
        assert way.ask("/ws", fields=WEBSOCKET).status == 101
        frames = len(world.tls.frames)
        way.connection.sendall(frame(b"covert", opcode=9))
        assert read_frame(way.connection) == b"covert"
        way.connection.sendall(frame(b"unasked", opcode=10) + frame(b"seen"))
        assert read_frame(way.connection) == b"seen"
    assert [head & 0x0F for head, _ in world.tls.frames[frames:]][:1] == [1]
    assert not any(b"covert" in data or b"unasked" in data for _, data in world.tls.frames)


@pytest.mark.parametrize("way", ["plain", "tunnel", "http2"])
def test_a14_limits_are_one_denial_with_one_record(world: World, way: str) -> None:
    with world.attempt() as seen:
        opened = INGRESSES[way](world.proxy, LIMITED)
        fields = "content-length: 5000\r\n" if way == "http2" else ""
        answer = opened.ask("/ok/1", method="POST", body=b"u" * 5000, fields=fields)
        opened.close()
    assert answer.status == 403
    assert b"request-too-large" in answer.body
    assert_one_refusal(seen)


def test_a14_a_head_over_the_limit_is_one_record(world: World) -> None:
    head = f"GET http://{HOST}/ok/1 HTTP/1.1\r\nHost: {HOST}\r\n".encode()
    for message in (
        head + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        head + b"X: y\r\n" * 200 + b"\r\n",
    ):
        with world.attempt() as seen:
            assert statuses(world.send(message)) == [400]
        assert_one_refusal(seen)


# --- A16 to A21


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("where", ["resolve", "store", "reserve"])
def test_a16_a_client_that_leaves_while_it_is_judged_sends_nothing(
    world: World, where: str, reset: bool, way: str
) -> None:
    with world.attempt() as seen:
        opened = INGRESSES[way](world.proxy, HOST)
        since = len(world.proxy.journal.events)
        with world.proxy.fault(f"{where}:slow"):
            opened.begin("/ok/1")
            assert wait_until(lambda: world.proxy.struck)
            if reset:
                linger = struct.pack("ii", 1, 0)
                opened.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            opened.close()
            assert wait_until(lambda: has_ended(world, since))
    (decision,) = seen.of("decision")
    for outcome in seen.of("outcome"):
        assert (outcome["ref"], outcome["bytes_out"]) == (decision["id"], 0)
        assert outcome["error"] == "client-gone"
    assert seen.bytes == 0


def has_ended(world: World, since: int) -> bool:
    """A denial, or the outcome of what was allowed."""
    return any(
        event["kind"] == "outcome" or event.get("verdict") == "deny"
        for event in world.proxy.journal.events[since:]
    )


def test_a17_a_hook_that_never_ends_is_ended(world: World) -> None:
    for where in ("hook.judge", "hook.tls-start-server"):
        answer, seen = attack(world, "tunnel", f"{where}:hang")
        assert answer.status in (403, 502)
        assert 0.5 < answer.seconds < IN_TIME_S
        assert seen.bytes == 0


def test_a18_pathological_input_does_not_hold_up_others(world: World) -> None:
    """Patterns and parsers get what backtracking ones choke on; meanwhile others are served."""
    over = threading.Event()

    def press() -> None:
        while not over.is_set():
            way = open_tunnel(world.proxy, REGEX)
            assert way.ask("/" + "a" * 2000 + "c").status == 403
            way.close()
            way = open_tunnel(world.proxy, REGEX)
            assert way.ask("/aab?q=" + "x" * 2000 + "z").status == 403
            way.close()
            fields = "".join(f"X-{n}: {'(' * 80}\r\n" for n in range(90))
            with open_plain(world.proxy, HOST) as plain:
                assert plain.ask("/" + "%2e/" * 300, fields=fields).status in (400, 403)

    presses = [threading.Thread(target=press) for _ in range(3)]
    for thread in presses:
        thread.start()
    slowest = 0.0
    for _ in range(60):
        began = time.monotonic()
        world.pass_good_request()
        slowest = max(slowest, time.monotonic() - began)
    over.set()
    for thread in presses:
        thread.join(20)
        assert not thread.is_alive()
    assert slowest < 1.0


FORMS = {
    "problem": "",
    "html": "Accept: text/html\r\n",
    "grpc": "Content-Type: application/grpc\r\n",
    "huge accept": "Accept: " + "text/html;q=0.1," * 1500 + "\r\n",
    "odd accept": "Accept: ;;,,=text/html;q=\t\xff\r\n",
}


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_a19_a_denial_that_cannot_be_rendered_still_denies(
    world: World, way: str, fields: str
) -> None:
    for fault in ("", *(f"render:{what}" for what in ERRORS)):
        with world.attempt() as seen:
            opened = INGRESSES[way](world.proxy, HOST)
            with world.proxy.fault(*filter(None, [fault])):
                answer = opened.ask("/forbidden", fields=fields)
            opened.close()
        assert answer.status == 403
        assert answer.whole
        assert_one_refusal(seen)


def test_a20_no_denial_is_a_success(world: World) -> None:
    """`explain_denials` is off: not even the CONNECT is answered 200."""
    host = f"Host: {HOST}\r\n\r\n"
    for line in (
        "CONNECT stranger.test.example:443",
        f"CONNECT {HOST}:22",
        f"CONNECT {HOST}:53",
        "CONNECT 169.254.169.254:80",
        "CONNECT 127.0.0.1:443",
        "CONNECT [::1]:443",
        f"GET http://{HOST}/forbidden",
        f"DELETE http://{HOST}/ok/1",
        f"OPTIONS http://{HOST}/ok/1",
        f"HEAD http://{HOST}/forbidden",
        f"TRACE http://{HOST}/ok/1",
        f"GET https://{HOST}/ok/1",
        f"GET ftp://{HOST}/ok/1",
        "OPTIONS *",
    ):
        target = line.split(" ")[1]
        named = f"Host: {target}\r\n\r\n" if line.startswith("CONNECT") else host
        with world.attempt() as seen:
            received = world.send(f"{line} HTTP/1.1\r\n{named}".encode())
        assert [s for s in statuses(received) if s < 400] == [], (line, received)
        assert statuses(received), line
        assert_one_refusal(seen)


def test_a21_what_follows_a_denied_connect_is_nobodys_request(tmp_path: Path) -> None:
    lookups = tmp_path / "lookups"
    lookups.touch()
    allowed = f"GET http://{HOST}/ok/1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    asking = (
        b"GET http://unpinned.test.example/ok/1 HTTP/1.1\r\nHost: unpinned.test.example\r\n\r\n"
    )
    head = "defaults: { explain_denials: false }\n"
    with furnish(tmp_path, head=head, wishes=[f"lookups={lookups}"]) as world:
        before = lookups.read_text(encoding="utf-8")
        for behind in (allowed, asking, allowed * 3):
            for connect in (
                b"CONNECT stranger.test.example:443",
                b"CONNECT unpinned.test.example:22",
            ):
                named = connect.split(b" ")[1]
                with world.attempt() as seen:
                    received = world.send(
                        connect + b" HTTP/1.1\r\nHost: " + named + b"\r\n\r\n" + behind
                    )
                assert statuses(received) == [403]
                assert_one_refusal(seen)
        assert lookups.read_text(encoding="utf-8") == before


# --- A22 to A26


@pytest.mark.parametrize(
    "option", ["ignore_hosts", "rawtcp", "ssl_insecure", "connection_strategy", "websocket"]
)
def test_a22_an_option_that_was_turned_keeps_the_port_closed(tmp_path: Path, option: str) -> None:
    code, errors = start(tmp_path, f"tamper={option}")
    assert code != 0
    assert option in errors
    assert "Traceback" not in errors


def test_a23_mitmproxys_own_flags_and_commands_do_not_exist(tmp_path: Path) -> None:
    for flags in (["--set", "map_remote=x"], ["-s", "x.py"], ["--client-replay", "x"]):
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "serve", *flags, "--check"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert "no such option" in done.stderr.lower()


def find_port() -> int:
    """A free port that no system gives out by itself: whoever knocks there long enough would
    otherwise be connected to himself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(1024, lowest)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def start(folder: Path, *wishes: str, policy: str = "", faults: str = "") -> tuple[int, str]:
    """Start a server that must not come up; knock at its port all the while."""
    folder.mkdir(exist_ok=True)
    port = find_port()
    (folder / "policies.yaml").write_text(
        policy
        or "version: 1\nagents: { a: { identity: { source: [127.0.0.1/32] } } }\nrules: []\n",
        encoding="utf-8",
    )
    (folder / "faults").write_text(faults, encoding="ascii")
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.kit.faulty", *wishes, "-m", "proxy", "serve",
                "--policies", "policies.yaml", "--state", "state",
                "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0",
            ],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TOLLKEEPER_TEST_FAULTS": str(folder / "faults"),
            },
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )  # fmt: skip
        until = time.monotonic() + 30
        accepted = False
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as knock:
                accepted = accepted or knock.connect_ex(("127.0.0.1", port)) == 0
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        code = process.wait(10)
    assert not accepted, "the port was open"
    return code, (folder / "errors").read_text(encoding="utf-8")


def test_a24_a_broken_policy_never_opens_the_port(tmp_path: Path) -> None:
    for number, policy in enumerate(
        ["version: 1\nrules: [", "version: 7\n", "rules:\n  - id: x\n"]
    ):
        code, errors = start(tmp_path / str(number), policy=policy)
        assert code != 0
        assert "policies.yaml" in errors


STARTS = (
    *("start.gates", "start.policy", "start.options", "start.compare", "start.tls"),
    *("start.keeper", "start.self-test", "start.listen", "decide", "hook.judge", "store"),
)


@pytest.mark.parametrize("where", STARTS)
def test_a25_what_fails_at_the_start_keeps_the_port_closed(tmp_path: Path, where: str) -> None:
    code, errors = start(tmp_path, faults=f"{where}:raise")
    assert code != 0
    assert errors


@contextlib.contextmanager
def open_pair() -> Iterator[tuple[Origin, socket.socket]]:
    """An origin on 127.0.0.2 and a listener on the same port of 127.0.0.1, where it is free."""
    for _ in range(20):
        with Origin(host="127.0.0.2") as vetted:
            try:
                trap = socket.create_server(("127.0.0.1", vetted.port))
            except OSError:
                continue  # somebody has that port
            with trap:
                yield vetted, trap
                return
    raise RuntimeError("no port that is free on both addresses")


def test_a26_under_uvloop_the_vetted_address_is_dialled_and_denials_hold(tmp_path: Path) -> None:
    """The name server changes its mind after the first answer; nobody asks a second time."""
    pytest.importorskip("uvloop")
    rebind = "rebind.test.example"
    with open_pair() as (vetted, trap):
        trap.setblocking(False)
        rules = (
            f"  - {{ id: rebind, verdict: allow, match: {{ host: {rebind}, scheme: http,"
            f" port: [{vetted.port}], path: '/ok/**', dest_ip: ['127.0.0.2/32'] }} }}\n"
        )
        wishes = ["loop=uvloop", "answers=127.0.0.2,127.0.0.1"]
        with furnish(tmp_path, rules=rules, wishes=wishes) as world:
            assert "loop is uvloop" in world.proxy.stderr
            host = f"{rebind}:{vetted.port}"
            with world.attempt() as seen, open_plain(world.proxy, host) as way:
                assert way.ask("/ok/1").status == 200
            assert vetted.lines == ["GET /ok/1 HTTP/1.1"]
            assert seen.of("decision")[0]["target"]["ip"] == "127.0.0.2"
            with world.attempt() as seen, open_plain(world.proxy, host) as way:
                assert way.ask("/ok/1").status == 403  # 127.0.0.1 is not in the rule
            assert_one_refusal(seen)
            for way_name in WAYS:
                with world.attempt() as seen:
                    opened = INGRESSES[way_name](world.proxy, HOST)
                    assert opened.ask("/forbidden").status == 403
                    opened.close()
                assert_one_refusal(seen)
        with pytest.raises(BlockingIOError):
            trap.accept()
