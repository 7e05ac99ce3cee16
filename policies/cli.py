"""`tollkeeper policy check` and `policy schema`: parse, call the room, print, exit code.

Findings and data go to stdout, the summary to stderr. Colour only on a terminal.
"""

import json
from pathlib import Path
from typing import Any

import click

from policies.compile import compile_policy
from policies.findings import RANK, render
from policies.model import Finding, PolicyRejected
from policies.schema import json_schema
from policies.sources import PolicyUnreadable

_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}


@click.group(
    epilog="""\b
Example:
  tollkeeper policy check policies.yaml
"""
)
def policy() -> None:
    """Check policy files and describe their language."""


@policy.command(
    epilog="""\b
Example:
  tollkeeper policy check policies.yaml
  tollkeeper policy check --fail-on warning --json policies.yaml
"""
)
@click.argument(
    "file",
    type=click.Path(path_type=Path),
    default="policies.yaml",
    envvar="TOLLKEEPER_POLICIES",
)
@click.option(
    "--fail-on",
    type=click.Choice(sorted(RANK, key=RANK.__getitem__, reverse=True)),
    default="error",
    show_default=True,
    envvar="TOLLKEEPER_FAIL_ON",
    show_envvar=True,
    help="The least severity that makes the command exit 1.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="TOLLKEEPER_JSON",
    show_envvar=True,
    help="Print one JSON object instead of text.",
)
@click.pass_context
def check(ctx: click.Context, file: Path, fail_on: str, as_json: bool) -> None:
    """Check FILE (default policies.yaml) and all it includes; every finding at once.

    Exit 0 clean, 1 with a finding at or above --fail-on, 2 when a file cannot be read.
    """
    digest = None
    try:
        compiled = compile_policy(file)
        findings, sources = compiled.findings, compiled.sources
        digest = compiled.policy_set.digest
    except PolicyRejected as rejected:
        findings, sources = rejected.findings, rejected.sources
    except PolicyUnreadable as unreadable:
        click.echo(f"tollkeeper: {unreadable}", err=True)
        ctx.exit(2)
    if as_json:
        click.echo(json.dumps(_describe(file, digest, findings), indent=2))
    else:
        _print(findings, sources)
        click.echo(_summarise(file, findings), err=True)
    ctx.exit(1 if any(RANK[one.severity] >= RANK[fail_on] for one in findings) else 0)


@policy.command(
    epilog="""\b
Example:
  tollkeeper policy schema > policies.schema.json
"""
)
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))


def _print(findings: tuple[Finding, ...], sources: dict[str, str]) -> None:
    lines = {file: text.splitlines() for file, text in sources.items()}
    for finding in findings:
        text = render(finding, lines.get(finding.file, ()))
        tag = f"{finding.severity}[{finding.code}]"
        coloured = click.style(tag, fg=_COLOURS[finding.severity], bold=True)
        click.echo(text.replace(tag, coloured, 1))  # click drops colour where there is no terminal


def _summarise(file: Path, findings: tuple[Finding, ...]) -> str:
    counted = {name: sum(one.severity == name for one in findings) for name in _COLOURS}
    listed = [f"{count} {name}{'s'[: count != 1]}" for name, count in counted.items() if count]
    return f"{file}: {', '.join(listed) or 'clean'}"


def _describe(file: Path, digest: str | None, findings: tuple[Finding, ...]) -> dict[str, Any]:
    keys = ("file", "line", "column", "code", "severity", "message", "hint", "rule")
    return {
        "file": str(file),
        "digest": digest,
        "findings": [{key: getattr(one, key) for key in keys} for one in findings],
    }
