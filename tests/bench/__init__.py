"""Measurements against the goals: one module per subject, each with `run() -> list[Row]`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, what is asked for, what came out."""

    name: str
    goal: str  # as written in the specification, e.g. "p99 <= 250 us"
    value: str  # with its unit, or as a ratio
    met: bool
