"""Paths and queries: policy.md section 3, threats G1 to G11."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.model import Refusal
from policies.target import canonicalise_path, canonicalise_target, loosen_path, strip_params

PATHS = {
    "root": ("/", "/"),
    "plain": ("/repos/acme/x", "/repos/acme/x"),
    "trailing slash stays": ("/a/", "/a/"),
    "dot segments": ("/ok/../admin", "/admin"),
    "single dots": ("/./a/./b", "/a/b"),
    "trailing dot": ("/a/.", "/a/"),
    "trailing dots": ("/a/b/..", "/a/"),
    "down to the root": ("/a/..", "/"),
    "encoded dots": ("/ok/%2e%2E/admin", "/admin"),
    "well-known": ("/.well-known/x", "/.well-known/x"),
    "three dots are a name": ("/a/.../b", "/a/.../b"),
    "above the root": ("/../a", None),
    "above the root, encoded": ("/a/%2e%2e/%2e%2e/b", None),
    "double slash": ("//admin", "/admin"),
    "many slashes": ("/a///b//", "/a/b/"),
    "unreserved is decoded": ("/%41%7e%2D", "/A~-"),
    "hex in upper case": ("/%c3%a9", "/%C3%A9"),
    "reserved stays encoded": ("/a%2Cb%40c", "/a%2Cb%40c"),
    "odd raw characters are encoded": ('/a|b{c}"', "/a%7Cb%7Bc%7D%22"),
    "encoded slash": ("/a%2fb", None),
    "encoded backslash": ("/a%5Cb", None),
    "backslash": ("/a\\b", None),
    "NUL": ("/a%00", None),
    "encoded line feed": ("/a%0ab", None),
    "encoded DEL": ("/a%7fb", None),
    "bad escape": ("/a%zz", None),
    "cut escape": ("/a%4", None),
    "IIS escape": ("/%u002e", None),
    "double encoding": ("/%252e%252e/x", None),
    "double encoding, hidden": ("/%25%32%65", None),
    "double IIS encoding": ("/%25u002e", None),
    "an encoded percent alone": ("/100%25", "/100%25"),
    "overlong UTF-8": ("/%c0%af", None),
    "not UTF-8": ("/%ff", None),
    "fragment": ("/a#b", None),
    "question mark": ("/a?b", None),
    "no slash": ("a", None),
    "empty": ("", None),
    "star": ("*", None),
    "raw non-ASCII": ("/é", None),
    "raw space": ("/a b", None),
    "raw control": ("/a\x7f", None),
    "4 KiB": ("/" + "a" * 4095, "/" + "a" * 4095),
    "over 4 KiB": ("/" + "a" * 4096, None),
    "grows over 4 KiB": ("/" + "|" * 2000, None),
    "parameters stay": ("/a;x=1/b", "/a;x=1/b"),
    "parameters on dots": ("/a/..;x/b", None),
    "parameters on encoded dots": ("/a/%2e%2e;/b", None),
    "parameters on one dot": ("/.;x", None),
    "parameters on nothing": ("/a/;x", None),
}


@pytest.mark.parametrize(("text", "expected"), PATHS.values(), ids=PATHS)
def test_path_has_one_spelling_or_is_refused(text: str, expected: str | None) -> None:
    path = canonicalise_path(text)
    if expected is None:
        assert isinstance(path, Refusal)
        assert path.reason == "path-not-canonical"
    else:
        assert path == expected


QUERIES = {
    "none": (b"/a", None, ()),
    "empty": (b"/a?", "", ()),
    "pairs": (b"/a?x=1&y=2", "x=1&y=2", (("x", "1"), ("y", "2"))),
    "sent as it came": (b"/a?x=%41%c3%a9", "x=%41%c3%a9", (("x", "Aé"),)),
    "plus and escapes are decoded once": (b"/a?x=a+b%252B", "x=a+b%252B", (("x", "a b%2B"),)),
    "repeated keys stay": (b"/a?x=1&x=2", "x=1&x=2", (("x", "1"), ("x", "2"))),
    "only ampersands split": (b"/a?x=1;y=2", "x=1;y=2", (("x", "1;y=2"),)),
    "empty pieces carry nothing": (b"/a?&x=1&&y=&", "&x=1&&y=&", (("x", "1"), ("y", ""))),
    "plus without an escape": (b"/a?x+y=a+b", "x+y=a+b", (("x y", "a b"),)),
    "an escaped key": (b"/a?%78%3D=1", "%78%3D=1", (("x=", "1"),)),
    "an escape in one pair": (b"/a?x=a+b&y=%2B", "x=a+b&y=%2B", (("x", "a b"), ("y", "+"))),
    "no value": (b"/a?x&=1", "x&=1", (("x", ""), ("", "1"))),
    "second question mark": (b"/a?x=?", "x=?", (("x", "?"),)),
    "slashes and dots are text": (b"/a?x=/../", "x=/../", (("x", "/../"),)),
}


@pytest.mark.parametrize(("raw", "query", "pairs"), QUERIES.values(), ids=QUERIES)
def test_query_is_sent_as_it_came_and_read_decoded(
    raw: bytes, query: str | None, pairs: tuple[tuple[str, str], ...]
) -> None:
    target = canonicalise_target(raw)
    assert not isinstance(target, Refusal)
    assert (target.path, target.query, target.query_pairs) == ("/a", query, pairs)


@pytest.mark.parametrize("query", [b"", b"?x=;"])
def test_only_a_semicolon_in_the_path_is_a_parameter(query: bytes) -> None:
    with_params, without = canonicalise_target(b"/a;x" + query), canonicalise_target(b"/a" + query)
    assert not isinstance(with_params, Refusal)
    assert not isinstance(without, Refusal)
    assert (with_params.path, with_params.path_params) == ("/a;x", True)
    assert (without.path, without.path_params) == ("/a", False)


@pytest.mark.parametrize("raw", [b"/a?x=%00", b"/a?x=%zz", b"/a?x=%ff", b"/a?%"])
def test_query_that_cannot_be_read_is_refused(raw: bytes) -> None:
    target = canonicalise_target(raw)
    assert isinstance(target, Refusal)
    assert target.reason == "query-not-canonical"


@pytest.mark.parametrize(
    "raw", [b"/x\xff", b"/a b", b"/a\r\nX: y", b"/a?b\x00", b"/a?b#c", b"/\x7f"]
)
def test_target_that_is_not_visible_ascii_is_refused(raw: bytes) -> None:
    assert isinstance(canonicalise_target(raw), Refusal)


@given(st.binary(max_size=80) | st.from_regex(rb"/[ab%2eEfF5cC;./\\?&=+#|]{0,30}", fullmatch=True))
@settings(max_examples=400, deadline=None)
def test_target_is_total_and_idempotent(raw: bytes) -> None:
    target = canonicalise_target(raw)
    if isinstance(target, Refusal):
        return
    again = target.path if target.query is None else f"{target.path}?{target.query}"
    assert canonicalise_target(again.encode("ascii")) == target
    assert ".." not in target.path.split("/")
    stripped = strip_params(target.path)
    assert canonicalise_path(stripped) == stripped


def test_a_loosened_path_is_what_most_origins_read() -> None:
    assert loosen_path("/a%2Cb%40c%3Ad") == "/a,b@c:d"
    assert loosen_path("/a%2Fb%25%C3%A9") == "/a%2Fb%25%C3%A9"
