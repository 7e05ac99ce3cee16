"""Where the candidate rules of a request are found: host tables, port, path trie, audience. PURE.

    host -> port -> path segments -> audience (everyone, agents, groups) -> candidates

Rule 1: the index only narrows down. Every rule it leaves out could not match; what it returns is
        still judged field by field (scheme, port, method, predicates); host, path and who are not.
Rule 2: nothing here scans rules. The cost of a look-up grows with the labels and segments of the
        request and with the rules that fit it, not with the rules of the file (policy.md 8).
Rule 3: built once, then only read; `PolicySet` never changes an index.
"""

from collections.abc import Iterable

from policies.match import glob_matches, is_int, is_uuid, split_path
from policies.regex import read_literal_prefix
from policies.rule import HostPattern, Match, PathPattern, Segment, Who

_PORTS_MAX = 16  # a rule with more ports is filed under "any port" and judged there
_EVERY_PATH = PathPattern((), rest=True)


class Audience[T]:
    """Rules at one place of the index, by whom they are for."""

    __slots__ = ("agents", "everyone", "groups")

    def __init__(self) -> None:
        self.everyone: list[T] | tuple[()] = ()
        self.agents: dict[str, list[T]] | None = None
        self.groups: dict[str, list[T]] | None = None

    def add(self, who: Who | None, entry: T) -> None:
        """File `entry` under everyone, or under each agent and group of `who`."""
        if who is None:
            self.everyone = _append(self.everyone, entry)
            return
        if who.agents:
            self.agents = _file(self.agents, who.agents, entry)
        if who.groups:
            self.groups = _file(self.groups, who.groups, entry)

    def collect(self, agent: str, groups: Iterable[str], found: list[T]) -> None:
        """Append everything that is for `agent`, a member of `groups`. May repeat an entry."""
        found += self.everyone
        if self.agents is not None:
            found += self.agents.get(agent, ())
        if self.groups is not None:
            for group in groups:
                found += self.groups.get(group, ())


class Node[T]:
    """One place in the path trie."""

    __slots__ = ("leaf", "literal", "rest", "wild")

    def __init__(self) -> None:
        self.literal: dict[str, Node[T]] | None = None
        self.wild: Wild[T] | None = None
        self.leaf: Audience[T] | None = None  # patterns that end here
        self.rest: Audience[T] | None = None  # patterns that go on with `**`

    def place(self, pattern: PathPattern) -> Audience[T]:
        """The audience of a pattern, made if it is not there yet."""
        node = self
        for segment in pattern.segments:
            node = node._child(segment)
        if pattern.rest:
            node.rest = node.rest or Audience()
            return node.rest
        node.leaf = node.leaf or Audience()
        return node.leaf

    def _child(self, segment: Segment) -> "Node[T]":
        if segment.kind == "literal":
            if self.literal is None:
                self.literal = {}
            return self.literal.setdefault(segment.text, Node())
        if self.wild is None:
            self.wild = Wild()
        return self.wild.child(segment)

    def walk(self, segments: list[str], depth: int, found: list[Audience[T]]) -> None:
        """Append the audience of every pattern that matches `segments` from `depth` on."""
        node: Node[T] | None = self
        end = len(segments)
        while node is not None:
            if node.rest is not None:
                found.append(node.rest)
            if depth == end:
                if node.leaf is not None:
                    found.append(node.leaf)
                return
            segment = segments[depth]
            depth += 1
            if node.wild is not None and segment:
                for child in node.wild.matching(segment):
                    child.walk(segments, depth, found)
            node = node.literal.get(segment) if node.literal is not None else None


class Wild[T]:
    """The children of a node that are not literal. Globs are found by their literal beginning."""

    __slots__ = ("any", "globs", "int", "lengths", "uuid")

    def __init__(self) -> None:
        self.any: Node[T] | None = None
        self.int: Node[T] | None = None
        self.uuid: Node[T] | None = None
        self.globs: dict[str, dict[str, Node[T]]] | None = None  # beginning -> glob -> child
        self.lengths: tuple[int, ...] = ()  # of the beginnings

    def child(self, segment: Segment) -> Node[T]:
        """The child for a pattern's segment, made if it is not there yet."""
        match segment.kind:
            case "int":
                self.int = self.int or Node()
                return self.int
            case "uuid":
                self.uuid = self.uuid or Node()
                return self.uuid
            case "glob":
                return self._glob_child(segment.text)
            case _:
                self.any = self.any or Node()
                return self.any

    def _glob_child(self, glob: str) -> Node[T]:
        if self.globs is None:
            self.globs = {}
        beginning = glob.partition("*")[0]
        if len(beginning) not in self.lengths:
            self.lengths += (len(beginning),)
        return self.globs.setdefault(beginning, {}).setdefault(glob, Node())

    def matching(self, segment: str) -> list[Node[T]]:
        """The children whose pattern matches a segment that is not empty."""
        children = []
        if self.any is not None:
            children.append(self.any)
        if self.int is not None and is_int(segment):
            children.append(self.int)
        if self.uuid is not None and is_uuid(segment):
            children.append(self.uuid)
        if self.globs is not None:
            for length in self.lengths:
                for glob, child in self.globs.get(segment[:length], {}).items():
                    if glob_matches(glob, segment):
                        children.append(child)
        return children


