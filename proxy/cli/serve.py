"""`tollkeeper serve`: flags and environment become one `Settings`, and the server runs on it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import structlog

from policies.model import PolicyRejected
from proxy.cli.options import (
    Parsed,
    Refused,
    group_option,
    json_option,
    listen_option,
    option,
    policies_option,
    read_now,
    say,
    state_option,
)
from proxy.credentials import CredentialStore
from proxy.logs import configure
from proxy.settings import (
    Settings,
    parse_dns,
    parse_listen,
    parse_resolve,
    parse_upstream_proxy,
)
from proxy.state import StateUnusable, check_state, create_state, is_blank

type Announce = Callable[[str], None]

_DEFAULT = {knob.name: knob.default for knob in fields(Settings)}
_SECONDS = click.FloatRange(min=0, min_open=True, max=86_400)


@click.command(
    epilog="""\b
Example:
  tollkeeper serve --policies policies.yaml --listen 127.0.0.1:8080
  tollkeeper serve --check
  TOLLKEEPER_LOG_FORMAT=json tollkeeper serve --resolve api.example.com:443:10.0.0.5
"""
)
@policies_option()
@listen_option("Where agents connect. Port 0: the system chooses.")
@option(
    "--admin",
    envvar="ADMIN",
    type=Parsed("addr:port", lambda text: parse_listen(text, flag="--admin")),
    metavar="ADDR:PORT",
    default="127.0.0.1:9090",
    show_default=True,
    help="Where operators look: /healthz, /readyz, /metrics. Beyond loopback it asks for the token"
    " in STATE/admin.token.",
)
@state_option()
@group_option()
@option(
    "--observe",
    envvar="OBSERVE",
    is_flag=True,
    help="Forward what no rule allows, and record it as `would: deny`. Needs `defaults: { mode:"
    " observe }` in the policy too.",
)
@option(
    "--ledger",
    envvar="LEDGER",
    type=click.Choice(["sqlite", "memory"]),
    default=_DEFAULT["ledger"],
    show_default=True,
    help="Where budgets are kept: a file in the state directory, or this process only. Either way"
    " the log is the truth.",
)
@option(
    "--contracts",
    envvar="CONTRACTS",
    is_flag=True,
    help="Check costly invariants too, such as ledger against log; a broken one denies everything.",
)
@option("--check", envvar="CHECK", is_flag=True, help="Validate everything, open no port, exit.")
@option(
    "--upstream-ca",
    "upstream_ca_files",
    envvar="UPSTREAM_CA",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="Trust this CA for upstreams too, beside the system's. Repeatable.",
)
@option(
    "--resolve",
    envvar="RESOLVE",
    multiple=True,
    metavar="HOST:PORT:ADDR[:PORT]",
    type=Parsed("host:port:addr", parse_resolve),
    help="An answer given instead of asking DNS; vetted like any other. Repeatable.",
)
@option(
    "--upstream-proxy",
    envvar="UPSTREAM_PROXY",
    metavar="URL",
    type=Parsed("url", parse_upstream_proxy),
    help="Go out through this HTTP proxy.",
)
@option(
    "--dns",
    envvar="DNS",
    metavar="ADDR[:PORT]",
    type=Parsed("addr", parse_dns),
    help="Ask this DNS server. Default: the system's resolver.",
)
@option(
    "--log-format",
    envvar="LOG_FORMAT",
    type=click.Choice(["console", "json"]),
    default=_DEFAULT["log_format"],
    show_default=True,
    help="Form of the log lines on stderr.",
)
@option(
    "--drain-timeout",
    "drain_timeout_s",
    envvar="DRAIN_TIMEOUT",
    metavar="SECONDS",
    type=_SECONDS,
    default=_DEFAULT["drain_timeout_s"],
    show_default=True,
    help="How long running exchanges may go on after SIGTERM.",
)
@option(
    "--max-connections",
    "connections_max",
    envvar="MAX_CONNECTIONS",
    metavar="COUNT",
    type=click.IntRange(min=1, max=2**31),
    default=_DEFAULT["connections_max"],
    show_default=True,
    help="Client connections open at once.",
)
@option(
    "--idle-timeout",
    "idle_timeout_s",
    envvar="IDLE_TIMEOUT",
    metavar="SECONDS",
    type=_SECONDS,
    default=_DEFAULT["idle_timeout_s"],
    show_default=True,
    help="Close a connection on which nothing moved for so long.",
)
@json_option("With --check: print problems as JSON.")
@click.pass_context
def serve(ctx: click.Context, /, *, check: bool, as_json: bool, **knobs: Any) -> None:
    """Run the proxy until it is told to stop (SIGTERM, SIGINT).

    An empty state directory is filled first, as `tollkeeper init` would. Nothing listens before
    state, policy, log and CA are found to be in order.
    """
    try:
        settings = Settings(**knobs)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error
    if check:
        problems = _find_problems(settings)
        _report(problems, as_json=as_json)
        ctx.exit(1 if problems else 0)
    configure(settings.log_format)
    announce = say if settings.log_format == "console" else structlog.get_logger().info
    _prepare_state(settings, announce)
    ctx.exit(_run(settings, announce))


def _run(settings: Settings, announce: Announce) -> int:
    """The server's exit code; what keeps it from starting becomes one line."""
    from proxy.failures import explain_failure, render_findings
    from proxy.server import serve as run  # mitmproxy: not for --help

    try:
        return asyncio.run(run(settings, announce=announce))
    except Exception as error:
        if isinstance(error, PolicyRejected):
            say(render_findings(error))
        text = explain_failure(error, settings)
        if text is None:
            raise
        raise Refused(text) from error


def _find_problems(settings: Settings) -> list[str]:
    """Everything that would keep `serve` from starting. Makes nothing."""
    from proxy.server import check

    try:
        if is_blank(settings.state):
            say(f"{settings.state}: is empty; `serve` will fill it")
    except StateUnusable as error:
        return [str(error)]
    return check(settings)


def _report(problems: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": list(problems)}, indent=2))
        return
    for problem in problems:
        click.echo(problem)
    say(f"{len(problems)} problem{'s'[: len(problems) != 1]}" if problems else "all is well")


def _prepare_state(settings: Settings, announce: Announce) -> None:
    """Fill an empty state directory, and refuse one that others can get at."""
    try:
        if is_blank(settings.state):
            announce(f"{settings.state}: is empty; it is made now")
            for line in create_state(settings.state, read_now()):
                announce(line)
    except StateUnusable as error:
        raise Refused(str(error)) from error
    problems = check_state(settings.state, group=settings.state_group)
    if problems:
        raise Refused("\n  ".join(["the state directory is not safe", *map(str, problems)]))
    damage = CredentialStore(settings.credentials_file).problem
    if damage:
        raise Refused(damage)
