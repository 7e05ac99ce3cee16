"""What must hold inside a record and between records, beyond the chain. PURE.

    log.open  policy.load(D)  decision(a, allow, policy D)  outcome(ref a)  heartbeat …  log.close

Rule 1: the writer asks these laws before it seals a record and the verifier when it reads one, so a
        bug in the proxy is refused at once and cannot make an honest log look tampered.
Rule 2: memory is bounded whatever the log holds; where something must be forgotten, the bound is
        part of the law and both sides forget alike.

The laws: the form of the kind (fields.py); ts never goes back; a run starts with `log.open`, which
says rightly whether the run before it was closed; a decision names a policy among the last
`POLICIES_MAX` loaded; an outcome and a `reserve` refer to an allowed request of the same run that
has no outcome yet, among the last `DECISIONS_MIN` or more open ones. So a second outcome, one
before its decision and one after a deny are all the same break. A missing outcome is no break (a
crash), a missing heartbeat is counted, not judged.

From format 2 on (a log's format never falls): only an allowed request reserves; amounts, raises and
states are what audit/spending.py says. That an outcome books no more than was held is left to the
fold: it would take the amounts of every open request in memory.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from re import Match

from audit.chain import TAIL_BYTES, TS_BYTES, Cause
from audit.fields import FORMAT, FORMS, SINCE, TIMESTAMP
from audit.record import explain_event
from audit.spending import Standings, explain_amounts, explain_raise, explain_snapshot

POLICIES_MAX = 1024
RECOVERIES_MAX = 4096
DECISIONS_MIN = 50_000
_HEARTBEATS_MISSING_MAX = 2
_FORMAT = re.compile(rb'"format":([1-9][0-9]{0,8})[,}]')
_EVENT_AT = TS_BYTES + len(b'","v":1},"event":')

type Problem = tuple[str, Cause] | None
type _Law = Callable[[Match[bytes]], Problem]
type _Match = Callable[[bytes, int, int], Match[bytes] | None]


class OpenDecisions:
    """The allowed requests without an outcome yet: the last 50,000 at least, 100,000 at most."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def add(self, ref: bytes) -> bool:
        """Remember one; False if it is there. The older half goes when the younger one is full."""
        young = self._young
        if ref in young or ref in self._old:
            return False
        if len(young) >= DECISIONS_MIN:
            self._old, self._young = young, {ref}
        else:
            young.add(ref)
        return True

    def take(self, ref: bytes) -> None:
        """Forget one that got its outcome."""
        self._young.discard(ref)
        self._old.discard(ref)

    def clear(self) -> None:
        """Forget all: the next run cannot finish them."""
        self._young, self._old = set(), set()

    def __contains__(self, ref: bytes) -> bool:
        return ref in self._young or ref in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


class Recent:
    """The most recent distinct values of something a log may hold any number of."""

    __slots__ = ("_most", "values")

    def __init__(self, most: int) -> None:
        self._most = most
        self.values: dict[bytes, None] = {}

    def add(self, value: bytes) -> None:
        """Make `value` the newest; the oldest goes when there are too many."""
        self.values.pop(value, None)
        self.values[value] = None
        if len(self.values) > self._most:
            del self.values[next(iter(self.values))]

    def discard(self, value: bytes) -> None:
        """Forget `value`."""
        self.values.pop(value, None)

    def __contains__(self, value: bytes) -> bool:
        return value in self.values


