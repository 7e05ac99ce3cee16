"""Every knob, in one frozen value. Units are in the names; each default has its reason above it.

    flags, environment  --proxy/cli/serve.py-->  Settings  -->  every part, by constructor argument

Rule 1: nothing else in the house reads the environment or the command line.
Rule 2: a value that cannot work is refused before a port opens, with place, cause and remedy.
Rule 3: deadlines nest: ledger and audit fit into `hook_deadline_s`, and that into the second
        within which a client is answered.

docs/settings.md lists the same knobs for operators; a test compares the two.
"""

import re
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from policies.model import Address

DESCRIPTORS_SPARE = 128  # for the log, DNS look-ups, the sockets that listen
KIB = 1024
MIB = 1024 * KIB

_SECONDS_MAX = 86_400
_COUNT_MAX = 2**31

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^]]+)]|(?P<v4>[^]:[]+))(?::(?P<port>[^:]*))?")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_LISTEN_FORM = "write ADDR:PORT, for example 127.0.0.1:8080 or [::1]:8080"
_RESOLVE_FORM = (
    "write HOST:PORT:ADDR[:PORT], for example"
    " api.example.com:443:10.0.0.5 or db.example.com:443:[fd00::5]:8443"
)
_DNS_FORM = "write ADDR[:PORT], for example 10.0.0.2 or [fd00::53]:5353"
_PROXY_FORM = "write http://HOST:PORT, for example http://proxy.example.com:3128"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port to listen on or to send to. Port 0 means: let the system choose."""

    address: Address
    port: int

    @property
    def host(self) -> str:
        """The address as text, without brackets: what a socket call takes."""
        return str(self.address)

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        return self.address.is_loopback

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Pin:
    """One answer given by the operator instead of DNS, vetted like any other answer."""

    host: str  # canonical: lower case, no trailing dot
    port: int  # what the agent asked for; rules judge this one
    address: Address
    dial_port: int  # what is dialled; the same as `port` unless said otherwise


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """Another proxy that stands between us and the network. Plain HTTP CONNECT, no credentials."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What `serve` was told. Sizes in bytes, times in seconds.

    Raises:
        ValueError: a value that cannot work; the text names knob, cause and remedy.
    """

    # what is served
    policies: Path = Path("policies.yaml")
    state: Path = Path("state")
    # nobody else may write to the state directory, unless a volume belongs to a group (its gid)
    state_group: int | None = None
    # loopback: opening the proxy to a network is a decision, not a default
    listen: Endpoint = Endpoint(IPv4Address("127.0.0.1"), 8080)
    # loopback needs no token; any other address does
    admin: Endpoint = Endpoint(IPv4Address("127.0.0.1"), 9090)
    # observe mode needs this flag and the policy's key: one of them alone changes nothing
    observe: bool = False
    # one machine: a file beside the log. memory: no file; a start takes as long, all else is alike
    ledger: Literal["sqlite", "memory"] = "sqlite"
    # costly checks of invariants: for tests, drills and whoever doubts us
    contracts: bool = False
    # a person starts the first server; containers ask for json
    log_format: Literal["console", "json"] = "console"

    # the way out
    # the public roots are enough for public hosts
    upstream_ca_files: tuple[Path, ...] = ()
    # DNS answers, unless an operator knows better
    resolve: tuple[Pin, ...] = ()
    # the system's resolver knows hosts file, search rules and split horizons
    dns: Endpoint | None = None
    # dial directly: only then is the vetted address the one that is reached
    upstream_proxy: UpstreamProxy | None = None

    # how long
    # a client is answered within 1 s; 0.1 s is left to write the answer
    hook_deadline_s: float = 0.9
    # an embedded ledger answers in under 1 ms, on a busy machine in a few; this long is an outage
    ledger_deadline_s: float = 0.28
    # disks stall for 4 to 60 ms now and then; ten times that is an outage
    audit_deadline_s: float = 0.6
    # one lost packet costs most resolvers 5 s; the answer is then 502
    dns_timeout_s: float = 5.0
    # three lost SYN packets (1 + 2 + 4 s) and a handshake
    connect_timeout_s: float = 10.0
    # a head fits a few packets; whoever needs longer holds the socket on purpose
    header_timeout_s: float = 10.0
    # models think for a minute or two before the first token
    first_byte_timeout_s: float = 120.0
    # clients drop idle connections after 60 to 90 s: they close first, and no request races ours
    idle_timeout_s: float = 120.0
    # container engines kill 10 s after SIGTERM
    drain_timeout_s: float = 10.0
    # two missing ones are a finding: a silent log is noticed in 2 min, for 1,440 records a day
    heartbeat_s: float = 60.0

    # how much
    # two descriptors each: below the usual limit of 4,096, with room for log and ledger
    connections_max: int = 1024
    # four times what common servers accept: an origin refuses more anyway
    header_bytes_max: int = 32 * KIB
    # common servers accept 100; real requests carry 30
    header_count_max: int = 100
    # two full heads sent ahead while one request is judged
    pipelined_bytes_max: int = 64 * KIB
    # 100 Mbit/s for 300 ms: what a client may lag behind its origin, per connection
    h2_buffer_bytes_max: int = 4 * MIB

    def __post_init__(self) -> None:
        for knob in fields(self):
            value, hint = getattr(self, knob.name), f"the default is {knob.default}"
            if knob.name.endswith("_s") and not 0 < value <= _SECONDS_MAX:
                raise ValueError(
                    f"`{knob.name}`: `{value}` is not above 0 and up to {_SECONDS_MAX} s; {hint}"
                )
            if knob.name.endswith("_max") and not 1 <= value <= _COUNT_MAX:
                raise ValueError(f"`{knob.name}`: `{value}` is not in 1 to {_COUNT_MAX}; {hint}")
        if self.ledger_deadline_s + self.audit_deadline_s > self.hook_deadline_s:
            raise ValueError(
                "`hook_deadline_s`: is shorter than `ledger_deadline_s` plus `audit_deadline_s`;"
                " raise it, or a slow disk is reported as a bug"
            )
        dials = {(pin.host, pin.port): pin.dial_port for pin in self.resolve}
        for pin in self.resolve:
            if dials[pin.host, pin.port] != pin.dial_port:
                raise ValueError(
                    f"`--resolve {pin.host}:{pin.port}:…`: answers with different ports to dial;"
                    " give them all the same"
                )
        if self.listen.port and self.listen == self.admin:
            raise ValueError(
                f"`--admin {self.admin}`: is the same as `--listen`; give it a port of its own"
            )

    # one name per place in the state directory, so that no other file spells them

    @property
    def ca_folder(self) -> Path:
        """`ca.pem`, which agents trust, and `ca.key`."""
        return self.state / "ca"

    @property
    def log_folder(self) -> Path:
        """The audit log's segments."""
        return self.state / "log"

    @property
    def policy_archive(self) -> Path:
        """Every applied policy as `<digest>.yaml`."""
        return self.state / "policies"

    @property
    def credentials_file(self) -> Path:
        """Hashes of the agents' tokens."""
        return self.state / "credentials.json"

    @property
    def control_socket(self) -> Path:
        """By which commands reach a running server."""
        return self.state / "control.sock"

    @property
    def admin_token_file(self) -> Path:
        """The bearer token of an admin port that is not on loopback."""
        return self.state / "admin.token"


