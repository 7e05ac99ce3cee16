"""What is legal but suspicious, or can never match, in compiled rules. PURE.

    AP010 look-alike text    AP108 private reach    AP110 `*` inside a segment
    AP204 never matches      AP207 agent without an allow    AP301 see conflict.py

Each check looks at one rule, except AP207 and AP301, which look at all in one pass.
"""

from collections.abc import Iterator, Sequence

from policies.address import classify, classify_range, compile_ranges
from policies.conflict import find_conflicts
from policies.draft import Draft, Part
from policies.findings import find
from policies.host import parse_address
from policies.lookalike import describe_lookalike
from policies.model import Finding, Verdict
from policies.node import Node
from policies.problems import locate
from policies.rule import HostPattern, Match, Network, Rule
from policies.schema import RuleSection
from policies.values import spell_network

type Judged = tuple[Rule, Part[RuleSection]]

_LISTS = ("host", "scheme", "port", "methods", "path", "path_re", "dest_ip")


def check_rules(draft: Draft, judged: Sequence[Judged]) -> list[Finding]:
    """Every finding about rules that the schema accepts."""
    findings = list(_check_names(draft))
    for rule, part in judged:
        findings += _check_rule(rule, part)
    by_id = {rule.id: part for rule, part in judged}
    for conflict in find_conflicts(rule for rule, _ in judged):
        part = by_id[conflict.rule]
        message = (
            f"rules `{conflict.rule}` and `{conflict.other}` give `{conflict.key}` two values, "
            f"`{conflict.value}` and `{conflict.other_value}`, to the same requests"
        )
        hint = "give both the same value, or make one rule more specific"
        findings.append(_report("AP301", part, ("with", conflict.key), message, hint))
    if draft.whole and len(judged) == len(draft.rules):
        findings += _check_agents(draft, judged)
    return findings


def _report(
    code: str, part: Part[RuleSection], path: tuple[str | int, ...], message: str, hint: str
) -> Finding:
    """A finding at the value that `path` leads to."""
    node, place, reached = locate(part.node, path)
    if reached and isinstance(path[-1] if path else 0, int):
        place = (node.line, node.column)
    return find(code, part.file, place, message, hint, part.id)


def _check_rule(rule: Rule, part: Part[RuleSection]) -> Iterator[Finding]:
    yield from _check_empty(rule, part)
    yield from _check_unless(rule, part)
    yield from _check_time(rule, part)
    if rule.verdict is Verdict.ALLOW:
        yield from _check_reach(rule, part)
    yield from _check_segments(part)


def _check_empty(rule: Rule, part: Part[RuleSection]) -> Iterator[Finding]:
    hint = "list at least one, or delete the key"
    for side in ("match", "unless"):
        holder = part.node.get(side)
        for key in _LISTS if holder else ():
            if holder and _is_empty_list(holder.get(key)):
                message = f"an empty `{key}` matches nothing"
                yield _report("AP204", part, (side, key), message, hint)
    if _is_empty_list(_find(part.node, "when", "days")):
        message = "an empty `days` matches no day"
        yield _report("AP204", part, ("when", "days"), message, hint)
    if rule.who is not None and not rule.who.agents and not rule.who.groups:
        hint = "name agents or groups, or delete `who` for all agents"
        yield _report("AP204", part, ("who",), "an empty `who` is nobody", hint)


def _find(node: Node, *path: str) -> Node | None:
    found, _, reached = locate(node, path)
    return found if reached else None


def _is_empty_list(node: Node | None) -> bool:
    return node is not None and node.kind == "list" and not node.items


def _check_unless(rule: Rule, part: Part[RuleSection]) -> Iterator[Finding]:
    if rule.unless is None:
        return
    hosts, excepted = rule.match.hosts, rule.unless.hosts
    only_hosts = Match(hosts=excepted) == rule.unless
    if rule.unless == Match() or (only_hosts and hosts and set(hosts) <= set(excepted or ())):
        hint = "make the exception narrower than the rule"
        message = "`unless` excepts everything, so the rule never matches"
        yield _report("AP204", part, ("unless",), message, hint)


