"""What the schema refuses -> findings with a place, our words and a way out. PURE.

Rule 1: the place of an unknown key is the key, of a missing key the map it is missing from, of a
        bad value the value.
Rule 2: an unknown key gets the nearest known one, or where the key belongs, or the known keys.
"""

from policies.findings import find
from policies.model import Finding
from policies.node import Node
from policies.schema import SECTIONS, Refused, Section, keys_of
from policies.values import show, suggest

type KeyPath = tuple[str | int, ...]

# words that authors of other proxies bring along
_OTHER_WORDS = {
    "action": "did you mean `verdict`?",
    "effect": "did you mean `verdict`?",
    "decision": "did you mean `verdict`?",
    "allow": "did you mean `verdict: allow`?",
    "deny": "did you mean `verdict: deny`?",
    "domain": "did you mean `host`?",
    "domains": "did you mean `host`?",
    "host_suffix": "did you mean `host`? a leading `*.` matches subdomains",
    "url": "did you mean `host`? a `path` is a key of its own",
    "urls": "did you mean `host`? a `path` is a key of its own",
    "ip": "did you mean `dest_ip`?",
    "cidr": "did you mean `dest_ip`?",
    "agent": "did you mean `agents`?",
    "except": "did you mean `unless`?",
    "limits": "did you mean `with`?",
    "rate_limit": "did you mean `rate`, below `with`?",
    "quota": "did you mean `budgets`?",
    "quotas": "did you mean `budgets`?",
    "period": "did you mean `window`?",
    "reset": "did you mean `window`?",
    "threshold": "did you mean `reached`?",
    "then": "did you mean `do`?",
    "timeout": "did you mean `wall_time`?",
    "keep": "did you mean `keep_rules`?",
}
_NOUNS = {"rules": "rule", "agents": "agent", "rates": "rate", "budgets": "budget"}


def locate(node: Node, path: KeyPath) -> tuple[Node, tuple[int, int], bool]:
    """The deepest node on `path`, the place of its key (or its own), and whether it was reached.

    A list index on a scalar stays on the scalar: a scalar is a list of one.
    """
    place = (node.line, node.column)
    for step in path:
        if isinstance(step, int):
            if node.kind == "list" and step < len(node.items):
                node = node.items[step]
                place = (node.line, node.column)
        elif step in node.pairs:
            place = node.keys[step]
            node = node.pairs[step]
        else:
            return node, place, False
    return node, place, True


def word(
    refused: Refused, node: Node, file: str, section: type[Section], where: str, rule: str
) -> Finding | None:
    """The finding for one refusal below `node`, or None where the file reader reported it before.

    `where` ends the message, such as ` in rule `read-docs``; `rule` is the rule's id.
    """
    found, key_place, _ = locate(node, refused.path)
    value_place = (found.line, found.column)
    if refused.kind == "unknown-key":
        key = str(refused.path[-1])
        hint = advise(key, section_at(section, refused.path[:-1]))
        return find("AP006", file, key_place, f"unknown key `{key}`{where}", hint, rule)
    if found.kind == "broken" or (refused.kind == "missing-key" and found.partial):
        return None
    if refused.kind == "missing-key":
        message = f"`{refused.path[-1]}` is missing{where}"
        return find(
            "AP007", file, value_place, message, _MISSING.get(str(refused.path[-1]), ""), rule
        )
    key = next((str(step) for step in reversed(refused.path) if isinstance(step, str)), "")
    prefix = f"`{key}`: " if key else ""
    if refused.kind == "unfit":
        known = refused.message.startswith("expected")
        message = prefix + refused.message if known else refused.message
        return find(refused.code, file, value_place, message, refused.hint, rule)
    shape = (
        "a map of `key: value`" if refused.kind == "not-a-map" else "a list, each entry with `- `"
    )
    message = f"{prefix}expected {shape}, not {name_kind(found)}"
    return find("AP007", file, value_place, message, "", rule)


_MISSING = {
    "version": "write `version: 1` at the top of every policy file",
    "verdict": "write `verdict: allow` or `verdict: deny`",
    "id": "give the rule a name, such as `id: read-docs`",
    "source": "write `source: 10.1.2.0/24`, or leave `identity` out",
    "each": "write `each: agent`",
    "allow": "write `allow: 60` and `per: 1m`",
    "per": "write `per: 1m`",
    "limits": "write `limits: { requests: 1000 }`",
    "reached": "write `reached: 80%`",
    "do": "write `do: warn`, `do: quarantine` or `do: halt`",
}


def name_kind(node: Node) -> str:
    """What stands there, for a message."""
    if node.kind == "map":
        return "a map"
    return "a list" if node.kind == "list" else show(node.text)


def section_at(section: type[Section], path: KeyPath) -> type[Section]:
    """The section that the map at `path` below `section` is read as."""
    for step in reversed(path):
        if isinstance(step, str) and step in SECTIONS:
            return SECTIONS[step]
    return section


def advise(key: str, section: type[Section]) -> str:
    """The hint for an unknown key of `section`."""
    known = keys_of(section)
    if key in _OTHER_WORDS:
        meant = _OTHER_WORDS[key]
        if meant.split("`")[1].partition(":")[0] in known:
            return meant
    parts = ("match", "with", "when", "who", "cost", "limits")
    homes = [name for name in parts if name in known and key in keys_of(SECTIONS[name])]
    if homes:
        return f"`{key}` belongs below `{homes[0]}:`"
    near = suggest(key, known)
    if near:
        return near
    if key in keys_of(SECTIONS[""]):
        return f"`{key}` belongs at the top level of the file"
    return f"known here: {', '.join(known)}"


def word_empty(
    key: str, place: tuple[int, int], file: str, rule: str, code: str = "AP007"
) -> Finding:
    """The finding for a key or list item without a value."""
    what = f"`{key}` has no value" if key else "an empty list item"
    nothing = ", 0 for nothing at all," if code == "AP609" else ","
    hint = f"write a value{nothing} or delete the line"
    return find(code, file, place, what, hint, rule)


def describe_place(kind: str, name: str) -> str:
    """` in rule `x`` for a message; "" where there is no name."""
    return f" in {_NOUNS[kind]} `{name}`" if name else ""
