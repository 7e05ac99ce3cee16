"""The schema: what it accepts, how it refuses, and the JSON Schema that editors get."""

import re
from pathlib import Path
from typing import Any

import pytest

from policies.compile import compile_text
from policies.load import parse
from policies.model import PolicyRejected
from policies.node import Node, plain
from policies.schema import SECTIONS, PolicyFile, RuleSection, json_schema, keys_of, validate

ROOT = Path(__file__).parents[2]
GOOD = sorted((ROOT / "tests/cases/policies/good").rglob("*.yaml"))

KEYS = {
    "": ("version", "name", "include", "defaults", "agents", "rules", "rates", "budgets",
         "quarantine"),
    "rules": ("id", "description", "verdict", "mode", "who", "match", "unless", "when", "cost",
              "with"),
    "match": ("host", "scheme", "port", "methods", "path", "path_re", "query", "query_only",
              "headers", "websocket", "body", "dest_ip"),
    "with": ("rate", "max_request", "max_response", "capture", "redact_path", "path_params",
             "show_budget"),
    "cost": ("steps", "effort", "risk"),
    "when": ("days", "between", "from", "until"),
    "who": ("agents", "groups"),
    "agents": ("groups", "identity"),
    "identity": ("source",),
    "rates": ("each", "allow", "per", "burst"),
    "budgets": ("each", "who", "limits", "window", "at"),
    "limits": ("requests", "steps", "effort", "risk", "bytes_out", "bytes_in", "wall_time"),
    "at": ("reached", "do"),
    "quarantine": ("keep_rules",),
    "defaults": ("timezone", "max_inspect_body", "explain_denials", "mode", "on_bad_reload",
                 "stale_limit", "cut_on_tighten"),
}  # fmt: skip


@pytest.mark.parametrize("section", KEYS)
def test_a_section_has_the_keys_of_this_issue_and_no_others(section: str) -> None:
    assert keys_of(SECTIONS[section]) == KEYS[section]


def test_a_scalar_is_a_list_of_one() -> None:
    one, _ = validate(RuleSection, {"id": "r", "verdict": "deny", "match": {"methods": "GET"}})
    many, _ = validate(RuleSection, {"id": "r", "verdict": "deny", "match": {"methods": ["GET"]}})
    assert one == many


def test_an_alias_is_the_only_name_of_a_key() -> None:
    for key in ("with_", "from_"):
        _, refused = validate(RuleSection, {"id": "r", "verdict": "deny", key: {}})
        assert [(one.kind, one.path) for one in refused] == [("unknown-key", (key,))]


def test_everything_wrong_is_reported_at_once() -> None:
    _, refused = validate(PolicyFile, {"name": 5, "nmae": 1, "rules": {}, "include": [1, {}]})
    assert sorted((one.kind, one.path) for one in refused) == [
        ("missing-key", ("version",)),
        ("not-a-list", ("rules",)),
        ("unfit", ("include", 0)),
        ("unfit", ("include", 1)),
        ("unfit", ("name",)),
        ("unknown-key", ("nmae",)),
    ]


ODD: tuple[Any, ...] = (None, True, 5, 0.5, "x", [], [[]], {}, {"x": 1}, [None], {"a": {"b": []}})


@pytest.mark.parametrize("section", [name for name in KEYS if name])
def test_any_value_of_any_key_is_accepted_or_refused_in_our_words(section: str) -> None:
    """Every pydantic error type that can happen has a wording: none raises ContractBroken."""
    for key in KEYS[section]:
        for value in ODD:
            _, refused = validate(SECTIONS[section], {key: value})
            assert not any("Input should" in one.message for one in refused)


def fits(schema: dict[str, Any], value: Any, defs: dict[str, Any]) -> bool:
    """As much of JSON Schema as ours uses."""
    if "$ref" in schema:
        return fits(defs[schema["$ref"].rsplit("/", 1)[1]], value, defs)
    if "anyOf" in schema and not any(fits(one, value, defs) for one in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool) and kinds and "boolean" not in kinds:
        return False
    python = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if kinds and not any(isinstance(value, python[kind]) for kind in kinds):
        return False
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if isinstance(value, list) and "items" in schema:
        return all(fits(schema["items"], item, defs) for item in value)
    if isinstance(value, dict):
        return fits_map(schema, value, defs)
    return True


def fits_map(schema: dict[str, Any], value: dict[str, Any], defs: dict[str, Any]) -> bool:
    extra = schema.get("additionalProperties", True)
    known = schema.get("properties", {})
    for key, held in value.items():
        inner = known.get(key, extra)
        if inner is False or (isinstance(inner, dict) and not fits(inner, held, defs)):
            return False
    return set(schema.get("required", ())) <= set(value)


def read_plain(path: Path) -> Any:
    root, _ = parse(path.read_text(encoding="utf-8"), path.name)
    assert root is not None
    empty: list[tuple[str, Node]] = []
    value = plain(root, empty)
    return {key: held for key, held in value.items() if root.pairs[key].kind != "broken"}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_the_json_schema_accepts_good_files(path: Path) -> None:
    schema = json_schema()
    assert fits(schema, read_plain(path), schema["$defs"])


@pytest.mark.parametrize(
    "name",
    ["misspelt-match-key", "verdict-misspelt", "methods-as-map", "size-without-unit", "no-version",
     "key-of-a-later-issue", "port-out-of-range", "rule-as-text", "quoted-number",
     "limit-negative", "limit-float", "limit-true", "limit-beyond-2-to-the-53", "limit-quoted",
     "limit-size-without-unit", "limit-time-without-unit", "limit-no-size", "limit-negative-time",
     "limit-of-a-later-issue", "budget-thresholds", "cost-shapes"],
)  # fmt: skip
def test_the_json_schema_refuses_what_an_editor_can_see(name: str) -> None:
    path = ROOT / f"tests/cases/policies/broken/{name}.yaml"
    schema = json_schema()
    assert not fits(schema, read_plain(path), schema["$defs"])


def test_the_json_schema_describes_every_key_and_allows_no_null() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "null" not in str(schema)
    sections = [schema, *(one for name, one in schema["$defs"].items() if name.endswith("Section"))]
    for section in sections:
        assert section["additionalProperties"] is False
        assert [
            key for key, held in section["properties"].items() if not held.get("description")
        ] == []


def test_the_page_for_authors_lists_every_key_with_its_description() -> None:
    page = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            row = f"| `{field.alias or name}` | {field.description} |"
            assert row in page, (section, row)


def test_the_examples_of_the_page_are_clean() -> None:
    page = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(version: 1\n.*?)```", page, re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        try:
            assert compile_text(example).findings == ()
        except PolicyRejected as rejected:
            raise AssertionError(rejected.findings) from rejected
