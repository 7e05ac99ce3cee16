"""All files of a policy, read against the schema: the parts, each with its place. PURE.

    Loaded (trees) --read_draft--> Draft (agents, rates, budgets, rules as sections) + findings

Rule 1: every part is read on its own, so that one broken rule does not hide the faults of others.
Rule 2: `name:`, `defaults:` and `quarantine:` are the main file's: a fragment cannot change the
        mode of the whole, nor let more through in quarantine.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.findings import find
from policies.model import Finding
from policies.node import Node, plain
from policies.problems import describe_place, name_kind, word, word_empty
from policies.schema import (
    AgentSection,
    BudgetSection,
    PolicyFile,
    RateSection,
    RuleSection,
    Section,
    validate,
)
from policies.sources import Loaded, Source
from policies.values import Unfit, read_id

_NAMED = ("agents", "rates", "budgets")  # maps whose keys are names
_MAY_BE_EMPTY = ("include", "defaults", "rules", "quarantine", *_NAMED)  # `rules:` denies all
_MAIN_FILE_ONLY = ("name", "defaults", "quarantine")

type _Kind = Literal["agents", "rates", "budgets"]


@dataclass(frozen=True, slots=True)
class Part[S: Section]:
    """One agent, rate, budget or rule. `section` is None where the schema refused it."""

    kind: _Kind | Literal["rules"]
    id: str  # "" where it has none that can be read
    file: str
    place: tuple[int, int]  # of its name
    node: Node
    section: S | None


@dataclass(slots=True)
class Draft:
    """What all files say together. `whole` is False where a file could not be read as YAML."""

    whole: bool
    header: PolicyFile | None = None
    main: Node | None = None
    main_file: str = ""
    agents: list[Part[AgentSection]] = field(default_factory=list)
    rates: list[Part[RateSection]] = field(default_factory=list)
    budgets: list[Part[BudgetSection]] = field(default_factory=list)
    rules: list[Part[RuleSection]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def read_draft(loaded: Loaded) -> Draft:
    """Every part of every file, and every finding of reading them."""
    draft = Draft(whole=all(source.root is not None for source in loaded.sources))
    draft.findings += loaded.findings
    for index, source in enumerate(loaded.sources):
        if source.root is not None:
            _read_file(draft, source, source.root, main=index == 0)
    return draft


def _read_file(draft: Draft, source: Source, root: Node, *, main: bool) -> None:
    name = source.name
    if root.kind != "map":
        if root.kind != "broken":
            message = f"expected keys such as `version:` and `rules:`, not {name_kind(root)}"
            place, hint = (root.line, root.column), "write `version: 1`, with a space after `:`"
            draft.findings.append(find("AP007", name, place, message, hint))
        return
    head = _read_head(draft, source, root, main=main)
    if main:
        draft.header, draft.main, draft.main_file = head, root, name
    draft.agents += _read_named(draft, "agents", AgentSection, name, root.get("agents"))
    draft.rates += _read_named(draft, "rates", RateSection, name, root.get("rates"))
    draft.budgets += _read_named(draft, "budgets", BudgetSection, name, root.get("budgets"))
    rules = root.get("rules")
    for node in rules.items if rules else []:
        draft.rules.append(_read_rule(draft, name, node))


def _read_head(draft: Draft, source: Source, root: Node, *, main: bool) -> PolicyFile | None:
    """The keys of the file itself; the parts below them are read one by one."""
    shallow: dict[str, Any] = {}
    empty: list[tuple[str, Node]] = []
    for key, node in root.pairs.items():
        if node.kind == "null" and key in _MAY_BE_EMPTY:
            continue
        if not main and key in _MAIN_FILE_ONLY:
            hint = f"move `{key}:` to the main file"
            message = f"unknown key `{key}` in an included file"
            draft.findings.append(find("AP006", source.name, root.keys[key], message, hint))
        elif (key in _NAMED and node.kind == "map") or (key == "rules" and node.kind == "list"):
            continue
        elif node.kind == "null":
            empty.append((key, node))
            node.kind = "broken"
        else:
            shallow[key] = plain(node, empty)
    _report_empty(draft, empty, source.name, "")
    model, refusals = validate(PolicyFile, shallow)
    for refused in refusals:
        finding = word(refused, root, source.name, PolicyFile, "", "")
        if finding:
            draft.findings.append(finding)
    return model


def _report_empty(
    draft: Draft,
    empty: list[tuple[str, Node]],
    file: str,
    rule: str,
    limits: Node | None = None,
) -> None:
    """`limits`: the map whose values are limits, of which a missing one has a code of its own."""
    for key, node in empty:
        code = "AP609" if limits and limits.get(key) is node else "AP007"
        draft.findings.append(word_empty(key, (node.line, node.column), file, rule, code))


def _read_section[S: Section](
    draft: Draft, section: type[S], file: str, node: Node, where: str, rule: str
) -> S | None:
    empty: list[tuple[str, Node]] = []
    value = plain(node, empty)
    limits = node.get("limits") if section is BudgetSection else None
    _report_empty(draft, empty, file, rule, limits)
    model, refusals = validate(section, value)
    for refused in refusals:
        finding = word(refused, node, file, section, where, rule)
        if finding:
            draft.findings.append(finding)
    return model


def _read_named[S: Section](
    draft: Draft,
    kind: _Kind,
    section: type[S],
    file: str,
    holder: Node | None,
) -> Iterator[Part[S]]:
    """The parts below `agents:`, `rates:` or `budgets:`, where the key is the name."""
    for key, node in holder.pairs.items() if holder else ():
        place = holder.keys[key] if holder else (1, 1)
        try:
            read_id(key)
        except Unfit as unfit:
            draft.findings.append(find(unfit.code, file, place, unfit.message, unfit.hint))
        if node.kind != "null":
            where = describe_place(kind, key)
            model = _read_section(draft, section, file, node, where, "")
            yield Part(kind, key, file, place, node, model)
            continue
        message = f"`{key}` has no value"
        hint = f"write `{key}: {{}}` for an agent with nothing to say" if kind == "agents" else ""
        draft.findings.append(find("AP007", file, place, message, hint))
        yield Part(kind, key, file, place, node, None)


def _read_rule(draft: Draft, file: str, node: Node) -> Part[RuleSection]:
    at = node.get("id")
    id_ = at.text if at and at.kind in {"str", "int"} else ""
    place = (at.line, at.column) if at else (node.line, node.column)
    if node.kind == "null":
        _report_empty(draft, [("", node)], file, "")
        return Part("rules", "", file, place, node, None)
    where = describe_place("rules", id_)
    model = _read_section(draft, RuleSection, file, node, where, id_)
    return Part("rules", id_, file, place, node, model)
