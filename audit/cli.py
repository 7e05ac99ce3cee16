"""`audit init|verify|show|tail|find|export`: parse, call the room, print, exit code.

Mounted by the root command as `tollkeeper audit …`, and alone as `python -I -m audit …`, which
needs click and orjson only. Data on stdout, talk on stderr; a progress bar on a terminal only.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import click

from audit.export import FORMATS, export
from audit.fields import KINDS
from audit.folder import LogExists, create_log, format_ts
from audit.reader import Filter, Line, LineBroken, find_segment, follow, read, read_tail
from audit.segment import LogUnreadable
from audit.summary import summarise
from audit.verify import NOT_PROVEN, TAMPERED, UNCHECKED, VALID, Report, verify
from audit.writer import wall_clock

type Command = Callable[..., Any]
_LOG = click.argument("log", type=click.Path(path_type=Path))
_JSON = click.option(
    "--json", "as_json", is_flag=True, envvar="TOLLKEEPER_JSON", help="Print JSON, for machines."
)


@click.group(
    name="audit",
    epilog="""\b
Example:
  tollkeeper audit verify state/log
  tollkeeper audit find state/log --verdict deny
""",
)
def audit() -> None:
    """Check, read and export the record.

    LOG is a log folder (state/log) or one .jsonl file of it.
    """


@audit.command()
@click.argument("directory", type=click.Path(path_type=Path), default=Path("state/log"))
@click.option(
    "--heartbeat",
    "heartbeat_s",
    type=click.FloatRange(min=1, max=86_400),
    default=60.0,
    show_default=True,
    envvar="TOLLKEEPER_HEARTBEAT",
    help="Seconds between heartbeat records.",
)
@click.pass_context
def init(ctx: click.Context, directory: Path, heartbeat_s: float) -> None:
    """Make an empty log in DIRECTORY (default: state/log). Never overwrites.

    \b
    Example: tollkeeper audit init state/log
    """
    try:
        log = create_log(directory, software=_software(), now=wall_clock(), heartbeat_s=heartbeat_s)
    except LogExists as error:
        _complain(f"{error}: nothing was changed")
        ctx.exit(TAMPERED)
    except OSError as error:
        _complain(f"`{directory}`: {(error.strerror or str(error)).lower()}")
        ctx.exit(UNCHECKED)
    click.echo(log)


def _software() -> str:
    try:
        return f"tollkeeper/{version('tollkeeper')}"
    except PackageNotFoundError:  # the room was copied out to verify alone
        return "tollkeeper/unknown"


@audit.command(name="verify")
@_LOG
@click.option(
    "--fast",
    is_flag=True,
    envvar="TOLLKEEPER_FAST",
    help="Framing, chain, numbers and hashes only; the report lists what was skipped.",
)
@click.option(
    "--allow-open",
    is_flag=True,
    envvar="TOLLKEEPER_ALLOW_OPEN",
    help="A log whose last run goes on (or crashed between two records) is valid too.",
)
@_JSON
@click.pass_context
def verify_command(
    ctx: click.Context, log: Path, *, fast: bool, allow_open: bool, as_json: bool
) -> None:
    """Check every byte of LOG.

    Exit 0 valid and closed, 1 tampered, 2 could not check, 3 valid so far (open, torn or silent).

    \b
    Example: tollkeeper audit verify state/log
    Alone:   python -I -m audit verify state/log
    """
    with _progress(log) as progress:
        report = verify(log, fast=fast, allow_open=allow_open, progress=progress)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        _print_report(report)
    ctx.exit(report.exit_code)


@contextmanager
def _progress(log: Path) -> Iterator[Callable[[int], None] | None]:
    try:
        size = find_segment(log).stat().st_size
    except (OSError, LogUnreadable):
        size = 0
    if not sys.stderr.isatty() or size == 0:
        yield None
        return
    with click.progressbar(length=size, label="verifying", file=sys.stderr) as bar:
        yield bar.update


def _print_report(report: Report) -> None:
    words = {"valid": "valid", "tampered": "TAMPERED", "unchecked": "COULD NOT CHECK"}
    click.echo(f"{words.get(report.verdict, f'valid so far ({report.verdict})')}: {report.path}")
    if report.records:
        runs = f" in {report.runs} runs" if report.runs else ""
        click.echo(f"  log      {report.log}")
        click.echo(
            f"  records  {report.records}{runs}, {report.bytes} bytes, the last {report.last_ts}"
        )
        click.echo(f"  head     {report.head}")
    if report.grade:
        click.echo(f"  grade    {report.grade} ({report.mode}): the chain holds, first to last")
    if report.outcomes_open or report.outcomes_unknown:
        click.echo(
            f"  outcomes {report.outcomes_open} open, {report.outcomes_unknown} never recorded"
        )
    if report.grade:
        click.echo(f"  note     {report.grade} does not detect {', nor '.join(NOT_PROVEN)}")
    rest = [what for what in report.not_checked if what not in NOT_PROVEN]
    click.echo(f"  skipped  {', '.join(rest)}")
    if report.problem and report.line:
        _complain(f"{report.path}:{report.line}: {report.problem} (byte {report.offset})")
    elif report.problem:
        _complain(report.problem)


def _reading(command: Command) -> Command:
    """Exit codes of the reading commands: 2 where LOG cannot be read, 1 where a line is broken."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
            with suppress(BrokenPipeError):
                sys.stdout.close()  # or the interpreter complains when it flushes at its end
            raise click.exceptions.Exit(VALID) from None
        except LineBroken as error:
            _complain(str(error))
            raise click.exceptions.Exit(TAMPERED) from error
        except LogUnreadable as error:
            _complain(str(error))
            raise click.exceptions.Exit(UNCHECKED) from error
        except OSError as error:
            _complain(f"`{error.filename}`: {(error.strerror or str(error)).lower()}")
            raise click.exceptions.Exit(UNCHECKED) from error

    return run


