"""One event to its bytes, and one line back to a record. PURE, but orjson does the encoding.

    {"kind":"decision", …}  --encode-->  b'{"agent":{"id":"a"},"client":"10.0.0.7", …}'

Rule 1: `encode` is the fast road, and its bytes are judged by the form of the kind (audit/laws.py);
        what fails there takes `settle`, the slow road, which mends it or names the wrong field.
Rule 2: a record is never lost because a value was odd or long. In fields from the wire, bytes that
        are not printable ASCII become %XX. Values that make a record too long are cut and named by
        length and digest: ` cut:<bytes> sha256:<64 hex>`. `wire_text` encodes spaces as well, so
        what went through it cannot look like that mark.
Rule 3: the encoder is trusted to write, never to verify: audit/chain.py checks the bytes on disk.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from audit.fields import KINDS, Array, Leaf, Object, Shape, event_shape

LINE_BYTES_MAX = 65_535  # without LF: an entry of tlog-tiles has a 16-bit length
EVENT_BYTES_MAX = LINE_BYTES_MAX - 300  # 300: the most that chain and hash add (about 240)
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_NOT_PLAIN = re.compile(rb"[^ -~]")
_NOT_WIRE = re.compile(rb"[^!-~]")
_CUTS = ((2048, 128), (512, 32), (128, 8))  # (bytes of a string, values of an array), until it fits


class EventRefused(ValueError):  # noqa: N818  named after the failure
    """An event that no verifier would accept: a bug of the caller; nothing was written."""


@dataclass(frozen=True, slots=True)
class Record:
    """One parsed line. `event` is what happened, the rest is its place in the chain."""

    log: str
    seq: int
    ts: str
    event: dict[str, Any]
    hash: str


def wire_text(value: str | bytes, bytes_max: int = 2048) -> str:
    """Bytes from the wire as a string a record may hold: all but visible ASCII becomes %XX.

    A `%` stays as it is, so canonical paths are recorded unchanged. More than `bytes_max` encoded
    bytes are cut and named by length and digest.
    """
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return cut_text(_NOT_WIRE.sub(_percent, data).decode("ascii"), bytes_max)


def cut_text(value: str, bytes_max: int) -> str:
    """`value`, or its beginning and a mark: ` cut:<bytes> sha256:<64 hex>` (comes on top)."""
    data = value.encode()
    if len(data) <= bytes_max:
        return value
    kept = data[:bytes_max].decode("utf-8", "ignore")
    return kept + _mark(len(data), data)


def _mark(size: int, data: bytes) -> str:
    return f" cut:{size} sha256:{sha256(data).hexdigest()}"


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def encode(event: Mapping[str, object]) -> bytes:
    """The canonical bytes of an event (RFC 8785), not yet judged against its form.

    Raises:
        EventRefused: it holds something JSON or the profile has no place for.
    """
    try:
        return orjson.dumps(event, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise EventRefused(f"an event cannot be encoded: {error}") from error


def settle(event: Mapping[str, object]) -> bytes:
    """The slow road: encode odd bytes, cut long values, and refuse with the field that is wrong.

    Raises:
        EventRefused: the event does not have the form of its kind.
    """
    kind = event.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise EventRefused(f"`{kind}` is not a kind of event")
    shape = event_shape(kind)
    plain = _mend(event, shape, None)
    problem = _explain(plain, shape, "event")
    if problem:
        raise EventRefused(problem)
    line = encode(plain)
    for limits in _CUTS:
        if len(line) <= EVENT_BYTES_MAX:
            break
        line = encode(_mend(plain, shape, limits))
    if len(line) > EVENT_BYTES_MAX:
        raise EventRefused(f"a `{kind}` event has {len(line)} bytes, at most {EVENT_BYTES_MAX} fit")
    return line


def _mend(value: Any, shape: Shape, limits: tuple[int, int] | None) -> Any:
    """A copy with wire bytes percent-encoded and, where `limits` are given, long values cut."""
    match shape:
        case Leaf():
            return (
                _mend_text(value, shape, limits) if isinstance(value, str) and shape.text else value
            )
        case Array() if isinstance(value, list | tuple):
            if limits and shape.cut and len(value) > limits[1]:
                return _cut_array(
                    [_mend(item, shape.of, limits) for item in value[: limits[1]]], shape, value
                )
            return [_mend(item, shape.of, limits) for item in value]
        case Object() if isinstance(value, Mapping):
            shapes = {name.rstrip("?"): of for name, of in shape.fields.items()}
            return {
                name: _mend(item, shapes[name], limits) if name in shapes else item
                for name, item in value.items()
            }
    return value


def _mend_text(value: str, shape: Leaf, limits: tuple[int, int] | None) -> str:
    data = value.encode("utf-8", "surrogatepass")
    if shape.wire:
        value = _NOT_PLAIN.sub(_percent, data).decode("ascii")
    else:
        value = data.decode("utf-8", "backslashreplace")
    return cut_text(value, limits[0]) if limits else value


def _cut_array(kept: list[Any], shape: Array, whole: list[Any] | tuple[Any, ...]) -> list[Any]:
    mark = _mark(len(whole), orjson.dumps(whole, option=_OPTIONS))
    if isinstance(shape.of, Object):  # `read`: the mark takes the place of a field name
        return [*kept, {"field": mark, "outcome": "unknown"}]
    return [*kept, mark]


def _explain(value: Any, shape: Shape, place: str) -> str | None:
    """The first place where `value` has not the form of `shape`, in words; None where it has."""
    match shape:
        case Leaf():
            fits = re.fullmatch(shape.pattern, _encode_leaf(value))
            return None if fits else f"`{place}` must be {shape.name}"
        case Array():
            if not isinstance(value, list | tuple):
                return f"`{place}` must be an array"
            return _first(_explain(item, shape.of, f"{place}[{n}]") for n, item in enumerate(value))
        case Object():
            return _explain_object(value, shape, place)


def _explain_object(value: Any, shape: Object, place: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"`{place}` must be an object"
    shapes = {name.rstrip("?"): of for name, of in shape.fields.items()}
    for name in value:
        if name not in shapes:
            return f"`{place}` has an unknown field `{name}`"
    for name in shape.fields:
        if not name.endswith("?") and name not in value:
            return f"`{place}` lacks the field `{name}`"
    return _first(_explain(item, shapes[name], f"{place}.{name}") for name, item in value.items())


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def _encode_leaf(value: Any) -> bytes:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return b""
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except orjson.JSONEncodeError:
        return b""


def explain_event(data: bytes) -> str:
    """Why an event is not in form, for a report. Never decides: the form already did."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return f"the event is not JSON: {error}"
    if not isinstance(event, dict):
        return "the event is not an object"
    kind = event.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"`{kind}` is not a kind of event"
    problem = _explain(event, event_shape(kind), "event")
    return (
        problem or "the event is not in canonical form (order, spaces, escapes or a repeated key)"
    )


def parse(line: bytes) -> Record:
    """One line (without LF) as a record, for showing it: form and hash are not checked here.

    Raises:
        ValueError: it is not a record at all.
    """
    whole = orjson.loads(line)
    try:
        chain = whole["chain"]
        return Record(chain["log"], chain["seq"], chain["ts"], whole["event"], whole["hash"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the line is not a record") from error
