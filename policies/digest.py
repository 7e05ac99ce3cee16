"""The digest of a policy: SHA-256 over one canonical text of what was compiled. PURE.

Rule 1: formatting, comments, the order of rules and of list entries do not change it; any change
        of what is enforced, and of the words that people read (`name`, `description`), does.
Rule 2: a field that holds its default is left out, and so is an empty part of the file that version
        1 did not have: a later version of the language gives an old policy its old digest.
Rule 3: the text carries the version of this form; changing the form changes `FORM`.
"""

import json
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from zoneinfo import ZoneInfo

from policies.model import ContractBroken
from policies.rule import Agent, Budget, Defaults, Rate, Rule
from policies.values import spell_network

FORM = "tollkeeper-policy-1"
_PLACE_FIELDS = frozenset({"line"})  # where it was written, not what it says


def compute_digest(
    name: str,
    defaults: Defaults,
    agents: Iterable[Agent],
    rates: Iterable[Rate],
    rules: Iterable[Rule],
    *,
    budgets: Iterable[Budget] = (),
    keep_rules: frozenset[str] = frozenset(),
) -> str:
    """64 lower-case hex digits."""
    content: dict[str, Any] = {
        "form": FORM,
        "name": name,
        "defaults": _spell(defaults),
        "agents": {agent.id: _spell(agent) for agent in agents},
        "rates": {rate.id: _spell(rate) for rate in rates},
        "rules": {rule.id: _spell(rule) for rule in rules},
    }
    later = {  # parts of the file that are younger than this form: see rule 2
        "budgets": {budget.id: _spell(budget) for budget in budgets},
        "keep_rules": sorted(keep_rules),
    }
    content |= {key: held for key, held in later.items() if held}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode("ascii")).hexdigest()


def _spell(value: Any) -> Any:
    """A compiled value as plain JSON. Sets are sorted, tuples keep compile.py's order."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, frozenset):
        return sorted(_spell(item) for item in value)
    if isinstance(value, tuple):
        return [_spell(item) for item in value]
    if isinstance(value, IPv4Network | IPv6Network):
        return spell_network(value)
    if isinstance(value, ZoneInfo):
        return value.key
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if not is_dataclass(value):
        raise ContractBroken(f"the digest has no form for {type(value).__name__}")
    return {
        name: _spell(held)
        for name, default in _fields_of(type(value))
        if (held := getattr(value, name)) != default
    }


_SHAPES: dict[type, tuple[tuple[str, Any], ...]] = {}


def _fields_of(shape: type) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of the fields that count; a field without default has MISSING."""
    known = _SHAPES.get(shape)
    if known is None:
        known = _SHAPES[shape] = tuple(
            (one.name, one.default_factory() if one.default_factory is not MISSING else one.default)
            for one in fields(shape)
            if one.name not in _PLACE_FIELDS
        )
    return known