def parse_listen(text: str, *, flag: str = "--listen") -> Endpoint:
    """Read ADDR:PORT; IPv6 in brackets; `localhost` is 127.0.0.1; port 0 lets the system choose.

    Raises:
        ValueError: names the flag, the cause and the form that works.
    """
    if text.startswith(":") and text[1:].isdigit():
        hint = f"write 0.0.0.0{text} to listen on every IPv4 address"
        raise _refusal(flag, text, "there is no address", hint)
    place = f"127.0.0.1{text[9:]}" if text.startswith("localhost:") else text
    address, port = _parse_endpoint(flag, place, _LISTEN_FORM)
    if port is None:
        raise _refusal(flag, text, "there is no port", _LISTEN_FORM)
    return Endpoint(address, _parse_port(flag, text, port, lowest=0))


def parse_resolve(text: str, *, flag: str = "--resolve") -> Pin:
    """Read HOST:PORT:ADDR[:PORT], like curl's plus an optional port to dial.

    Raises:
        ValueError: names the flag, the cause and the form that works.
    """
    host, port_text, place = (*text.split(":", 2), "", "")[:3]
    if not (host and port_text and place):
        raise _refusal(flag, text, "HOST, PORT or ADDR is missing", _RESOLVE_FORM)
    canonical = host.lower().removesuffix(".")
    if not _HOST.fullmatch(canonical):
        hint = "use the plain name, in its xn-- form where it is not ASCII"
        raise _refusal(flag, text, f"`{host}` is not a host name", hint)
    port = _parse_port(flag, text, port_text, lowest=1)
    address, dial = _parse_endpoint(flag, place, _RESOLVE_FORM)
    dial_port = port if dial is None else _parse_port(flag, text, dial, lowest=1)
    return Pin(canonical, port, address, dial_port)


