"""Which rules match one request, in every reading of its path."""

from ipaddress import ip_address

from policies.match import Facts
from policies.model import Request
from policies.policy_set import PolicySet
from policies.rule import Rule, With
from policies.tally import Tally, gather
from tests.kit.policy_sets import AGENTS, NOW, PUBLIC, allow, deny, get, match, policy


def tallied(request: Request, *rules: Rule, address: str = "93.184.216.34") -> Tally:
    policy_set: PolicySet = policy(*rules)
    facts = Facts(request, (ip_address(address),), NOW)
    return gather(request, AGENTS[0], policy_set, facts)


def test_rules_are_filed_by_verdict_and_mode() -> None:
    tally = tallied(
        get(),
        allow("a"),
        deny("d"),
        allow("sa", shadow=True),
        deny("sd", shadow=True),
        allow("b", "b.com"),
    )
    assert [rule.id for rule in tally.allows] == ["a"]
    assert [rule.id for rule in tally.denies] == ["d"]
    assert [rule.id for rule in tally.shadow_allows] == ["sa"]
    assert [rule.id for rule in tally.shadow_denies] == ["sd"]
    assert tally.blocked == []


def test_what_only_the_address_keeps_out_is_kept_apart() -> None:
    tally = tallied(get(), allow("a"), allow("s", shadow=True), address="10.0.0.1")
    assert [rule.id for rule in tally.blocked] == ["a"]
    assert tally.allows == tally.shadow_allows == []


def test_a_rule_counts_once_over_all_readings() -> None:
    request = get("/a%2Cb;v=%40/c", path_params=True)
    tally = tallied(request, deny("d", paths="/**"), allow("r", with_=With(path_params="keep")))
    assert [rule.id for rule in tally.denies] == ["d"]
    assert [rule.id for rule in tally.allows] == ["r"]


def test_denies_see_the_path_both_loosened_and_stripped() -> None:
    request = get("/a%2Cb;v=1/c", path_params=True)
    for path in ("/a%2Cb;v=1/c", "/a%2Cb/c", "/a,b;v=1/c", "/a,b/c"):
        tally = tallied(request, deny("d", paths=path))
        assert [rule.id for rule in tally.denies] == ["d"], path


def test_allows_see_only_what_would_be_sent() -> None:
    request = get("/a%2Cb;v=1/c", path_params=True)
    for path, mode, expected in (
        ("/a%2Cb/c", "strip", True),
        ("/a%2Cb/c", "keep", False),
        ("/a%2Cb;v=1/c", "keep", True),
        ("/a%2Cb;v=1/c", "strip", False),
        ("/a,b/c", "strip", False),
    ):
        rule = allow("r", paths=path, with_=With(path_params=mode))  # type: ignore[arg-type]
        assert bool(tallied(request, rule).allows) is expected, (path, mode)


def test_expressions_and_exceptions_are_asked_about_the_reading_not_the_spelling() -> None:
    """Patterns are the index's work; these two look at the request that the reading carries."""
    request = get("/a%2Cb;v=1/c", path_params=True)
    for path in ("/a%2Cb/c", "/a,b;v=1/c", "/a,b/c"):
        tally = tallied(request, deny("d", fields={"path_res": (path,)}))
        assert [rule.id for rule in tally.denies] == ["d"], path
        assert tally.unsure == {}
    strip = With(path_params="strip")
    sent = allow("r", fields={"path_res": ("/a%2Cb/c",)}, with_=strip)
    assert tallied(request, sent).allows
    assert not tallied(request, allow("r", unless=match(paths="/a%2Cb/c"), with_=strip)).allows


def test_what_a_rule_does_with_parameters_matters_only_where_there_are_some() -> None:
    for mode in ("refuse", "strip", "keep"):
        rule = allow("r", with_=With(path_params=mode))
        assert tallied(get("/a%20b"), rule).allows, mode


def test_public_is_what_the_address_says() -> None:
    assert tallied(get(), allow("a"), address=str(PUBLIC[0])).allows


def test_quarantine_sets_aside_every_allow_that_is_not_kept() -> None:
    tally = tallied(get(), allow("a"), allow("b"), deny("d"))
    tally.keep(frozenset({"b", "d"}))
    assert [rule.id for rule in tally.allows] == ["b"]
    assert [rule.id for rule in tally.suspended] == ["a"]
    assert [rule.id for rule in tally.denies] == ["d"]
