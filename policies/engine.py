"""The decision. PURE: (request, caller, addresses, time) x PolicySet -> Decision, no action.

    screen   stage 1, before DNS: could any allow still match?      (policy.md 2.5)
    decide   stages 2 and 3: all rules against one canonical request

Rule 1: a matching deny wins, then a matching allow, then nothing: denied. Order never matters.
Rule 2: an exception denies. In a deny rule it counts as a match of that rule; anywhere else the
        answer is `internal-error`. Nothing raised in here reaches the caller.
Rule 3: shadow rules only ever show in `would`.
Rule 4: observe mode forwards what lacks an allow and nothing else: not what a deny rule, the
        address guard, the method list, path parameters or a method override refuse. It needs the
        policy's own key and the caller's flag.
Rule 5: of a quarantined agent only the allows of `keep_rules` count, and observe mode forwards
        nothing. Denies all count as ever.
Rule 6: the answer depends on the arguments alone, so a record can be judged again.

Threats A19, B14, E13, F5, F6, G7, G12, G13.
"""

from datetime import datetime

from policies.compiled import CompiledRule
from policies.fields import OVERRIDE_HEADERS, OVERRIDE_QUERY_KEY
from policies.host import parse_address
from policies.match import Facts, are_public
from policies.model import Address, Decision, Principal, Read, Request, Scheme, Verdict, Would
from policies.obligation import Conflict, join_obligations
from policies.outcome import FALSE, TRUE
from policies.policy_set import PolicySet
from policies.rule import METHODS, Agent
from policies.tally import Tally, gather

_ALLOW, _DENY = Verdict.ALLOW, Verdict.DENY


def decide(
    request: Request,
    principal: Principal,
    policy_set: PolicySet,
    *,
    addresses: tuple[Address, ...],
    now: datetime,
    observe: bool = False,
    keep_rules: frozenset[str] | None = None,
) -> Decision:
    """Judge one canonical request. Never raises.

    `addresses` are all answers of the resolver (none: nothing may be dialled); `now` is aware.
    `keep_rules`: None, or those of the policy set where the agent is quarantined. Deny reasons:
    agent-unknown, method-not-allowed, denied-by-rule, address-not-public, no-rule-matched,
    quarantined, path-not-canonical, method-override, rule-conflict, internal-error.
    """
    try:
        return _decide(
            request, principal, policy_set, addresses, now, observe=observe, keep_rules=keep_rules
        )[0]
    except Exception:  # noqa: BLE001  the belt under every bug: threats B14, A19
        return _fail(policy_set)


def decide_with_tally(
    request: Request,
    principal: Principal,
    policy_set: PolicySet,
    *,
    addresses: tuple[Address, ...],
    now: datetime,
    observe: bool = False,
    keep_rules: frozenset[str] | None = None,
) -> tuple[Decision, Tally | None, Facts]:
    """`decide`, with what it was made from, for `explain`. None: no rule was asked."""
    try:
        return _decide(
            request, principal, policy_set, addresses, now, observe=observe, keep_rules=keep_rules
        )
    except Exception:  # noqa: BLE001  as above
        return _fail(policy_set), None, Facts(request, addresses, now)


def screen(
    principal: Principal,
    policy_set: PolicySet,
    *,
    host: str,
    port: int,
    scheme: Scheme | None,
    now: datetime,
    observe: bool = False,
    keep_rules: frozenset[str] | None = None,
) -> Decision:
    """Stage 1: refuse a destination that no allow could still match. Never raises.

    `scheme` None (at CONNECT) means either. Addresses are not judged here. An allow means only "go
    on" and names a rule that could match. `keep_rules` as for `decide`. Deny reasons:
    agent-unknown, host-not-allowed, quarantined, denied-by-rule (a deny matches whatever comes),
    internal-error.
    """
    try:
        return _screen(
            principal, policy_set, host, port, scheme, now, observe=observe, keep_rules=keep_rules
        )
    except Exception:  # noqa: BLE001  as above
        return _fail(policy_set)


def _decide(
    request: Request,
    principal: Principal,
    policy_set: PolicySet,
    addresses: tuple[Address, ...],
    now: datetime,
    *,
    observe: bool,
    keep_rules: frozenset[str] | None,
) -> tuple[Decision, Tally | None, Facts]:
    facts = Facts(request, _add_literal(request.host, addresses), now)
    agent = policy_set.agents.get(principal.agent)
    if agent is None:
        return _deny("agent-unknown", policy_set), None, facts
    if request.method not in METHODS:
        return _deny("method-not-allowed", policy_set), None, facts
    tally = gather(request, agent, policy_set, facts)
    if tally.denies:
        return _deny_by_rules(tally, policy_set), tally, facts
    if keep_rules is not None:
        tally.keep(keep_rules)
    if tally.allows:
        return _grant(request, principal, agent, policy_set, tally), tally, facts
    if keep_rules is not None:
        return _deny("quarantined", policy_set), tally, facts
    return _refuse(request, policy_set, tally, facts, observe), tally, facts


