"""Short ways to write compiled rules, policy sets and requests."""

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from policies.engine import decide
from policies.model import Address, Decision, Principal, Request, Verdict
from policies.pattern import BadPattern, parse_host, parse_path
from policies.policy_set import PolicySet, build
from policies.rule import Agent, Budget, Defaults, Match, Rate, Rule

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PUBLIC: tuple[Address, ...] = (ip_address("93.184.216.34"),)
CODER = Principal("coder", "s-1", "203.0.113.9")
AGENTS = (Agent("coder", frozenset({"team"})), Agent("reviewer"))


def match(hosts: str = "", paths: str = "", methods: str = "", **fields: Any) -> Match:
    """A Match from space-separated patterns; "" is any."""
    return Match(
        hosts=tuple(map(parsed_host, hosts.split())) or None,
        paths=tuple(map(parsed_path, paths.split())) or None,
        methods=frozenset(methods.split()) or None,
        **fields,
    )


def parsed_host(text: str) -> Any:
    """A host pattern that must be good."""
    return _good(parse_host(text))


def parsed_path(text: str) -> Any:
    """A path pattern that must be good."""
    return _good(parse_path(text))


def allow(
    rule_id: str, hosts: str = "a.com", paths: str = "", methods: str = "", **rest: Any
) -> Rule:
    """An allow as compile.py writes it: https and 443 unless said otherwise."""
    fields = {"schemes": frozenset({"https"}), "ports": frozenset({443})} | rest.pop("fields", {})
    return Rule(rule_id, Verdict.ALLOW, match(hosts, paths, methods, **fields), **rest)


def deny(rule_id: str, hosts: str = "", paths: str = "", methods: str = "", **rest: Any) -> Rule:
    """A deny: what it does not name is any."""
    return Rule(
        rule_id, Verdict.DENY, match(hosts, paths, methods, **rest.pop("fields", {})), **rest
    )


def policy(
    *rules: Rule,
    rates: tuple[Rate, ...] = (),
    budgets: tuple[Budget, ...] = (),
    keep_rules: frozenset[str] = frozenset(),
    **defaults: Any,
) -> PolicySet:
    """A policy set with the agents `coder` (group `team`) and `reviewer`."""
    settings = Defaults(**defaults)
    return build(
        rules, AGENTS, rates, settings, "d1g3st", "test", budgets=budgets, keep_rules=keep_rules
    )


def get(path: str = "/", host: str = "a.com", **fields: Any) -> Request:
    """GET https://a.com/ with changes."""
    return replace(Request("https", host, 443, "GET", path), **fields)


def ask(
    request: Request, policy_set: PolicySet, *addresses: str, observe: bool = False
) -> Decision:
    """Decide for `coder` now; no addresses: one public one."""
    resolved = tuple(map(ip_address, addresses)) or PUBLIC
    return decide(request, CODER, policy_set, addresses=resolved, now=NOW, observe=observe)


def _good(pattern: Any) -> Any:
    if isinstance(pattern, BadPattern):
        raise TypeError(pattern.message)
    return pattern
