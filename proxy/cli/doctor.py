"""`tollkeeper doctor`: the checks of proxy/doctor.py as lines or as JSON; exit 1 when one fails."""

import json
from dataclasses import asdict
from typing import Any

import click

from proxy.cli.options import (
    Parsed,
    group_option,
    json_option,
    listen_option,
    option,
    policies_option,
    read_now,
    state_option,
)
from proxy.doctor import Check, examine
from proxy.settings import Settings, parse_listen

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(
    epilog="""\b
Example:
  tollkeeper doctor
  tollkeeper doctor --state /srv/tollkeeper/state --json
"""
)
@policies_option()
@listen_option()
@option(
    "--admin",
    envvar="ADMIN",
    type=Parsed("addr:port", lambda text: parse_listen(text, flag="--admin")),
    metavar="ADDR:PORT",
    default="127.0.0.1:9090",
    show_default=True,
    help="Address and port for operators.",
)
@state_option()
@group_option()
@json_option()
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool, **knobs: Any) -> None:
    """Check interpreter, versions, state, CA, clock, disk, ports, policy, log, ledger.

    One line each: ok, warn or fail, with the remedy. Exit 1 when something fails.
    """
    try:
        settings = Settings(**knobs)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error
    checks = []
    for check in examine(settings, read_now()):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    ctx.exit(1 if any(check.level == "fail" for check in checks) else 0)


def _print(check: Check) -> None:
    level = click.style(f"{check.level:<4}", fg=_COLOURS[check.level])
    click.echo(f"{level}  {check.name:<11}  {check.found}")
    if check.remedy:
        click.echo(f"      {'':<11}  -> {check.remedy}")
