"""What the YAML parser says -> what a person needs to hear. PURE: text in, text out.

The parser names its own grammar ("did not find expected key"); an author needs the line to look at
and the thing to type. A table of the parser's phrases is tried in order, after the few mistakes
that can be seen in the line itself.
"""

import re

Place = tuple[int, int]  # line and column, from 1
Explained = tuple[Place, str, str]  # place, message, hint

_NO_SPACE = re.compile(r"\s*(?:- )?[A-Za-z_][\w.-]*:(?=[^\s:/])")
_TAB = re.compile(r" *\t")

# (part of the context, part of the problem, at the start of the construct?, message, hint)
_PHRASES = (
    ("quoted scalar", "unexpected end", True, "a quote is opened and never closed",
     "close it with the same quote character"),
    ("quoted scalar", "document indicator", True, "a quote is opened and never closed",
     "close it with the same quote character"),
    ("quoted scalar", "escape", False, "an unknown escape after a backslash in double quotes",
     "use single quotes, or write the backslash twice"),
    ("quoted scalar", "hexdecimal", False, "an unknown escape after a backslash in double quotes",
     "use single quotes, or write the backslash twice"),
    ("flow sequence", "", True, "a `[` is opened and not closed, or a comma is missing",
     "write lists as [a, b, c]"),
    ("flow mapping", "", True, "a `{` is opened and not closed, or a comma is missing",
     "write maps as { key: value, other: value }"),
    ("block collection", "", False, "this line does not belong to the list above",
     "begin it with `- ` at the same column as the others, or indent it"),
    ("block mapping", "", False, "this line does not line up with the keys above",
     "give keys of one map the same number of spaces"),
    ("block scalar", "", False, "only a comment may follow `|` or `>` on its line",
     "put the text on the next line, indented"),
    ("simple key", "", True, "a line that looks like a key has no `: `",
     "write it as `key: value`"),
    ("tag", "", False, "a `!` cannot begin plain text", "put the text in quotes"),
    ("anchor", "", False, "a `&` cannot begin plain text", "put the text in quotes"),
    ("alias", "", False, "a `*` cannot begin plain text", "put the text in quotes"),
    ("directive", "", False, "a line cannot begin with `%`", "put the text in quotes"),
    ("", "mapping values are not allowed", False, "a second `: ` in one line, or a wrong indent",
     "put text that contains `: ` in quotes; give keys of one map the same number of spaces"),
    ("", "block sequence entries are not allowed", False, "a list cannot begin here",
     "put each `- ` on its own line below the key"),
    ("", "document start", False, "this line does not belong to the map above",
     "give keys of one map the same number of spaces"),
    ("", "node content", False, "a value is missing here",
     "write a value, or remove the comma or bracket"),
)  # fmt: skip


def explain_syntax(
    lines: list[str], context: str, problem: str, place: Place, begun: Place
) -> Explained:
    """The parser's words about `lines` in plain ones.

    `place` is where the parser stopped and `begun` where the construct it was in starts; the answer
    may name another place, where the mistake more likely is.
    """
    row, column = place
    line = lines[row - 1] if row <= len(lines) else ""
    for near in (row - 1, row):
        text = lines[near - 1] if 0 < near <= len(lines) else ""
        if _TAB.match(text) and "token" in context and near == row:
            where = (near, text.index("\t") + 1)
            return where, "a tab is used to indent", "indent with spaces"
        missing = _NO_SPACE.match(text)
        if missing and "mapping values" in problem + context:
            return (near, missing.end() + 1), "a space is missing after `:`", "write `key: value`"
    if "cannot start any token" in problem:
        found = line[column - 1 : column]
        if found == "\t":
            return place, "a tab is used to indent", "indent with spaces"
        shown = "a backtick" if found == "`" else f"`{found}`"
        return place, f"{shown} cannot begin plain text", "put the text in quotes"
    for part, phrase, at_start, message, hint in _PHRASES:
        if part in context and phrase in problem:
            return (begun if at_start else place), message, hint
    return place, "this cannot be read", "check the indent, quotes and brackets around here"
