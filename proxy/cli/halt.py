"""`tollkeeper halt`: stops an agent for good. The way back is a new agent id."""

import json
from typing import Any

import click

from proxy.cli.options import (
    Parsed,
    Refused,
    describe_user,
    json_option,
    option,
    policies_option,
    say,
    state_option,
)
from proxy.oversight import HALT, OversightRefused, check_reason, perform
from proxy.settings import Settings


@click.command(
    epilog="""\b
Example:
  tollkeeper halt coder --reason "loops on the same request since noon"
""",
)
@click.argument("agent")
@option(
    "--reason",
    envvar="REASON",
    metavar="TEXT",
    required=True,
    type=Parsed("text", check_reason),
    help="Why. It is recorded, and stays with the agent's id for good.",
)
@state_option()
@policies_option()
@json_option()
def halt(agent: str, *, reason: str, as_json: bool, **options: Any) -> None:
    """Stop AGENT for good: every request is denied from now on, live streams are cut.

    There is no way to undo it, and the id is never used again: a new agent id is the way back.
    """
    settings = Settings(state=options["state"], policies=options["policies"])
    asked = {"agent": agent, "reason": reason, "by": describe_user()}
    try:
        before = perform(settings, HALT, asked)["before"]
    except OversightRefused as error:
        raise Refused(str(error)) from error
    if as_json:
        click.echo(json.dumps({"agent": agent, "before": before, "state": "halted"}, indent=2))
    elif before != "halted":
        click.echo(f"halted {agent}")
    if before == "halted":
        say(f"`{agent}` was halted before; nothing was changed")