def _screen(
    principal: Principal,
    policy_set: PolicySet,
    host: str,
    port: int,
    scheme: Scheme | None,
    now: datetime,
    *,
    observe: bool,
    keep_rules: frozenset[str] | None,
) -> Decision:
    agent = policy_set.agents.get(principal.agent)
    if agent is None:
        return _deny("agent-unknown", policy_set)
    walls: list[CompiledRule] = []
    openings: list[CompiledRule] = []
    for table in policy_set.index.find_tables(host, port):
        table.collect_stage_1(agent.id, agent.groups, walls, openings)
    schemes: tuple[Scheme, ...] = ("https", "http") if scheme is None else (scheme,)
    closed: set[str] = set()
    would: Would | None = None
    for known in schemes:
        facts = Facts(Request(known, host, port, "GET", "/"), (), now)
        hit = [w for w in walls if not w.is_shadow and w.could_match(facts) != FALSE]
        if hit:
            closed.update(wall.id for wall in hit)
            continue
        for opening in openings:
            if keep_rules is not None and opening.rule.id not in keep_rules:
                continue
            if opening.could_match(facts) == TRUE:
                if not opening.is_shadow:
                    return Decision(_ALLOW, "allowed", (opening.id,), policy_set.digest)
                would = would or Would(_ALLOW, (opening.id,))
    if closed:
        return _deny("denied-by-rule", policy_set, rules=tuple(sorted(closed)))
    if keep_rules is not None:
        return _deny("quarantined", policy_set)
    if _observes(policy_set, observe):
        return Decision(_ALLOW, "observed", (), policy_set.digest, Would(_DENY))
    return _deny("host-not-allowed", policy_set, would=would)


def _grant(
    request: Request, principal: Principal, agent: Agent, policy_set: PolicySet, tally: Tally
) -> Decision:
    """Some allow matches and no deny does: what is left to refuse, and what is owed."""
    allows = tally.allows
    joined = join_obligations(allows, request, principal, agent, policy_set.rates)
    if isinstance(joined, Conflict):
        return _deny("rule-conflict", policy_set, rules=joined.rules)
    guard = _find_guard(request, allows, joined.path_params)
    if guard is not None:
        return _deny(guard, policy_set)
    would = Would(_DENY, _ids(tally.shadow_denies)) if tally.shadow_denies else None
    if len(allows) == 1:
        only = allows[0]
        return Decision(
            _ALLOW, "allowed", (only.rule.id,), policy_set.digest, would, joined, only.reads
        )
    allows.sort(key=lambda rule: rule.rule.id)
    reads = tuple(dict.fromkeys(read for rule in allows for read in rule.reads))
    return Decision(_ALLOW, "allowed", _ids(allows), policy_set.digest, would, joined, reads)


def _deny_by_rules(tally: Tally, policy_set: PolicySet) -> Decision:
    tally.denies.sort(key=lambda rule: rule.rule.id)
    reads = tuple(dict.fromkeys(read for rule in tally.denies for read in _reads(rule, tally)))
    return _deny("denied-by-rule", policy_set, rules=_ids(tally.denies), reads=reads)


def _reads(rule: CompiledRule, tally: Tally) -> tuple[Read, ...]:
    facts = tally.unsure.get(rule)
    if facts is None:
        return rule.reads
    try:
        return rule.trace(facts)
    except Exception:  # noqa: BLE001  the predicate that raised is why the rule counts
        return (Read("match", "unknown"),)


def _refuse(
    request: Request, policy_set: PolicySet, tally: Tally, facts: Facts, observe: bool
) -> Decision:
    """Nothing matches: default deny, the address guard, or observe mode."""
    if tally.blocked:
        return _deny("address-not-public", policy_set)
    if _observes(policy_set, observe):
        guard = _find_guard(request, [], "refuse")
        if guard is None and not are_public(facts.addresses):
            guard = "address-not-public"
        if guard is not None:
            return _deny(guard, policy_set)
        would = Would(_DENY, _ids(tally.shadow_denies))
        return Decision(_ALLOW, "observed", (), policy_set.digest, would)
    shadows = tally.shadow_allows
    opened = shadows and not tally.shadow_denies
    if opened and _find_guard(request, shadows, "refuse") is None:  # no path parameters either
        return _deny("no-rule-matched", policy_set, would=Would(_ALLOW, _ids(shadows)))
    return _deny("no-rule-matched", policy_set)


def _find_guard(request: Request, allows: list[CompiledRule], path_params: str) -> str | None:
    """What is refused although rules allow it: path parameters, method overrides nobody named."""
    if request.path_params and path_params == "refuse":
        return "path-not-canonical"
    for name, _ in request.headers:
        if name in OVERRIDE_HEADERS and not any(
            name == named for allow in allows for named, _ in allow.rule.match.headers
        ):
            return "method-override"
    for key, _ in request.query_pairs:
        if key.lower() == OVERRIDE_QUERY_KEY and not any(
            key == named for allow in allows for named, _ in allow.rule.match.query
        ):
            return "method-override"
    return None


def _add_literal(host: str, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """An IP literal is its own answer, whatever the caller says."""
    literal = parse_address(host)
    if literal is None or literal in addresses:
        return addresses
    return (*addresses, literal)


def _observes(policy_set: PolicySet, observe: bool) -> bool:
    return observe and policy_set.defaults.mode == "observe"


def _ids(rules: list[CompiledRule]) -> tuple[str, ...]:
    if len(rules) == 1:
        return (rules[0].rule.id,)
    return tuple(sorted({rule.rule.id for rule in rules}))


def _deny(
    reason: str,
    policy_set: PolicySet,
    *,
    rules: tuple[str, ...] = (),
    would: Would | None = None,
    reads: tuple[Read, ...] = (),
) -> Decision:
    return Decision(_DENY, reason, rules, policy_set.digest, would, read=reads)


def _fail(policy_set: PolicySet) -> Decision:
    digest = getattr(policy_set, "digest", "")
    return Decision(_DENY, "internal-error", (), digest if isinstance(digest, str) else "")
