"""Who a caller is; and that a wrong token never falls back to the source."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Principal
from policies.rule import Agent
from proxy.identity import CredentialStore, IdentityRefusal, identify

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Agents:
    agents: dict[str, Agent] = field(default_factory=dict)


def by_source(name: str, *ranges: str) -> Agent:
    return Agent(name, sources=tuple(ip_network(text) for text in ranges))


POLICY = Agents({
    "coder": Agent("coder"),
    "local": by_source("local", "127.0.0.0/8", "::1/128"),
    "office": by_source("office", "10.1.0.0/16", "fd00:1::/32"),
})  # fmt: skip


def basic(name: str, token: str, scheme: str = "Basic") -> bytes:
    return f"{scheme} ".encode() + base64.b64encode(f"{name}:{token}".encode())


@pytest.fixture
def store(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "credentials.json")


def test_a_right_token_is_a_principal_with_its_session(store: CredentialStore) -> None:
    issued = store.add("coder", now=NOW)
    caller = identify(basic("coder", issued.token), "203.0.113.9", POLICY, store, NOW)
    assert caller == Principal("coder", issued.credential.session, "203.0.113.9")


def test_the_scheme_is_read_in_any_case(store: CredentialStore) -> None:
    issued = store.add("coder", now=NOW)
    value = basic("coder", issued.token, scheme="bAsIc")
    assert isinstance(identify(value, "203.0.113.9", POLICY, store, NOW), Principal)


def test_a_token_outlives_the_policy_that_forgot_its_agent(store: CredentialStore) -> None:
    issued = store.add("gone", now=NOW)
    caller = identify(basic("gone", issued.token), "203.0.113.9", POLICY, store, NOW)
    assert isinstance(caller, Principal)  # the engine refuses it: agent-unknown


def test_expired_and_revoked_tokens_are_told_apart(store: CredentialStore) -> None:
    issued = store.add("coder", now=NOW, expires=NOW + timedelta(hours=1))
    value = basic("coder", issued.token)
    later = NOW + timedelta(hours=1)
    assert identify(value, "10.1.0.1", POLICY, store, later) == IdentityRefusal(
        "credential-expired"
    )
    store.revoke("coder", now=NOW)
    assert identify(value, "10.1.0.1", POLICY, store, NOW) == IdentityRefusal("credential-revoked")


WRONG = {
    "empty": b"",
    "no scheme": b"Y29kZXI6dGs=",
    "only the scheme": b"Basic",
    "Bearer": b"Bearer tk_abc",
    "not base64": b"Basic !!!!",
    "broken padding": b"Basic Y29kZXI6dGs",
    "two spaces": b"Basic  Y29kZXI6dGs=",
    "a tab": b"Basic\tY29kZXI6dGs=",
    "surplus after it": b"Basic Y29kZXI6dGs= x",
    "two of them": b"Basic Y29kZXI6dGs=, Basic Y29kZXI6dGs=",
    "no colon": b"Basic " + base64.b64encode(b"coder"),
    "no name": b"Basic " + base64.b64encode(b":tk_x"),
    "no token": b"Basic " + base64.b64encode(b"coder:"),
    "not ASCII": b"Basic " + base64.b64encode("cöder:tk_x".encode()),
    "a wrong token": basic("coder", "tk_wrong"),
    "an unknown agent": basic("nobody", "tk_wrong"),
    "raw bytes": b"\xff\x00\r\n",
    "too long": basic("coder", "x" * 600),
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_what_was_presented_and_is_wrong_never_falls_back_to_the_source(
    store: CredentialStore, value: bytes
) -> None:
    store.add("coder", now=NOW)
    refusal = identify(value, "127.0.0.1", POLICY, store, NOW)
    assert isinstance(refusal, IdentityRefusal)
    assert refusal.reason == "credential-wrong"
    assert "tk_" not in refusal.detail


def test_a_token_does_not_lift_the_range_of_an_agent_known_by_source(
    store: CredentialStore,
) -> None:
    issued = store.add("office", now=NOW)
    for source in ("203.0.113.9", "10.1.2.3"):
        refusal = identify(basic("office", issued.token), source, POLICY, store, NOW)
        assert isinstance(refusal, IdentityRefusal)
        assert refusal.reason == "credential-wrong"


SOURCES = {
    "loopback": ("127.0.0.1", "local", "127.0.0.1"),
    "loopback in IPv6": ("::1", "local", "::1"),
    "IPv4 in IPv6": ("::ffff:127.0.0.1", "local", "127.0.0.1"),
    "IPv4 in IPv6, hexadecimal": ("::ffff:7f00:1", "local", "127.0.0.1"),
    "a range": ("10.1.255.255", "office", "10.1.255.255"),
    "a range in IPv6": ("fd00:1::7", "office", "fd00:1::7"),
    "a zone": ("fd00:1::7%eth0", "office", "fd00:1::7"),
    "just outside": ("10.2.0.0", None, ""),
    "elsewhere": ("203.0.113.9", None, ""),
    "no address": ("", None, ""),
    "a name": ("localhost", None, ""),
}


@pytest.mark.parametrize(("source", "agent", "client"), SOURCES.values(), ids=SOURCES)
def test_without_a_credential_the_source_decides(
    store: CredentialStore, source: str, agent: str | None, client: str
) -> None:
    expected = Principal(agent, "", client) if agent else IdentityRefusal("credential-missing")
    assert identify(None, source, POLICY, store, NOW) == expected


def test_a_source_that_two_agents_claim_is_nobody(store: CredentialStore) -> None:
    policy = Agents({"a": by_source("a", "10.0.0.0/8"), "b": by_source("b", "10.1.0.0/16")})
    refused = IdentityRefusal("credential-missing")
    assert identify(None, "10.1.0.1", policy, store, NOW) == refused
    assert identify(None, "10.2.0.1", policy, store, NOW) == Principal("a", "", "10.2.0.1")


RANGES = st.builds(
    lambda bits, length: ip_network((bits, length), strict=False),
    st.sampled_from([0x0A000001, 0x0A010203, 0x7F000001, 0xFD00_0001 << 96]),
    st.integers(0, 32),
)


@given(
    ranges=st.lists(st.lists(RANGES, max_size=3), max_size=5),
    source=st.sampled_from(["10.0.0.1", "10.1.2.3", "127.0.0.1", "fd00:1::", "::1", "fd00:1::1"]),
)
@settings(max_examples=200, deadline=None)
def test_the_index_of_ranges_agrees_with_asking_each(ranges: list[list[Any]], source: str) -> None:
    agents = {f"a{n}": Agent(f"a{n}", sources=tuple(each)) for n, each in enumerate(ranges)}
    claims = [
        name
        for name, agent in agents.items()
        if any(ip_address(source) in network for network in agent.sources)
    ]
    store = CredentialStore(Path("/nonexistent/credentials.json"))
    caller = identify(None, source, Agents(agents), store, NOW)
    if len(claims) == 1:
        assert caller == Principal(claims[0], "", source)
    else:
        assert caller == IdentityRefusal("credential-missing")


def test_a_new_policy_is_asked_at_once(store: CredentialStore) -> None:
    for name in ("before", "after"):
        caller = identify(
            None, "10.0.0.1", Agents({name: by_source(name, "10.0.0.0/8")}), store, NOW
        )
        assert caller == Principal(name, "", "10.0.0.1")


def test_a_damaged_file_denies_credentials_and_leaves_sources(
    store: CredentialStore, tmp_path: Path
) -> None:
    issued = store.add("coder", now=NOW)
    (tmp_path / "credentials.json").write_text("{")
    refusal = identify(basic("coder", issued.token), "127.0.0.1", POLICY, store, NOW)
    assert isinstance(refusal, IdentityRefusal)
    assert refusal.reason == "internal-error"
    assert "credentials.json" in refusal.detail
    assert isinstance(identify(None, "127.0.0.1", POLICY, store, NOW), Principal)


@given(value=st.binary(max_size=80), source=st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_whatever_is_sent_gives_a_principal_or_a_refusal(value: bytes, source: str) -> None:
    store = CredentialStore(Path("/nonexistent/credentials.json"))
    for authorization in (value, b"Basic " + value, b"Basic " + base64.b64encode(value), None):
        answer = identify(authorization, source, POLICY, store, NOW)
        assert isinstance(answer, IdentityRefusal | Principal)
        assert authorization is None or isinstance(answer, IdentityRefusal)
