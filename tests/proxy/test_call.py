"""How a head is read: what the connection knows rules over what the head says."""

from datetime import UTC, datetime

import pytest

from policies.canonical import RawHead
from policies.model import Principal
from proxy.call import (
    Call,
    Tunnel,
    describe_target,
    find_authorization,
    hide_userinfo,
    read_call,
    sni_matches,
)
from proxy.vocabulary import Stage, Target

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
CALLER = Principal("coder", "s1", "192.0.2.7")
HOST = (b"host", b"api.example.com")


def call(head: RawHead, stage: Stage = Stage.REQUEST, **known: object) -> Call:
    return Call(stage, "192.0.2.7", head, **known)  # type: ignore[arg-type]


def inside(
    target: bytes = b"/a?k=v", *, refusal: str = "", sni: str | None = "api.example.com"
) -> Call:
    tunnel = Tunnel("api.example.com", 443, None, refusal)
    return call(RawHead(b"GET", target, (HOST,)), scheme="https", tunnel=tunnel, sni=sni, tls=True)


def test_a_request_in_a_tunnel_goes_where_the_tunnel_leads() -> None:
    head = read_call(inside(), CALLER, Target("GET"), NOW)
    assert head.refusal == ""
    assert head.request is not None
    assert (head.request.scheme, head.request.host, head.request.port) == (
        "https",
        "api.example.com",
        443,
    )
    assert head.target.query_keys == ("k",)


def test_a_connect_is_read_as_an_authority_and_has_no_request() -> None:
    head = read_call(
        call(RawHead(b"CONNECT", b"API.example.com:443", (HOST,)), Stage.CONNECT),
        CALLER,
        Target("CONNECT"),
        NOW,
    )
    assert (head.target.host, head.target.port, head.request) == ("api.example.com", 443, None)


def test_a_connect_without_a_port_is_refused() -> None:
    asked = call(RawHead(b"CONNECT", b"api.example.com", (HOST,)), Stage.CONNECT)
    assert read_call(asked, CALLER, Target("CONNECT"), NOW).refusal == "host-not-canonical"


def test_what_a_refused_tunnel_carries_is_refused_for_the_same_reason() -> None:
    head = read_call(inside(refusal="host-not-allowed"), CALLER, Target("GET"), NOW)
    assert head.refusal == "host-not-allowed"


SNI = {
    "equal": ("api.example.com", "api.example.com", True),
    "in another case": ("API.Example.com", "api.example.com", True),
    "with its root dot": ("api.example.com.", "api.example.com", True),
    "with two dots": ("api.example.com..", "api.example.com", False),
    "another name": ("evil.example.com", "api.example.com", False),
    "absent for a name": (None, "api.example.com", False),
    "absent for an address": (None, "192.0.2.1", True),
    "absent for an IPv6 address": (None, "2001:db8::1", True),
    "a name for an address": ("api.example.com", "192.0.2.1", False),
    "empty": ("", "api.example.com", False),
}


@pytest.mark.parametrize(("sni", "host", "same"), SNI.values(), ids=SNI)
def test_the_name_in_tls_is_the_tunnel_s_host(sni: str | None, host: str, same: bool) -> None:
    assert sni_matches(sni, host) is same


def test_another_name_in_tls_is_a_mismatch() -> None:
    head = read_call(inside(sni="evil.example.com"), CALLER, Target("GET"), NOW)
    assert head.refusal == "host-mismatch"


def test_two_credentials_are_joined_so_that_neither_counts() -> None:
    fields = ((b"Proxy-Authorization", b"Basic YTpi"), (b"proxy-authorization", b"Basic Yzpk"))
    assert find_authorization(RawHead(b"GET", b"/", fields)) == b"Basic YTpi, Basic Yzpk"
    assert find_authorization(RawHead(b"GET", b"/", (HOST,))) is None


USERINFO = {
    "in a URL": ("http://user:pass@host/", "~@host/"),
    "in a request line": ("GET http://user:pass@host/ HTTP/1.1", "GET ~@host/ HTTP/1.1"),
    "an at sign in a path": ("/users/@me", "/users/@me"),
    "none": ("api.example.com:443", "api.example.com:443"),
}


@pytest.mark.parametrize(("text", "shown"), USERINFO.values(), ids=USERINFO)
def test_user_information_is_hidden_from_the_record(text: str, shown: str) -> None:
    assert hide_userinfo(text) == shown


def test_a_refused_target_is_described_without_its_query() -> None:
    seen = describe_target(call(RawHead(b"G\xe9T", b"/a\xff?secret=1", ())))
    assert (seen.method, seen.path, seen.query_keys) == ("G\xe9T", "/a\xff", ())
