"""The policy file as pydantic models: source of the validator, docs/policy.md and the JSON Schema.

Rule 1: a key exists if and only if it is a field here; keys of later issues are unknown keys.
Rule 2: no word of a finding comes from pydantic: every field reads its value as scalars.py says,
        and problems.py words what pydantic itself refuses (unknown and missing keys).
Rule 3: what a model holds is compiled: patterns, networks, bytes, milliseconds.

Keys: policy.md section 1, rows g and b. A key left out is None; compile.py knows the defaults.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from policies import values
from policies.model import ContractBroken
from policies.scalars import (
    MANY,
    Between,
    Count,
    CountLimit,
    Day,
    Destination,
    Duration,
    Flag,
    Host,
    Id,
    Ids,
    Method,
    Moment,
    Path,
    Percent,
    Period,
    Points,
    Port,
    Range,
    Regex,
    Size,
    SizeLimit,
    Test,
    Text,
    TimeLimit,
    Version,
    choosing,
    reading,
)


class Section(BaseModel):
    """A map of the file with a fixed set of keys."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True
    )


class WhoSection(Section):
    """Which agents. Left out: all of them."""

    agents: Ids | None = Field(None, description="ids of agents")
    groups: Ids | None = Field(None, description="groups of agents")


class MatchSection(Section):
    """Which requests. Every key that is given must hold; within one key any entry is enough."""

    host: Annotated[tuple[Host, ...], *MANY] | None = Field(
        None,
        description="`a.com` exactly, `*.a.com` one label more, `**.a.com` one or more, an address",
    )
    scheme: Annotated[tuple[Annotated[str, *choosing("https", "http")], ...], *MANY] | None = Field(
        None, description="`https` (default in allow rules) or `http`"
    )
    port: Annotated[tuple[Port, ...], *MANY] | None = Field(
        None, description="443 by default in allow rules"
    )
    methods: Annotated[tuple[Method, ...], *MANY] | None = Field(
        None, description="left out: every known method"
    )
    path: Annotated[tuple[Path, ...], *MANY] | None = Field(
        None, description="segments: text, `*`, `report-*.pdf`, `{x:int}`, `{x:uuid}`, final `**`"
    )
    path_re: Annotated[tuple[Regex, ...], *MANY] | None = Field(
        None, description="RE2 expression for the whole path"
    )
    query: dict[str, Test] | None = Field(None, description="tests of query values, by key")
    query_only: Flag | None = Field(None, description="true: keys not in `query` are refused")
    headers: dict[str, Test] | None = Field(None, description="tests of header values, by name")
    websocket: Flag | None = Field(
        None, description="true: an allow also covers WebSocket upgrades"
    )
    body: Flag | None = Field(
        None, description="true: an allow also covers GET, HEAD, DELETE, OPTIONS with a body"
    )
    dest_ip: Annotated[tuple[Destination, ...], *MANY] | None = Field(
        None, description="ranges or classes of addresses; in an allow it opens them"
    )


class WhenSection(Section):
    """At which times, by the wall clock of `defaults.timezone`."""

    days: Annotated[tuple[Day, ...], *MANY] | None = Field(None, description="days of the week")
    between: Between | None = Field(
        None, description='opening and closing time, ["18:00", "08:00"] spans midnight'
    )
    from_: Moment | None = Field(None, alias="from", description="first moment")
    until: Moment | None = Field(None, description="first moment after the end")


class WithSection(Section):
    """What an allow comes with."""

    rate: Ids | None = Field(None, description="ids of `rates:`; all of them apply")
    max_request: Size | None = Field(None, description="largest request body")
    max_response: Size | None = Field(None, description="largest response; longer ones are cut")
    capture: Annotated[str, *choosing("metadata", "request", "request_response")] | None = Field(
        None, description="how much of the exchange is recorded"
    )
    redact_path: Annotated[tuple[Count, ...], *MANY] | None = Field(
        None, description="numbers of path segments (from 1) that the record hides"
    )
    path_params: Annotated[str, *choosing("refuse", "strip", "keep")] | None = Field(
        None, description="what happens to `;params` in the path; `refuse` by default"
    )
    show_budget: Flag | None = Field(
        None, description="true: answers say what is left, in `Tollkeeper-Budget`"
    )


