"""The applied policy as one file: it compiles to the same digest."""

from pathlib import Path

import pytest

from policies.compile import compile_policy, compile_text

GOOD = sorted((Path(__file__).parents[1] / "cases" / "policies" / "good").glob("*.yaml"))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_the_archive_of_a_policy_is_that_policy(path: Path) -> None:
    compiled = compile_policy(path)
    again = compile_text(compiled.archive)
    assert again.policy_set.digest == compiled.policy_set.digest
    assert again.findings == ()
    assert again.archive == compiled.archive
    assert compiled.archive.startswith(f"# policy {compiled.policy_set.digest}, as applied;")
    assert "include" not in compiled.archive.split("\n", 1)[1]


def test_text_that_yaml_would_read_otherwise_survives() -> None:
    odd = 'no, 10:00, "q", \\\\, \\t\\x07, é, \\u2028, #'
    text = f"version: 1\nname: '{odd}'\ndefaults: {{ explain_denials: false }}\n"
    escaped = 'version: 1\nname: "a\\tb\\x07\\"\\\\\\u2028\\U0001F600"\n'
    for policy in (text, escaped):
        compiled = compile_text(policy)
        again = compile_text(compiled.archive)
        assert again.policy_set.name == compiled.policy_set.name
        assert again.policy_set.digest == compiled.policy_set.digest
