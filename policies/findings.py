"""The catalogue of finding codes: what `policy check` can say about a policy file. PURE.

Rule 1: a code means one thing and is never reused; its severity is fixed here and nowhere else.
Rule 2: docs/findings.md is printed from this table (`document`), and a test holds the two equal.
Rule 3: a finding names the place, the problem in one line, and the way out in the hint.

The numbers group by subject: AP0 the text, AP1 names and patterns, AP2 reach, AP3 obligations,
AP6 budgets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from policies.model import Finding

Severity = Literal["error", "warning", "info"]
RANK: dict[str, int] = {"info": 0, "warning": 1, "error": 2}
_SYNTAX = frozenset({"AP001", "AP002", "AP003", "AP004", "AP005"})  # shown with a caret


@dataclass(frozen=True, slots=True)
class Code:
    """One entry: what it finds, what triggers it, and what to do."""

    code: str
    severity: Severity
    title: str
    example: str
    remedy: str


_ALL = (
    Code("AP001", "error", "the file is not YAML", "a tab indent; `key:value`",
         "look at the place under the caret; indent with spaces, put a space after `:`, close "
         "every quote and bracket. The rest of the file is checked once this is fixed"),
    Code("AP002", "error", "an unquoted `*` is read as an alias", "`host: *.openai.com`",
         'quote it: `host: "*.openai.com"`'),
    Code("AP003", "error", "a key is given twice", "two `match:` in one rule",
         "merge the two; most YAML readers keep the last one silently, we keep none"),
    Code("AP004", "error", "an unquoted value that YAML readers disagree about",
         "`between: [10:00, 18:00]`, `port: 0443`, `allow: no`, a key `on:`",
         "quote it if it is text; write numbers without leading zeros or `_`; write true or false"),
    Code("AP005", "error", "an anchor, alias, merge key, tag, directive or second document",
         "`<<: *base`", "write the value out; split files with `include:`"),
    Code("AP006", "error", "an unknown key", "`metods:`",
         "use the name in the hint; docs/policy.md lists every key"),
    Code("AP007", "error", "a value of the wrong type or shape", "`methods: {GET: 1}`",
         "the message says what is expected; a single value is accepted where a list is"),
    Code("AP008", "error", "a unit is missing or not known",
         "`bytes_out: 200`; `wall_time: 2`; `reached: 80`",
         "write 10MB, 10MiB, 500kB or 512B for sizes, 30s, 5m, 2h or 1d for times, 80% for parts"),
    Code("AP010", "warning", "text that looks like other text",
         "a Cyrillic `а` in `аpi.example.com`",
         "retype the name; where it is meant, write the host in its `xn--` form"),
    Code("AP101", "error", "a name that is defined nowhere", "`groups: [swarm-b]`",
         "define it under `agents:`, `rates:` or `rules:`, or correct the spelling"),
    Code("AP102", "warning", "a name that is defined and never used",
         "a rate that no rule names; a budget for nobody", "use it or delete it"),
    Code("AP103", "error", "an id or a source is claimed twice", "two rules `github-read`",
         "give each rule its own id; give each agent its own source range"),
    Code("AP104", "error", "a host that is not in canonical form",
         "`https://API.x.com/`, `x.com:443`",
         "write the bare lower-case name; `scheme:`, `port:` and `path:` are keys of their own"),
    Code("AP105", "error", "a host pattern that is too wide", "`*`, `*.com`, `**.github.io`",
         "name the organisation's own domain: below a public suffix anyone can register"),
    Code("AP107", "error", "an address or range that is not in canonical form",
         "`10.0.0.1/8`, `host: 0x7f.1`", "write the address as the hint shows it"),
    Code("AP108", "warning", "a rule can reach a private or metadata address",
         '`dest_ip: ["0.0.0.0/0"]`',
         "name only the range that is meant; `dest_ip` opens addresses that are otherwise refused"),
    Code("AP109", "error", "a path that is not canonical and can never match",
         "`/a/../b`, `/a//b`, `/a%2Fb`",
         "write the path as it is sent after clean-up: no `..`, no `//`, escapes in upper case"),
    Code("AP110", "warning", "a `*` inside the last segment", "`/pub*` matches `/public-leak`",
         "write `/pub/**` for everything below a folder"),
    Code("AP111", "error", "a regular expression that RE2 refuses", "`(?=x)`",
         "RE2 has no look-around and no back-references; expressions match the whole value"),
    Code("AP204", "error", "something that can never match",
         'a window ["18:00", "18:00"]; `methods: []`',
         "remove the part that is empty, or the rule"),
    Code("AP207", "warning", "an agent for which nothing is allowed",
         "`reviewer` is listed and in no `who:`", "add a rule for it, or remove the agent"),
    Code("AP301", "error", "two rules of the same rank disagree about an obligation",
         "one rule says `capture: request`, another `capture: metadata`, for the same requests",
         "give both the same value, or make one rule more specific; until then such requests "
         "would be denied"),
    Code("AP603", "warning", "an agent that may call and that no budget reaches",
         "`triager` is in no `who:` of a budget",
         "name it, or one of its groups, in a budget; a budget without `who` is for every agent. "
         "A file without budgets is not told this"),
    Code("AP604", "warning", "a limit that is smaller than one request may need",
         "`bytes_out: 1MB`, and a rule with `max_request: 5MB`",
         "raise the limit, or lower what one request of the rule may take; such requests would "
         "be denied although nothing was spent. A limit of 0 denies all and is not reported"),
    Code("AP605", "warning", "a halt for good in a budget that fills again",
         "`window: 1d` and `at: [{ reached: 100%, do: halt }]`",
         "leave out `window` if it must never be exceeded, or `do: halt` if the next window may go "
         "on: at 100% requests are denied anyway"),
    Code("AP609", "error", "a limit that is not a whole number of its unit from 0 to 2^53-1",
         "`requests: -1`; `requests: 1.5`; `bytes_out: .nan`; `wall_time: soon`",
         "write a plain number for counts, a size for bytes, a time for `wall_time`; 0 allows "
         "nothing, and a limit that is left out does not exist"),
    Code("AP610", "error", "a budget for each session of an agent that has no sessions",
         "`each: session` and an agent with `identity: { source: [...] }`",
         "write `each: agent`: an agent known by its address has one account; sessions begin with "
         "`tollkeeper agent add`"),
)  # fmt: skip

CODES: dict[str, Code] = {entry.code: entry for entry in _ALL}


def find(
    code: str, file: str, place: tuple[int, int], message: str, hint: str = "", rule: str = ""
) -> Finding:
    """A Finding with the severity of its code; `place` is line and column, from 1."""
    entry = CODES[code]
    return Finding(file, *place, code, entry.severity, _show(message), _show(hint), rule)


def _show(text: str) -> str:
    """Text safe for a terminal: what a file holds must not move the cursor or hide itself."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else f"\\u{{{ord(mark):04X}}}" for mark in text)


