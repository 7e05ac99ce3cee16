"""Unknown keys: the nearest one, where it belongs, or what is known."""

import pytest

from policies.load import parse
from policies.problems import advise, locate
from policies.schema import SECTIONS

ADVICE = {
    "near": ("metods", "match", "did you mean `methods`?"),
    "plural": ("hosts", "match", "did you mean `host`?"),
    "other proxies' word": ("action", "rules", "did you mean `verdict`?"),
    "a suffix": ("host_suffix", "match", "did you mean `host`? a leading `*.` matches subdomains"),
    "one level too high": ("host", "rules", "`host` belongs below `match:`"),
    "an obligation one level too high": ("capture", "rules", "`capture` belongs below `with:`"),
    "one level too low": ("include", "rules", "`include` belongs at the top level of the file"),
    "a home is better than a likeness": ("steps", "rules", "`steps` belongs below `cost:`"),
    "a limit one level too high": ("bytes_in", "budgets", "`bytes_in` belongs below `limits:`"),
    "another word for a window": ("period", "budgets", "did you mean `window`?"),
    "nothing near": (
        "pools",
        "",
        "known here: version, name, include, defaults, agents, rules, rates, budgets, quarantine",
    ),
    "a foreign word where it makes no sense": ("action", "who", "known here: agents, groups"),
}


@pytest.mark.parametrize(("key", "section", "hint"), ADVICE.values(), ids=ADVICE)
def test_an_unknown_key_gets_advice(key: str, section: str, hint: str) -> None:
    assert advise(key, SECTIONS[section]) == hint


def test_a_path_leads_to_the_value_and_the_place_of_its_key() -> None:
    root, _ = parse("a:\n  b: [x, { c: 1 }]\n  d: y\n", "p.yaml")
    assert root is not None
    node, place, reached = locate(root, ("a", "b", 1, "c"))
    assert (node.text, place, reached) == ("1", (2, 12), True)
    node, place, reached = locate(root, ("a", "d", 0))
    assert (node.text, place, reached) == ("y", (3, 3), True)
    node, place, reached = locate(root, ("a", "z", "deep"))
    assert (node.kind, reached) == ("map", False)