def _moment(_: click.Context, __: click.Parameter, value: str | None) -> str:
    if not value:
        return ""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(
            f"`{value}` is no date or time like 2026-01-31T12:00:00Z"
        ) from error
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return format_ts(aware).decode()


def _filters(command: Command) -> Command:
    """The options that `find` and `export` share."""
    options = (
        click.option(
            "--kind",
            "kinds",
            multiple=True,
            type=click.Choice(sorted(KINDS)),
            envvar="TOLLKEEPER_KIND",
        ),
        click.option("--agent", default="", envvar="TOLLKEEPER_AGENT", help="Agent id."),
        click.option(
            "--verdict",
            type=click.Choice(["allow", "deny"]),
            default=None,
            envvar="TOLLKEEPER_VERDICT",
        ),
        click.option("--reason", default="", envvar="TOLLKEEPER_REASON", help="Reason code."),
        click.option(
            "--rule", default="", envvar="TOLLKEEPER_RULE", help="Rule id that made the verdict."
        ),
        click.option("--host", default="", envvar="TOLLKEEPER_HOST", help="Host asked for."),
        click.option(
            "--decision",
            default="",
            envvar="TOLLKEEPER_DECISION",
            help="Decision id, and what refers to it.",
        ),
        click.option(
            "--since",
            callback=_moment,
            envvar="TOLLKEEPER_SINCE",
            help="Earliest time (UTC), inclusive.",
        ),
        click.option(
            "--until",
            callback=_moment,
            envvar="TOLLKEEPER_UNTIL",
            help="Latest time (UTC), exclusive.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _filter(kinds: tuple[str, ...], verdict: str | None, **rest: Any) -> Filter:
    return Filter(kinds=frozenset(kinds), verdict=verdict or "", **rest)


@audit.command()
@_LOG
@click.argument("which")
@_JSON
@click.pass_context
@_reading
def show(ctx: click.Context, log: Path, which: str, *, as_json: bool) -> None:
    """Show one record of LOG: WHICH is its number, or a decision id.

    By id you get all that refers to the decision: what it reserved further, its outcome, and the
    state it led to.

    \b
    Example: tollkeeper audit show state/log 17
    """
    is_number = which.isdecimal() and len(which) < 32
    found = 0
    for line in read(log, Filter(seq=int(which)) if is_number else Filter(decision=which)):
        found += 1
        _print_line(line, as_json=as_json, pretty=True)
        if is_number:
            break
    if not found:
        _complain(f"`{log}`: no record `{which}`")
        ctx.exit(1)


@audit.command()
@_LOG
@click.option(
    "-n",
    "--lines",
    "count",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    envvar="TOLLKEEPER_LINES",
)
@click.option(
    "-f",
    "--follow",
    "go_on",
    is_flag=True,
    envvar="TOLLKEEPER_FOLLOW",
    help="Wait for more (Ctrl-C ends).",
)
@_JSON
@_reading
def tail(log: Path, *, count: int, go_on: bool, as_json: bool) -> None:
    """Show the last records of LOG, one per line.

    \b
    Example: tollkeeper audit tail -f state/log
    """
    lines, offset = read_tail(log, count)
    for line in lines:
        _print_line(line, as_json=as_json)
    if go_on:
        for line in follow(log, offset, lambda: False):
            _print_line(line, as_json=as_json)


@audit.command()
@_LOG
@_filters
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=None,
    envvar="TOLLKEEPER_LIMIT",
    help="Stop after so many.",
)
@_JSON
@_reading
def find(log: Path, *, limit: int | None, as_json: bool, **filters: Any) -> None:
    """List the records of LOG that match all given options.

    \b
    Example: tollkeeper audit find state/log --verdict deny --agent local
    """
    for number, line in enumerate(read(log, _filter(**filters)), start=1):
        _print_line(line, as_json=as_json)
        if number == limit:
            break


@audit.command(name="export")
@_LOG
@_filters
@click.option(
    "--format",
    "format_name",
    type=click.Choice([form.name for form in FORMATS]),
    default="jsonl",
    show_default=True,
    envvar="TOLLKEEPER_FORMAT",
)
@click.option(
    "-o",
    "--output",
    type=click.File("wb"),
    default="-",
    envvar="TOLLKEEPER_OUTPUT",
    help="File; default: stdout.",
)
@_reading
def export_command(log: Path, *, format_name: str, output: BinaryIO, **filters: Any) -> None:
    """Write the records of LOG that match all given options as JSON lines or CSV.

    JSON lines are the records byte for byte. In CSV a cell that a spreadsheet could run as a
    formula starts with an apostrophe.

    \b
    Example: tollkeeper audit export state/log --format csv -o record.csv
    """
    form = next(form for form in FORMATS if form.name == format_name)
    output.writelines(export(read(log, _filter(**filters)), form))


def _print_line(line: Line, *, as_json: bool, pretty: bool = False) -> None:
    if as_json:
        click.echo(line.raw, nl=False)
        return
    record = line.record
    if pretty:
        text = json.dumps(
            {"seq": record.seq, "ts": record.ts, **record.event}, indent=2, ensure_ascii=False
        )
        click.echo("\n".join(_visible(row) for row in text.splitlines()))
        return
    click.echo(f"{record.seq:>8}  {record.ts}  {_visible(summarise(record.event))}")


def _visible(text: str) -> str:
    """What a terminal may show: nothing that moves the cursor or turns the direction of writing."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _complain(text: str) -> None:
    click.echo(_visible(text), err=True)


__all__ = ["VALID", "audit"]
