"""Policy files -> one immutable PolicySet and its digest, or every finding at once.

    load -> draft (schema) -> names -> rules (compiled) -> lint -> PolicySet

Rule 1: whole or not at all: one error anywhere rejects the candidate (policy.md 2.7).
Rule 2: defaults of the language are filled in here: an allow that names no scheme and port means
        https on 443; a deny and an `unless` mean any (rule.py, rule 2).
Rule 3: entries of a list are sorted: their order says nothing, so it must not reach the digest.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

from policies.archive import write_archive
from policies.budget import UNITS, Threshold
from policies.budget_check import check_budgets
from policies.digest import compute_digest
from policies.draft import Draft, Part, read_draft
from policies.findings import arrange, find
from policies.lint import check_rules
from policies.model import Finding, PolicyRejected, Scheme, Verdict
from policies.naming import check_names
from policies.policy_set import PolicySet, build
from policies.problems import locate
from policies.rule import (
    Agent,
    Budget,
    Capture,
    Cost,
    Defaults,
    DestIp,
    Match,
    PathParams,
    Predicate,
    Rate,
    Rule,
    Who,
    Window,
    With,
)
from policies.schema import (
    AgentSection,
    BudgetSection,
    CostSection,
    DefaultsSection,
    MatchSection,
    RateSection,
    RuleSection,
    WhenSection,
    WhoSection,
    WithSection,
)
from policies.sources import Loaded, load_file, load_text
from policies.values import Unfit, fix_moment, read_header_name, spell_network


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy that may be applied, with the findings below error."""

    policy_set: PolicySet
    findings: tuple[Finding, ...]
    sources: dict[str, str]  # path as in findings -> text; the main file first, then its includes
    archive: str  # for state/policies/<digest>.yaml


def compile_policy(path: Path) -> Compiled:
    """Read and compile a policy file with everything it includes.

    Raises:
        PolicyUnreadable: a file is missing, unreadable or not UTF-8.
        PolicyRejected: there are errors; it carries all findings and the sources.
    """
    return _compile(load_file(path))


def compile_text(text: str, file: str = "policies.yaml") -> Compiled:
    """Like `compile_policy`, for text that is in no file."""
    return _compile(load_text(text, file))


def _compile(loaded: Loaded) -> Compiled:
    sources = {source.name: source.text for source in loaded.sources}
    draft = read_draft(loaded)
    findings = draft.findings + check_names(draft)
    defaults = _compile_defaults(draft.header.defaults if draft.header else None)
    agents = [_compile_agent(part.id, part.section) for part in draft.agents if part.section]
    rates = [_compile_rate(part.id, part.section) for part in draft.rates if part.section]
    budgets = [
        (_compile_budget(part.id, part.section), part) for part in draft.budgets if part.section
    ]
    zone = ZoneInfo(defaults.timezone)
    judged = []
    for part in draft.rules:
        if part.section:
            findings += _check_rule(part, part.section)
            judged.append((_compile_rule(part, part.section, zone), part))
    findings += check_rules(draft, judged)
    findings += check_budgets(draft, budgets, agents, [rule for rule, _ in judged])
    arranged = arrange(findings)
    if any(finding.severity == "error" for finding in arranged):
        raise PolicyRejected(arranged, sources)
    name = draft.header.name or "" if draft.header else ""
    rules = [rule for rule, _ in judged]
    parts: dict[str, Any] = {
        "name": name,
        "defaults": defaults,
        "agents": agents,
        "rates": rates,
        "rules": rules,
        "budgets": [budget for budget, _ in budgets],
        "keep_rules": _compile_keep_rules(draft),
    }
    digest = compute_digest(**parts)
    policy_set = build(**parts, digest=digest)
    return Compiled(policy_set, arranged, sources, write_archive(draft, digest))


def _check_rule(part: Part[RuleSection], section: RuleSection) -> list[Finding]:
    """What the schema cannot say because it depends on two keys of a rule."""
    findings = []

    def report(code: str, path: tuple[str, ...], message: str, hint: str) -> None:
        _, place, _ = locate(part.node, path)
        findings.append(find(code, part.file, place, message, hint, part.id))

    allow, match = section.verdict == "allow", section.match
    where = ("match",) if match else ()
    whole = not part.node.partial and not locate(part.node, where)[0].partial
    if allow and whole and (match is None or match.host is None):
        hint = "an allow names its hosts, such as `match: { host: api.example.com }`"
        report("AP007", where, f"`host` is missing in rule `{part.id}`", hint)
    if allow and match and match.scheme and "http" in match.scheme and match.port is None:
        hint = "add `port: 80`, or whatever port is meant"
        report("AP007", ("match", "scheme"), "`scheme: http` needs a `port`", hint)
    if not allow and section.cost is not None:
        hint = "remove it; `cost:` is for what is allowed"
        report("AP007", ("cost",), "a deny rule has no cost", hint)
    if not allow and section.with_ is not None:
        hint = "remove it; `with:` is for what is allowed"
        report("AP007", ("with",), "a deny rule has no obligations", hint)
    for key, side in (("match", section.match), ("unless", section.unless)):
        seen: set[str] = set()
        for name in (side.headers or {}) if side else {}:
            try:
                lower = read_header_name(name)
            except Unfit as unfit:
                report(unfit.code, (key, "headers", name), unfit.message, unfit.hint)
                continue
            if lower in seen:
                hint = "header names are the same in upper and lower case"
                report("AP003", (key, "headers", name), f"duplicate header `{lower}`", hint)
            seen.add(lower)
    return findings