class CostSection(Section):
    """What one request takes from budgets. Of several rules steps and effort add up."""

    steps: Points | None = Field(None, description="default 1")
    effort: Points | None = Field(None, description="default 1")
    risk: Points | None = Field(None, description="default 0; of several rules the largest counts")


class RuleSection(Section):
    """One rule. Their order never matters: a deny wins over every allow."""

    id: Id = Field(description="unique name; records and findings cite it")
    description: Text | None = Field(None, description="for people")
    verdict: Annotated[str, *choosing("allow", "deny")] = Field(description="`allow` or `deny`")
    mode: Annotated[str, *choosing("shadow")] | None = Field(
        None, description="`shadow`: recorded as what would happen, never enforced"
    )
    who: WhoSection | None = Field(None, description="which agents; left out: all")
    match: MatchSection | None = Field(None, description="which requests; an allow needs `host`")
    unless: MatchSection | None = Field(None, description="exceptions, with the keys of `match`")
    when: WhenSection | None = Field(None, description="at which times; left out: always")
    cost: CostSection | None = Field(None, description="what a request takes from budgets")
    with_: WithSection | None = Field(None, alias="with", description="limits and obligations")


class IdentitySection(Section):
    """How an agent is known."""

    source: Annotated[tuple[Range, ...], *MANY] = Field(
        description="address ranges the agent calls from"
    )


class AgentSection(Section):
    """One agent, under its id."""

    groups: Ids | None = Field(None, description="groups the agent belongs to")
    identity: IdentitySection | None = Field(
        None, description="left out: a proxy credential whose user name is the id"
    )


class RateSection(Section):
    """One rate, under its id. Refused calls do not use it up."""

    each: Annotated[str, *choosing("agent", "session", "rule")] = Field(
        description="what has a count of its own: `agent`, `session` or `rule`"
    )
    allow: Count = Field(description="number of requests")
    per: Duration = Field(description="in this time")
    burst: Count | None = Field(None, description="admitted at once after a rest; default `allow`")


class LimitsSection(Section):
    """What may be spent, at least one of these. What is not named has no limit."""

    requests: CountLimit | None = Field(None, description="number of allowed requests")
    steps: CountLimit | None = Field(None, description="sum of the rules' `cost.steps`")
    effort: CountLimit | None = Field(None, description="sum of the rules' `cost.effort`")
    risk: CountLimit | None = Field(None, description="sum of the rules' `cost.risk`")
    bytes_out: SizeLimit | None = Field(
        None, description="sent to destinations: head and body, and WebSocket messages"
    )
    bytes_in: SizeLimit | None = Field(None, description="received from destinations, likewise")
    wall_time: TimeLimit | None = Field(
        None, description="time since the first allowed request; then all is denied"
    )


class ThresholdSection(Section):
    """What happens to the agent once so much of any limit is spent. It never becomes undone."""

    reached: Percent = Field(description="`1%` to `100%` of a limit")
    do: Annotated[str, *choosing("warn", "quarantine", "halt")] = Field(
        description="`warn`: only shown and recorded; `quarantine`: see there; `halt`: for good"
    )


class BudgetSection(Section):
    """One budget, under its id. Every agent it is for has an account of its own."""

    each: Annotated[str, *choosing("agent", "session")] = Field(
        description="what has an account: `agent`, or `session` (one `tollkeeper agent add`)"
    )
    who: WhoSection | None = Field(None, description="which agents; left out: all")
    limits: LimitsSection = Field(description="what may be spent; at least one limit")
    window: Period | None = Field(
        None, description="filled again so often, counted from 1970 in UTC; left out: never"
    )
    at: Annotated[tuple[ThresholdSection, ...], *MANY] | None = Field(
        None, description="what happens on the way; at 100% requests are denied anyway"
    )


class QuarantineSection(Section):
    """What a quarantined agent may still do. Deny rules count as ever."""

    keep_rules: Ids | None = Field(
        None, description="ids of allow rules that still count; default none"
    )


