"""`tollkeeper policy explain`: why a request, or a recorded decision, is decided so.

    URL and flags ------------------------> Request  \\
    decision id, record number --> state/log --> Request + archived policy  --> policies/explain.py

Rule 1: a request is read by the proxy's own canonicaliser and judged by the proxy's own engine.
Rule 2: a recorded decision is explained under the policy that was in force, at its time. What the
        record does not hold (values of headers and of the query) is said to be missing.
Rule 3: budgets are named and not read: what is left of them, `tollkeeper budget show` says.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import click

from audit.reader import Filter, LineBroken, read
from audit.record import Record
from audit.segment import LogUnreadable
from policies.canonical import RawHead, canonicalise_request
from policies.compile import compile_policy
from policies.explain import Explanation
from policies.explain import explain as explain_request
from policies.model import Address, PolicyRejected, Principal, Refusal, Request, Scheme
from policies.policy_set import PolicySet
from policies.reasons import REASONS
from policies.sources import PolicyUnreadable
from proxy.cli.options import (
    Refused,
    json_option,
    option,
    policies_option,
    read_now,
    say,
    state_option,
)
from proxy.failures import render_findings
from proxy.settings import Settings

_URL = re.compile(r"(https?)://([^/?#]*)[^#]*", re.IGNORECASE)
_CLIENT = "127.0.0.1"  # recorded, never judged
_BY_LEDGER = ("budget-exhausted", "halted", "ledger-unavailable")  # whatever the rules say
_NOT_RECORDED = (
    "the record holds names only: header fields and values of the query are taken as absent,"
    " so a rule that looks at them may show differently"
)


@click.command(
    epilog="""\b
Example:
  tollkeeper policy explain https://api.github.com/repos/acme/web --agent local
  tollkeeper policy explain -X POST -H "content-type: text/plain" https://api.github.com/gists
  tollkeeper policy explain --quarantined https://api.github.com/repos/acme/web
  tollkeeper policy explain 17
  tollkeeper policy explain 9f2c41aa0d3b4c5e8f7a6b5c4d3e2f10 --json
