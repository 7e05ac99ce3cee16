"""What must hold of records about budgets and states: their part of the laws. PURE.

    reserve [a requests 1, b bytes_in 4]   sorted, nothing twice      (decision, reserve, outcome)
    state   active -> warned -> halted     only right, and never left of where the log was
    budget.raise  from 100 to 200          a raise raises

Rule 1: what spending may be (limits, periods, what was held) is not judged here: that takes the
        ledger's arithmetic, and the fold of the log does it (docs/records.md).
Rule 2: no law may keep a halt from being recorded. So where a state says it came from is not held
        against the log: a record in between may have been lost to a full disk.
Rule 3: memory is bounded. The first `STANDINGS_MAX` agents that left `active` are remembered by
        digest, so the length of a name does not count; writer and verifier remember alike.

Form of the fields: audit/fields.py. Who asks: audit/laws.py.
"""

import re
from hashlib import sha256

from audit.fields import STATES

STANDINGS_MAX = 50_000
WINDOW = b'"window"'  # the unit whose value may move either way
_TEXT = rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_AMOUNT = re.compile(rb'"account":%s,"amount":[0-9]++,"unit":%s' % (_TEXT, _TEXT))
_UNIT = re.compile(rb'"unit":%s' % _TEXT)
_RANK = {word.encode(): rank for rank, word in enumerate(STATES)}


def explain_amounts(data: bytes) -> str:
    """Why a list of amounts (as spelled) is not one; "" where it is. Order is that of the bytes."""
    pairs = _AMOUNT.findall(data)
    if len(pairs) < 2 or pairs == sorted(set(pairs)):
        return ""
    return "the amounts are not sorted by account and unit, or name one of them twice"


def explain_snapshot(limits: bytes, spent: bytes) -> str:
    """Why the lists of a `ledger.snapshot` (as spelled) are none; "" where they are."""
    limited, units = _UNIT.findall(limits), _UNIT.findall(spent)
    if len(set(limited)) != len(limited):
        return "the limits name a unit twice"
    if units != sorted(set(units)):
        return "what was spent is not sorted by unit, or names one of them twice"
    return ""


def explain_raise(before: bytes, after: bytes | None, unit: bytes) -> str:
    """Why a `budget.raise` (values as spelled; `after` None: no limit) is none; "" if it is."""
    if after is None or unit == WINDOW or int(after) > int(before):
        return ""
    return f"`budget.raise` from {before.decode()} to {after.decode()} raises nothing"


class Standings:
    """The state the log left each agent in; who is not there counts as active."""

    __slots__ = ("_ranks",)

    def __init__(self) -> None:
        self._ranks: dict[bytes, int] = {}

    def move(self, agent: bytes, before: bytes, after: bytes) -> str:
        """Remember that an agent moved; why it may not have, or ""."""
        rank, key = _RANK[after], _digest(agent)
        if rank <= _RANK[before]:
            return f"a state moves from {before.decode()} to {after.decode()}: it only moves right"
        left = self._ranks.get(key, 0)
        if rank < left:
            return f"a state moves to {after.decode()}, but the agent was {STATES[left]} already"
        if key in self._ranks or len(self._ranks) < STANDINGS_MAX:
            self._ranks[key] = rank
        return ""

    def __len__(self) -> int:
        return len(self._ranks)


def _digest(agent: bytes) -> bytes:
    return sha256(agent).digest()
