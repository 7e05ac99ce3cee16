"""What an author writes for one value -> the compiled value, or why not. PURE.

Each `read_*` takes one value as it came out of the file (text, int, bool) and returns the compiled
form, or raises `Unfit` with the finding's code, its words and a hint. `schema.py` hangs them onto
the fields. Units: policy.md section 1 (`10MB` = 10^7, `10MiB` = 10 * 2^20, `2h`).
"""

import re
from collections.abc import Iterable
from datetime import date, datetime
from difflib import get_close_matches
from ipaddress import (
    AddressValueError,
    IPv4Network,
    IPv6Network,
    NetmaskValueError,
    ip_address,
    ip_network,
)
from math import isfinite, isnan
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from policies.host import canonicalise_host, format_ipv6
from policies.node import plain_kind
from policies.pattern import BadPattern, parse_host, parse_path
from policies.regex import find_problem
from policies.rule import ADDRESS_CLASSES, METHODS, HostPattern, Network, PathPattern

INTEGER_MAX = 2**53 - 1  # what every JSON reader keeps exactly
ID_CHARS_MAX = 64
_SUGGEST_FROM_MAX = 1000

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_AMOUNT = re.compile(r"([0-9]{1,16}) ?([A-Za-zµ]*)")
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES, _TIMES = "10MB, 10MiB, 500kB or 512B", "30s, 5m, 2h or 1d"
_SMALLEST = {"size": "bytes", "time": "ms"}
_BOUNDLESS = "leave the line out if there is no limit"
_PERCENT = re.compile(r"([1-9][0-9]?|100)%")
_WINDOW_MS_MAX = 36_500 * 86_400_000
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# stripped or folded into other fields before a rule is asked (model.Request.headers)
_UNSEEN_HEADERS = {"host": "`match.host`", "upgrade": "`match.websocket: true`"} | dict.fromkeys(
    (
        "connection",
        "expect",
        "http2-settings",
        "keep-alive",
        "sec-websocket-extensions",
        "te",
        "trailer",
        "transfer-encoding",
    ),
    "",
)


class Unfit(ValueError):  # noqa: N818  named after the failure (house.md section 4)
    """One value cannot be used; becomes a Finding where the value stands."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for the nearest known name, or "". Not among thousands: it is slow."""
    known = sorted(known)
    if len(known) > _SUGGEST_FROM_MAX:
        return ""
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    return f"did you mean `{near[0]}`?" if near else ""


def show(value: Any) -> str:
    """A value in a message: what kind it is, and its text where that is short."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    if isinstance(value, str) and plain_kind(text) != "str":
        text = f'"{text}"'  # the quotes are what is wrong with it
    return f"`{text}`" if len(text) <= 80 else f"`{text[:77]}...`"


def read_text(value: Any, expected: str = "text") -> str:
    """Text as it stands; numbers and true/false are not text."""
    if not isinstance(value, str):
        hint = f'write "{value}"' if isinstance(value, int) and not isinstance(value, bool) else ""
        raise Unfit("AP007", f"expected {expected}, not {show(value)}", hint)
    return value


def read_id(value: Any) -> str:
    """An id of a rule, agent, group, rate or budget: it travels in logs, metrics, user names."""
    text = read_text(value, "a name")
    if not _ID.fullmatch(text):
        hint = f"use letters, digits, `-`, `_` and `.`, at most {ID_CHARS_MAX}, such as `read-docs`"
        raise Unfit("AP007", f"{show(text)} cannot be a name", hint)
    return text


def read_choice(value: Any, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    listed = ", ".join(f"`{choice}`" for choice in choices[:-1])
    expected = f"{listed} or `{choices[-1]}`" if listed else f"`{choices[-1]}`"
    if not isinstance(value, str) or value not in choices:
        hint = suggest(value, choices) if isinstance(value, str) else ""
        raise Unfit("AP007", f"expected {expected}, not {show(value)}", hint)
    return value


def read_flag(value: Any) -> bool:
    """true or false, unquoted."""
    if not isinstance(value, bool):
        hint = (
            "write it without quotes"
            if isinstance(value, str) and value in {"true", "false"}
            else ""
        )
        raise Unfit("AP007", f"expected true or false, not {show(value)}", hint)
    return value


def read_true(value: Any) -> bool:
    """Only true: leaving the key out says the opposite."""
    if value is not True:
        raise Unfit("AP007", f"expected true, not {show(value)}", "leave the key out instead")
    return True


def read_count(value: Any, least: int = 1, most: int = INTEGER_MAX) -> int:
    """A plain whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        hint = "write it without quotes" if isinstance(value, str) and value.isdigit() else ""
        raise Unfit("AP007", f"expected a whole number, not {show(value)}", hint)
    if not least <= value <= most:
        range_ = f"from {least} to {most}" if most < INTEGER_MAX else f"from {least}"
        raise Unfit("AP007", f"expected a number {range_}, not `{value}`")
    return value


