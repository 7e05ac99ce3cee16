"""What the knobs take, what they refuse, and that docs/settings.md names each with its default."""

from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.settings import (
    Endpoint,
    Pin,
    Settings,
    UpstreamProxy,
    parse_dns,
    parse_listen,
    parse_resolve,
    parse_upstream_proxy,
)

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(ip_address(address), port)


LISTENS = {
    "an IPv4 address": ("127.0.0.1:8080", endpoint("127.0.0.1", 8080)),
    "every address": ("0.0.0.0:8080", endpoint("0.0.0.0", 8080)),
    "an IPv6 address in brackets": ("[::1]:8080", endpoint("::1", 8080)),
    "localhost": ("localhost:1", endpoint("127.0.0.1", 1)),
    "port 0 for any free port": ("127.0.0.1:0", endpoint("127.0.0.1", 0)),
}


@pytest.mark.parametrize(("text", "expected"), LISTENS.values(), ids=LISTENS)
def test_listen_takes(text: str, expected: Endpoint) -> None:
    assert parse_listen(text) == expected
    assert parse_listen(str(expected)) == expected


REFUSED_LISTENS = {
    "no port": ("127.0.0.1", "there is no port"),
    "no address": (":8080", "write 0.0.0.0:8080"),
    "a name": ("example.com:80", "not an IP address"),
    "a bare IPv6 address": ("::1:8080", "not an IP address"),
    "IPv4 in brackets": ("[127.0.0.1]:80", "brackets are for IPv6"),
    "a port too high": ("127.0.0.1:65536", "`65536` is not a port"),
    "a leading zero": ("127.0.0.1:080", "`080` is not a port"),
    "a sign": ("127.0.0.1:+80", "`+80` is not a port"),
    "digits that are not ASCII": ("127.0.0.1:٨٠", "is not a port"),
    "an empty port": ("127.0.0.1:", "`` is not a port"),
    "a zone id": ("[fe80::1%lo]:80", "not an IP address"),
    "nothing": ("", "not an IP address"),
}


@pytest.mark.parametrize(("text", "cause"), REFUSED_LISTENS.values(), ids=REFUSED_LISTENS)
def test_listen_refuses_with_place_and_cause(text: str, cause: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_listen(text, flag="--admin")
    assert "--admin" in str(refused.value)
    assert cause in str(refused.value)
    assert "write" in str(refused.value) or "use" in str(refused.value)


V4, V6 = ip_address("10.0.0.5"), ip_address("fd00::5")
PINS = {
    "IPv4": ("api.example.com:443:10.0.0.5", Pin("api.example.com", 443, V4, 443)),
    "IPv4 and a port": ("api.example.com:443:10.0.0.5:8443", Pin("api.example.com", 443, V4, 8443)),
    "IPv6": ("api.example.com:443:[fd00::5]", Pin("api.example.com", 443, V6, 443)),
    "IPv6 and a port": ("api.example.com:80:[fd00::5]:1", Pin("api.example.com", 80, V6, 1)),
    "case and one dot": ("API.Example.COM.:443:10.0.0.5", Pin("api.example.com", 443, V4, 443)),
    "a single label": ("localhost:443:10.0.0.5", Pin("localhost", 443, V4, 443)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), PINS.values(), ids=PINS)
def test_resolve_takes(text: str, expected: Pin) -> None:
    assert parse_resolve(text) == expected


REFUSED_PINS = {
    "no address": ("api.example.com:443", "is missing"),
    "no host": (":443:10.0.0.5", "is missing"),
    "nothing": ("", "is missing"),
    "a bare IPv6 address": ("api.example.com:443:fd00::5", "not an IP address"),
    "IPv4 in brackets": ("api.example.com:443:[10.0.0.5]", "brackets are for IPv6"),
    "a name as the answer": ("api.example.com:443:other.example.com", "not an IP address"),
    "port 0": ("api.example.com:0:10.0.0.5", "`0` is not a port"),
    "dial port 0": ("api.example.com:443:10.0.0.5:0", "`0` is not a port"),
    "an empty dial port": ("api.example.com:443:10.0.0.5:", "`` is not a port"),
    "a host that is an address": ("10.0.0.1:443:10.0.0.5", "`10.0.0.1` is not a host name"),
    "a host that is not ASCII": ("bücher.example:443:10.0.0.5", "xn--"),
    "an empty label": ("api..example.com:443:10.0.0.5", "is not a host name"),
    "a label of 64 octets": (f"{'a' * 64}.com:443:10.0.0.5", "is not a host name"),
    "a zone id": ("api.example.com:443:[fe80::1%lo]", "not an IP address"),
}


@pytest.mark.parametrize(("text", "cause"), REFUSED_PINS.values(), ids=REFUSED_PINS)
def test_resolve_refuses_with_place_and_cause(text: str, cause: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_resolve(text)
    assert "--resolve" in str(refused.value)
    assert cause in str(refused.value)


DNS_SERVERS = {
    "10.0.0.2": endpoint("10.0.0.2", 53),
    "10.0.0.2:5353": endpoint("10.0.0.2", 5353),
    "[fd00::53]": endpoint("fd00::53", 53),
    "[fd00::53]:5353": endpoint("fd00::53", 5353),
}


@pytest.mark.parametrize(("text", "expected"), DNS_SERVERS.items(), ids=DNS_SERVERS)
def test_dns_takes(text: str, expected: Endpoint) -> None:
    assert parse_dns(text) == expected


@pytest.mark.parametrize("text", ["dns.example.com", "10.0.0.2:0", "10.0.0.2:", "", "fd00::53"])
def test_dns_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="--dns"):
        parse_dns(text)


UPSTREAM_PROXIES = {
    "http://proxy.example.com:3128": UpstreamProxy("proxy.example.com", 3128),
    "http://10.0.0.9:3128/": UpstreamProxy("10.0.0.9", 3128),
    "http://[fd00::9]:3128": UpstreamProxy("fd00::9", 3128),
}


@pytest.mark.parametrize(("text", "expected"), UPSTREAM_PROXIES.items(), ids=UPSTREAM_PROXIES)
def test_upstream_proxy_takes(text: str, expected: UpstreamProxy) -> None:
    assert parse_upstream_proxy(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "proxy.example.com:3128", "https://proxy.example.com:3128", "socks5://proxy.example.com:1",
        "http://proxy.example.com", "http://:3128", "http://p:3128/path", "http://p:3128?q",
        "http://p:99999", "http://[::1:3128", "",
    ],
)  # fmt: skip
def test_upstream_proxy_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="--upstream-proxy"):
        parse_upstream_proxy(text)


