"""Three-valued logic of predicates. PURE.

A predicate is true, false, or unknown (a repeated header, an ambiguous time). Unknown is no match
for an allow and a match for a deny (policy.md 2.4); both follow from Kleene's tables plus the
verdict, so no predicate ever asks which kind of rule it stands in.
"""

from collections.abc import Iterable
from typing import Final, Literal

Outcome = Literal["true", "false", "unknown"]

TRUE: Final = "true"
FALSE: Final = "false"
UNKNOWN: Final = "unknown"


def negate(outcome: Outcome) -> Outcome:
    """Not: unknown stays unknown."""
    if outcome == TRUE:
        return FALSE
    return TRUE if outcome == FALSE else UNKNOWN


def conjoin(outcomes: Iterable[Outcome]) -> Outcome:
    """And: one false is false, else one unknown is unknown."""
    joined: Outcome = TRUE
    for outcome in outcomes:
        if outcome == FALSE:
            return FALSE
        if outcome == UNKNOWN:
            joined = UNKNOWN
    return joined


def agree(yes: int, total: int) -> Outcome:
    """Of `total` readings `yes` say yes: all is true, none is false, some is unknown."""
    if yes == 0:
        return FALSE
    return TRUE if yes == total else UNKNOWN