def read_version(value: Any) -> int:
    """The version of the policy language: 1."""
    if value != 1 or isinstance(value, bool):
        raise Unfit("AP007", f"expected version 1, not {show(value)}", "write `version: 1`")
    return 1


def read_size(value: Any) -> int:
    """Bytes: `10MB` is 10^7, `10MiB` is 10 * 2^20."""
    return _read_amount(value, _BYTES, _SIZES, "size")


def read_count_limit(value: Any) -> int:
    """A limit that is counted: 0 (nothing at all) to 2^53-1, a plain number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= INTEGER_MAX:
        return value
    quoted = isinstance(value, str) and value.isascii() and value.isdigit()
    hint = "write it without quotes" if quoted else "write a plain number; 0 allows nothing"
    message = f"expected a whole number from 0 to 2^53-1, not {_show_number(value)}"
    raise Unfit("AP609", message, _BOUNDLESS if _is_beyond(value) else hint)


def read_size_limit(value: Any) -> int:
    """A limit in bytes: 0 (nothing at all) to 2^53-1, written as a size."""
    return _read_limit(value, _BYTES, _SIZES, "size")


def read_time_limit(value: Any) -> int:
    """A limit in milliseconds: 0 (no time at all) to 2^53-1, written as a time."""
    return _read_limit(value, _MILLISECONDS, _TIMES, "time")


def _read_limit(value: Any, units: dict[str, int], forms: str, noun: str) -> int:
    """An amount with its unit; 0 needs none, as nothing is the same in every unit."""
    if value == 0 and isinstance(value, int) and not isinstance(value, bool):
        return 0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (isinstance(value, int) and 0 < value <= INTEGER_MAX):
        try:
            return _read_amount(value, units, forms, noun)
        except Unfit as unfit:
            if unfit.code == "AP008":
                raise
    message = f"expected a {noun} from 0 to 2^53-1 {_SMALLEST[noun]}, not {_show_number(value)}"
    hint = f"write {forms}; 0 allows nothing"
    raise Unfit("AP609", message, _BOUNDLESS if _is_beyond(value) else hint)


def _is_beyond(value: Any) -> bool:
    """Whether a number is larger than any limit."""
    return isinstance(value, int | float) and value > INTEGER_MAX


def _show_number(value: Any) -> str:
    """As `show`, and what is not finite as YAML writes it."""
    if isinstance(value, float) and not isfinite(value):
        return "`.nan`" if isnan(value) else "`.inf`" if value > 0 else "`-.inf`"
    return show(value)


def spell_size(size_bytes: int) -> str:
    """Bytes as `read_size` takes them, exactly, in the unit with the smallest number: `50MB`."""
    return _spell_amount(size_bytes, _BYTES, "B")


def spell_duration(duration_ms: int) -> str:
    """Milliseconds as `read_duration` takes them, exactly: `2h`."""
    return _spell_amount(duration_ms, _MILLISECONDS, "s")


def _spell_amount(amount: int, units: dict[str, int], of_nothing: str) -> str:
    if not amount:
        return f"0{of_nothing}"
    fitting = [(amount // size, unit) for unit, size in units.items() if amount % size == 0]
    number, unit = min(fitting, key=lambda one: one[0])
    return f"{number}{unit}"


def read_percent(value: Any) -> int:
    """`80%`: 1 to 100, whole."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        near = f"write `{value}%`" if value in range(1, 101) and isinstance(value, int) else ""
        raise Unfit("AP008", f"{_show_number(value)} has no unit", near or "write `80%`")
    parts = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        message = f"expected a whole percentage from 1% to 100%, not {show(value)}"
        raise Unfit("AP007", message, "write `80%`")
    return int(parts[1])


