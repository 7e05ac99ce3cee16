"""Predicates: policy.md 2.4, 2.7 and section 3, threats E19, G11."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from policies.match import (
    Facts,
    check_dest_ip,
    compile_checks,
    compile_unless,
    glob_matches,
    host_matches,
    path_matches,
)
from policies.outcome import conjoin
from policies.rule import DestIp, Match, Predicate
from tests.kit.policy_sets import NOW, PUBLIC, get, match, parsed_host, parsed_path

HOSTS = {
    "exact": ("example.com", "example.com", True),
    "exact is not a suffix": ("example.com", "api.example.com", False),
    "wildcard takes a subdomain": ("*.example.com", "api.example.com", True),
    "wildcard refuses the bare domain": ("*.example.com", "example.com", False),
    "wildcard stops at a label": ("*.example.com", "evilexample.com", False),
    "wildcard takes one label only": ("*.example.com", "a.b.example.com", False),
    "any depth takes one": ("**.example.com", "a.example.com", True),
    "any depth takes many": ("**.example.com", "a.b.c.example.com", True),
    "any depth refuses the bare domain": ("**.example.com", "example.com", False),
    "any depth stops at a label": ("**.example.com", "evilexample.com", False),
    "address": ("10.0.0.1", "10.0.0.1", True),
    "other address": ("10.0.0.1", "10.0.0.11", False),
}


@pytest.mark.parametrize(("pattern", "host", "expected"), HOSTS.values(), ids=HOSTS)
def test_host_matches(pattern: str, host: str, expected: bool) -> None:
    assert host_matches(parsed_host(pattern), host) is expected


PATHS = {
    "literal": ("/a/b", "/a/b", True),
    "literal is not a prefix": ("/a", "/a/b", False),
    "literal and trailing slash": ("/a", "/a/", False),
    "trailing slash": ("/a/", "/a/", True),
    "root": ("/", "/", True),
    "root is not everything": ("/", "/a", False),
    "rest of the root": ("/**", "/", True),
    "rest takes none": ("/a/**", "/a", True),
    "rest takes an empty one": ("/a/**", "/a/", True),
    "rest takes many": ("/a/**", "/a/b/c", True),
    "rest stops at a segment": ("/a/**", "/ab", False),
    "star takes one": ("/a/*/c", "/a/b/c", True),
    "star takes no empty segment": ("/a/*", "/a/", False),
    "star takes no two": ("/a/*", "/a/b/c", False),
    "glob": ("/report-*.pdf", "/report-7.pdf", True),
    "glob of nothing": ("/report-*.pdf", "/report-.pdf", True),
    "glob stays in its segment": ("/report-*.pdf", "/report-/x.pdf", False),
    "glob is anchored": ("/report-*.pdf", "/report-7.pdfx", False),
    "int": ("/{n:int}", "/0042", True),
    "int is not a word": ("/{n:int}", "/42a", False),
    "int is not empty": ("/{n:int}", "/", False),
    "uuid": ("/{u:uuid}", "/123e4567-e89b-12d3-a456-426614174000", True),
    "uuid in upper case": ("/{u:uuid}", "/123E4567-E89B-12D3-A456-426614174000", True),
    "uuid of a wrong letter": ("/{u:uuid}", "/g23e4567-e89b-12d3-a456-426614174000", False),
    "uuid that is too long": ("/{u:uuid}", "/123e4567-e89b-12d3-a456-4266141740000", False),
    "uuid with a fifth hyphen": ("/{u:uuid}", "/123e4567-e89b-12d3-a456-42661417-000", False),
    "uuid with its second hyphen moved": (
        "/{u:uuid}",
        "/123e4567-e89b1-2d3-a456-426614174000",
        False,
    ),
    "uuid with its third hyphen moved": (
        "/{u:uuid}",
        "/123e4567-e89b-12d3a-456-426614174000",
        False,
    ),
    "uuid with its last hyphen moved": (
        "/{u:uuid}",
        "/123e4567-e89b-12d3-a4564-26614174000",
        False,
    ),
    "uuid of a wrong shape": ("/{u:uuid}", "/123e4567e89b-12d3-a456-426614174000-", False),
}


@pytest.mark.parametrize(("pattern", "path", "expected"), PATHS.values(), ids=PATHS)
def test_path_matches(pattern: str, path: str, expected: bool) -> None:
    assert path_matches(parsed_path(pattern), path) is expected


GLOBS = {
    "overlap": ("ab*ba", "aba", False),
    "two stars": ("*a*", "bab", True),
    "middle in order": ("*a*b*", "ba", False),
    "middle does not eat the end": ("*ab*b", "ab", False),
    "nothing": ("a*", "", False),
    "a star alone takes no nothing": ("*", "", False),
    "the beginning counts": ("a*b", "xb", False),
    "the end counts": ("a*b", "ax", False),
    "just both ends": ("ab*cd", "abcd", True),
    "a middle twice": ("a*b*b*c", "abc", False),
    "a middle twice, found twice": ("a*b*b*c", "abbc", True),
    "two middles side by side": ("*ab*ba*", "abba", True),
    "two middles may not share": ("*ab*ba*", "aba", False),
    "a middle at the very end": ("*b*b", "bb", True),
    "stars beside each other": ("a**b", "ab", True),
}


@pytest.mark.parametrize(("glob", "text", "expected"), GLOBS.values(), ids=GLOBS)
def test_glob_matches(glob: str, text: str, expected: bool) -> None:
    assert glob_matches(glob, text) is expected


def outcome(rule: Match, addresses: Any = PUBLIC, **fields: Any) -> str:
    facts = Facts(get(**fields), addresses, NOW)
    return conjoin(check.judge(facts) for check in compile_checks(rule))


def pairs(*found: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, _, value in (one.partition("=") for one in found))


QUERY = {
    "exact": (Predicate("exact", ("1",)), ["a=1"], "true"),
    "exact, wrong": (Predicate("exact", ("1",)), ["a=2"], "false"),
    "missing": (Predicate("exact", ("1",)), ["b=1"], "false"),
    "one of": (Predicate("one_of", ("1", "2")), ["a=2"], "true"),
    "one of nothing": (Predicate("one_of", ()), ["a=2"], "false"),
    "prefix": (Predicate("prefix", ("WEB-",)), ["a=WEB-1"], "true"),
    "suffix": (Predicate("suffix", (".pdf",)), ["a=x.pdf"], "true"),
    "expression": (Predicate("re", ("[0-9]+",)), ["a=12"], "true"),
    "expression is full": (Predicate("re", ("[0-9]+",)), ["a=12x"], "false"),
    "present": (Predicate("present"), ["a="], "true"),
    "not present": (Predicate("present"), [], "false"),
    "absent": (Predicate("absent"), ["b=1"], "true"),
    "not absent": (Predicate("absent"), ["a=1"], "false"),
    "repeated and alike": (Predicate("one_of", ("1", "2")), ["a=1", "a=2"], "true"),
    "repeated and different": (Predicate("exact", ("1",)), ["a=1", "a=2"], "unknown"),
    "repeated and wrong": (Predicate("exact", ("1",)), ["a=3", "a=2"], "false"),
    "array twin": (Predicate("exact", ("1",)), ["a=1", "a[]=2"], "unknown"),
    "case twin": (Predicate("exact", ("1",)), ["a=1", "A=2"], "unknown"),
    "twin of an absent one": (Predicate("absent"), ["A=2"], "unknown"),
    "array twin by index": (Predicate("exact", ("1",)), ["a=1", "a[0]=2"], "unknown"),
    "array twin in another case": (Predicate("exact", ("1",)), ["a=1", "A[]=2"], "unknown"),
    "twin alone": (Predicate("exact", ("1",)), ["a[]=1"], "unknown"),
    "prefix, wrong": (Predicate("prefix", ("WEB-",)), ["a=1WEB-"], "false"),
    "suffix, wrong": (Predicate("suffix", (".pdf",)), ["a=.pdfx"], "false"),
    "other keys": (Predicate("exact", ("1",)), ["a=1", "ab=2"], "true"),
}


@pytest.mark.parametrize(("predicate", "query", "expected"), QUERY.values(), ids=QUERY)
def test_query_predicates(predicate: Predicate, query: list[str], expected: str) -> None:
    rule = Match(query=(("a", predicate),))
    assert outcome(rule, query="&".join(query), query_pairs=pairs(*query)) == expected


def test_a_semicolon_in_the_query_makes_it_unknown() -> None:
    rule = Match(query=(("a", Predicate("prefix", ("1",))),))
    assert outcome(rule, query="a=1;b=2", query_pairs=(("a", "1;b=2"),)) == "unknown"
    assert outcome(rule, query="a=1%3Bb=2", query_pairs=(("a", "1;b=2"),)) == "true"


def test_query_only_does_not_hold_for_unlisted_keys() -> None:
    rule = Match(query=(("a", Predicate("present")),), query_only=True)
    assert outcome(rule, query="a=1", query_pairs=pairs("a=1")) == "true"
    assert outcome(rule, query="a=1&b=2", query_pairs=pairs("a=1", "b=2")) == "unknown"


HEADERS = {
    "exact": (Predicate("exact", ("1",)), ["x=1"], "true"),
    "missing": (Predicate("exact", ("1",)), [], "false"),
    "exact, wrong": (Predicate("exact", ("1",)), ["x=2"], "false"),
    "of another name": (Predicate("exact", ("1",)), ["y=1"], "false"),
    "present": (Predicate("present"), ["x="], "true"),
    "not present": (Predicate("present"), ["y=1"], "false"),
    "repeated": (Predicate("exact", ("1",)), ["x=1", "x=1"], "unknown"),
    "repeated is present": (Predicate("present"), ["x=1", "x=1"], "true"),
    "absent": (Predicate("absent"), ["y=1"], "true"),
    "repeated is not absent": (Predicate("absent"), ["x=1", "x=1"], "false"),
}


@pytest.mark.parametrize(("predicate", "headers", "expected"), HEADERS.values(), ids=HEADERS)
def test_header_predicates(predicate: Predicate, headers: list[str], expected: str) -> None:
    assert outcome(Match(headers=(("x", predicate),)), headers=pairs(*headers)) == expected


def test_fields_are_joined_by_and_entries_by_or() -> None:
    rule = match("a.com b.com", "/x/** /y", "GET HEAD")
    assert outcome(rule, host="b.com", path="/y") == "true"
    assert outcome(rule, host="c.com", path="/y") == "false"
    assert outcome(rule, host="b.com", path="/z") == "false"
    assert outcome(rule, host="b.com", path="/y", method="PUT") == "false"


def test_path_and_path_re_must_both_hold() -> None:
    rule = match(paths="/a/**", path_res=("/a/[0-9]+", "/b"))
    assert outcome(rule, path="/a/1") == "true"
    assert outcome(rule, path="/b") == "false"
    assert outcome(rule, path="/a/x") == "false"


def test_scheme_port_websocket_and_body_are_asked_literally() -> None:
    rule = Match(schemes=frozenset({"http"}), ports=frozenset({80}), websocket=True, body=True)
    good = {"scheme": "http", "port": 80, "websocket": True, "body": True}
    assert outcome(rule, **good) == "true"
    for field, other in (("scheme", "https"), ("port", 81), ("websocket", False), ("body", False)):
        assert outcome(rule, **{**good, field: other}) == "false"


def test_unless_is_the_negation_and_keeps_unknown() -> None:
    judge = compile_unless(Match(query=(("a", Predicate("exact", ("1",))),))).judge
    for query, expected in ((["a=1"], "false"), ([], "true"), (["a=1", "a=2"], "unknown")):
        request = get(query="&".join(query), query_pairs=pairs(*query))
        assert judge(Facts(request, PUBLIC, NOW)) == expected


def test_checks_have_the_names_that_records_use() -> None:
    every = match(
        "a.com",
        "/x",
        "GET",
        schemes=frozenset({"https"}),
        ports=frozenset({443}),
        path_res=("/x",),
        query=(("q", Predicate("present")),),
        query_only=True,
        headers=(("h", Predicate("present")),),
        websocket=True,
        body=True,
        dest_ip=DestIp(frozenset({"private"})),
    )
    fields = (
        "scheme port methods host path path_re query.q query_only headers.h websocket body dest_ip"
    )
    expected = [name if "." in name else f"match.{name}" for name in fields.split()]
    assert [check.field for check in compile_checks(every)] == expected
    assert compile_checks(Match()) == ()
    assert compile_unless(Match()).field == "unless"


def test_query_only_is_unknown_beside_a_semicolon() -> None:
    rule = Match(query_only=True)
    assert outcome(rule) == "true"
    assert outcome(rule, query=";", query_pairs=()) == "unknown"


DEST = {
    "all inside": (["10.0.0.1", "10.0.0.2"], "true"),
    "none inside": (["8.8.8.8"], "false"),
    "some inside": (["10.0.0.1", "8.8.8.8"], "unknown"),
    "nothing known": ([], "unknown"),
    "carried": (["64:ff9b::10.0.0.1"], "unknown"),
}


@pytest.mark.parametrize(("addresses", "expected"), DEST.values(), ids=DEST)
def test_dest_ip_is_about_every_address(addresses: list[str], expected: str) -> None:
    rule = Match(dest_ip=DestIp(networks=(ip_network("10.0.0.0/8"),)))
    facts = Facts(get(), tuple(map(ip_address, addresses)), NOW)
    assert check_dest_ip(rule)(facts) == expected


def test_without_dest_ip_every_address_must_be_public() -> None:
    judge = check_dest_ip(Match())
    assert judge(Facts(get(), PUBLIC, NOW)) == "true"
    assert judge(Facts(get(), (), NOW)) == "false"
    assert judge(Facts(get(), (*PUBLIC, ip_address("10.0.0.1")), NOW)) == "false"
