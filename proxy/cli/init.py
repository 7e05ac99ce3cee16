"""`tollkeeper init`: a policy to start from, the state directory, and the lines for an agent."""

import json
from importlib.resources import files
from pathlib import Path

import click

from proxy.cli.options import Refused, json_option, listen_option, option, read_now, say
from proxy.environment import format_exports, format_proxy_url, list_variables
from proxy.settings import Endpoint, Settings
from proxy.state import StateUnusable, create_state


@click.command(
    epilog="""\b
Example:
  tollkeeper init
  tollkeeper init /srv/tollkeeper > agent.env
"""
)
@click.argument(
    "directory",
    metavar="[DIR]",
    type=click.Path(path_type=Path),
    default=Path(),
    envvar="TOLLKEEPER_DIR",
)
@option(
    "--state",
    envvar="STATE",
    type=click.Path(path_type=Path),
    default=None,
    show_default="DIR/state",
    help="State directory.",
)
@listen_option("Where agents will find the proxy: goes into the lines for them.")
@json_option()
def init(directory: Path, state: Path | None, listen: Endpoint, *, as_json: bool) -> None:
    """Make DIR/policies.yaml and the state directory: CA, log, credentials.

    Never overwrites: what is there is kept, what is missing is made. Prints the lines to paste
    into an agent's environment on stdout, everything else on stderr.
    """
    settings = Settings(state=directory / "state" if state is None else state)
    try:
        made = _write_policy(directory / "policies.yaml")
        made += create_state(settings.state, read_now())
    except StateUnusable as error:
        raise Refused(str(error)) from error
    certificate = (settings.ca_folder / "ca.pem").absolute()
    bundle = certificate.with_name("bundle.pem")
    variables = list_variables(format_proxy_url(listen), certificate, bundle)
    if as_json:
        click.echo(json.dumps({"made": made, "environment": variables}, indent=2))
        return
    for line in made or ["everything was there already; nothing was changed"]:
        say(line)
    say("")
    say("Lines for an agent's environment. In a container, mount these two files, and change their")
    say(f"paths and the proxy's address below: {certificate} {bundle}")
    click.echo(format_exports(variables))


def _write_policy(path: Path) -> list[str]:
    """The shipped default, unless there is a policy already."""
    text = files("policies").joinpath("default_policy.yaml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return []
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise Refused(f"`{path}`: {cause}; choose another DIR") from error
    return [f"{path}: a policy to start from"]
