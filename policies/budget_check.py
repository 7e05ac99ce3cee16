"""What is wrong or suspicious about budgets that the schema accepts. PURE.

    AP007, AP204 says nothing       AP603 no budget reaches an agent
    AP604 no room for one request   AP605 a halt, and a window that refills
    AP610 an account for each session of an agent that has none

Rule 1: AP603 speaks only where the file has budgets: who uses none is not told to.
Rule 2: a limit of 0 is legal and denies all; nobody is warned of it.
Rule 3: rules are sorted by need once, and agents are walked only for a limit that some rule
        exceeds: a clean file costs one pass over each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from policies.draft import Draft, Part
from policies.findings import find
from policies.model import Finding, Verdict
from policies.policy_set import reaches
from policies.problems import KeyPath, locate
from policies.rule import Agent, Budget, Rule, Who
from policies.schema import BudgetSection

type Judged = tuple[Budget, Part[BudgetSection]]

_NAMES_MAX = 5

# what one request of a rule may take of a unit; None: the rule does not say
_NEEDS: dict[str, tuple[str, Callable[[Rule], int | None]]] = {
    "steps": ("cost.steps", lambda rule: rule.cost.steps),
    "effort": ("cost.effort", lambda rule: rule.cost.effort),
    "risk": ("cost.risk", lambda rule: rule.cost.risk),
    "bytes_out": ("with.max_request", lambda rule: rule.with_.max_request_bytes),
    "bytes_in": ("with.max_response", lambda rule: rule.with_.max_response_bytes),
}


@dataclass(frozen=True, slots=True)
class _Reach:
    """The agents that somebody's `who` means, and the groups they are in."""

    agents: frozenset[str]
    groups: frozenset[str]

    def meets(self, who: Who | None) -> bool:
        if who is None:
            return bool(self.agents)
        return not (self.agents.isdisjoint(who.agents) and self.groups.isdisjoint(who.groups))


def check_budgets(
    draft: Draft, budgets: Sequence[Judged], agents: Sequence[Agent], rules: Sequence[Rule]
) -> list[Finding]:
    """Every finding about budgets. `rules` are those that the schema accepts."""
    if not budgets:
        return []
    allows = [rule for rule in rules if rule.verdict is Verdict.ALLOW and not rule.shadow]
    findings: list[Finding] = []
    sourced = [agent for agent in agents if agent.sources]
    for budget, part in budgets:
        findings += _check_shape(part)
        findings += _check_sessions(budget, part, sourced)
        findings += _check_halts(part)
    findings += _check_room(budgets, agents, allows)
    whole = draft.whole and all(
        len(read) == len(parts)
        for read, parts in (
            (budgets, draft.budgets), (agents, draft.agents), (rules, draft.rules)
        )
    )  # fmt: skip
    if whole:
        findings += _check_agents(draft, budgets, agents, allows)
    return findings


def _report(
    code: str, part: Part[BudgetSection], path: KeyPath, message: str, hint: str
) -> Finding:
    _, place, _ = locate(part.node, path)
    return find(code, part.file, place, message, hint)


def _check_shape(part: Part[BudgetSection]) -> Iterator[Finding]:
    limits, thresholds = part.node.get("limits"), part.node.get("at")
    if limits and not limits.pairs:
        hint = "write `limits: { requests: 1000 }`, or delete the budget"
        message = f"budget `{part.id}` has no limits"
        yield _report("AP007", part, ("limits",), message, hint)
    if thresholds and thresholds.kind == "list" and not thresholds.items:
        hint = "list at least one, or delete the key"
        yield _report("AP204", part, ("at",), "an empty `at` never happens", hint)


def _check_sessions(
    budget: Budget, part: Part[BudgetSection], sourced: Iterable[Agent]
) -> Iterator[Finding]:
    if budget.each != "session":
        return
    reached = [one.id for one in sourced if reaches(budget.who, one)]
    if reached:
        message = (
            f"budget `{budget.id}` is for each session and reaches {_list_agents(reached)}, "
            "known by source address and without sessions"
        )
        hint = "write `each: agent`, or leave them out with `who`"
        yield _report("AP610", part, ("each",), message, hint)


def _list_agents(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:_NAMES_MAX])
    more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
    return f"agent{'s'[: len(names) != 1]} {shown}{more}"


def _check_halts(part: Part[BudgetSection]) -> Iterator[Finding]:
    window = part.node.get("window")
    for index, threshold in enumerate((part.section.at if part.section else None) or ()):
        if window and threshold.do == "halt":
            message = (
                f"`do: halt` is for good, and the window `{window.text}` fills the budget again"
            )
            hint = "leave one of them out; without a halt requests are denied until the next window"
            yield _report("AP605", part, ("at", index, "do"), message, hint)


def _check_room(
    budgets: Sequence[Judged], agents: Sequence[Agent], allows: Sequence[Rule]
) -> Iterator[Finding]:
    """AP604: per limit the rule that needs most of it, of those that the same agents may use."""
    hungriest = {unit: _sort_by_need(allows, need) for unit, (_, need) in _NEEDS.items()}
    for budget, part in budgets:
        reach: _Reach | None = None
        for unit, limit in budget.limits:
            for needed, rule in hungriest.get(unit, ()) if limit else ():
                if needed <= limit:
                    break
                reach = reach or _resolve(budget.who, agents)
                if reach.meets(rule.who):
                    yield _report_room(part, unit, rule)
                    break


def _sort_by_need(
    rules: Iterable[Rule], need: Callable[[Rule], int | None]
) -> list[tuple[int, Rule]]:
    needs = [(need(rule) or 0, rule) for rule in rules]
    return sorted(needs, key=lambda one: (-one[0], one[1].id))


def _resolve(who: Who | None, agents: Iterable[Agent]) -> _Reach:
    reached = [agent for agent in agents if reaches(who, agent)]
    groups = frozenset(group for agent in reached for group in agent.groups)
    return _Reach(frozenset(agent.id for agent in reached), groups)


def _report_room(part: Part[BudgetSection], unit: str, rule: Rule) -> Finding:
    said, need = _NEEDS[unit]
    written = locate(part.node, ("limits", unit))[0].text
    amount = f"{need(rule)} bytes" if unit.startswith("bytes") else f"{need(rule)}"
    message = (
        f"`{unit}: {written}` is too little for one request of rule `{rule.id}`, "
        f"which may take {amount}"
    )
    hint = f"raise the limit, or lower `{said}` of the rule; 0 denies all on purpose"
    return _report("AP604", part, ("limits", unit), message, hint)


def _check_agents(
    draft: Draft, budgets: Sequence[Judged], agents: Sequence[Agent], allows: Iterable[Rule]
) -> Iterator[Finding]:
    """AP603: rules allow it something, and no budget bounds it."""
    allowed = _join_selectors(rule.who for rule in allows)
    bounded = _join_selectors(budget.who for budget, _ in budgets)
    for agent, part in zip(agents, draft.agents, strict=True):
        if reaches(allowed, agent) and not reaches(bounded, agent):
            message = f"agent `{agent.id}` may call and no budget reaches it"
            hint = "name it in the `who` of a budget; a budget without `who` is for every agent"
            yield find("AP603", part.file, part.place, message, hint)


def _join_selectors(selectors: Iterable[Who | None]) -> Who | None:
    agents: set[str] = set()
    groups: set[str] = set()
    for who in selectors:
        if who is None:
            return None
        agents |= who.agents
        groups |= who.groups
    return Who(frozenset(agents), frozenset(groups))
