"""Request targets in canonical form: path and query. PURE and total over any bytes.

    raw target -> path (decoded where it is safe, dot segments resolved) + query (as sent) + pairs

Rule 1: the canonical path is both what is judged and what is sent: no origin sees another one.
Rule 2: whatever two parsers could read in two ways is refused: encoded slashes, backslashes and
        controls, double encoding, `..` above the root, bad UTF-8, parameters on dot segments.
Rule 3: the query is sent as it came (signed URLs depend on its bytes), and only read decoded.

Sources: policy.md section 3; threats G1 to G11; RFC 3986 sections 3.3, 5.2.4 and 6.2.2.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from policies.model import Refusal

PATH_BYTES_MAX = 4096

_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9\-_~!$&'()*+,=:@][A-Za-z0-9\-._~!$&'()*+,=:@]*)+/?|/")
_VISIBLE = re.compile(rb"[\x21-\x7e]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NON_ASCII_ESCAPE = re.compile(r"%[89A-Fa-f]")
_FORBIDDEN_ESCAPE = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff]|2[Ff]|5[Cc])")  # controls, `/`, `\`
_DOUBLE_ESCAPE = re.compile(r"%25(?:[0-9A-Fa-f]{2}|[uU])")
_ESCAPE_OR_ODD = re.compile(r"%[0-9A-Fa-f]{2}|[\"<>\[\]^`{|}]")
_RESERVED_ESCAPE = re.compile(r"%(2[146-9A-C]|3[ABD]|40)")  # pchar: sub-delims, `:`, `@`
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_QUERY_FORBIDDEN = re.compile(r"%00|#")


@dataclass(frozen=True, slots=True)
class Target:
    """A canonical origin-form target; the fields are those of `Request`."""

    path: str
    query: str | None = None
    query_pairs: tuple[tuple[str, str], ...] = ()
    path_params: bool = False


def canonicalise_target(raw_target: bytes) -> Target | Refusal:
    """Judge an origin-form target (`/path?query`), as received.

    Refuses with `path-not-canonical` or `query-not-canonical`. Feeding the result in again
    (`format_target`) gives the same result.
    """
    if _VISIBLE.fullmatch(raw_target) is None:
        return _refuse_path("target holds bytes that are not visible ASCII")
    text = raw_target.decode("ascii")
    raw_path, mark, raw_query = text.partition("?")
    path = canonicalise_path(raw_path)
    if isinstance(path, Refusal):
        return path
    path_params = ";" in path
    if not mark:
        return Target(path, path_params=path_params)
    pairs = _read_query(raw_query)
    if isinstance(pairs, Refusal):
        return pairs
    return Target(path, raw_query, pairs, path_params)


def canonicalise_path(text: str) -> str | Refusal:
    """The one spelling of an absolute path: unreserved decoded, hex upper-case, no dot segments.

    Path parameters (`;x=1`) stay; whether they may is the matching rule's choice.
    """
    if len(text) > PATH_BYTES_MAX:
        return _refuse_path("path is longer than 4096 bytes")
    if _PLAIN_PATH.fullmatch(text):
        return text
    decoded = _decode_escapes(text)
    if isinstance(decoded, Refusal):
        return decoded
    resolved = _resolve_dot_segments(decoded)
    if isinstance(resolved, str) and len(resolved) > PATH_BYTES_MAX:
        return _refuse_path("path is longer than 4096 bytes")  # odd characters grow when encoded
    return resolved


def strip_params(path: str) -> str:
    """A canonical path without its `;params`; canonical again, as no dot segment may carry any."""
    return "/".join(segment.partition(";")[0] for segment in path.split("/"))


def loosen_path(path: str) -> str:
    """The path with its reserved characters (`@`, `,`, `:` …) decoded too, for deny rules only.

    Most origins read `/a%2Cb` as `/a,b`. It is not canonical (RFC 3986 section 2.2), but a deny of
    the one must not be evaded by the other.
    """
    return _RESERVED_ESCAPE.sub(lambda found: chr(int(found[1], 16)), path)


def _decode_escapes(text: str) -> str | Refusal:
    if not text.startswith("/"):
        return _refuse_path("path does not start with a slash")
    if not text.isascii() or not text.isprintable() or " " in text:
        return _refuse_path("path holds characters that are not visible ASCII")
    if "\\" in text or "#" in text or "?" in text:
        return _refuse_path("path holds a backslash, a fragment or a question mark")
    if _BAD_ESCAPE.search(text):
        return _refuse_path("path holds an invalid percent escape")
    if _FORBIDDEN_ESCAPE.search(text):
        return _refuse_path("path holds an encoded slash, backslash or control character")
    if _NON_ASCII_ESCAPE.search(text) and not _is_utf8(unquote_to_bytes(text)):
        return _refuse_path("path is not UTF-8")
    decoded = _ESCAPE_OR_ODD.sub(_normalise_escape, text)
    if _DOUBLE_ESCAPE.search(decoded):
        return _refuse_path("path is encoded twice")
    return decoded


def _normalise_escape(found: re.Match[str]) -> str:
    text = found[0]
    if len(text) == 1:  # a character that RFC 3986 wants encoded and some clients send raw
        return f"%{ord(text):02X}"
    char = chr(int(text[1:], 16))
    return char if char in _UNRESERVED else text.upper()


def _resolve_dot_segments(path: str) -> str | Refusal:
    kept: list[str] = []
    last = ""
    for segment in path.split("/")[1:]:
        last = segment
        name, mark, _ = segment.partition(";")
        if mark and name in ("", ".", ".."):
            return _refuse_path("path has parameters on an empty or dot segment")
        if name == "..":
            if not kept:
                return _refuse_path("path climbs above the root")
            kept.pop()
        elif name not in ("", "."):
            kept.append(segment)
    trailing = "/" if kept and last in ("", ".", "..") else ""
    return "/" + "/".join(kept) + trailing


def _read_query(raw: str) -> tuple[tuple[str, str], ...] | Refusal:
    """Split on `&` only, decode `+` and escapes once; empty pieces carry nothing: skipped."""
    if _QUERY_FORBIDDEN.search(raw) or _BAD_ESCAPE.search(raw):
        return Refusal("query-not-canonical", "query holds NUL, a fragment or an invalid escape")
    pairs = [piece.partition("=") for piece in raw.split("&") if piece]
    if "%" not in raw and "+" not in raw:
        return tuple([(key, value) for key, _, value in pairs])
    try:
        return tuple([(_decode_query(key), _decode_query(value)) for key, _, value in pairs])
    except UnicodeDecodeError:
        return Refusal("query-not-canonical", "query is not UTF-8")


def _decode_query(text: str) -> str:
    if "%" not in text:
        return text.replace("+", " ")
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8")


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _refuse_path(detail: str) -> Refusal:
    return Refusal("path-not-canonical", detail)
