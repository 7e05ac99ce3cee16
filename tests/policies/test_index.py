"""The index: it narrows down, never decides, and does not scan."""

import pytest

from policies.index import HostIndex, paths_for
from policies.rule import Match, Who
from tests.kit.policy_sets import match, parsed_path


def filed(*entries: tuple[str, Match, Who | None]) -> HostIndex[str]:
    index: HostIndex[str] = HostIndex()
    for name, some, who in entries:
        for table in index.tables_for(some):
            for pattern in paths_for(some):
                table.root.place(pattern).add(who, name)
    return index


PLACES = {
    "exact host": (match("a.com"), "a.com", "/", True),
    "exact host is not a suffix": (match("a.com"), "x.a.com", "/", False),
    "one label": (match("*.a.com"), "x.a.com", "/", True),
    "one label is not two": (match("*.a.com"), "y.x.a.com", "/", False),
    "one label is not none": (match("*.a.com"), "a.com", "/", False),
    "any depth": (match("**.a.com"), "z.y.x.a.com", "/", True),
    "any depth is not none": (match("**.a.com"), "a.com", "/", False),
    "single label host": (match("**.a.com"), "com", "/", False),
    "every host": (match(), "b.com", "/", True),
    "every host, address": (match(), "::1", "/", True),
    "literal path": (match(paths="/a/b"), "a.com", "/a/b", True),
    "longer path": (match(paths="/a"), "a.com", "/a/b", False),
    "shorter path": (match(paths="/a/b"), "a.com", "/a", False),
    "rest": (match(paths="/a/**"), "a.com", "/a/b/c", True),
    "rest of none": (match(paths="/a/**"), "a.com", "/a", True),
    "star": (match(paths="/*/b"), "a.com", "/x/b", True),
    "star and no segment": (match(paths="/a/*"), "a.com", "/a/", False),
    "int": (match(paths="/{n:int}"), "a.com", "/7", True),
    "no int": (match(paths="/{n:int}"), "a.com", "/x", False),
    "uuid": (match(paths="/{u:uuid}"), "a.com", "/123e4567-e89b-12d3-a456-426614174000", True),
    "no uuid": (match(paths="/{u:uuid}"), "a.com", "/7", False),
    "glob": (match(paths="/r-*.pdf"), "a.com", "/r-1.pdf", True),
    "no glob": (match(paths="/r-*.pdf"), "a.com", "/s-1.pdf", False),
    "glob without a beginning": (match(paths="/*.pdf"), "a.com", "/s-1.pdf", True),
    "wildcard beside a literal": (match(paths="/*/c /a/b"), "a.com", "/a/c", True),
    "no host": (Match(hosts=()), "a.com", "/", False),
    "no path": (Match(paths=()), "a.com", "/", False),
    "no port": (Match(ports=frozenset()), "a.com", "/", False),
}


@pytest.mark.parametrize(("some", "host", "path", "expected"), PLACES.values(), ids=PLACES)
def test_a_rule_is_found_where_it_could_match(
    some: Match, host: str, path: str, expected: bool
) -> None:
    found = filed(("r", some, None)).find(host, 443, path, "coder", ())
    assert (found == ["r"]) is expected


def test_ports_are_filed_apart() -> None:
    index = filed(
        ("web", Match(ports=frozenset({443})), None),
        ("alt", Match(ports=frozenset({8443})), None),
        ("any", Match(), None),
    )
    assert sorted(index.find("a.com", 443, "/", "coder", ())) == ["any", "web"]
    assert index.find("a.com", 1, "/", "coder", ()) == ["any"]


def test_many_ports_are_filed_as_any_and_judged_later() -> None:
    few, many = frozenset(range(1, 17)), frozenset(range(1, 18))
    index = filed(("few", Match(ports=few), None), ("many", Match(ports=many), None))
    assert sorted(index.find("a.com", 16, "/", "coder", ())) == ["few", "many"]
    assert index.find("a.com", 99, "/", "coder", ()) == ["many"], "its ports are asked by the rule"
    assert len(index.tables_for(Match(ports=few))) == 16
    assert len(index.tables_for(Match(ports=many))) == 1


def test_an_audience_is_found_by_agent_and_group_and_once() -> None:
    index = filed(
        ("all", match(), None),
        ("mine", match(), Who(frozenset({"coder"}))),
        ("ours", match(), Who(groups=frozenset({"team"}))),
        ("both", match(), Who(frozenset({"coder"}), frozenset({"team"}))),
        ("other", match(), Who(frozenset({"reviewer"}), frozenset({"tools"}))),
        ("nobody", match(), Who()),
    )
    found = index.find("a.com", 443, "/", "coder", ("team",))
    assert sorted(found) == ["all", "both", "mine", "ours"]


def test_an_expression_is_filed_below_its_whole_literal_segments() -> None:
    assert paths_for(Match(path_res=("/repos/acme/x-[0-9]+",))) == (parsed_path("/repos/acme/**"),)
    assert paths_for(Match(path_res=("/a|/b", "(?i)/c"))) == (parsed_path("/**"),)
    assert paths_for(Match(paths=(parsed_path("/x"),), path_res=("/y",))) == (parsed_path("/x"),)


def test_a_look_up_touches_a_handful_of_ten_thousand_rules() -> None:
    index = filed(
        *(
            (f"r{n}", match(paths=f"/repos-{n}/** /v2/{{x:int}}/part-{n} /g-{n}-*"), None)
            for n in range(10_000)
        )
    )
    for path in ("/repos-77/a", "/v2/5/part-77", "/g-77-x"):
        assert index.find("a.com", 443, path, "coder", ()) == ["r77"]
