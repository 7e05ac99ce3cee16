"""The command `tollkeeper`: one table of sub-commands, each imported when it is asked for.

    main -> ownership guard -> root --table--> proxy/cli/<command>.py, policies/cli.py, audit/cli.py

Rule 1: `--help` imports click and nothing else of weight. mitmproxy and FastAPI cost 300 ms each.
Rule 2: data on stdout, talk on stderr. What a person did wrong is one line, `tollkeeper: place:
        cause; remedy`, and exit code 2.
Rule 3: every option is also an environment variable TOLLKEEPER_<OPTION>, spelled out beside it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn, cast

import click

__all__ = ["main", "root"]


class Lazy(NamedTuple):
    """Where a sub-command lives, and its line in the list of commands."""

    module: str
    name: str
    summary: str


COMMANDS = {
    "init": Lazy("proxy.cli.init", "init", "Make policies.yaml and the state directory."),
    "serve": Lazy("proxy.cli.serve", "serve", "Run the proxy."),
    "agent": Lazy("proxy.cli.agent", "agent", "Issue and withdraw the agents' proxy credentials."),
    "budget": Lazy("proxy.cli.budget", "budget", "See what agents have spent, and raise limits."),
    "halt": Lazy("proxy.cli.halt", "halt", "Stop an agent for good."),
    "policy": Lazy("proxy.cli.policy", "policy", "Check policy files, explain decisions."),
    "audit": Lazy("audit.cli", "audit", "Check, read and export the record."),
    "doctor": Lazy("proxy.cli.doctor", "doctor", "Check everything the proxy stands on."),
}


class Root(click.Group):
    """Loads a sub-command at its first use, and prints complaints in the house's form."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """In the order in which they are needed."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import it; None where there is no such command."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = getattr(import_module(lazy.module), lazy.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list in `--help`, from the table: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, and exit with the command's code; complaints go to stderr as one line."""
        del standalone_mode, prog_name
        try:
            code = super().main(args, "tollkeeper", complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(format_complaint(error, self._find_place(args)), err=True)
            sys.exit(error.exit_code)
        except click.Abort:  # Ctrl-C
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)

    def _find_place(self, args: Sequence[str] | None) -> str:
        """The command that a command line names: `tollkeeper agent add`."""
        place, command = "tollkeeper", cast("click.Command", self)
        for word in sys.argv[1:] if args is None else args:
            if not isinstance(command, click.Group) or word.startswith("-"):
                break
            inner = command.get_command(click.Context(command), word)
            if inner is None:
                break
            place, command = f"{place} {word}", inner
        return place


def format_complaint(error: click.ClickException, place: str) -> str:
    """`tollkeeper serve: cause; remedy`, lower case, no full stop."""
    text = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError):
        text = f"{text[:1].lower()}{text[1:]}; see `{place} --help`"
    return f"{place}: {text}"


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Example:
  tollkeeper init
  tollkeeper serve --policies policies.yaml
  tollkeeper audit verify state/log
""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, wanted: _show_version(ctx) if wanted else None,
    help="Show the version and exit.",
)
def root() -> None:
    """A forward proxy on the network boundary of AI agents.

    Whatever policies.yaml does not allow is denied, and everything is recorded before it leaves.
    """


def _show_version(ctx: click.Context) -> None:
    from proxy.state import describe_software

    click.echo(describe_software().replace("/", " "))
    ctx.exit()


def main() -> NoReturn:
    """The entry point: refuse to run among foreign files, then run the command."""
    from proxy.ownership import RoomsForeign, check_rooms

    try:
        check_rooms()
    except RoomsForeign as error:
        click.echo(f"tollkeeper: {error}", err=True)
        sys.exit(2)
    root.main()
