"""Patterns as people write them: policy.md 2.7, threats E19."""

import pytest

from policies.pattern import BadPattern, describe_host, describe_path, parse_host, parse_path
from tests.kit.policy_sets import parsed_host, parsed_path

HOSTS = {
    "exact": ("a.com", "exact"),
    "one label": ("*.a.com", "one_label"),
    "any depth": ("**.a.com", "any_depth"),
    "IPv4": ("10.0.0.1", "ip"),
    "IPv6": ("::1", "ip"),
    "single label": ("localhost", "exact"),
}
BAD_HOSTS = {
    "star": ("*", "AP105"),
    "two stars": ("**", "AP105"),
    "top level": ("*.com", "AP105"),
    "public suffix": ("**.github.io", "AP105"),
    "two wildcards": ("*.*.a.com", "AP105"),
    "inner wildcard": ("a*.com", "AP104"),
    "URL": ("https://API.x.com/", "AP104"),
    "port": ("x.com:443", "AP104"),
    "upper case": ("API.x.com", "AP104"),
    "trailing dot": ("x.com.", "AP104"),
    "U-label": ("münchen.de", "AP104"),
    "odd number": ("0x7f.1", "AP107"),
    "long IPv6": ("0:0:0:0:0:0:0:1", "AP107"),
    "wildcard on an address": ("*.10.0.0.1", "AP107"),
    "empty": ("", "AP104"),
    "wildcard on nothing": ("*.", "AP105"),
}
BAD_PATHS = [
    "", "a", "/a/../b", "/a//b", "/a%2Fb", "/%41", "/%c3%a9", "/é", "/a?b", "/a#b", "/**/b",
    "/a**", "/{x}", "/a{x:int}", "/{x:date}", "/a b", "/./a", "/a/.",
]  # fmt: skip
GOOD_PATHS = [
    "/", "/**", "/a/**", "/a/*/b", "/report-*.pdf", "/{x:int}/y", "/{x:uuid}", "/a/",
    "/%C3%A9", "/@a,b:c", "/.well-known/*", "/a;v=*/b",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), HOSTS.values(), ids=HOSTS)
def test_a_host_pattern_is_read_and_written_back(text: str, kind: str) -> None:
    pattern = parsed_host(text)
    assert pattern.kind == kind
    assert str(pattern) == text


@pytest.mark.parametrize(("text", "code"), BAD_HOSTS.values(), ids=BAD_HOSTS)
def test_a_bad_host_pattern_names_its_finding(text: str, code: str) -> None:
    pattern = parse_host(text)
    assert isinstance(pattern, BadPattern)
    assert pattern.code == code
    assert pattern.hint
    assert f"`{text}`" in pattern.message


def test_the_hint_shows_the_canonical_host() -> None:
    pattern = parse_host("API.x.com")
    assert isinstance(pattern, BadPattern)
    assert pattern.hint == "write `api.x.com`"


@pytest.mark.parametrize("text", GOOD_PATHS)
def test_a_path_pattern_is_read_and_written_back(text: str) -> None:
    assert str(parsed_path(text)) == text


@pytest.mark.parametrize("text", BAD_PATHS)
def test_a_path_that_could_never_match_is_refused(text: str) -> None:
    pattern = parse_path(text)
    assert isinstance(pattern, BadPattern)
    assert pattern.code == "AP109"
    assert pattern.hint


def test_patterns_are_said_in_words() -> None:
    assert describe_host(parsed_host("*.a.com")).startswith("exactly one more label before `a.com`")
    assert describe_host(parsed_host("**.a.com")).startswith("one or more labels before `a.com`")
    assert "nothing else" in describe_host(parsed_host("a.com"))
    assert "address" in describe_host(parsed_host("::1"))
    assert describe_path(parsed_path("/**")) == "every path"
    assert describe_path(parsed_path("/a/**")) == "`/a` and everything below it"
    assert "nothing below" in describe_path(parsed_path("/a/*"))
