"""The applied policy as one self-contained file: includes resolved, comments gone. PURE.

It is what `state/policies/<digest>.yaml` holds, so that a record's digest can be turned back into
the rules years later. Rule 1: it compiles to the same digest. Rule 2: one agent, rate, budget and
rule per line, all text in double quotes, so that no reader can take it for anything else.
"""

from collections.abc import Iterable

from policies.draft import Draft, Part
from policies.node import Node
from policies.schema import Section

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def write_archive(draft: Draft, digest: str) -> str:
    """The text for `state/policies/<digest>.yaml`. `draft` has no errors."""
    out = [f"# policy {digest}, as applied; comments and includes are resolved", "version: 1"]
    for key in ("name", "defaults", "quarantine"):
        node = draft.main.get(key) if draft.main else None
        if node is not None and node.kind != "null":
            out.append(f"{key}: {_write(node)}")
    out += _write_named("agents", draft.agents)
    out += _write_named("rates", draft.rates)
    out += _write_named("budgets", draft.budgets)
    out.append("rules:" if draft.rules else "rules: []")
    out += [f"- {_write(part.node)}" for part in draft.rules]
    return "\n".join(out) + "\n"


def _write_named[S: Section](key: str, parts: Iterable[Part[S]]) -> list[str]:
    lines = [f"  {_quote(part.id)}: {_write(part.node)}" for part in parts]
    return [f"{key}:", *lines] if lines else []


def _write(node: Node) -> str:
    if node.kind == "map":
        pairs = (f"{_quote(key)}: {_write(value)}" for key, value in node.pairs.items())
        return "{" + ", ".join(pairs) + "}"
    if node.kind == "list":
        return "[" + ", ".join(_write(item) for item in node.items) + "]"
    return _quote(node.text) if node.kind == "str" else node.text


def _quote(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_escape(mark) for mark in text) + '"'


def _escape(mark: str) -> str:
    if mark in _ESCAPES:
        return _ESCAPES[mark]
    if mark.isprintable():
        return mark
    return f"\\U{ord(mark):08X}"
