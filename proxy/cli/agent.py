"""`tollkeeper agent`: tokens are issued here, shown once, and every change is recorded.

Rule 1: a token is printed only after its change was recorded; otherwise it is revoked unseen.
Rule 2: a revocation is made even where it cannot be recorded, and then says so: exit 2.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import click

from proxy.changes import Action, Change, ChangeUnrecorded, Journal, open_journal
from proxy.cli.options import (
    Parsed,
    Refused,
    describe_user,
    json_option,
    listen_option,
    option,
    parse_duration,
    policies_option,
    read_now,
    say,
    state_option,
)
from proxy.credentials import Credential, CredentialStore, CredentialsUnusable, Issued
from proxy.environment import format_proxy_exports, format_proxy_url
from proxy.settings import Endpoint, Settings

_UNKNOWN = "unknown"  # the state of an agent, where nobody can tell


@click.group(
    epilog="""\b
Example:
  tollkeeper agent add coder
  tollkeeper agent list
"""
)
def agent() -> None:
    """Issue and withdraw the agents' proxy credentials.

    The user name is the agent's id in policies.yaml. Tokens are shown once and stored as hashes.
    """


@agent.command(
    short_help="Issue a first token.",
    epilog="""\b
Example:
  tollkeeper agent add coder
  tollkeeper agent add coder --expires 30d --json
""",
)
@click.argument("name")
@option(
    "--expires",
    envvar="EXPIRES",
    metavar="DURATION",
    default="90d",
    show_default=True,
    help="How long the token is good: 45s, 30m, 12h, 90d, 4w, or `never`.",
    type=Parsed("duration", lambda text: timedelta() if text == "never" else parse_duration(text)),
)
@state_option()
@policies_option()
@listen_option("Where the agent will find the proxy: goes into the lines for it.")
@json_option()
def add(name: str, *, expires: timedelta, **options: Any) -> None:
    """Issue a first token for the agent NAME, and print it with the lines to paste."""
    settings = Settings(state=options["state"], policies=options["policies"])
    store = CredentialStore(settings.credentials_file)
    now = read_now()

    def change() -> Issued:
        try:
            return store.add(name, now=now, expires=now + expires if expires else None)
        except OverflowError as error:
            raise ValueError(f"`{expires}` is too long; `never` is forever") from error

    issued = _issue(settings, store, "add", name, change)
    _show_token(issued, options["listen"], as_json=options["as_json"])
    _warn_if_unknown(settings, name)


@agent.command(
    short_help="Issue the next token; the old one ends soon.",
    epilog="""\b
Example:
  tollkeeper agent rotate coder
  tollkeeper agent rotate coder --overlap 1d
