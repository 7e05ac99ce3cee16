"""YAML text -> a tree of nodes with line and column. Values are never constructed.

    policies.yaml --events of libyaml--> Node tree --schema.py--> models --compile.py--> PolicySet

Rule 1: we read the parser's events, not its objects: an alias is seen and never followed, a tag
        never builds anything.
Rule 2: what YAML 1.1 and YAML 1.2 read differently (`no`, `0443`, `10:00`, `1_000`) is an error
        (AP004), so the file means the same to every reader.
Rule 3: a value that was reported here becomes a `broken` node; no later stage reports it again.
"""

import re
from collections.abc import Iterator

import yaml

from policies.findings import find
from policies.model import ContractBroken, Finding
from policies.node import Node, intention, plain_kind, surprise
from policies.syntax import explain_syntax

FILE_BYTES_MAX = 16 * 1024 * 1024
DEPTH_MAX = 32  # nested maps and lists; the language itself needs seven
_ALIAS_REPAIRS_MAX = 20  # unquoted `*` reported in one go; each costs one more pass over the file
_KEY_CHARS_MAX = 256
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_TOKEN = re.compile(r"\*[^\s,\[\]{}#]*")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_FRAMES = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent)
_DEPTH_CHANGES = {
    yaml.SequenceStartEvent: 1,
    yaml.MappingStartEvent: 1,
    yaml.SequenceEndEvent: -1,
    yaml.MappingEndEvent: -1,
}
type _Marked = yaml.ScalarEvent | yaml.CollectionStartEvent