def _compile_defaults(section: DefaultsSection | None) -> Defaults:
    plain = Defaults()
    if section is None:
        return plain
    values: dict[str, Any] = {
        "timezone": section.timezone,
        "max_inspect_body_bytes": section.max_inspect_body,
        "explain_denials": section.explain_denials,
        "mode": section.mode,
        "on_bad_reload": section.on_bad_reload,
        "stale_limit_ms": section.stale_limit,
        "cut_on_tighten": section.cut_on_tighten,
    }
    return Defaults(**{key: value for key, value in values.items() if value is not None})


def _compile_agent(id_: str, section: AgentSection) -> Agent:
    sources = section.identity.source if section.identity else ()
    return Agent(
        id_,
        frozenset(section.groups or ()),
        tuple(sorted(set(sources), key=spell_network)),
    )


def _compile_rate(id_: str, section: RateSection) -> Rate:
    each = cast("Any", section.each)
    return Rate(id_, each, section.allow, section.per, section.burst or section.allow)


def _compile_budget(id_: str, section: BudgetSection) -> Budget:
    """Units in their own order and thresholds as they are passed, however they were written."""
    limits = [(unit, getattr(section.limits, unit)) for unit in UNITS]
    thresholds = {Threshold(one.reached, cast("Any", one.do)) for one in section.at or ()}
    return Budget(
        id_,
        cast("Any", section.each),
        tuple([(unit, limit) for unit, limit in limits if limit is not None]),
        _compile_who(section.who),
        section.window,
        tuple(sorted(thresholds, key=lambda one: (one.reached_percent, one.state))),
    )


def _compile_keep_rules(draft: Draft) -> frozenset[str]:
    quarantine = draft.header.quarantine if draft.header else None
    return frozenset(quarantine.keep_rules or () if quarantine else ())


def _compile_rule(part: Part[RuleSection], section: RuleSection, zone: ZoneInfo) -> Rule:
    allow = section.verdict == "allow"
    return Rule(
        id=part.id,
        verdict=Verdict(section.verdict),
        match=_compile_match(section.match, fill_in=allow) or Match(),
        description=section.description or "",
        shadow=section.mode == "shadow",
        who=_compile_who(section.who),
        unless=_compile_match(section.unless, fill_in=False),
        when=_compile_when(section.when, zone, allow=allow),
        with_=_compile_with(section.with_),
        cost=_compile_cost(section.cost),
        line=part.node.line,
    )


def _compile_who(section: WhoSection | None) -> Who | None:
    if section is None:
        return None
    return Who(frozenset(section.agents or ()), frozenset(section.groups or ()))


def _compile_match(section: MatchSection | None, *, fill_in: bool) -> Match | None:
    """`fill_in`: an allow without scheme and port means https on 443."""
    if section is None:
        return None
    schemes = section.scheme if section.scheme is not None or not fill_in else ("https",)
    ports = section.port if section.port is not None or not fill_in else (443,)
    return Match(
        hosts=_sort(section.host),
        schemes=None if schemes is None else frozenset(cast("tuple[Scheme, ...]", schemes)),
        ports=None if ports is None else frozenset(ports),
        methods=None if section.methods is None else frozenset(section.methods),
        paths=_sort(section.path),
        path_res=_sort(section.path_re),
        query=_compile_tests(section.query),
        headers=_compile_tests(
            {name.lower(): test for name, test in (section.headers or {}).items()}
        ),
        query_only=bool(section.query_only),
        websocket=bool(section.websocket),
        body=bool(section.body),
        dest_ip=_compile_dest_ip(section.dest_ip),
    )


def _sort[T](entries: tuple[T, ...] | None) -> tuple[T, ...] | None:
    return None if entries is None else tuple(sorted(set(entries), key=str))


def _compile_tests(tests: dict[str, Predicate] | None) -> tuple[tuple[str, Predicate], ...]:
    return tuple(sorted((tests or {}).items(), key=lambda pair: pair[0]))


def _compile_dest_ip(entries: tuple[Any, ...] | None) -> DestIp | None:
    if entries is None:
        return None
    networks = {entry for entry in entries if isinstance(entry, IPv4Network | IPv6Network)}
    classes = frozenset(entry for entry in entries if isinstance(entry, str))
    return DestIp(classes, tuple(sorted(networks, key=spell_network)))


def _compile_when(section: WhenSection | None, zone: ZoneInfo, *, allow: bool) -> Window | None:
    """A bound that the wall clock has twice or never is read so that more is denied."""
    if section is None:
        return None
    opens, closes = section.from_, section.until
    return Window(
        zone,
        None if section.days is None else frozenset(section.days),
        section.between,
        None if opens is None else fix_moment(opens, zone, later=allow),
        None if closes is None else fix_moment(closes, zone, later=not allow),
    )


def _compile_cost(section: CostSection | None) -> Cost:
    said = section.model_dump(exclude_none=True) if section else {}
    return Cost(**said)


def _compile_with(section: WithSection | None) -> With:
    if section is None:
        return With()
    return With(
        rates=tuple(sorted(set(section.rate or ()))),
        max_request_bytes=section.max_request,
        max_response_bytes=section.max_response,
        capture=cast("Capture | None", section.capture),
        redact_path=tuple(sorted(set(section.redact_path or ()))),
        path_params=cast("PathParams | None", section.path_params),
        show_budget=section.show_budget or None,  # false is what silence means as well
    )