def read_window(value: Any) -> int:
    """Milliseconds of a budget's window, at most 100 years."""
    window_ms = read_duration(value)
    if window_ms > _WINDOW_MS_MAX:
        hint = "leave `window` out for a budget that is never filled again"
        raise Unfit("AP007", f"expected at most 36500d, not {show(value)}", hint)
    return window_ms


def read_duration(value: Any) -> int:
    """Milliseconds, more than none: `500ms`, `30s`, `5m`, `2h`, `1d`."""
    amount = _read_amount(value, _MILLISECONDS, _TIMES, "time")
    if amount == 0:
        raise Unfit("AP007", "expected more than no time")
    return amount


def _read_amount(value: Any, units: dict[str, int], forms: str, noun: str) -> int:
    hint = f"write {forms}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise Unfit("AP008", f"`{value}` has no unit", hint)
    parts = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if not parts:
        raise Unfit("AP007", f"expected a {noun}, not {show(value)}", hint)
    number, unit = parts.groups()
    if not unit:
        raise Unfit("AP008", f"`{value}` has no unit", hint)
    if unit not in units:
        near = [known for known in units if known.lower() == unit.lower()]
        near = near or [known for known in units if known.lower().rstrip("b") == unit.lower()]
        hint = f"did you mean `{number}{near[0]}`?" if near else hint
        raise Unfit("AP008", f"`{unit}` is not a unit of {noun}", hint)
    amount = int(number) * units[unit]
    if amount > INTEGER_MAX:
        raise Unfit("AP007", f"`{value}` is larger than any limit can be, 2^53-1")
    return amount


def read_timezone(value: Any) -> str:
    """A name of the IANA time zone database, as it is spelt there."""
    text = read_text(value, "a time zone such as Europe/Berlin")
    if text not in available_timezones():
        near = {zone.lower(): zone for zone in available_timezones()}
        found = get_close_matches(text.lower(), near, n=1, cutoff=0.6)
        hint = f"did you mean `{near[found[0]]}`?" if found else "write UTC or Europe/Berlin"
        raise Unfit("AP007", f"{show(text)} is not a known time zone", hint)
    return text


def read_day(value: Any) -> int:
    """0 for mon to 6 for sun."""
    if isinstance(value, str) and value in DAYS:
        return DAYS.index(value)
    near = value.lower()[:3] if isinstance(value, str) else ""
    hint = f"did you mean `{near}`?" if near in DAYS else f"write {', '.join(DAYS)}"
    raise Unfit("AP007", f"expected a day of the week, not {show(value)}", hint)