"""
)
@click.argument("what", metavar="URL|DECISION|RECORD")
@option("-X", "--method", envvar="METHOD", default="GET", show_default=True, help="Method.")
@option(
    "-H",
    "--header",
    "headers",
    envvar="HEADER",
    multiple=True,
    metavar="NAME:VALUE",
    help="A header field of the request. Repeatable.",
)
@option("--agent", envvar="AGENT", help="Who asks. Default: the policy's only agent.")
@option(
    "--address",
    "addresses",
    envvar="ADDRESS",
    multiple=True,
    metavar="IP",
    help="An answer of DNS for the host. Repeatable. Default: some public address.",
)
@option(
    "--quarantined",
    envvar="QUARANTINED",
    is_flag=True,
    help="As if the agent were quarantined: only `quarantine: { keep_rules }` count.",
)
@policies_option()
@state_option()
@json_option()
def explain(what: str, *, policies: Path, state: Path, as_json: bool, **asked: Any) -> None:
    """Say why a request is allowed or denied: matching rules, or the ones that missed by least.

    The request is a URL with -X and -H, the id of a recorded decision, or the number of a record
    as `tollkeeper audit tail` prints it.
    """
    if "://" in what:
        told, notes = _explain_url(what, policies, **asked)
    else:
        told, notes = _explain_record(what, Settings(state=state, policies=policies))
    for note in notes:
        say(f"note: {note}")
    if as_json:
        click.echo(json.dumps(told if isinstance(told, dict) else told.to_dict(), indent=2))
    elif isinstance(told, dict):
        click.echo("\n".join(f"{name}: {value}" for name, value in told.items()))
    else:
        click.echo(told.render())


# --- a request that is asked about


def _explain_url(
    url: str,
    policies: Path,
    *,
    method: str,
    headers: Sequence[str],
    agent: str | None,
    addresses: Sequence[str],
    quarantined: bool,
) -> tuple[Explanation | dict[str, str], list[str]]:
    policy_set = _compile(policies)
    request = _read_request(url, method, [_read_header(header) for header in headers])
    if isinstance(request, Refusal):
        reason = REASONS[request.reason]
        title = f"{request.reason} ({reason.title})"
        return {"deny": title, "because": request.detail, "what to do": reason.remedy}, []
    answers = tuple(_read_address(address) for address in addresses)
    told = explain_request(
        request,
        Principal(agent or _only_agent(policy_set), "", _CLIENT),
        policy_set,
        addresses=answers or None,
        now=read_now(),
        keep_rules=policy_set.keep_rules if quarantined else None,
    )
    return told, [] if answers else ["not resolved; the host is taken to have a public address"]


def _read_request(
    url: str, method: str, headers: Sequence[tuple[bytes, bytes]]
) -> Request | Refusal:
    found = _URL.match(url)
    if found is None:
        raise Refused(f"`{url}`: is no http or https URL; write https://HOST/PATH")
    host = (b"host", found[2].encode("utf-8", "surrogateescape"))
    target = found[0].encode("utf-8", "surrogateescape")
    head = RawHead(method.encode("utf-8", "surrogateescape"), target, (host, *headers))
    return canonicalise_request(head, scheme=cast("Scheme", found[1].lower()))


def _read_header(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise Refused(f"`--header {text}`: has no name; write NAME:VALUE")
    return name.strip().encode("utf-8"), value.strip().encode("utf-8")


def _read_address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise Refused(f"`--address {text}`: is no IP address; write 203.0.113.9") from error


def _only_agent(policy_set: PolicySet) -> str:
    if len(policy_set.agents) == 1:
        return next(iter(policy_set.agents))
    known = ", ".join(f"`{name}`" for name in policy_set.agents) or "none"
    raise Refused(f"which agent asks? the policy has {known}; give --agent")


def _compile(path: Path) -> PolicySet:
    try:
        return compile_policy(path).policy_set
    except PolicyUnreadable as error:
        raise Refused(f"{error}; give --policies") from error
    except PolicyRejected as error:
        say(render_findings(error))
        raise Refused(f"{path}: the policy has errors; see above") from error


# --- a decision that was recorded


def _explain_record(
    what: str, settings: Settings
) -> tuple[Explanation | dict[str, str], list[str]]:
    record = _find_decision(what, settings)
    event = record.event
    recorded = f"{event['verdict']}: {event['reason']}"
    notes = [f"record {record.seq} of {record.ts} says {recorded}"]
    request = _rebuild(event)
    digest = event["policy"]["digest"]
    if request is None or "agent" not in event or not digest.strip("0"):
        remedy = REASONS[event["reason"]].remedy if event["reason"] in REASONS else "see the log"
        why = ", ".join(event.get("findings", ())) or "it was refused before any rule was asked"
        return {str(event["verdict"]): event["reason"], "because": why, "what to do": remedy}, notes
    policy_set = _compile(settings.policy_archive / f"{digest}.yaml")
    told = explain_request(
        request,
        Principal(event["agent"]["id"], event["agent"].get("session", ""), event["client"]),
        policy_set,
        addresses=_recorded_addresses(event) or None,
        now=datetime.fromisoformat(record.ts),
        keep_rules=policy_set.keep_rules if event["reason"] == "quarantined" else None,
    )
    notes.append(_NOT_RECORDED)
    if event["reason"] in _BY_LEDGER:
        notes.append(f"the rules were not what denied it: {REASONS[event['reason']].remedy}")
    if event["stage"] == "connect":
        notes.append("it was a CONNECT: judged here as a GET of `/` at that destination")
    now = f"{told.decision.verdict}: {told.decision.reason}"
    screened = event["reason"] == "host-not-allowed" and told.decision.reason == "no-rule-matched"
    if now != recorded and not screened:  # one answer, given before all fields were looked at
        notes.append(f"with what is recorded, the rules give {now}")
    return told, notes


def _find_decision(what: str, settings: Settings) -> Record:
    by_number = what.isdecimal() and what.isascii() and len(what) < 20
    log = settings.log_folder
    try:
        for line in read(log, None if by_number else Filter(decision=what)):
            if by_number and line.record.seq != int(what):
                continue
            event = line.record.event
            if event["kind"] == "outcome":
                return _find_decision(event["ref"], settings)
            if event["kind"] == "decision":
                return line.record
            raise Refused(f"`{what}`: is a `{event['kind']}` record and no decision")
    except (LogUnreadable, LineBroken) as error:
        raise Refused(f"{error}; give --state") from error
    except OSError as error:
        raise Refused(f"`{log}`: {(error.strerror or '').lower()}; give --state") from error
    raise Refused(f"`{what}`: {log} has no such record; see `tollkeeper audit tail {log}`")


def _rebuild(event: dict[str, Any]) -> Request | None:
    """The request as far as the record tells it; None where it was never one."""
    target = event["target"]
    host, port = target.get("host"), target.get("port")
    if not host or not port or (event["stage"] != "connect" and not target.get("method")):
        return None
    keys = target.get("query_keys", ())
    length = event["req"].get("length")
    return Request(
        scheme=target.get("scheme", "https"),
        host=host,
        port=port,
        method=target["method"] if event["stage"] != "connect" else "GET",
        path=target.get("path", "/"),
        query="&".join(f"{key}=" for key in keys) if keys else None,
        query_pairs=tuple((key, "") for key in keys),
        body=bool(length),
        body_length=length,
        path_params=";" in target.get("path", ""),
    )


def _recorded_addresses(event: dict[str, Any]) -> tuple[Address, ...]:
    return tuple(map(ip_address, filter(None, event["target"].get("ip", "").split(","))))
