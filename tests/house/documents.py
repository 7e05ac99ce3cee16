"""The documents that are printed from code. `python -m tests.house.documents` writes them all."""

from collections.abc import Callable, Iterator

import click

from policies import findings, reasons
from tests.house.tree import ROOT


def walk(command: click.Command, words: str = "tollkeeper") -> Iterator[tuple[str, click.Command]]:
    """Every command that `--help` shows, with its words: ("tollkeeper policy check", …)."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from walk(inner, f"{words} {name}")


def commands() -> str:
    """The text of docs/commands.md: what `--help` says, of every command."""
    from proxy.cli import root

    out = [
        "# Commands",
        "",
        "Printed from the help texts; a test holds the two equal. Every option is also an",
        "environment variable, `TOLLKEEPER_<OPTION>`. Data goes to stdout, talk to stderr.",
        "",
    ]
    for words, command in walk(root):
        # as under `tollkeeper`, whatever a test that ran before has made click remember
        command._help_option = None
        context = click.Context(
            command,
            info_name=words,
            terminal_width=92,
            max_content_width=92,
            help_option_names=["-h", "--help"],
        )
        text = command.get_help(context).rstrip()
        out += [
            f"## {words}",
            "",
            "```text",
            *(line.rstrip() for line in text.split("\n")),
            "```",
            "",
        ]
    return "\n".join(out)


PRINTED: dict[str, Callable[[], str]] = {
    "docs/commands.md": commands,
    "docs/findings.md": findings.document,
    "docs/reasons.md": reasons.document,
}

if __name__ == "__main__":
    for name, document in PRINTED.items():
        (ROOT / name).write_text(document(), encoding="utf-8")
        print(name)