def _check_time(rule: Rule, part: Part[RuleSection]) -> Iterator[Finding]:
    when = rule.when
    if when and when.from_ and when.until and when.from_ >= when.until:
        message, hint = "`until` is not after `from`", "swap them, or correct the dates"
        yield _report("AP204", part, ("when", "until"), message, hint)


def _check_reach(rule: Rule, part: Part[RuleSection]) -> Iterator[Finding]:
    """AP108 for wide or metadata ranges; AP204 for an address that the guard refuses anyway."""
    dest_ip = rule.match.dest_ip
    opened = _find(part.node, "match", "dest_ip")
    section = part.section.match if part.section else None
    for index, entry in enumerate((section.dest_ip if section else None) or ()):
        message = _describe_reach(entry)
        if opened and message:
            hint = "name only the range that is meant"
            yield _report("AP108", part, ("match", "dest_ip", index), message, hint)
    ranges = compile_ranges(dest_ip) if dest_ip else None
    for index, host in enumerate((section.host if section else None) or ()):
        address = parse_address(host.name) if host.kind == "ip" else None
        if address is None or (ranges.cover(address) if ranges else _is_public(host)):
            continue
        hint = f"add `dest_ip: {host.name}` to `match` if this address is meant"
        message = f"the address `{host.name}` is refused unless `dest_ip` names it"
        yield _report("AP204", part, ("match", "host", index), message, hint)


def _is_public(host: HostPattern) -> bool:
    address = parse_address(host.name)
    return address is not None and classify(address) == {"public"}


def _describe_reach(entry: str | Network) -> str:
    if isinstance(entry, str):
        return "this rule can reach cloud metadata services" if entry == "metadata" else ""
    classes = classify_range(entry)
    if "metadata" in classes:
        return f"`{spell_network(entry)}` is a cloud metadata service"
    others = sorted(classes - {"public"})
    if "public" in classes and others:
        listed = ", ".join(others)
        return f"`{spell_network(entry)}` holds public addresses and these: {listed}"
    return ""


def _check_segments(part: Part[RuleSection]) -> Iterator[Finding]:
    section = part.section
    for side in ("match", "unless"):
        half = getattr(section, side)
        for index, path in enumerate((half.path if half else None) or ()):
            last = path.segments[-1] if path.segments and not path.rest else None
            if last and last.kind == "glob" and last.text.endswith("*"):
                stem = last.text[:-1]
                message = f"`{path}` also matches `{str(path)[:-1]}-leak`"
                folder = str(path)[: -len(last.text)] + stem
                hint = f"write `{folder}/**` for everything below `{folder}`"
                yield _report("AP110", part, (side, "path", index), message, hint)


def _check_agents(draft: Draft, judged: Sequence[Judged]) -> Iterator[Finding]:
    """AP207: an agent that no enforced allow rule covers."""
    names: set[str] = set()
    groups: set[str] = set()
    for rule, _ in judged:
        if rule.verdict is Verdict.ALLOW and not rule.shadow:
            if rule.who is None:
                return
            names |= rule.who.agents
            groups |= rule.who.groups
    for agent in draft.agents:
        held = agent.node.get("groups")
        member = {node.text for node in held.texts()} if held else set()
        if agent.id not in names and not member & groups:
            message = f"nothing is allowed for agent `{agent.id}`"
            hint = f"add a rule with `who: {{ agents: {agent.id} }}`, or delete the agent"
            yield find("AP207", agent.file, agent.place, message, hint)


def _check_names(draft: Draft) -> Iterator[Finding]:
    """AP010: text that reads like other text, where a name, host or path is meant."""
    for part in (*draft.agents, *draft.rates, *draft.budgets, *draft.rules):
        found = describe_lookalike(part.id)
        if found:
            hint = "type it again in plain letters"
            yield find("AP010", part.file, part.place, f"`{part.id}` {found}", hint)
    for rule in draft.rules:
        for side in ("match", "unless"):
            for key in ("host", "path"):
                node = _find(rule.node, side, key)
                for text in node.texts() if node else []:
                    found = describe_lookalike(text.text)
                    if found:
                        place, hint = (text.line, text.column), "type it again in plain letters"
                        message = f"`{text.text}` {found}"
                        yield find("AP010", rule.file, place, message, hint, rule.id)