class PortTable[T]:
    """What one host pattern leads to at one port: the path trie, and what stage 1 asks."""

    __slots__ = ("openings", "root", "walls")

    def __init__(self) -> None:
        self.root: Node[T] = Node()
        self.openings: Audience[T] | None = None  # allows that could still match
        self.walls: Audience[T] | None = None  # denies that match whatever comes

    def add_opening(self, who: Who | None, entry: T) -> None:
        """File an allow for stage 1."""
        self.openings = self.openings or Audience()
        self.openings.add(who, entry)

    def add_wall(self, who: Who | None, entry: T) -> None:
        """File a deny for stage 1."""
        self.walls = self.walls or Audience()
        self.walls.add(who, entry)

    def collect_stage_1(
        self, agent: str, groups: Iterable[str], walls: list[T], openings: list[T]
    ) -> None:
        """Append what stage 1 has to judge for `agent`."""
        if self.walls is not None:
            self.walls.collect(agent, groups, walls)
        if self.openings is not None:
            self.openings.collect(agent, groups, openings)


type Ports[T] = dict[int | None, PortTable[T]]


class HostIndex[T]:
    """Exact names, one-label wildcards, any-depth wildcards, and rules for every host."""

    __slots__ = ("any_depth", "anywhere", "exact", "one_label")

    def __init__(self) -> None:
        self.exact: dict[str, Ports[T]] = {}
        self.one_label: dict[str, Ports[T]] = {}
        self.any_depth: dict[str, Ports[T]] = {}
        self.anywhere: Ports[T] = {}

    def tables_for(self, match: Match) -> list[PortTable[T]]:
        """Every table a rule with this `match` belongs in, made where missing."""
        hosts = [self.anywhere] if match.hosts is None else list(map(self._ports, match.hosts))
        some = match.ports is not None and len(match.ports) <= _PORTS_MAX
        ports: Iterable[int | None] = (match.ports or ()) if some else (None,)
        ports = list(ports)
        return [host.setdefault(port, PortTable()) for host in hosts for port in ports]

    def find_tables(self, host: str, port: int) -> list[PortTable[T]]:
        """The tables that can hold rules for a canonical destination."""
        hits = [self.anywhere] if self.anywhere else []
        exact = self.exact.get(host)
        if exact is not None:
            hits.append(exact)
        if (self.one_label or self.any_depth) and not _is_address(host):
            self._find_wildcards(host, hits)
        tables = []
        for ports in hits:
            table = ports.get(port)
            if table is not None:
                tables.append(table)
            table = ports.get(None)
            if table is not None:
                tables.append(table)
        return tables

    def find(self, host: str, port: int, path: str, agent: str, groups: Iterable[str]) -> list[T]:
        """The candidates of a request, without repetition."""
        audiences: list[Audience[T]] = []
        segments = split_path(path)
        for table in self.find_tables(host, port):
            table.root.walk(segments, 0, audiences)
        found: list[T] = []
        for audience in audiences:
            audience.collect(agent, groups, found)
        return found if len(found) < 2 else list(dict.fromkeys(found))

    def _ports(self, pattern: HostPattern) -> Ports[T]:
        if pattern.kind == "one_label":
            return self.one_label.setdefault(pattern.name, {})
        if pattern.kind == "any_depth":
            return self.any_depth.setdefault(pattern.name, {})
        return self.exact.setdefault(pattern.name, {})

    def _find_wildcards(self, host: str, hits: list[Ports[T]]) -> None:
        rest = host.partition(".")[2]
        parent = self.one_label.get(rest)
        if parent is not None:
            hits.append(parent)
        while rest:
            above = self.any_depth.get(rest)
            if above is not None:
                hits.append(above)
            rest = rest.partition(".")[2]


def paths_for(match: Match) -> tuple[PathPattern, ...]:
    """Where in the trie a rule belongs: its patterns, else what its expressions must start with."""
    if match.paths is not None:
        return match.paths
    if match.path_res is None:
        return (_EVERY_PATH,)
    return tuple(dict.fromkeys(map(_stem_of, match.path_res)))


def _stem_of(expression: str) -> PathPattern:
    """The whole literal segments every match of an expression begins with."""
    segments = split_path(read_literal_prefix(expression))[:-1]
    return PathPattern(tuple(Segment("literal", segment) for segment in segments), rest=True)


def _file[T](
    table: dict[str, list[T]] | None, names: Iterable[str], entry: T
) -> dict[str, list[T]]:
    table = {} if table is None else table
    for name in names:
        table[name] = _append(table.get(name, ()), entry)
    return table


def _append[T](entries: list[T] | tuple[()], entry: T) -> list[T]:
    """Add to a list that is made when it is needed, with room for one: most have one."""
    if not isinstance(entries, list):
        return [entry]
    entries.append(entry)
    return entries


def _is_address(host: str) -> bool:
    return ":" in host or host[-1:].isdigit()
