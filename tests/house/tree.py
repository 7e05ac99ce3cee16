"""The files of this checkout, as git sees them: tracked, or new and not ignored."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("audit", "policies", "proxy")


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or is about to be, part of the repository."""
    # the checkout may belong to somebody else, as in CI containers
    listed = subprocess.run(
        [
            *("git", "-c", "safe.directory=*", "ls-files", "-z"),
            *("--cached", "--others", "--exclude-standard"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    names = sorted({name for name in listed.decode().split("\0") if name})
    return tuple(path for name in names if (path := ROOT / name).is_file())


def name_of(path: Path) -> str:
    """The path as the tables of these tests write it: from the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


def sources(*folders: str) -> list[Path]:
    """Python files below `folders` (all rooms if none are given)."""
    inside = tuple(f"{folder}/" for folder in folders or ROOMS)
    return [path for path in files() if path.suffix == ".py" and name_of(path).startswith(inside)]


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


@cache
def imported(path: Path) -> frozenset[str]:
    """Full dotted names of everything a file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("relative import")
    return frozenset(names)