class Laws:
    """The state that judging needs. One object judges one log from its first record on."""

    def __init__(self) -> None:
        self.decisions = OpenDecisions()
        self.policies = Recent(POLICIES_MAX)
        self.recoveries = Recent(RECOVERIES_MAX)  # names of torn files
        self.standings = Standings()
        self.ts = b""
        self.format = 0  # of the newest run
        self.running = False
        self.run_seq = 0  # number of the newest `log.open`
        self.runs = 0
        self.records = 0
        self.outcomes_unknown = 0  # allowed requests of runs that are over without an outcome
        self.heartbeat_gaps = 0
        self._heartbeat = timedelta(0)
        self._day = b"?"  # the date that was last seen to be one
        self._due = b""  # a record later than this, with no heartbeat before it, shows a gap
        laws: dict[bytes, _Law] = {
            b"log.open": self._open,
            b"log.close": self._close,
            b"decision": self._decision,
            b"outcome": self._outcome,
            b"policy.load": self._policy,
            b"recovery": self._recovery,
            b"reserve": self._reserve,
            b"state": self._state,
            b"budget.raise": _raise,
            b"ledger.snapshot": _snapshot,
        }
        self._known: dict[bytes, tuple[_Match, _Law | None]] = {
            kind: (form.fullmatch, laws.get(kind)) for kind, form in FORMS.items()
        }
        self._laws = self._known  # those of the format of the newest run

    def judge(self, line: bytes, at: int) -> Problem:
        """See `audit.chain.Judge`. A record that is refused leaves no trace here."""
        kind_at = line.find(b'"kind":"', at) + 8
        kind = line[kind_at : line.find(b'"', kind_at)]
        form, law = self._laws.get(kind, (None, None))
        found = form(line, at, len(line) - TAIL_BYTES) if form is not None else None
        if found is None:
            return _explain(line, at, kind, self.format)
        ts = line[at : at + TS_BYTES]
        if ts < self.ts or not line.startswith(self._day, at) or not line.isascii():
            problem = self._judge_bytes(line, ts)
            if problem is not None:
                return problem
        if not self.running and kind != b"log.open":
            return f"`{kind.decode()}` stands outside of a run: no `log.open` before it", "tampered"
        if law is not None:
            problem = law(found)
            if problem is not None:
                return problem
        if ts > self._due or kind in _MARKS:
            self._watch(kind, ts)
        self.ts = ts
        self.records += 1
        return None

    def rewind(self, ts: bytes, lost: Iterable[bytes]) -> None:
        """The writer lost the lines it had sealed behind `ts`, here in their order: they are as if
        they had never been judged. What they made us forget stays forgotten, and states stay moved:
        the process that moved them holds to that too.
        """
        self.ts = ts
        for line in reversed(list(lost)):
            at = line.find(b'"ts":"') + 6
            kind_at = line.find(b'"kind":"', at) + 8
            kind = line[kind_at : line.find(b'"', kind_at)]
            if kind in _UNDONE:
                found = self._known[kind][0](line, at, len(line) - TAIL_BYTES)
                if found is not None:
                    self._undo(kind, found)

    def _undo(self, kind: bytes, found: Match[bytes]) -> None:
        if kind == b"decision":
            if _asks(found["stage"], found["verdict"]):
                self.decisions.take(found["id"])
        elif kind == b"outcome":
            self.decisions.add(found["ref"])
        else:
            self.policies.discard(found["digest"])

    def _judge_bytes(self, line: bytes, ts: bytes) -> Problem:
        if ts < self.ts:
            return f"the time goes back from {self.ts.decode()} to {ts.decode()}", "tampered"
        if ts[:10] != self._day:
            try:
                date.fromisoformat(ts[:10].decode())
            except ValueError:
                return f"`{ts[:10].decode()}` is not a date", "tampered"
            self._day = ts[:10]
        if not line.isascii():
            try:
                line.decode()
            except UnicodeDecodeError:
                return "the record is not UTF-8", "tampered"
        return None

    def _open(self, found: Match[bytes]) -> Problem:
        version = int(found["format"])
        if not 1 <= version <= FORMAT:
            return f"record format {version} is not known", "unknown-version"
        if version < self.format:
            return f"the format goes back from {self.format} to {version}", "tampered"
        after = "crash" if self.running else "clean"
        if found["after"].decode() != after:
            return (
                f"`log.open` says after `{found['after'].decode()}`, expected `{after}`",
                "tampered",
            )
        if version != self.format:
            self.format, self._laws = version, self._select(version)
        self.outcomes_unknown += len(self.decisions)
        self.decisions.clear()
        self.running = True
        self.runs += 1
        self.run_seq = self.records
        self._heartbeat = timedelta(milliseconds=min(int(found["heartbeat_ms"]), _HEARTBEAT_MS_MAX))
        return None

    def _select(self, version: int) -> dict[bytes, tuple[_Match, _Law | None]]:
        return {
            kind: law for kind, law in self._known.items() if SINCE.get(kind.decode(), 1) <= version
        }

    def _close(self, _: Match[bytes]) -> Problem:
        self.running = False
        return None

    def _decision(self, found: Match[bytes]) -> Problem:
        ref, digest, reserve, stage, verdict = found.groups()  # in the order of their fields
        if digest not in self.policies.values:
            return (
                f"the decision cites policy `{digest.decode()}`, which was not loaded before it",
                "tampered",
            )
        asks = _asks(stage, verdict)
        if reserve != b"[]" and self.format > 1:
            problem = explain_amounts(reserve) if asks else "only an allowed request reserves"
            if problem:
                return problem, "tampered"
        if asks and not self.decisions.add(ref):
            return f"decision `{ref.decode()}` is there twice", "tampered"
        return None

    def _outcome(self, found: Match[bytes]) -> Problem:
        ref, settle = found.groups()
        if ref not in self.decisions:
            return _no_request("outcome", ref)
        if settle != b"[]" and self.format > 1:
            problem = explain_amounts(settle)
            if problem:
                return problem, "tampered"
        self.decisions.take(ref)
        return None

    def _reserve(self, found: Match[bytes]) -> Problem:
        ref, reserve = found.groups()
        if ref not in self.decisions:
            return _no_request("reserve", ref)
        problem = explain_amounts(reserve) if reserve != b"[]" else "the `reserve` reserves nothing"
        return (problem, "tampered") if problem else None

    def _state(self, found: Match[bytes]) -> Problem:
        problem = self.standings.move(found["agent"], found["from"], found["to"])
        return (problem, "tampered") if problem else None

    def _policy(self, found: Match[bytes]) -> Problem:
        self.policies.add(found["digest"])
        return None

    def _recovery(self, found: Match[bytes]) -> Problem:
        if found["file"]:
            self.recoveries.add(found["file"])
        return None

    def _watch(self, kind: bytes, ts: bytes) -> None:
        """Count a silence of more than two heartbeats that no step and no recovery explains."""
        if ts > self._due and kind not in _EXPLAIN_SILENCE:
            self.heartbeat_gaps += 1
        self._due = _later(ts, self._heartbeat * _HEARTBEATS_MISSING_MAX)


