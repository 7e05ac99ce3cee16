"""Names that say what a thing is (docs/glossary.md), and none that say nothing."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import name_of, parsed, sources

SAY_NOTHING = frozenset(
    {
        *("base", "common", "core", "data", "handler", "handlers", "helper", "helpers", "info"),
        *("lib", "manager", "managers", "misc", "stuff", "tools", "util", "utils"),
    }
)
EMPTY_ENDINGS = ("Manager", "Helper", "Helpers", "Utils", "Util", "Data", "Info", "Impl")
# name -> why it may be called so all the same
NAMED_ALL_THE_SAME: dict[str, str] = {
    "proxy/mitm/handler.py": "mitmproxy's own word for the part it stands for",
}


def test_module_names_say_something() -> None:
    offenders = [
        name_of(path)
        for path in named_by_us()
        if name_of(path) not in NAMED_ALL_THE_SAME
        and SAY_NOTHING & set(name_of(path).removesuffix(".py").split("/"))
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    """It is read wrong, and shadows the other where its folder is on the path."""
    offenders = [
        name_of(path)
        for path in named_by_us()
        if path.stem not in {"__init__", "__main__"} and path.stem in sys.stdlib_module_names
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_class_names_say_something() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno} `{node.name}`"
        for path in named_by_us()
        for node in classes(path)
        if node.name.endswith(EMPTY_ENDINGS) or node.name.lower().startswith("tollkeeper")
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_a_handler_is_one_of_a_library_that_calls_them_so() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno} `{node.name}`"
        for path in named_by_us()
        for node in classes(path)
        if node.name.endswith("Handler")
        and not any(ast.unparse(parent).endswith("Handler") for parent in node.bases)
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_modules_and_public_names_say_what_they_are() -> None:
    offenders = []
    for path in sources():
        tree = parsed(path)
        if tree.body and not ast.get_docstring(tree):
            offenders.append(name_of(path))
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                offenders.append(f"{name_of(path)}:{node.lineno} `{node.name}`")
    assert not offenders, "\n".join(["", *offenders])


def test_tests_are_sentences() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno} `{node.name}`"
        for path in sources("tests")
        if path.stem.startswith("test_")
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and node.name.count("_") < 2
    ]
    assert not offenders, "\n".join(["", *offenders])


def named_by_us() -> list[Path]:
    return [*sources(), *sources("tests/kit", "tests/bench", "examples")]


def classes(path: Path) -> Iterator[ast.ClassDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ClassDef):
            yield node
