"""Host and path patterns as people write them. PURE: text -> compiled pattern, or what is wrong.

    "*.a.com" -> HostPattern(one_label, "a.com")      "/a/{x:int}/**" -> PathPattern(…, rest=True)

Rule 1: a pattern must be written in canonical form, else it could never match; the hint shows it.
Rule 2: wildcards stand for whole labels; a wildcard on a public suffix is refused.
Rule 3: what a pattern covers is said in words by `describe_host` and `describe_path`.

Policy.md 2.7; findings AP104, AP105, AP107, AP109, AP110; threats E19.
"""

import re
from dataclasses import dataclass
from typing import Literal

from policies.canonical import canonicalise_host, canonicalise_path, is_public_suffix
from policies.host import parse_address
from policies.model import Refusal
from policies.rule import HostPattern, PathPattern, Segment

_TYPED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*):(int|uuid)\}")
_PATH_HINT = (
    "paths are matched without dot segments, `//` and query, percent-encoded with upper-case hex"
)
_PREFIXES: tuple[tuple[str, Literal["one_label", "any_depth"]], ...] = (
    ("**.", "any_depth"),
    ("*.", "one_label"),
)


@dataclass(frozen=True, slots=True)
class BadPattern:
    """Why a pattern was refused; `code` is the finding of policy.md section 7."""

    code: Literal["AP104", "AP105", "AP107", "AP109"]
    message: str  # lower case, no full stop, user input in backticks
    hint: str


def parse_host(text: str) -> HostPattern | BadPattern:
    """Compile `a.com`, `*.a.com`, `**.a.com` or an IP literal (IPv6 with or without brackets)."""
    for prefix, kind in _PREFIXES:
        if text.startswith(prefix):
            return _parse_wildcard(text, kind, text[len(prefix) :])
    if "*" in text:
        return BadPattern(
            "AP105" if set(text) <= {"*", "."} else "AP104",
            f"host `{text}` has a wildcard that is not a whole leading label",
            "use `*.` for exactly one more label or `**.` for one or more",
        )
    name = _check_name(text)
    if isinstance(name, BadPattern):
        return name
    return HostPattern("exact" if parse_address(name) is None else "ip", name)


def parse_path(text: str) -> PathPattern | BadPattern:
    """Compile a path of literal, `*`, `report-*.pdf`, `{x:int}`, `{x:uuid}` and trailing `**`."""
    if not text.startswith("/"):
        return BadPattern("AP109", f"path `{text}` does not start with a slash", f"write `/{text}`")
    parts = text[1:].split("/")
    rest = parts[-1] == "**"
    if rest:
        parts.pop()
    if any("**" in part for part in parts):
        return BadPattern(
            "AP109",
            f"path `{text}` has `**` before its end",
            "`**` stands at the end and means zero or more segments; use `*` for one segment",
        )
    problem = _check_literal_form(text, parts, rest)
    return problem or PathPattern(tuple(_parse_segment(part) for part in parts), rest)


def describe_host(pattern: HostPattern) -> str:
    """What the pattern covers, in words, as `explain` prints it."""
    name = pattern.name
    match pattern.kind:
        case "exact":
            return f"`{name}` and nothing else"
        case "ip":
            return f"the address `{name}` and nothing else"
        case "one_label":
            return f"exactly one more label before `{name}`, as in `x.{name}`; not `{name}` itself"
        case "any_depth":
            return f"one or more labels before `{name}`, as in `x.y.{name}`; not `{name}` itself"


def describe_path(pattern: PathPattern) -> str:
    """What the pattern covers, in words."""
    if not pattern.rest:
        return f"`{pattern}` segment by segment, nothing below it"
    if not pattern.segments:
        return "every path"
    stem = PathPattern(pattern.segments)
    return f"`{stem}` and everything below it"


def _parse_wildcard(
    text: str, kind: Literal["one_label", "any_depth"], rest: str
) -> HostPattern | BadPattern:
    if not rest or "*" in rest:
        return BadPattern(
            "AP105",
            f"host `{text}` would match every host",
            "name the hosts, or use one leading `*.` or `**.` on a name you control",
        )
    name = _check_name(rest)
    if isinstance(name, BadPattern):
        return name
    if parse_address(name) is not None:
        return BadPattern("AP107", f"host `{text}` puts a wildcard on an address", "use `dest_ip`")
    if is_public_suffix(name):
        return BadPattern(
            "AP105",
            f"host `{text}` covers names that anyone can register under `{name}`",
            "name at least the registered domain, as in `*.example.com`",
        )
    return HostPattern(kind, name)


def _check_name(text: str) -> str | BadPattern:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    name = canonicalise_host(bare)
    if isinstance(name, Refusal):
        return BadPattern(
            "AP104",
            f"`{text}` is not a host name",
            "write the plain host: no scheme, port, path or user, as in `api.example.com`",
        )
    if name != bare:
        code: Literal["AP104", "AP107"] = "AP107" if parse_address(name) else "AP104"
        return BadPattern(code, f"host `{text}` is not in canonical form", f"write `{name}`")
    return name


def _check_literal_form(text: str, parts: list[str], rest: bool) -> BadPattern | None:
    """Put plain text for every wildcard; what remains must be its own canonical form."""
    plain = "/" + "/".join(
        "0" if _TYPED.fullmatch(part) else part.replace("*", "0") for part in parts
    )
    if rest and parts:
        plain += "/"
    canonical = canonicalise_path(plain)
    if isinstance(canonical, Refusal):
        return BadPattern("AP109", f"path `{text}` can never match: {canonical.detail}", _PATH_HINT)
    if canonical != plain:
        hint = _PATH_HINT if plain != text else f"write `{canonical}`"
        return BadPattern("AP109", f"path `{text}` is not canonical, so it can never match", hint)
    return None


def _parse_segment(part: str) -> Segment:
    typed = _TYPED.fullmatch(part)
    if typed:
        return Segment("int" if typed[2] == "int" else "uuid", part)
    if part == "*":
        return Segment("any", part)
    return Segment("glob" if "*" in part else "literal", part)
