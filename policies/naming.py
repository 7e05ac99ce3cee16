"""Who is named where: undefined, unused and doubly claimed names (AP101, AP102, AP103). PURE.

It reads the trees, not the sections, so that a rule with a fault elsewhere still counts as using
what it names, and an agent with a fault still exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from policies.draft import Draft, Part
from policies.findings import find
from policies.model import Finding
from policies.node import Node
from policies.rule import Network
from policies.schema import AgentSection, BudgetSection, RuleSection, Section
from policies.values import spell_network, suggest


@dataclass(slots=True)
class _Uses:
    """Names in rules and budgets, in the order met."""

    agents: dict[str, None] = field(default_factory=dict)
    groups: dict[str, None] = field(default_factory=dict)
    rates: dict[str, None] = field(default_factory=dict)


def check_names(draft: Draft) -> list[Finding]:
    """Every finding about names. Nothing is undefined or unused while a file is unreadable."""
    findings = [
        *_check_unique(draft.rules, "rule"),
        *_check_unique(draft.agents, "agent"),
        *_check_unique(draft.rates, "rate"),
        *_check_unique(draft.budgets, "budget"),
        *_check_sources(draft.agents),
    ]
    if draft.whole:
        findings += _check_uses(draft)
    return findings


def _check_unique[S: Section](parts: list[Part[S]], noun: str) -> Iterator[Finding]:
    first: dict[str, Part[S]] = {}
    for part in parts:
        known = first.setdefault(part.id, part)
        if part.id and known is not part:
            message = f"duplicate {noun} `{part.id}`, first given in {known.file}:{known.place[0]}"
            hint = f"give this {noun} another name"
            yield find(
                "AP103", part.file, part.place, message, hint, part.id if noun == "rule" else ""
            )


def _check_sources(agents: list[Part[AgentSection]]) -> Iterator[Finding]:
    """One address must lead to one agent. Sorted by first address, overlaps are neighbours."""
    claims: list[tuple[int, int, int, Network, Part[AgentSection]]] = []
    for part in agents:
        identity = part.section.identity if part.section else None
        for source in identity.source if identity else ():
            low, high = int(source.network_address), int(source.broadcast_address)
            claims.append((source.version, low, -high, source, part))
    claims.sort(key=lambda claim: claim[:3])
    widest: tuple[int, int, int, Network, Part[AgentSection]] | None = None
    for claim in claims:
        version, low, high, source, part = claim
        if widest and widest[0] == version and low <= -widest[2]:
            other = widest[4]
            if other.id != part.id:
                later, earlier = (part, other) if part.place >= other.place else (other, part)
                message = (
                    f"agents `{earlier.id}` and `{later.id}` claim the same source: "
                    f"`{spell_network(source)}` lies in `{spell_network(widest[3])}`"
                )
                hint = "one address must lead to one agent; narrow one of them"
                yield find("AP103", later.file, later.place, message, hint)
        if widest is None or widest[0] != version or -high > -widest[2]:
            widest = claim


def _check_uses(draft: Draft) -> Iterator[Finding]:
    agents = {part.id for part in draft.agents}
    rates = {part.id for part in draft.rates}
    members: dict[str, tuple[Part[AgentSection], Node]] = {}
    for part in draft.agents:
        groups = part.node.get("groups")
        for node in groups.texts() if groups else []:
            members.setdefault(node.text, (part, node))
    uses, groups_known = _Uses(), set(members)
    selecting: tuple[Part[RuleSection] | Part[BudgetSection], ...]
    selecting = (*draft.rules, *draft.budgets)
    for user in selecting:
        who, obligations = user.node.get("who"), user.node.get("with")
        for holder, key, noun, known, used in (
            (who, "agents", "agent", agents, uses.agents),
            (who, "groups", "group", groups_known, uses.groups),
            (obligations, "rate", "rate", rates, uses.rates),
        ):
            named = holder.get(key) if holder else None
            for node in named.texts() if named else []:
                used[node.text] = None
                if node.text not in known:
                    rule_id = user.id if user.kind == "rules" else ""
                    yield _undefined(user.file, rule_id, node, noun, known)
    yield from _check_kept(draft)
    for budget in draft.budgets:
        if _is_nobody(budget.node.get("who"), agents):
            message = f"budget `{budget.id}` is for no agent"
            hint = "name agents or groups under `who`, or delete it"
            yield find("AP102", budget.file, budget.place, message, hint)
    for rate in draft.rates:
        if rate.id not in uses.rates:
            message = f"rate `{rate.id}` is not used by any rule"
            hint = f"write `with: {{ rate: {rate.id} }}` in a rule, or delete it"
            yield find("AP102", rate.file, rate.place, message, hint)
    for group, (part, node) in members.items():
        if group not in uses.groups:
            message, hint = f"group `{group}` is not named by any rule", "use it, or delete it"
            yield find("AP102", part.file, (node.line, node.column), message, hint)


def _check_kept(draft: Draft) -> Iterator[Finding]:
    """Rules that quarantine keeps must exist."""
    rules = {part.id for part in draft.rules}
    quarantine = draft.main.get("quarantine") if draft.main else None
    kept = quarantine.get("keep_rules") if quarantine else None
    for node in kept.texts() if kept else []:
        if node.text not in rules:
            yield _undefined(draft.main_file, "", node, "rule", rules)


def _is_nobody(who: Node | None, agents: set[str]) -> bool:
    """Whether nobody is meant; a name that is undefined is reported where it stands."""
    if who is None:
        return not agents
    named = [who.get(key) for key in ("agents", "groups")]
    return who.kind == "map" and not any(node.texts() for node in named if node)


def _undefined(file: str, rule: str, node: Node, noun: str, known: set[str]) -> Finding:
    message = f"there is no {noun} `{node.text}`"
    listed = ", ".join(f"`{name}`" for name in sorted(known)[:10])
    where = {
        "agent": "`agents:`",
        "rate": "`rates:`",
        "rule": "`rules:`",
        "group": "`groups:` of some agent",
    }[noun]
    hint = suggest(node.text, known) or (
        f"known: {listed}" if listed else f"define it under {where}"
    )
    return find("AP101", file, (node.line, node.column), message, hint, rule)