def test_a_password_in_the_upstream_proxy_is_refused_and_not_quoted() -> None:
    with pytest.raises(ValueError) as refused:
        parse_upstream_proxy("http://user:hunter2@proxy.example.com:3128")
    assert "credentials" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for parse in (parse_listen, parse_resolve, parse_dns, parse_upstream_proxy):
        try:
            parse(text)
        except ValueError as refused:
            assert str(refused).startswith("`--")  # noqa: PT017  other exceptions must escape


def test_the_defaults_work_and_listen_on_loopback_only() -> None:
    knobs = Settings()
    assert knobs.listen.is_loopback
    assert knobs.admin.is_loopback
    assert not knobs.observe
    assert knobs.ledger_deadline_s + knobs.audit_deadline_s < knobs.hook_deadline_s < 1.0


TIMES = [knob.name for knob in fields(Settings) if knob.name.endswith("_s")]
SIZES = [knob.name for knob in fields(Settings) if knob.name.endswith("_max")]


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 86_401])
def test_a_time_that_is_no_time_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]  # the name is a parameter


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2**31 + 1])
def test_a_size_that_is_no_size_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]  # the name is a parameter


def test_deadlines_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ValueError, match="hook_deadline_s"):
        Settings(hook_deadline_s=0.5)


def test_one_port_for_two_listeners_is_refused_unless_the_system_chooses() -> None:
    same = endpoint("127.0.0.1", 8080)
    with pytest.raises(ValueError, match="--admin"):
        Settings(listen=same, admin=same)
    free = endpoint("127.0.0.1", 0)
    assert Settings(listen=free, admin=free).admin.port == 0


def test_answers_for_one_name_that_dial_different_ports_are_refused() -> None:
    pins = tuple(map(parse_resolve, ["a.example.com:443:10.0.0.1", "a.example.com:443:10.0.0.2:1"]))
    with pytest.raises(ValueError, match="different ports"):
        Settings(resolve=pins)


def test_the_state_directory_names_every_place() -> None:
    knobs = replace(Settings(), state=Path("/var/lib/tollkeeper"))
    places = {
        knobs.ca_folder: "ca",
        knobs.log_folder: "log",
        knobs.policy_archive: "policies",
        knobs.credentials_file: "credentials.json",
        knobs.control_socket: "control.sock",
        knobs.admin_token_file: "admin.token",
    }
    for place, name in places.items():
        assert place == Path("/var/lib/tollkeeper") / name


def shown(value: object) -> str:
    """A default as docs/settings.md writes it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_knob_is_documented_with_its_default_and_a_reason() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in DOCS.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    documented = {row[0].strip("`"): (row[1].strip("`"), row[-1]) for row in rows}
    expected = {knob.name: shown(knob.default) for knob in fields(Settings)}
    assert {name: default for name, (default, _) in documented.items()} == expected
    assert all(len(reason) > 10 for _, reason in documented.values())