def parse_dns(text: str, *, flag: str = "--dns") -> Endpoint:
    """Read the address of a DNS server: ADDR, ADDR:PORT or [ADDR]:PORT; the port defaults to 53.

    Raises:
        ValueError: names the flag, the cause and the form that works.
    """
    address, port = _parse_endpoint(flag, text, _DNS_FORM)
    return Endpoint(address, 53 if port is None else _parse_port(flag, text, port, lowest=1))


def parse_upstream_proxy(text: str, *, flag: str = "--upstream-proxy") -> UpstreamProxy:
    """Read http://HOST:PORT. Credentials are refused: a command line is readable by every process.

    Raises:
        ValueError: names the flag, the cause and the form that works.
    """
    if "@" in text:  # never quoted back: it may be a password
        raise ValueError(f"`{flag}`: credentials are refused here; {_PROXY_FORM}")
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        raise _refusal(flag, text, "it is not a URL", _PROXY_FORM) from None
    extra = url.path.removeprefix("/") or url.query or url.fragment
    if url.scheme != "http" or port is None or extra:
        raise _refusal(flag, text, "it is not the plain URL of a proxy", _PROXY_FORM)
    if not _HOST.fullmatch(host) and _parse_address(host) is None:
        raise _refusal(flag, text, f"`{host}` is not a host name", _PROXY_FORM)
    return UpstreamProxy(host, _parse_port(flag, text, str(port), lowest=1))


def _parse_endpoint(flag: str, text: str, form: str) -> tuple[Address, str | None]:
    parts = _ENDPOINT.fullmatch(text)
    address = _parse_address(parts["v6"] or parts["v4"]) if parts else None
    if parts is None or address is None:
        raise _refusal(flag, text, "it is not an IP address", form)
    if (address.version == 6) != bool(parts["v6"]):
        raise _refusal(flag, text, "brackets are for IPv6 addresses", form)
    return address, parts["port"]


def _parse_address(text: str) -> Address | None:
    if "%" in text:  # a zone id names an interface, not an address
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def _parse_port(flag: str, text: str, port: str, *, lowest: int) -> int:
    if not _PORT.fullmatch(port) or not lowest <= int(port) <= 65_535:
        hint = f"use a number between {lowest} and 65535"
        raise _refusal(flag, text, f"`{port}` is not a port", hint)
    return int(port)


def _refusal(flag: str, text: str, cause: str, remedy: str) -> ValueError:
    return ValueError(f"`{flag} {text}`: {cause}; {remedy}")