_UNDONE = frozenset({b"decision", b"outcome", b"policy.load"})
_HEARTBEAT_MS_MAX = 86_400_000
_EXPLAIN_SILENCE = frozenset({b"log.open", b"clock.step", b"recovery"})
_MARKS = _EXPLAIN_SILENCE | {b"heartbeat"}  # behind a log.close there is only a log.open


def _asks(stage: bytes, verdict: bytes) -> bool:
    """Whether a decision lets a request out, which then may reserve and gets an outcome."""
    return verdict == b"allow" and stage == b"request"


def _raise(found: Match[bytes]) -> Problem:
    problem = explain_raise(found["from"], found["to"], found["unit"])
    return (problem, "tampered") if problem else None


def _snapshot(found: Match[bytes]) -> Problem:
    problem = explain_snapshot(found["limits"], found["spent"])
    return (problem, "tampered") if problem else None


def _no_request(what: str, ref: bytes) -> Problem:
    why = "it is unknown, was denied, or has its outcome already"
    return f"the {what} refers to `{ref.decode()}`, which is no open request: {why}", "tampered"


def _later(ts: bytes, wait: timedelta) -> bytes:
    try:
        then = datetime.fromisoformat(ts.decode()) + wait
    except OverflowError:
        return b"9999-12-31T23:59:59.999999Z"
    return then.astimezone(UTC).isoformat(timespec="microseconds")[:26].encode() + b"Z"


def _explain(line: bytes, at: int, kind: bytes, declared: int) -> Problem:
    """Why the form does not match: words, and whether it is only newer than this verifier."""
    if not re.compile(TIMESTAMP).match(line, at):
        return "the time is not in canonical form", "tampered"
    event = line[at + _EVENT_AT : -TAIL_BYTES]
    opened = _FORMAT.search(event)
    if b'"kind":"log.open"' in event and opened and int(opened[1]) > FORMAT:
        return f"record format {int(opened[1])} is not known", "unknown-version"
    since = SINCE.get(kind.decode("ascii", "replace"), 1)
    if 0 < declared < since:
        text = f"`{kind.decode()}` is of format {since}, but the run declares format {declared}"
        return text, "tampered"
    return explain_event(event), "tampered"
