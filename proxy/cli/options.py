"""What several commands share: options with their environment variables, and how to refuse.

Each option names its variable itself. click's automatic names would contain the sub-command, and a
deployment sets TOLLKEEPER_STATE once for all of them (SPEC section 2).
"""

import os
import pwd
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from proxy.settings import Endpoint, parse_listen
from proxy.state import find_group

type Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Refused(click.ClickException):
    """What was asked for cannot be done: one line `place: cause; remedy`, exit code 2."""

    exit_code = 2


class Parsed(click.ParamType[Any]):
    """An option's text, read by one of the house's own parsers, which name place and remedy."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Text is parsed, a default is what it is.

        Raises:
            click.UsageError: the parser's own words.
        """
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            text, flag = str(error), param.opts[0] if param else self.name
            place = "" if text.startswith(f"`{flag}") else f"`{flag} {value}`: "
            raise click.UsageError(f"{place}{text}", ctx) from error


def read_now() -> datetime:
    """The wall clock, for commands: aware, UTC."""
    return datetime.now(UTC)  # noqa: TID251  the command line is where a command's time comes from


def parse_duration(text: str) -> timedelta:
    """`90d`, `12h`, `30m`, `45s` or `2w`.

    Raises:
        ValueError: says which form works.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("it is no duration; write a number and s, m, h, d or w, like 90d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def option(*names: str, envvar: str, **settings: Any) -> Decorator:
    """An option with its environment variable, which `--help` names."""
    return click.option(*names, envvar=f"TOLLKEEPER_{envvar}", show_envvar=True, **settings)


def json_option(text: str = "Print JSON, for machines.") -> Decorator:
    """`--json`."""
    return option("--json", "as_json", envvar="JSON", is_flag=True, help=text)


def state_option() -> Decorator:
    """`--state`."""
    return option(
        "--state",
        envvar="STATE",
        type=click.Path(path_type=Path),
        default=Path("state"),
        show_default=True,
        help="State directory.",
    )


def group_option() -> Decorator:
    """`--state-group`."""
    return option(
        "--state-group",
        envvar="STATE_GROUP",
        type=Parsed("group", find_group),
        metavar="GROUP",
        help="Group (name or id) that may write to the state directory, as volumes need it. Keys"
        " stay readable by this user only.",
    )


def policies_option() -> Decorator:
    """`--policies`."""
    return option(
        "--policies",
        envvar="POLICIES",
        type=click.Path(path_type=Path),
        default=Path("policies.yaml"),
        show_default=True,
        help="Policy file.",
    )


def listen_option(text: str = "Address and port of the proxy.") -> Decorator:
    """`--listen`."""
    return option(
        "--listen",
        envvar="LISTEN",
        type=Parsed("addr:port", parse_listen),
        metavar="ADDR:PORT",
        default="127.0.0.1:8080",
        show_default=True,
        help=text,
    )


def describe_user() -> str:
    """Who runs the command, as records name them: `cli:<user>`."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # containers run as ids without a name
        return f"cli:{os.getuid()}"


def say(text: str) -> None:
    """Talk: to stderr, so that stdout stays data."""
    click.echo(text, err=True)


__all__ = [
    "Endpoint",
    "Parsed",
    "Refused",
    "describe_user",
    "group_option",
    "json_option",
    "listen_option",
    "option",
    "parse_duration",
    "policies_option",
    "read_now",
    "say",
    "state_option",
]