""",
)
@click.argument("name")
@option(
    "--overlap",
    envvar="OVERLAP",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="How long the old token stays good: 0, or 45s, 30m, 12h, 7d.",
    type=Parsed("duration", lambda text: timedelta() if text == "0" else parse_duration(text)),
)
@state_option()
@listen_option("Where the agent will find the proxy: goes into the lines for it.")
@json_option()
def rotate(name: str, *, overlap: timedelta, **options: Any) -> None:
    """Issue the next token of NAME (an agent, or a token's id); the old one ends after --overlap.

    Both are good until then, so that the agent can be changed over without an interruption.
    """
    settings = Settings(state=options["state"])
    store = CredentialStore(settings.credentials_file)
    now = read_now()

    def change() -> Issued:
        return store.rotate(name, now=now, overlap=overlap)

    issued = _issue(settings, store, "rotate", name, change)
    _show_token(issued, options["listen"], as_json=options["as_json"])


@agent.command(
    short_help="Revoke tokens, at once and for good.",
    epilog="""\b
Example:
  tollkeeper agent revoke coder
  tollkeeper agent revoke 3f2a9c01b7de
""",
)
@click.argument("name")
@state_option()
@json_option()
@click.pass_context
def revoke(ctx: click.Context, /, name: str, *, as_json: bool, **options: Any) -> None:
    """Revoke every token of the agent NAME, or the one with that id; at once, and for good."""
    settings = Settings(state=options["state"])
    store = CredentialStore(settings.credentials_file)
    now = read_now()
    try:
        revoked = store.revoke(name, now=now)
    except (ValueError, CredentialsUnusable) as error:
        raise Refused(str(error)) from error
    failure = _record_revocation(settings, revoked)
    if as_json:
        click.echo(json.dumps([_describe(one, now) for one in revoked], indent=2))
    for one in () if as_json else revoked:
        click.echo(f"revoked {one.agent} {one.id}")
    if not revoked:
        say(f"`{name}`: every token was revoked before; nothing was changed")
    if failure:
        say(f"{ctx.command_path}: revoked, but it could not be recorded: {failure}")
        ctx.exit(2)


@agent.command(
    name="list",
    short_help="List every token ever issued.",
    epilog="""\b
Example:
  tollkeeper agent list
  tollkeeper agent list --json
""",
)
@state_option()
@json_option()
def list_command(*, as_json: bool, **options: Any) -> None:
    """List every token ever issued, by its id: the first digits of its hash."""
    settings = Settings(state=options["state"])
    now = read_now()
    try:
        stored = CredentialStore(settings.credentials_file).list()
    except CredentialsUnusable as error:
        raise Refused(str(error)) from error
    rows = _add_states(settings, [_describe(one, now) for one in stored])
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        say(f"{settings.credentials_file}: no agent has a token; `tollkeeper agent add NAME`")
        return
    _print_table(("agent", "id", "standing", "state", "created", "expires"), rows)


def _add_states(
    settings: Settings, rows: list[dict[str, str | None]]
) -> list[dict[str, str | None]]:
    """The list is also there to see what is wrong, so it is shown where the log cannot be read."""
    from proxy.oversight import OversightRefused, find_states

    states: dict[str, str] | None = None
    if rows:
        try:
            states = find_states(settings)
        except OversightRefused as error:
            say(f"note: the agents' states are not known: {error}")
    rest = "active" if states is not None else _UNKNOWN
    return [{**row, "state": (states or {}).get(str(row["agent"]), rest)} for row in rows]


def _issue(
    settings: Settings,
    store: CredentialStore,
    action: Action,
    name: str,
    change: Callable[[], Issued],
) -> Issued:
    """Make a token and record it; a token that cannot be recorded is revoked and never seen."""
    from proxy.oversight import OversightRefused, find_states  # 200 ms: pydantic

    try:
        with open_journal(settings) as journal:
            halted = [one for one, state in find_states(settings).items() if state == "halted"]
            if action == "add" and name in halted:
                raise ValueError(
                    f"`{name}` is halted, and halted ids are never used again; add the agent under"
                    " a new id, in the policy file too"
                )
            issued = change()
            _record(journal, issued.credential, action, store)
            if issued.credential.agent in halted:
                say(f"note: `{issued.credential.agent}` is halted: no token of it opens anything")
            return issued
    except (ValueError, CredentialsUnusable, ChangeUnrecorded, OversightRefused) as error:
        raise Refused(str(error)) from error


def _record(
    journal: Journal, credential: Credential, action: Action, store: CredentialStore
) -> None:
    try:
        journal(Change(credential.agent, action, describe_user(), credential.session))
    except ChangeUnrecorded as error:
        with suppress(ValueError):
            store.revoke(credential.id, now=read_now())
        raise ChangeUnrecorded(f"{error}; the new token was revoked, nobody has seen it") from error


def _record_revocation(settings: Settings, revoked: Sequence[Credential]) -> str:
    """Record it for each session. Returns why not, or ""."""
    if not revoked:
        return ""
    try:
        with open_journal(settings) as journal:
            for session in dict.fromkeys(one.session for one in revoked):
                journal(Change(revoked[0].agent, "revoke", describe_user(), session))
    except ChangeUnrecorded as error:
        return str(error)
    return ""


def _show_token(issued: Issued, listen: Endpoint, *, as_json: bool) -> None:
    credential = issued.credential
    proxy_url = format_proxy_url(listen, credential.agent, issued.token)
    if as_json:
        described = _describe(credential, credential.created)
        shown = {**described, "token": issued.token, "proxy_url": proxy_url}
        click.echo(json.dumps(shown, indent=2))
        return
    end = f"until {_moment(credential.expires)}" if credential.expires else "for ever"
    say(f"Agent {credential.agent}, token {credential.id}, good {end}. It is shown this once:")
    click.echo(issued.token)
    click.echo(format_proxy_exports(proxy_url))
    say("`tollkeeper init` prints the other variables that clients look at.")


def _warn_if_unknown(settings: Settings, name: str) -> None:
    """A token opens nothing for an agent that the policy lacks, or knows by its address."""
    from policies.compile import compile_policy  # 200 ms: pydantic
    from policies.model import PolicyRejected
    from policies.sources import PolicyUnreadable

    try:
        agents = compile_policy(settings.policies).policy_set.agents
    except (PolicyRejected, PolicyUnreadable):
        return  # `policy check` is who complains about that
    if name not in agents:
        say(f"note: {settings.policies} has no agent `{name}`; add it under `agents:`")
    elif agents[name].sources:
        say(
            f"note: {settings.policies} knows `{name}` by its address, so the token is refused;"
            " remove `identity:` there"
        )


def _describe(credential: Credential, now: datetime) -> dict[str, str | None]:
    return {
        "agent": credential.agent,
        "id": credential.id,
        "session": credential.session,
        "standing": credential.stand(now),
        "created": _moment(credential.created),
        "expires": _moment(credential.expires),
        "revoked": _moment(credential.revoked),
    }


def _moment(time: datetime | None) -> str | None:
    return None if time is None else time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, str | None]]) -> None:
    table = [list(columns), *([row[name] or "never" for name in columns] for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(columns))]
    for line in table:
        click.echo("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())
