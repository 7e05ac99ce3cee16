"""`make bench`: run every measurement, print one table, write docs/benchmarks.md.

`python -m tests.bench [NAME ...]` runs only the named modules and writes nothing. Exit code 1 when
a goal is missed. Goals are ratios to something that the same run measures, or carry a wide margin:
absolute times hold nowhere.
"""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from tests.bench import Row

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
HEAD = Row("measured", "goal", "value", met=True)


def names() -> list[str]:
    """The modules that measure something, by name."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def measure(chosen: list[str]) -> Iterator[tuple[str, Row]]:
    """Rows as they come, with the module they come from."""
    for name in chosen:
        rows: list[Row] = import_module(f"tests.bench.{name}").run()
        for row in rows:
            yield name, row


def format_line(row: Row, verdict: str) -> str:
    """One line of the printed table."""
    return f"{verdict:5} {row.name:56.56} {row.goal:26.26} {row.value}"


def write_page(rows: list[tuple[str, Row]]) -> str:
    """The text of docs/benchmarks.md."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    out = [
        "# Benchmarks",
        "",
        "Written by `make bench` on the machine named below. Goals are ratios wherever a time",
        "would only describe the machine; both sides are measured in turn in the same run.",
        "",
        f"Python {platform.python_version()}, mitmproxy {version('mitmproxy')}, {machine}",
    ]
    previous = ""
    for name, row in rows:
        if name != previous:
            out += [
                "",
                f"## {name}",
                "",
                "| measured | goal | value | met |",
                "| --- | --- | --- | --- |",
            ]
            previous = name
        out.append(f"| {row.name} | {row.goal} | {row.value} | {'yes' if row.met else '**no**'} |")
    return "\n".join([*out, ""])


def main(chosen: list[str]) -> int:
    """Measure, print, write; 1 when a goal is missed."""
    unknown = set(chosen) - set(names())
    if unknown:
        print(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
        return 2
    print(format_line(HEAD, "goal"), flush=True)
    rows = []
    for name, row in measure(chosen or names()):
        print(format_line(row, "met" if row.met else "MISS"), flush=True)
        rows.append((name, row))
    if not chosen:
        PAGE.write_text(write_page(rows), encoding="utf-8")
        print(f"\nwritten to {PAGE.relative_to(PAGE.parents[1])}")
    missed = sum(not row.met for _, row in rows)
    print(f"{len(rows) - missed} of {len(rows)} goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
