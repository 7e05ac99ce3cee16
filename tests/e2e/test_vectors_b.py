"""What an agent can provoke from the wire: threats.md B5 to B10, B12, B14, in the real process.

B1 to B4 and B13 are about bodies that rules look into (tests/proxy/test_body.py); B11 comes with
budgets.
"""

import contextlib
import random
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.ingress import INGRESSES, Answer, Way, open_plain, open_tunnel
from tests.kit.proxy import wait_until
from tests.kit.world import GOOD, HOST, Seen, World, furnish

WAYS = ("plain", "tunnel", "http2")
RULES = """
  - { id: by-name, verdict: allow, match: { host: named.test.example, path: "/ok/**" } }
  - id: not-there
    verdict: deny
    match: { dest_ip: ["198.51.100.0/24", "2001:db8::/32", loopback] }
    unless: { host: [api.test.example, good.test.example] }
  - { id: by-address, verdict: allow, match: { host: 192.0.2.7, dest_ip: 192.0.2.7 } }
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with furnish(
        tmp_path_factory.mktemp("house"),
        head="defaults: { explain_denials: false }\n",
        rules=RULES,
        hosts=["named.test.example"],
        wishes=["set.dns_timeout_s=0.3", "set.connect_timeout_s=0.8"],
    ) as made:
        yield made


def assert_one_refusal(seen: Seen) -> None:
    """One record about what was refused, and nothing at any origin."""
    assert len(seen.refusals) == len(seen.events) - 1 == 1, seen.events
    assert seen.untouched


def faults(world: World) -> float:
    """How often something inside went wrong so far."""
    _, text = world.proxy.scrape("/metrics")
    found = re.findall(r"^tollkeeper_faults_total\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(map(float, found))


def status_of(answer: bytes) -> int:
    """Of the first answer; 0 where there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def get(target: str, *fields: str, method: str = "GET") -> bytes:
    """A request as bytes, Latin-1, without a Host of its own."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", ""]).encode("latin-1")


# --- B5 to B8: what is not ASCII, not there, too long, not an address

ODD_BYTES = {
    "path": get(f"http://{HOST}/ok/\xff", f"Host: {HOST}"),
    "query": get(f"http://{HOST}/ok/1?a=\xff", f"Host: {HOST}"),
    "method": get(f"http://{HOST}/ok/1", f"Host: {HOST}", method="G\xffT"),
    "host": get(f"http://{HOST}\xff/ok/1", f"Host: {HOST}\xff"),
    "name of a field": get(f"http://{HOST}/ok/1", f"Host: {HOST}", "X-\xff: 1"),
    "value of Host": get(f"http://{HOST}/ok/1", f"Host: {HOST}\xff"),
    "surrogates in UTF-8": get(f"http://{HOST}/ok/\xed\xa0\x80", f"Host: {HOST}"),
    "CONNECT": get(f"\xff{HOST}:443", f"Host: {HOST}:443", method="CONNECT"),
    "credential": get(f"http://{HOST}/ok/1", f"Host: {HOST}", "Proxy-Authorization: \xff\xfe"),
    "NUL": get(f"http://{HOST}/ok/\0", f"Host: {HOST}"),
}


@pytest.mark.parametrize("message", ODD_BYTES.values(), ids=ODD_BYTES)
def test_b5_bytes_that_are_no_text_are_refused_and_recorded(world: World, message: bytes) -> None:
    before = faults(world)
    with world.attempt() as seen:
        assert status_of(world.send(message)) in (400, 403, 407)
    assert_one_refusal(seen)
    assert faults(world) == before


@pytest.mark.parametrize("way", WAYS)
def test_b5_inside_a_tunnel_too(world: World, way: str) -> None:
    for path in ("/ok/\xff", "/ok/1?a=\xff\xfe"):
        with world.attempt() as seen:
            opened = INGRESSES[way](world.proxy, HOST)
            assert opened.ask(path).status in (400, 403)
            opened.close()
        assert_one_refusal(seen)


HOSTS = {
    "none": get(f"http://{HOST}/ok/1"),
    "two": get(f"http://{HOST}/ok/1", f"Host: {HOST}", f"Host: {HOST}"),
    "empty": get(f"http://{HOST}/ok/1", "Host:"),
    "another": get(f"http://{HOST}/ok/1", "Host: other.test.example"),
    "a list": get(f"http://{HOST}/ok/1", f"Host: {HOST}, {HOST}"),
    "none on HTTP/1.0": f"GET http://{HOST}/ok/1 HTTP/1.0\r\n\r\n".encode(),
    "none in CONNECT": get(f"{HOST}:22", method="CONNECT"),
}


@pytest.mark.parametrize("message", HOSTS.values(), ids=HOSTS)
def test_b6_exactly_one_host_that_agrees(world: World, message: bytes) -> None:
    with world.attempt() as seen:
        assert status_of(world.send(message)) in (400, 403)
    assert_one_refusal(seen)


def test_b6_none_inside_a_tunnel(world: World) -> None:
    with world.attempt() as seen, open_tunnel(world.proxy, HOST) as way:
        assert way.send(b"GET /ok/1 HTTP/1.1\r\n\r\n").status in (400, 403)
    assert_one_refusal(seen)


ALPHABET = [
    *"aZ09-_.:%[]@/\\ \t",
    *("..", "xn--", "\xe4\xb8\xad", "\xff", "%2e", "%00", "0x7f", "2130706433", "::1", "fe80::1%1"),
    *(
        "a" * 64,
        "b" * 300,
        ".example",
        "localhost",
        "xn--a-ecp.ru",
        "\xef\xbc\x8e",
        "1.2.3",
        "0177",
    ),
]


def test_b7_no_host_that_can_be_written_is_a_fault(world: World) -> None:
    """Random hosts, in the target, in Host and in CONNECT: answered, recorded, never a fault."""
    draw = random.Random(20_260_701)
    before = faults(world)
    with world.attempt() as seen:
        for number in range(300):
            host = "".join(draw.choices(ALPHABET, k=draw.randint(1, 6)))
            message = (
                get(f"http://{host}/ok/1", f"Host: {host}"),
                get(f"{host}:443", f"Host: {host}:443", method="CONNECT"),
                get(f"http://{HOST}/ok/1", f"Host: {host}"),
            )[number % 3]
            status = status_of(world.send(message))
            assert status in (400, 403, 502), (host, status)
    assert len(seen.refusals) == 300
    assert seen.untouched
    assert faults(world) == before


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"http://{HOST}/ok/1", 200),  # a rule of ranges with an exception by name
        ("https://named.test.example/ok/1", 403),  # a name that leads where no rule lets it
        ("http://192.0.2.7/ok/1", 403),  # by address, but not with this scheme
        ("http://198.51.100.9/ok/1", 403),
        ("http://[2001:db8::1]/ok/1", 403),
        ("http://127.0.0.1/ok/1", 403),
    ],
)
def test_b8_names_and_addresses_meet_rules_about_both(
    world: World, target: str, status: int
) -> None:
    before = faults(world)
    host = target.split("/")[2]
    with world.attempt() as seen:
        if target.startswith("https"):
            with open_tunnel(world.proxy, host) as way:
                answer = way.ask("/ok/1")
        else:
            with open_plain(world.proxy, host) as way:
                answer = way.ask("/ok/1")
    assert answer.status == status
    if status == 403:
        assert_one_refusal(seen)
    assert faults(world) == before


# --- B9: descriptors run out


@pytest.mark.parametrize("limit", [64, 40], ids=["kept in reserve", "none left"])
def test_b9_a_denied_request_stays_denied_when_descriptors_run_out(
    tmp_path: Path, limit: int
) -> None:
    with furnish(tmp_path, shell=f"ulimit -n {limit}") as world:
        warm = {way: INGRESSES[way](world.proxy, HOST) for way in WAYS}
        for opened in warm.values():  # each has a connection to the origin that could be reused
            assert opened.ask("/ok/warm").status == 200
        held = {way: INGRESSES[way](world.proxy, HOST) for way in WAYS}
        with contextlib.ExitStack() as idle:
            for _ in range(80):
                connection = idle.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", world.proxy.port))
            used = Path(f"/proc/{world.proxy.process.pid}/fd")
            assert wait_until(lambda: len(list(used.iterdir())) >= min(limit, 40) - 4)
            for opened in (*warm.values(), *held.values()):
                answer = opened.ask("/ok/1", method="DELETE")
                assert answer.status == 403, answer
                assert answer.seconds < 2.0, answer
                opened.close()
        methods = [line.split(" ")[0] for origin in world.origins for line in origin.lines]
        assert set(methods) == {"GET"}
        assert wait_until(lambda: serves(world)), "it does not recover"
        denied = [e for e in world.proxy.journal.events if e.get("verdict") == "deny"]
        assert {event["target"]["method"] for event in denied} == {"DELETE"}
        assert len(denied) == 6


def serves(world: World) -> bool:
    """Whether a good request passes now."""
    try:
        with open_plain(world.proxy, GOOD) as way:
            return way.ask("/good/x").status == 200
    except OSError:
        return False


# --- B10: the log cannot be written


def assert_sealed(world: World) -> None:
    """403 on every way, nothing at an origin, and the health check says so."""
    before = world.count()
    for way in WAYS:
        answer = try_to_ask(world, way)
        assert answer is None or answer.status == 403, answer
    assert world.count() == before
    status, text = world.proxy.scrape("/readyz")
    assert status == 503
    assert '"log":""' not in text


def try_to_ask(world: World, way: str) -> Answer | None:
    """None where not even the tunnel was opened."""
    opened: Way | None = None
    try:
        opened = INGRESSES[way](world.proxy, HOST)
        return opened.ask("/ok/1")
    except ConnectionError as refused:
        if " 403 " not in str(refused):
            raise
        return None
    finally:
        if opened is not None:
            opened.close()


def test_b10_a_log_that_may_not_grow_denies_until_it_may(tmp_path: Path) -> None:
    """The kernel refuses the write itself (EFBIG), in a process that runs."""
    with furnish(tmp_path) as world:
        world.pass_good_request()
        (segment,) = (world.proxy.state / "log").glob("*.jsonl")
        process = world.proxy.process.pid
        old = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, old[1]))
        before = world.count()
        assert try_to_ask(world, "plain") is not None
        assert world.count() == before
        assert_sealed(world)
        resource.prlimit(process, resource.RLIMIT_FSIZE, old)
        assert wait_until(lambda: serves(world), 20), "it does not recover"
        assert world.proxy.scrape("/readyz")[0] == 200


def test_b10_an_error_of_the_disk_denies_for_good(tmp_path: Path) -> None:
    with furnish(tmp_path, verified=3) as world:  # intact, but never closed
        world.pass_good_request()
        with world.proxy.fault("disk:io-error"):
            assert try_to_ask(world, "plain") is not None
            assert world.proxy.struck
            assert_sealed(world)
        assert_sealed(world)  # nobody knows what the disk holds: only a restart looks


# --- B12: the clock


@pytest.mark.parametrize("days", [365, -365, 3650, 36_500])
def test_b12_a_step_of_the_clock_changes_no_verdict(world: World, days: int) -> None:
    before = faults(world)
    held = {way: INGRESSES[way](world.proxy, HOST) for way in WAYS}
    with world.attempt() as seen, world.proxy.fault(f"clock:{days}"):
        for opened in held.values():
            assert opened.ask("/ok/1").status == 200
            assert opened.ask("/forbidden").status == 403
            opened.close()
    assert len(seen.refusals) == 3
    assert len(seen.of("outcome")) == 3
    assert faults(world) == before


@pytest.mark.parametrize("what", ["broken", "3650000", "-3650000"])
def test_b12_a_clock_without_a_time_denies(world: World, what: str) -> None:
    held = {way: INGRESSES[way](world.proxy, HOST) for way in WAYS}
    before = world.count()
    with world.proxy.fault(f"clock:{what}"):
        for opened in held.values():
            answer = opened.ask("/ok/1")
            assert answer.status == 403
            assert answer.seconds < 2.0
            opened.close()
    assert world.count() == before
    assert wait_until(lambda: serves(world))


# --- B14: odd types, odd requests


@pytest.mark.parametrize("where", ["screen", "decide", "identify", "resolve", "read-call"])
def test_b14_an_answer_of_an_odd_type_denies(world: World, where: str) -> None:
    for way in WAYS:
        with world.attempt() as seen:
            opened = INGRESSES[way](world.proxy, HOST)
            with world.proxy.fault(f"{where}:odd"):
                assert opened.ask("/ok/1").status == 403
            opened.close()
        assert_one_refusal(seen)


PIECES = [
    *("Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Expect", "Cookie"),
    *("X-Forwarded-Host", "X-HTTP-Method-Override", "Proxy-Connection", "Trailer", "TE", "Range"),
]
VALUES = [
    "",
    "0",
    "5",
    "chunked",
    "close",
    "websocket",
    "h2c",
    "a" * 900,
    "\xff",
    ",",
    "keep-alive",
]
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "DELETE", "BREW", "get", "PROPFIND"]
PATHS = [
    "/ok/1",
    "/forbidden",
    "/ok/%2e%2e/x",
    "//",
    "*",
    "/ok/1?a&b=%zz",
    "/ok/1;p=1",
    "/\\",
    "/#f",
]


def test_b14_no_combination_of_oddities_is_a_fault_or_a_way_through(world: World) -> None:
    """Random requests on every way: each is answered or closed, and what arrives was allowed."""
    draw = random.Random(20_260_702)
    before = faults(world)
    decided = sum(1 for e in world.proxy.journal.events if e.get("verdict") == "allow")
    arrived = sum(len(origin.lines) for origin in world.origins)
    for number in range(240):
        way_name = WAYS[number % 3]
        fields = "".join(
            f"{draw.choice(PIECES)}: {draw.choice(VALUES)}\r\n" for _ in range(draw.randint(0, 3))
        )
        way = INGRESSES[way_name](world.proxy, HOST)
        path = draw.choice(PATHS)
        with contextlib.suppress(OSError):
            way.connection.settimeout(3)
            answer = way.ask(path, method=draw.choice(METHODS), fields=fields)
            assert answer.status != 200 or path.startswith("/ok/1"), (path, fields, answer)
        way.close()
    world.pass_good_request()
    assert faults(world) == before
    allowed = sum(1 for e in world.proxy.journal.events if e.get("verdict") == "allow")
    lines = sum(len(origin.lines) for origin in world.origins)
    assert lines - arrived <= allowed - decided
    targets = {
        line.split(" ")[1].split("?")[0] for origin in world.origins for line in origin.lines
    }
    assert all(target.startswith(("/ok/", "/good/")) for target in targets), targets