def _place(event: yaml.Event) -> tuple[int, int]:
    """Line and column of an event, from 1."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def parse(text: str, file: str) -> tuple[Node | None, list[Finding]]:
    """One YAML document -> its tree and what is wrong with it as YAML (AP001-AP005)."""
    if len(text) > FILE_BYTES_MAX or len(text.encode("utf-8", "replace")) > FILE_BYTES_MAX:
        problem = f"the file is larger than {FILE_BYTES_MAX // 1024 // 1024} MiB"
        return None, [find("AP001", file, (1, 1), problem, "split it with `include:`")]
    composer = _Composer(file)
    events = composer.scan(text)
    if events is None:
        return None, composer.findings
    return composer.document(iter(events)), composer.findings


class _Composer:
    """Events -> nodes. Holds the findings of one file while it is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.repaired: set[tuple[int, int]] = set()
        self.anchors: set[str] = set()

    def report(self, place: tuple[int, int], code: str, message: str, hint: str = "") -> None:
        """Add a finding at (line, column), both from 1."""
        self.findings.append(find(code, self.file, place, message, hint))

    def scan(self, text: str) -> list[yaml.Event] | None:
        """All events, or None after AP001. An unquoted `*` is reported and read on over."""
        odd = _UNPRINTABLE.search(text)
        if odd:
            before = _BREAK.split(text[: odd.start()])
            problem = (
                f"not YAML: the character U+{ord(odd.group()):04X} is not allowed in a policy file"
            )
            hint = "delete it, or write it as an escape in double quotes"
            self.report((len(before), len(before[-1]) + 1), "AP001", problem, hint)
            return None
        for _ in range(_ALIAS_REPAIRS_MAX + 1):
            try:
                return self._collect(text)
            except yaml.MarkedYAMLError as error:
                repaired = self._repair(text, error)
                if repaired is None:
                    self._report_syntax(text, error)
                    return None
                text = repaired
            except yaml.YAMLError:  # the reader itself; what is known of it was looked for above
                self.report(
                    (1, 1), "AP001", "not YAML: the text cannot be read", "save it as UTF-8"
                )
                return None
        return None

    def _collect(self, text: str) -> list[yaml.Event] | None:
        """The events, or None at the bound on depth: libyaml's time grows with its square."""
        events: list[yaml.Event] = []
        depth = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            events.append(event)
            depth += _DEPTH_CHANGES.get(type(event), 0)
            if depth > DEPTH_MAX:
                problem = f"nested deeper than {DEPTH_MAX} levels"
                self.report(_place(event), "AP001", problem, "see docs/policy.md for the shape")
                return None
        return events

    def _repair(self, text: str, error: yaml.MarkedYAMLError) -> str | None:
        """AP002: put a letter of the same width over an unquoted `*`, and remember the place."""
        mark = error.context_mark
        if mark is None or "alias" not in (error.context or ""):
            return None
        if len(self.repaired) >= _ALIAS_REPAIRS_MAX:
            return None
        place = (mark.line + 1, mark.column + 1)
        token = _TOKEN.match(text, mark.index)
        word = token.group() if token else "*"
        self.repaired.add(place)
        self.report(place, "AP002", f"an unquoted `{word}` is read as an alias", f'write "{word}"')
        blank = "x" * len(word)
        return text[: mark.index] + blank + text[mark.index + len(word) :]

    def _report_syntax(self, text: str, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        start = error.context_mark
        begun = (start.line + 1, start.column + 1) if start else place
        place, message, hint = explain_syntax(
            _BREAK.split(text), error.context or "", error.problem or "", place, begun
        )
        self.report(place, "AP001", f"not YAML: {message}", hint)

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        """The one document of the stream; an empty file is an empty map."""
        root: Node | None = None
        for event in events:
            place = _place(event)
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    hint = "keep one document per file; use `include:` for more files"
                    self.report(place, "AP005", "a second document is not allowed", hint)
                    break
                if event.version or event.tags:
                    self.report(place, "AP005", "a `%` directive is not allowed", "remove it")
            elif not isinstance(event, _FRAMES):
                root = self.node(event, events)
        if root is None or root.kind == "null":
            return Node("map", 1, 1)
        return root

    def node(self, event: yaml.Event, events: Iterator[yaml.Event]) -> Node:
        """The node that starts with `event`."""
        line, column = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            if event.anchor or event.tag:
                return self.marked(event, line, column)
            return self.scalar(event, line, column)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, line, column)
        if not isinstance(event, yaml.CollectionStartEvent):
            raise ContractBroken(f"the parser gave {type(event).__name__} where a value begins")
        marked = self.marked(event, line, column) if event.anchor or event.tag else None
        if isinstance(event, yaml.SequenceStartEvent):
            node = Node("list", line, column)
            for inner in events:
                if isinstance(inner, yaml.SequenceEndEvent):
                    break
                node.items.append(self.node(inner, events))
        else:
            node = Node("map", line, column)
            self.mapping(node, events)
        return marked or node

    def mapping(self, node: Node, events: Iterator[yaml.Event]) -> None:
        """Fill `node` with the pairs up to the end of the map."""
        pairs, keys = node.pairs, node.keys
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                return
            line, column = _place(event)
            if not isinstance(event, yaml.ScalarEvent):
                self.node(event, events)
                self.node(next(events), events)
                if not isinstance(event, yaml.AliasEvent):
                    problem = "a key must be plain text, not a list or a map"
                    self.report((line, column), "AP001", problem, "did you forget quotes?")
                continue
            key = event.value
            if len(key) > _KEY_CHARS_MAX:
                problem = f"a key is longer than {_KEY_CHARS_MAX} characters"
                self.report((line, column), "AP007", problem, "did you forget the `: ` after it?")
            usable = self.key(event, line, column)
            value = self.node(next(events), events)
            if key in pairs:
                first = keys[key]
                problem = f"duplicate key `{key}`, first given in line {first[0]}"
                self.report((line, column), "AP003", problem, "merge the two, or delete one")
            elif usable:
                pairs[key] = value
                keys[key] = (line, column)
            else:
                node.partial = True

    def key(self, event: yaml.ScalarEvent, line: int, column: int) -> bool:
        """False where the key was reported here and must not be looked at again."""
        if event.anchor or event.tag:
            self.marked(event, line, column)
            return False
        if (line, column) in self.repaired:
            return False
        if not event.implicit[0]:
            return True
        if event.value == "<<":
            hint = "write the keys out; a policy is read by people"
            self.report((line, column), "AP005", "a merge key `<<` is not allowed", hint)
            return False
        meaning = surprise(event.value)
        if meaning:
            problem = f"the unquoted key `{event.value}` means {meaning} to some YAML readers"
            self.report((line, column), "AP004", problem, f'write "{event.value}"')
        return not meaning

    def scalar(self, event: yaml.ScalarEvent, line: int, column: int) -> Node:
        """A scalar, typed by rule 2."""
        text = event.value
        if not event.implicit[0] or event.style:
            return Node("str", line, column, text)
        if (line, column) in self.repaired:
            return Node("broken", line, column, text)
        kind = plain_kind(text)
        if kind == "broken":
            problem = f"unquoted `{text}` means {surprise(text)} to some YAML readers"
            meant = intention(text)
            hint = f'write {meant}, or "{text}" for text' if meant else f'write "{text}"'
            self.report((line, column), "AP004", problem, hint)
        return Node(kind, line, column, text)

    def marked(self, event: _Marked, line: int, column: int) -> Node:
        """AP005: an anchor or a tag."""
        if event.anchor:
            self.anchors.add(event.anchor)
            name, hint = f"an anchor `&{event.anchor}`", "write the value out where it is needed"
        else:
            name, hint = "a tag `!`", 'quote the text if it begins with `!`: "!..."'
        self.report((line, column), "AP005", f"{name} is not allowed", hint)
        return Node("broken", line, column)

    def alias(self, event: yaml.AliasEvent, line: int, column: int) -> Node:
        """AP005 for an alias of a known anchor, AP002 for a `*` that was meant as text."""
        word = f"*{event.anchor}"
        if event.anchor in self.anchors:
            hint = "write the value out where it is needed"
            self.report((line, column), "AP005", f"an alias `{word}` is not allowed", hint)
        else:
            problem = f"an unquoted `{word}` is read as an alias"
            self.report((line, column), "AP002", problem, f'write "{word}"')
        return Node("broken", line, column)
