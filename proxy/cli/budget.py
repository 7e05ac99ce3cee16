"""`tollkeeper budget`: what every account has left, and the only way up for a limit.

Rule 1: exact numbers in JSON; the table rounds bytes and times for people.
Rule 2: bars and colours are for a terminal; a pipe gets the same table without them.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from policies.budget import BYTE_UNITS, UNITS, WALL_TIME, format_moment
from policies.values import Unfit, read_count, read_duration, read_size
from proxy.cli.options import (
    Refused,
    describe_user,
    json_option,
    option,
    policies_option,
    say,
    state_option,
)
from proxy.oversight import RAISE, OversightRefused, list_accounts, perform
from proxy.settings import Settings

Row = Mapping[str, Any]

_BAR_CELLS = 20
_WARN_PERCENT = 80  # of a limit: the bar turns yellow
_COLUMNS = ("agent", "state", "account", "unit", "spent", "held", "left", "limit", "resets")
_COLOURS = {"warned": "yellow", "quarantined": "magenta", "halted": "red"}
_SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_TIMES = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


@click.group(
    epilog="""\b
Example:
  tollkeeper budget show
  tollkeeper budget raise daily --agent coder
"""
)
def budget() -> None:
    """See what agents have spent, and raise what they may spend.

    Limits fall with the policy file, at once. They rise only here, and it is recorded who did it.
    """


@budget.command(
    short_help="Show the standing of every account.",
    epilog="""\b
Example:
  tollkeeper budget show
  tollkeeper budget show --agent coder --json
""",
)
@option("--agent", envvar="AGENT", help="Only the accounts of this agent.")
@state_option()
@policies_option()
@json_option()
def show(*, agent: str | None, as_json: bool, **options: Any) -> None:
    """Show what is spent, held and left of every limit, and every agent's state.

    A limit like `100 -> 200 (budget raise)` is one that the policy file would raise: it waits for
    `tollkeeper budget raise`. Without a running server, this shows what the next one begins with.
    """
    settings = Settings(state=options["state"], policies=options["policies"])
    try:
        accounts, note = list_accounts(settings, agent)
    except OversightRefused as error:
        raise Refused(str(error)) from error
    if note:
        say(f"note: {note}; changes that wait in it are not shown")
    if as_json:
        click.echo(json.dumps(accounts, indent=2))
    elif not accounts:
        say("no account yet; write `budgets:` into the policy file")
    else:
        terminal = sys.stdout.isatty()
        click.echo("\n".join(render(accounts, terminal=terminal)))


@budget.command(
    name="raise",
    short_help="Raise limits, recorded.",
    epilog="""\b
Example:
  tollkeeper budget raise daily
  tollkeeper budget raise daily --agent coder --unit requests --to 5000
  tollkeeper budget raise transfer --unit bytes_out --to 10MB
