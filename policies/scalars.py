"""The kinds of values in a policy file, as pydantic fields: how each is read, and its JSON Schema.

    type Size = Annotated[int, *reading(values.read_size, type="string", …)]

Rule 1: a value is read by a function of values.py, whose words become the finding; pydantic only
        carries them (`PydanticCustomError`).
Rule 2: the JSON Schema of a kind is as strict as an editor can be: what it refuses, we refuse.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from policies import values
from policies.node import Broken
from policies.rule import ADDRESS_CLASSES, METHODS, HostPattern, Network, PathPattern, Predicate


def reading(read: Callable[[Any], Any], **schema: Any) -> tuple[PlainValidator, WithJsonSchema]:
    """The two halves of a field: how its value is read, and what an editor is told about it."""

    def run(value: Any) -> Any:
        if _holds_broken(value):
            raise PydanticCustomError("broken", "reported before")
        try:
            return read(value)
        except values.Unfit as unfit:
            words = {"message": unfit.message, "hint": unfit.hint}
            raise PydanticCustomError(
                "unfit", "see context", words | {"code": unfit.code}
            ) from None

    return PlainValidator(run), WithJsonSchema(schema)


def _holds_broken(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_broken, value.values()))
    return any(map(_holds_broken, value)) if isinstance(value, list) else isinstance(value, Broken)


def choosing(*choices: str) -> tuple[PlainValidator, WithJsonSchema]:
    """The two halves of a field that holds one of a few words."""
    return reading(lambda value: values.read_choice(value, choices), enum=list(choices))


class _OneOrMany:
    """In the JSON Schema: one item, or a list of them."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


def _listify(value: Any) -> Any:
    """A scalar is a list of one; a map stays what it is and is refused as an item of the list."""
    return tuple(value) if isinstance(value, list) else (value,)


def _read_between(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        hint = 'write ["08:00", "18:00"]'
        raise values.Unfit("AP007", f"expected two times of day, not {values.show(value)}", hint)
    opens, closes = (values.read_minute(item) for item in value)
    if opens == 24 * 60:
        raise values.Unfit("AP007", "a day does not open at `24:00`", 'write "00:00"')
    if opens == closes:
        raise values.Unfit(
            "AP204", "this window is never open", 'write ["00:00", "24:00"] for all day'
        )
    return opens, closes


_PREDICATES = ("one_of", "prefix", "suffix", "re", "present", "absent")


def _read_predicate(value: Any) -> Predicate:
    if not isinstance(value, dict):
        return Predicate("exact", (_read_exact(value),))
    hint = f"write a text, or a map with one of {', '.join(_PREDICATES)}"
    if len(value) != 1:
        raise values.Unfit("AP007", f"expected one test, not {len(value)}", hint)
    ((kind, operand),) = value.items()
    if kind == "one_of":
        entries = operand if isinstance(operand, list) else [operand]
        if not entries:
            raise values.Unfit("AP204", "an empty `one_of` matches nothing", "list the values")
        return Predicate("one_of", tuple(sorted({_read_exact(entry) for entry in entries})))
    if kind in {"present", "absent"}:
        values.read_true(operand)
        return Predicate(kind)
    if kind == "re":
        return Predicate("re", (values.read_regex(operand),))
    if kind in {"prefix", "suffix"}:
        return Predicate(kind, (values.read_text(operand),))
    hint = values.suggest(kind, _PREDICATES) or hint
    raise values.Unfit("AP006", f"unknown test `{kind}`", hint)


def _read_exact(value: Any) -> str:
    """Text, or a whole number as it is written; true and false are not values of a query."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return values.read_text(value)


MANY = (BeforeValidator(_listify), _OneOrMany())
_ID = {"type": "string", "pattern": r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"}
_TEST_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": ["string", "integer"]},
        {
            "type": "object",
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {
                "one_of": {"type": ["array", "string", "integer"]},
                "prefix": {"type": "string"},
                "suffix": {"type": "string"},
                "re": {"type": "string"},
                "present": {"const": True},
                "absent": {"const": True},
            },
        },
    ]
}

type Id = Annotated[str, *reading(values.read_id, **_ID)]
type Ids = Annotated[tuple[Id, ...], *MANY]
type Text = Annotated[str, *reading(values.read_text, type="string")]
type Flag = Annotated[bool, *reading(values.read_flag, type="boolean")]
type Count = Annotated[int, *reading(values.read_count, type="integer", minimum=1)]
type Size = Annotated[
    int, *reading(values.read_size, type="string", pattern="^[0-9]+ ?([kKMGT]i?)?B$")
]
type Duration = Annotated[
    int, *reading(values.read_duration, type="string", pattern="^[0-9]+ ?(ms|s|m|h|d)$")
]
type CountLimit = Annotated[
    int,
    *reading(values.read_count_limit, type="integer", minimum=0, maximum=values.INTEGER_MAX),
]
type SizeLimit = Annotated[
    int,
    *reading(
        values.read_size_limit,
        anyOf=[{"const": 0}, {"type": "string", "pattern": "^[0-9]+ ?([kKMGT]i?)?B$"}],
    ),
]
type TimeLimit = Annotated[
    int,
    *reading(
        values.read_time_limit,
        anyOf=[{"const": 0}, {"type": "string", "pattern": "^[0-9]+ ?(ms|s|m|h|d)$"}],
    ),
]
type Points = Annotated[
    int,
    *reading(lambda value: values.read_count(value, 0), type="integer", minimum=0),
]
type Percent = Annotated[
    int, *reading(values.read_percent, type="string", pattern="^([1-9][0-9]?|100)%$")
]
type Period = Annotated[
    int, *reading(values.read_window, type="string", pattern="^[0-9]+ ?(ms|s|m|h|d)$")
]
type Moment = Annotated[datetime, *reading(values.read_moment, type="string")]
type Host = Annotated[HostPattern, *reading(values.read_host, type="string")]
type Path = Annotated[PathPattern, *reading(values.read_path, type="string", pattern="^/")]
type Regex = Annotated[str, *reading(values.read_regex, type="string")]
type Range = Annotated[Network, *reading(values.read_network, type="string")]
type Destination = Annotated[
    str | Network,
    *reading(
        values.read_destination,
        anyOf=[{"enum": sorted(ADDRESS_CLASSES)}, {"type": "string", "pattern": "[.:]"}],
    ),
]
type Method = Annotated[str, *reading(values.read_method, enum=sorted(METHODS))]
type Port = Annotated[
    int,
    *reading(
        lambda value: values.read_count(value, 1, 65535), type="integer", minimum=1, maximum=65535
    ),
]
type Day = Annotated[int, *reading(values.read_day, enum=list(values.DAYS))]
type Between = Annotated[
    tuple[int, int],
    *reading(
        _read_between,
        type="array",
        items={"type": "string", "pattern": "^([01][0-9]|2[0-4]):[0-5][0-9]$"},
        minItems=2,
        maxItems=2,
    ),
]
type Test = Annotated[Predicate, *reading(_read_predicate, **_TEST_SCHEMA)]
type Version = Annotated[int, *reading(values.read_version, const=1)]