def arrange(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each finding once, sorted by file and place; two messages about one place both stay."""
    unique = {(f.file, f.line, f.column, f.code, f.message): f for f in findings}
    return tuple(unique[key] for key in sorted(unique))


def render(finding: Finding, lines: Sequence[str] = ()) -> str:
    """`file:line:col: severity[CODE]: message`, for syntax the line and a caret, then the hint.

    `lines` are those of the finding's file; without them there is no caret.
    """
    place = f"{finding.file}:{finding.line}:{finding.column}"
    out = [f"{place}: {finding.severity}[{finding.code}]: {finding.message}"]
    if finding.code in _SYNTAX and finding.line <= len(lines):
        shown, caret = _excerpt(lines[finding.line - 1], finding.column)
        out += [f"  | {shown}", f"  | {caret}^"]
    if finding.hint:
        out.append(f"  hint: {finding.hint}")
    return "\n".join(out)


def _excerpt(line: str, column: int) -> tuple[str, str]:
    """The line, safe to print and at most 100 wide, and the spaces before the caret."""
    start = max(0, column - 60)
    part = line[start : start + 100]
    safe = "".join(mark if mark.isprintable() else " " if mark == "\t" else "?" for mark in part)
    return safe, " " * (column - 1 - start)


def document() -> str:
    """The text of docs/findings.md."""
    out = [
        "# Findings of `tollkeeper policy check`",
        "",
        "Printed from `policies/findings.py`; a test holds the two equal. An `error` refuses the",
        "whole policy, a `warning` or `info` does not. The command exits 0 when nothing reaches",
        "`--fail-on` (default `error`), 1 when something does, and 2 only when a file is missing,",
        "unreadable or not UTF-8.",
        "",
    ]
    for entry in _ALL:
        out += [
            f"## {entry.code}: {entry.title}",
            "",
            f"- severity: {entry.severity}",
            f"- example: {entry.example}",
            f"- remedy: {entry.remedy}",
            "",
        ]
    return "\n".join(out)
