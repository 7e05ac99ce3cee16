"""Every source file has its test file, at the mirrored place; whoever changes one knows the other.

`policies/window.py` -> `tests/policies/test_window.py`;
`proxy/mitm/ca.py` -> `tests/proxy/mitm/test_ca.py` or `tests/proxy/test_mitm_ca.py`.
"""

import ast
from pathlib import Path

from tests.house.tree import ROOT, name_of, parsed, sources

# source -> (the file that tests it, why there): short, and every line has its reason
ELSEWHERE: dict[str, tuple[str, str]] = {
    "policies/ledger/__init__.py": (
        "tests/kit/ledger_contract.py",
        "a Protocol; its contract is what every implementation has to pass",
    ),
}


def test_every_source_has_its_test() -> None:
    offenders = [
        f"{name_of(path)} has none of {', '.join(expected(path))}"
        for path in sources()
        if does_something(path)
        and name_of(path) not in ELSEWHERE
        and not any((ROOT / name).is_file() for name in expected(path))
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_no_exception_outlives_its_reason() -> None:
    for source, (test, reason) in ELSEWHERE.items():
        assert (ROOT / source).is_file(), f"{source} is gone"
        assert (ROOT / test).is_file(), f"{test} is gone"
        assert reason
        own = [name for name in expected(ROOT / source) if (ROOT / name).is_file()]
        assert own == [], f"{source} has its own test now: {own}"


def expected(path: Path) -> list[str]:
    room, *folders, stem = name_of(path).removesuffix(".py").split("/")
    if stem == "__init__":
        *folders, stem = folders or [room]
    nested = "/".join(["tests", room, *folders, f"test_{stem}.py"])
    flat = f"tests/{room}/test_{'_'.join([*folders, stem])}.py"
    return list(dict.fromkeys([nested, flat]))


def does_something(path: Path) -> bool:
    """A docstring and imports need no test; neither does the line that starts a command."""
    if path.stem == "__main__":
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(parsed(path))
    )