""",
)
@click.argument("name", metavar="BUDGET")
@option("--agent", envvar="AGENT", help="Only the accounts of this agent.")
@option("--session", envvar="SESSION", help="Only the account of this session.")
@option("--unit", envvar="UNIT", type=click.Choice(UNITS), help="The limit to raise.")
@option("--to", envvar="TO", metavar="VALUE", help="Its new value: 5000, 10MB, 2h.")
@state_option()
@policies_option()
@json_option()
def raise_command(name: str, *, unit: str | None, to: str | None, **options: Any) -> None:
    """Accept what the policy file now says about BUDGET, or give one limit a higher value.

    What was spent stays spent. A limit can only rise here; to lower one, edit the policy file.
    """
    settings = Settings(state=options["state"], policies=options["policies"])
    asked = {
        "budget": name,
        "agent": options["agent"],
        "session": options["session"],
        "unit": unit,
        "to": _read_value(unit, to),
        "by": describe_user(),
    }
    try:
        raised = perform(settings, RAISE, asked)["raised"]
    except OversightRefused as error:
        raise Refused(str(error)) from error
    if options["as_json"]:
        click.echo(json.dumps(raised, indent=2))
        return
    for one in raised:
        old, new = (_spell(one["unit"], one[word]) for word in ("from", "to"))
        click.echo(f"raised {one['account']} {one['unit']} {old} -> {new}")


def _read_value(unit: str | None, text: str | None) -> int | None:
    """`--to` in the form of its unit."""
    if text is None or unit is None:
        if unit != text:
            raise click.UsageError("`--unit` and `--to` go together")
        return None
    try:
        if unit in BYTE_UNITS:
            return read_size(text)
        if unit == WALL_TIME:
            return read_duration(text)
        return read_count(int(text) if text.isdecimal() and len(text) < 20 else text)
    except Unfit as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise click.UsageError(f"`--to {text}`: {error.message}{hint}") from error


def render(accounts: Sequence[Row], *, terminal: bool) -> list[str]:
    """The table, line by line; with bars and colours for a terminal."""
    columns = [*_COLUMNS[:4], *(["used"] if terminal else []), *_COLUMNS[4:]]
    rows = [_tell(account, unit) for account in accounts for unit in account["units"] or (None,)]
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
    lines = ["  ".join(f"{name:<{wide}}" for name, wide in zip(columns, widths, strict=True))]
    for row in rows:
        cells = [
            _paint(row, name, wide, terminal) for name, wide in zip(columns, widths, strict=True)
        ]
        lines.append("  ".join(cells))
    return [*(line.rstrip() for line in lines), *_tell_causes(accounts)]


def _tell(account: Row, unit: Row | None) -> dict[str, str]:
    """One row: a limit of an account, or an agent or account without one."""
    name = account["account"].partition("@")[0]
    resets = format_moment(account["until_ms"]) if account["until_ms"] else "never"
    if account["window_pending"]:
        resets += " -> other window (budget raise)"
    row = dict.fromkeys((*_COLUMNS, "used"), "-")
    row |= {"agent": account["agent"], "state": account["state"], "account": name or "-"}
    if unit is None:
        return row if not name else row | {"resets": resets, "unit": "no limit"}
    word = unit["unit"]
    percent = _count_percent(unit)
    filled = min(_BAR_CELLS, percent * _BAR_CELLS // 100)
    limit = _spell(word, unit["limit"])
    if unit["pending"]:
        limit += f" -> {_spell(word, unit['filed'])} (budget raise)"
    return row | {
        "unit": word,
        "used": f"[{'#' * filled}{'.' * (_BAR_CELLS - filled)}] {percent:>3}%",
        "spent": _spell(word, unit["spent"]),
        "held": _spell(word, unit["held"]),
        "left": _spell(word, unit["available"]),
        "limit": limit,
        "resets": resets,
    }


def _count_percent(unit: Row) -> int:
    """Spent and held, of the limit, rounded down; of no limit at all, everything."""
    limit: int = unit["limit"]
    used: int = unit["spent"] + unit["held"]
    return used * 100 // limit if limit else 100


def _paint(row: Mapping[str, str], name: str, wide: int, terminal: bool) -> str:
    cell = f"{row[name]:<{wide}}"
    if not terminal:
        return cell
    if name == "state" and row[name] in _COLOURS:
        return click.style(cell, fg=_COLOURS[row[name]], bold=True)
    if name == "used" and row[name] != "-":
        percent = int(row[name].rpartition("]")[2].strip(" %"))
        colour = "red" if percent >= 100 else "yellow" if percent >= _WARN_PERCENT else "green"
        return click.style(cell, fg=colour)
    return cell


def _tell_causes(accounts: Iterable[Row]) -> list[str]:
    """Why agents are no longer active."""
    causes = {
        one["agent"]: f"{one['agent']}: {one['state']}: {one['cause']}"
        for one in accounts
        if one["state"] != "active"
    }
    return ["", *causes.values()] if causes else []


def _spell(unit: str, amount: int | None) -> str:
    """An amount for people, never more than it is: bytes to the thousandth of their unit, times in
    their two largest units."""
    if amount is None:
        return "no limit"
    if unit in BYTE_UNITS:
        word, size = next((one for one in _SIZES if amount >= one[1]), ("B", 1))
        part = f"{amount % size * 1000 // size:03}".rstrip("0")
        return f"{amount // size}.{part}{word}" if part else f"{amount // size}{word}"
    if unit in (WALL_TIME, "window"):
        parts = []
        for word, size in _TIMES:
            if amount >= size:
                parts.append(f"{amount // size}{word}")
                amount %= size
        return "".join(parts[:2]) or "0s"
    return str(amount)
