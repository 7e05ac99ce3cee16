"""A file that fits into the head, a function that fits onto the screen.

A room's module beyond 500 lines becomes a folder of the same name; a test's is split by subject.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import name_of, parsed, sources

MODULE_LINES_MAX = 500
TEST_LINES_MAX = 800  # tables of cases are read line by line
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 5  # then a dataclass; keyword-only ones are named at the call and do not count
# A ratchet: these may not grow, and nothing may join them.
PARAMETERS_OF_OLD = {
    "policies/draft.py _read_section": 6,
    "policies/engine.py _decide": 6,
    "policies/engine.py _screen": 7,
    "policies/findings.py find": 6,
    "policies/policy_set.py build": 6,
    "policies/problems.py word": 6,
}


def test_modules_stay_below_the_limit() -> None:
    offenders = [
        f"{name_of(path)} has {lines} lines"
        for path in sources("audit", "policies", "proxy", "tests", "examples")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > limit_of(path)
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_functions_stay_below_the_limit() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno} `{node.name}` has {lines} lines"
        for path in sources("audit", "policies", "proxy", "tests", "examples")
        for node in functions(path)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_functions_take_few_positional_parameters() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno} `{node.name}` has {count} parameters"
        for path in sources()
        for node in functions(path)
        if not is_command(node)
        and (count := count_of(node))
        > PARAMETERS_OF_OLD.get(f"{name_of(path)} {node.name}", PARAMETERS_MAX)
    ]
    assert not offenders, "\n".join(["", *offenders])


def limit_of(path: Path) -> int:
    return TEST_LINES_MAX if path.stem.startswith("test_") else MODULE_LINES_MAX


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def count_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    return len([name for name in names if name not in {"self", "cls"}])


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A click command takes its options by name: one parameter each, as the user sees them."""
    return any("option" in ast.unparse(decorator) for decorator in node.decorator_list)