def read_minute(value: Any) -> int:
    """Minutes since midnight of `"HH:MM"`; `"24:00"` is 1440."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise Unfit(
            "AP007", f"expected a time of day, not {show(value)}", 'write "08:00" in quotes'
        )
    return int(value[:2]) * 60 + int(value[3:])


def read_moment(value: Any) -> datetime:
    """A date or a date with time; without an offset it is wall clock of `defaults.timezone`."""
    text = value if isinstance(value, str) else ""
    try:
        if _DATE.fullmatch(text):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day)  # noqa: DTZ001  the zone is the file's
        if _DATE.fullmatch(text[:10]) and text[10] == "T" and ":" in text[11:]:
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    hint = "write 2026-11-01, or 2026-11-01T08:00:00Z"
    raise Unfit("AP007", f"expected a date, not {show(value)}", hint)


def fix_moment(moment: datetime, zone: ZoneInfo, *, later: bool) -> datetime:
    """Aware: of a wall clock that happens twice or never, the later or the earlier reading."""
    if moment.tzinfo is not None:
        return moment
    both = [moment.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    return (max if later else min)(both, key=lambda one: one.timestamp())


def read_method(value: Any) -> str:
    """A known method in upper case; others never pass."""
    if isinstance(value, str) and value in METHODS:
        return value
    upper = value.upper() if isinstance(value, str) else ""
    hint = f"did you mean `{upper}`?" if upper in METHODS else suggest_upper(upper)
    raise Unfit("AP007", f"expected a method, not {show(value)}", hint)


def suggest_upper(word: str) -> str:
    """The nearest method, or all of them."""
    near = get_close_matches(word, sorted(METHODS), n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"write some of {', '.join(sorted(METHODS))}, or leave `methods` out for all of them"


def read_header_name(text: str) -> str:
    """A header name in lower case that a rule can see."""
    name = text.lower()
    if not _HEADER.fullmatch(text):
        raise Unfit("AP007", f"{show(text)} is not a header name")
    if name in _UNSEEN_HEADERS or name.startswith("proxy-"):
        instead = _UNSEEN_HEADERS.get(name, "")
        hint = f"use {instead}" if instead else "it is removed before rules are asked"
        raise Unfit("AP204", f"the header `{name}` is never seen by a rule", hint)
    return name


def read_host(value: Any) -> HostPattern:
    """A host pattern: `a.com`, `*.a.com`, `**.a.com` or an address."""
    text = read_text(value, "a host")
    if text and set(text) <= {"*", "."}:
        hint = "name the hosts; there is no rule for every host"
        raise Unfit("AP105", f"host `{text}` would match every host", hint)
    pattern = parse_host(text)
    if isinstance(pattern, BadPattern):
        raise Unfit(pattern.code, pattern.message, pattern.hint)
    return pattern


def read_path(value: Any) -> PathPattern:
    """A path pattern: literal segments, `*`, `report-*.pdf`, `{x:int}`, `{x:uuid}`, final `**`."""
    text = read_text(value, "a path")
    pattern = parse_path(text)
    if isinstance(pattern, BadPattern):
        hint = "placeholders are `{name:int}` and `{name:uuid}`; `*` stands for any one segment"
        raise Unfit(pattern.code, pattern.message, hint if "{" in text else pattern.hint)
    return pattern


def read_regex(value: Any) -> str:
    """A regular expression of RE2, matched against the whole value."""
    text = read_text(value, "a regular expression")
    problem = find_problem(text)
    if problem is not None:
        hint = "RE2 has no look-around and no back-references"
        raise Unfit("AP111", f"RE2 refuses {show(text)}: {problem}", hint)
    return text


def read_network(value: Any) -> Network:
    """A CIDR range without host bits, or one address."""
    text = read_text(value, "an address range such as 10.0.0.0/8")
    try:
        network = ip_network(text, strict=False)
    except (ValueError, AddressValueError, NetmaskValueError):
        name = canonicalise_host(text)
        plain = name if isinstance(name, str) and name[-1:].isdigit() else ""
        hint = f"write `{plain}`" if plain else "write 10.0.0.0/8 or 2001:db8::/32"
        raise Unfit("AP107", f"{show(text)} is not an address range", hint) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        inner = IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
        raise Unfit("AP107", f"{show(text)} is an IPv4 range in IPv6 form", f"write `{inner}`")
    written = spell_network(network)
    single = spell_address(network)
    if text not in {written, single}:
        address = text.partition("/")[0]
        word = "is not in canonical form" if _is_first(address, network) else "has host bits"
        raise Unfit(
            "AP107", f"{show(text)} {word}", f"write `{written if '/' in text else single}`"
        )
    return network


_MAPPED = IPv6Network("::ffff:0:0/96")


def _is_first(address: str, network: Network) -> bool:
    return ip_address(address) == network.network_address


def spell_address(network: Network) -> str:
    """The first address of a range, in RFC 5952 form."""
    if isinstance(network, IPv6Network):
        return format_ipv6(network.network_address)
    return str(network.network_address)


def spell_network(network: Network) -> str:
    """A range in its one spelling, the same on every Python."""
    return f"{spell_address(network)}/{network.prefixlen}"


def read_destination(value: Any) -> str | Network:
    """An entry of `dest_ip`: the name of a class of addresses, or a range."""
    if isinstance(value, str) and value in ADDRESS_CLASSES:
        return value
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z_-]*", value):
        near = suggest(value, ADDRESS_CLASSES)
        hint = near or f"write some of {', '.join(sorted(ADDRESS_CLASSES))}, or a range"
        raise Unfit("AP007", f"{show(value)} is not a class of addresses", hint)
    return read_network(value)
