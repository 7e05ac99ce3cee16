"""What the fields of a rule mean, in words. PURE; used by `explain` and the docs of a policy.

describe_field(rule, "match.host") -> "exactly one more label before `a.com`, …"
"""

from collections.abc import Iterable

from policies.budget import BYTE_UNITS, WALL_TIME
from policies.model import Obligations
from policies.pattern import describe_host, describe_path
from policies.rule import Budget, DestIp, Match, Predicate, Rule, Who, Window
from policies.values import spell_duration, spell_size

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def describe_field(rule: Rule, field: str) -> str:
    """What `field` (a name as in `Read.field`) of a rule wants."""
    head, _, name = field.partition(".")
    if head == "query":
        return describe_predicate(dict(rule.match.query)[name])
    if head == "headers":
        return describe_predicate(dict(rule.match.headers)[name])
    if head == "when" and rule.when is not None:
        return describe_window(rule.when, name)
    if head == "unless" and rule.unless is not None:
        return f"not: {describe_match(rule.unless)}"
    if head == "who" and rule.who is not None:
        return describe_who(rule.who)
    if field == "with.path_params":
        said = rule.with_.path_params or "refuse"
        return "no path parameters" if said == "refuse" else f"path parameters: {said}"
    return _describe_match_field(rule.match, name)


def describe_match(match: Match) -> str:
    """A whole `match` or `unless` in one line."""
    said = []
    for name, value in (
        ("host", match.hosts),
        ("scheme", match.schemes),
        ("port", match.ports),
        ("methods", match.methods),
        ("path", match.paths),
        ("path_re", match.path_res),
        ("dest_ip", match.dest_ip),
        ("websocket", match.websocket or None),
        ("body", match.body or None),
        ("query_only", match.query_only or None),
    ):
        if value is not None:
            said.append(f"{name} {_describe_match_field(match, name)}")
    said += [f"query `{key}` {describe_predicate(test)}" for key, test in match.query]
    said += [f"header `{name}` {describe_predicate(test)}" for name, test in match.headers]
    return "; ".join(said) or "everything"


def describe_predicate(predicate: Predicate) -> str:
    """A predicate of a query or header value."""
    values = " or ".join(f"`{value}`" for value in predicate.values)
    return {
        "exact": f"exactly {values}",
        "one_of": f"one of {values}",
        "prefix": f"beginning with {values}",
        "suffix": f"ending with {values}",
        "re": f"wholly matching {values}",
        "present": "present",
        "absent": "absent",
    }[predicate.kind]


def describe_window(window: Window, part: str) -> str:
    """One bound of a window: `from`, `until`, `days` or `between`."""
    if part == "from" and window.from_ is not None:
        return f"from {window.from_.isoformat()}"
    if part == "until" and window.until is not None:
        return f"before {window.until.isoformat()}"
    days = "any day" if window.days is None else " ".join(_DAYS[day] for day in sorted(window.days))
    if window.between is None:
        return f"{days}, {window.timezone.key}"
    opens, closes = map(_format_minute, window.between)
    return f"{days}, {opens} to before {closes}, {window.timezone.key}"


def describe_who(who: Who) -> str:
    """`who` in words."""
    names = [f"agent `{name}`" for name in sorted(who.agents)]
    names += [f"group `{name}`" for name in sorted(who.groups)]
    return " or ".join(names) or "nobody"


def describe_cost(obligations: Obligations) -> str:
    """What one allowed request takes, bytes and time excepted."""
    steps, effort, risk = obligations.steps, obligations.effort, obligations.risk
    return f"1 request, {steps} step{'s'[: steps != 1]}, {effort} effort, {risk} risk"


def describe_budget(budget: Budget) -> str:
    """A budget in one line: what has an account, window, limits, what happens on the way."""
    limits = ", ".join(f"{unit} {describe_amount(unit, limit)}" for unit, limit in budget.limits)
    window = f" every {spell_duration(budget.window_ms)}" if budget.window_ms else ""
    marks = "".join(f"; {one.do} at {one.reached_percent}%" for one in budget.at)
    return f"each {budget.each}{window}: {limits}{marks}"


def describe_amount(unit: str, amount: int) -> str:
    """So much of a unit of `budget.UNITS`, as a policy file has it."""
    if unit in BYTE_UNITS:
        return spell_size(amount)
    return spell_duration(amount) if unit == WALL_TIME else str(amount)


def _describe_match_field(match: Match, name: str) -> str:
    match name:
        case "host":
            return _any_of(map(describe_host, match.hosts or ()))
        case "scheme":
            return _any_of(sorted(match.schemes or ()))
        case "port":
            return _any_of(map(str, sorted(match.ports or ())))
        case "methods":
            return _any_of(sorted(match.methods or ()))
        case "path":
            return _any_of(map(describe_path, match.paths or ()))
        case "path_re":
            return _any_of(f"`{expression}`" for expression in match.path_res or ())
        case "query_only":
            return "no query key but " + _any_of(f"`{key}`" for key, _ in match.query)
        case "websocket":
            return "upgrades too" if match.websocket else "no upgrade"
        case "body":
            return "a body too" if match.body else "no body with GET, HEAD, DELETE or OPTIONS"
        case _:
            return describe_dest_ip(match.dest_ip)


def describe_dest_ip(dest_ip: DestIp | None) -> str:
    """`dest_ip` in words; without one an allow wants public addresses."""
    if dest_ip is None:
        return "only public addresses"
    return _any_of([*sorted(dest_ip.classes), *map(str, dest_ip.networks)])


def _any_of(names: Iterable[str]) -> str:
    return " or ".join(names) or "nothing"


def _format_minute(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