class DefaultsSection(Section):
    """What holds for the whole policy. There is no way to default to allow."""

    timezone: Annotated[str, *reading(values.read_timezone, type="string")] | None = Field(
        None, description="IANA name for `when`; default UTC"
    )
    max_inspect_body: Size | None = Field(None, description="largest body looked into; 1MiB")
    explain_denials: Flag | None = Field(None, description="tell agents the reason; default true")
    mode: Annotated[str, *choosing("enforce", "observe")] | None = Field(
        None, description="`observe` forwards what no rule allows; needs `serve --observe` too"
    )
    on_bad_reload: Annotated[str, *choosing("hold", "deny")] | None = Field(
        None, description="a broken new file: `hold` the last good policy (default) or `deny` all"
    )
    stale_limit: Duration | None = Field(
        None, description="deny all when the last good policy is older; off by default"
    )
    cut_on_tighten: Flag | None = Field(
        None, description="cut open connections to hosts a new policy denies; default true"
    )


class PolicyFile(Section):
    """A policy file. Whatever no rule allows is denied."""

    version: Version = Field(description="1")
    name: Text | None = Field(None, description="for people")
    include: Annotated[tuple[Text, ...], *MANY] | None = Field(
        None, description="more files, beside or below this one"
    )
    defaults: DefaultsSection | None = Field(None, description="main file only")
    agents: dict[str, AgentSection] | None = Field(None, description="agents by id")
    rules: list[RuleSection] | None = Field(None, description="the rules, in any order")
    rates: dict[str, RateSection] | None = Field(None, description="rates by id")
    budgets: dict[str, BudgetSection] | None = Field(None, description="budgets by id")
    quarantine: QuarantineSection | None = Field(None, description="main file only")


SECTIONS: dict[str, type[Section]] = {
    "who": WhoSection,
    "match": MatchSection,
    "unless": MatchSection,
    "when": WhenSection,
    "with": WithSection,
    "cost": CostSection,
    "limits": LimitsSection,
    "at": ThresholdSection,
    "identity": IdentitySection,
    "defaults": DefaultsSection,
    "agents": AgentSection,
    "rates": RateSection,
    "budgets": BudgetSection,
    "quarantine": QuarantineSection,
    "rules": RuleSection,
    "": PolicyFile,
}


def keys_of(section: type[Section]) -> tuple[str, ...]:
    """The keys of a section as they are written in YAML."""
    return tuple(field.alias or name for name, field in section.model_fields.items())


@dataclass(frozen=True, slots=True)
class Refused:
    """One place that the schema refuses. `code` is "" for what pydantic refuses: see `kind`."""

    kind: Literal["unfit", "unknown-key", "missing-key", "not-a-map", "not-a-list"]
    path: tuple[str | int, ...]
    code: str = ""
    message: str = ""
    hint: str = ""


_KINDS: dict[str, Literal["unknown-key", "missing-key", "not-a-map", "not-a-list"]] = {
    "extra_forbidden": "unknown-key",
    "missing": "missing-key",
    "model_type": "not-a-map",
    "dict_type": "not-a-map",
    "list_type": "not-a-list",
}


def validate[S: Section](section: type[S], value: Any) -> tuple[S | None, list[Refused]]:
    """Read one section; None where anything in it is refused, and then every refusal."""
    try:
        return section.model_validate(value), []
    except ValidationError as error:
        return None, [
            _refused(one["type"], one["loc"], one.get("ctx", {}))
            for one in error.errors(include_url=False, include_input=False)
            if one["type"] != "broken"
        ]


def _refused(kind: str, path: tuple[str | int, ...], words: dict[str, Any]) -> Refused:
    if kind == "unfit":
        return Refused("unfit", path, words["code"], words["message"], words["hint"])
    if kind not in _KINDS:
        raise ContractBroken(f"the schema refused {path} with {kind}, which has no wording")
    return Refused(_KINDS[kind], path)


class _EditorSchema(GenerateJsonSchema):
    """JSON Schema as an editor wants it: a key that may be left out is not one that may be null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a policy file, for editors."""
    schema = PolicyFile.model_json_schema(schema_generator=_EditorSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect} | schema | {"title": "Tollkeeper policy"}
