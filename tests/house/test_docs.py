"""The documents are executed: what they name exists, and what exists is named.

Settings and metrics are compared with their pages in tests/proxy/test_settings.py and
tests/proxy/test_metrics.py; the README's tour runs in tests/e2e.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from policies.reasons import REASONS
from tests.house.documents import PRINTED, walk
from tests.house.tree import ROOT, files, name_of, sources

TEXTS = (".md", ".py", ".toml", ".yaml")
PATH_NAMED = re.compile(
    r"(?<![\w/.-])((?:audit|docs|examples|policies|proxy|tests)/[\w./-]*\.(?:md|py|toml|sh))\b"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")
FENCE = re.compile(r"^```(?:sh|console|bash|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NO_VARIABLE = frozenset({"help", "version"})


def pages() -> list[Path]:
    return [path for path in files() if path.suffix == ".md"]


@pytest.mark.parametrize("name", PRINTED)
def test_a_printed_document_is_what_the_code_says(name: str) -> None:
    """`python -m tests.house.documents` prints it again."""
    assert (ROOT / name).read_text(encoding="utf-8") == PRINTED[name]()


def test_every_file_that_is_named_exists() -> None:
    offenders = [
        f"{name_of(path)} names {named}"
        for path in files()
        if path.suffix in TEXTS and not name_of(path).startswith("tests/house/")
        for named in PATH_NAMED.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / named).exists()
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_links_between_pages_lead_somewhere() -> None:
    offenders = [
        f"{name_of(path)} links to {link}"
        for path in pages()
        for link, _ in LINK.findall(path.read_text(encoding="utf-8"))
        if "://" not in link and not (path.parent / link).exists()
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_commands_in_pages_exist_with_their_options() -> None:
    known = dict(tree())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    offenders = []
    for path in pages():
        for line in shell_lines(path):
            words = [word.removeprefix(".venv/bin/") for word in line]
            if words[0] == "make":
                unknown = [word for word in words[1:] if "=" not in word and word not in targets]
                offenders += [f"{name_of(path)}: make {word}" for word in unknown]
            if words[0] == "tollkeeper":
                offenders += [f"{name_of(path)}: {text}" for text in unknown_in(words, known)]
    assert not offenders, "\n".join(["", *offenders])


def test_every_command_shows_an_example() -> None:
    offenders = [
        words
        for words, command in tree()
        if "xample" not in command.get_help(click.Context(command, info_name=words))
    ]
    assert offenders == []


def test_every_option_is_an_environment_variable_too() -> None:
    offenders = []
    for words, command in tree():
        for option in command.params:
            if not isinstance(option, click.Option) or option.name in NO_VARIABLE:
                continue
            long = max(option.opts, key=len).removeprefix("--")
            wanted = "TOLLKEEPER_" + long.upper().replace("-", "_")
            if option.envvar != wanted:
                offenders.append(f"{words} --{long}: {option.envvar}, not {wanted}")
    assert not offenders, "\n".join(["", *offenders])


def test_every_option_of_serve_is_a_documented_setting() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    serve = dict(tree())["tollkeeper serve"]
    long = {max(one.opts, key=len) for one in serve.params if isinstance(one, click.Option)}
    assert {name for name in long - {"--help", "--check"} if f"`{name}" not in page} == set()


def test_every_reason_is_given_somewhere() -> None:
    """A code in the catalogue that nothing gives would be a promise that nobody keeps."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in sources()
        if name_of(path) != "policies/reasons.py"
    )
    assert [reason for reason in REASONS if f'"{reason}"' not in code] == []


def test_adrs_are_numbered_without_gaps_and_all_of_one_form() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [path.name[:4] for path in records] == [f"{n:04}" for n in range(1, len(records) + 1)]
    for path in records:
        text = path.read_text(encoding="utf-8")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "What lost", "Consequences"], path.name
        assert text.startswith(f"# {path.name[:4]} "), path.name


def tree() -> Iterator[tuple[str, click.Command]]:
    from proxy.cli import root

    return walk(root)


def shell_lines(path: Path) -> Iterator[list[str]]:
    """The commands of a page: fenced shell, one list of words per line, `$ ` and comments gone."""
    for block in FENCE.findall(path.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if line.strip() else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def unknown_in(words: list[str], known: dict[str, click.Command]) -> list[str]:
    """What of a `tollkeeper …` line the command tree does not know."""
    path = "tollkeeper"
    rest = words[1:]
    while rest and f"{path} {rest[0]}" in known:
        path = f"{path} {rest.pop(0)}"
    command = known[path]
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    unknown = [
        f"{path} {word}"
        for word in rest
        if word.startswith("-") and word.split("=")[0] not in options | {"--help", "-h", "--"}
    ]
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        unknown.append(f"{path} {rest[0]}")
    return unknown
