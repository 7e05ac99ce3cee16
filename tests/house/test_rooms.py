"""The import plan: leaf rooms that know nobody, a core that cannot act, one door to mitmproxy.

docs/architecture.md draws it. To change the plan, edit the tables; an ADR says why.
"""

import ast
import sys
from pathlib import Path

from tests.house.tree import ROOMS, ROOT, imported, name_of, parsed, sources

# Which packages a file may import beside the standard library; the longest prefix wins.
MAY: dict[str, set[str]] = {
    "audit/": {"audit"},
    "audit/record.py": {"audit", "orjson"},
    "audit/cli.py": {"audit", "click"},
    "policies/": {"policies"},
    "policies/canonical.py": {"policies", "publicsuffixlist"},
    "policies/cli.py": {"policies", "click"},
    "policies/host.py": {"policies", "ada_url", "idna"},
    "policies/load.py": {"policies", "yaml"},
    "policies/lookalike.py": {"policies", "idna"},
    "policies/regex.py": {"policies", "re2"},
    "policies/scalars.py": {"policies", "pydantic", "pydantic_core"},
    "policies/schema.py": {"policies", "pydantic", "pydantic_core"},
    "policies/target.py": {"policies", "ada_url"},
    "proxy/": {"proxy", "policies", "audit", "structlog"},
    "proxy/admin/": {"proxy", "policies", "audit", "structlog", "fastapi", "starlette", "uvicorn"},
    "proxy/cli/": {"proxy", "policies", "audit", "structlog", "click"},
    "proxy/body.py": {"proxy", "brotli", "zstandard"},
    "proxy/budget_metrics.py": {"proxy", "policies", "prometheus_client"},
    "proxy/metrics.py": {"proxy", "policies", "prometheus_client"},
    # mitmproxy's own HTTP libraries come with it; what they parse is checked in the same folder
    "proxy/mitm/": {
        *("proxy", "policies", "audit", "structlog"),
        *("mitmproxy", "h2", "h11", "wsproto", "certifi", "cryptography", "OpenSSL", "uvloop"),
    },
}

# Standard library by which code could act, wait, or learn something it was not told.
ACTING = frozenset(
    {
        *("asyncio", "concurrent", "contextvars", "ctypes", "fcntl", "getpass", "glob"),
        *("http.client", "http.server", "io", "logging", "mmap"),
        *("multiprocessing", "os", "pathlib", "platform", "queue", "random", "resource"),
        *("runpy", "sched", "secrets", "select", "selectors", "shutil", "signal", "site"),
        *("socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys", "tempfile"),
        *("threading", "time", "urllib.request", "uuid", "webbrowser"),
    }
)
BUILTINS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})
CLOCK = frozenset({"now", "today", "utcnow"})

# The leaf rooms are pure but for these, which may act by means of what is listed.
ACTS: dict[str, set[str]] = {
    "audit/__main__.py": set(),
    "audit/appender.py": {"fcntl", "os", "pathlib", "time"},
    "audit/cli.py": {"pathlib", "sys"},
    "audit/export.py": {"io"},
    "audit/folder.py": {"os", "pathlib", "secrets"},
    "audit/reader.py": {"os", "pathlib", "time"},
    "audit/segment.py": {"io", "os", "pathlib"},
    "audit/verify.py": {"os", "pathlib"},
    "audit/waiters.py": {"asyncio", "concurrent"},
    "audit/writer.py": {"asyncio", "concurrent", "os", "pathlib", "queue", "threading", "time"},
    "policies/cli.py": {"pathlib"},
    "policies/compile.py": {"pathlib"},  # joins the files that sources.py read
    "policies/ledger/sqlite.py": {
        "asyncio",
        "os",
        "pathlib",
        "queue",
        "sqlite3",
        "threading",
        "time",
    },
    "policies/ledger/table.py": {"sqlite3"},
    "policies/sources.py": {"os", "pathlib"},
}

# Plain values that live beside the code which reads or writes them: taking one is not acting.
VALUES = frozenset(
    {
        "audit.writer.EventRefused",
        "audit.writer.LogUnavailable",
        "policies.ledger.LedgerUnavailable",
        "policies.sources.Loaded",
        "policies.sources.Source",
        "proxy.settings.Endpoint",
    }
)

# In the room that acts, these are pure all the same, and say so in their first line.
PURE_IN_PROXY: dict[str, set[str]] = {
    "proxy/accounting.py": set(),
    "proxy/allowance.py": set(),
    "proxy/body.py": set(),
    "proxy/budget_header.py": set(),
    "proxy/call.py": set(),
    "proxy/denial.py": set(),
    "proxy/environment.py": {"pathlib"},  # spells paths, opens none
    "proxy/exchange.py": set(),
    "proxy/fault.py": {"asyncio"},  # names its CancelledError, runs nothing
    "proxy/head.py": set(),
    "proxy/recording.py": set(),
    "proxy/response.py": set(),
    "proxy/vocabulary.py": set(),
}


def acts(path: Path) -> bool:
    """Whether a file of the rooms is listed as one that may do something."""
    name = name_of(path)
    return name in ACTS or (name.startswith("proxy/") and name not in PURE_IN_PROXY)


def top(name: str) -> str:
    return name.partition(".")[0]


PURE = [path for path in sources() if not acts(path)]


def test_rooms_import_only_what_the_plan_allows() -> None:
    offenders = []
    for path in sources():
        name = name_of(path)
        allowed = MAY[max(filter(name.startswith, MAY), key=len)]
        found = {top(full) for full in imported(path)} - sys.stdlib_module_names - allowed
        offenders += [f"{name} may not import {one}" for one in sorted(found)]
    assert not offenders, "\n".join(["", *offenders])


def test_the_plan_names_only_files_that_exist() -> None:
    listed = {name for name in (*MAY, *ACTS, *PURE_IN_PROXY) if name.endswith(".py")}
    assert [name for name in sorted(listed) if not (ROOT / name).is_file()] == []


def test_pure_code_has_nothing_to_act_with() -> None:
    """No clock, no chance, no file, no socket, no thread, no log: it knows what it was told."""
    offenders = []
    for path in PURE:
        found = {one for full in imported(path) for one in ACTING if is_in(full, one)}
        found -= PURE_IN_PROXY.get(name_of(path), set())
        offenders += [f"{name_of(path)} imports {one}" for one in sorted(found)]
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if isinstance(called, ast.Name) and called.id in BUILTINS:
                offenders.append(f"{name_of(path)}:{node.lineno} calls {called.id}")
            if isinstance(called, ast.Attribute) and called.attr in CLOCK:
                offenders.append(f"{name_of(path)}:{node.lineno} reads a clock")
    assert not offenders, "\n".join(["", *offenders])


def test_what_calls_itself_pure_is_held_to_it() -> None:
    offenders = [
        name_of(path)
        for path in sources()
        if "PURE" in (ast.get_docstring(parsed(path)) or "").partition("\n\n")[0] and acts(path)
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_pure_code_reaches_no_acting_code_of_the_house() -> None:
    """Importing somebody who can act is acting by another name."""
    offenders = [
        f"{name_of(path)} imports {name_of(target)}"
        for path in PURE
        for full in sorted(imported(path))
        if top(full) in ROOMS and full not in VALUES
        if (target := file_of(full)) is not None and acts(target)
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_a_leaf_file_that_acts_uses_only_what_is_listed() -> None:
    offenders = []
    for name, allowed in ACTS.items():
        used = {one for full in imported(ROOT / name) for one in ACTING if is_in(full, one)}
        offenders += [f"{name} imports {one}" for one in sorted(used - allowed)]
        offenders += [f"{name} no longer needs {one}" for one in sorted(allowed - used)]
    assert not offenders, "\n".join(["", *offenders])


def test_the_network_is_touched_in_one_room() -> None:
    wires = {"socket", "ssl", "http.client", "urllib.request", "socketserver", "selectors"}
    for path in sources("audit", "policies"):
        found = {name for name in imported(path) for wire in wires if is_in(name, wire)}
        assert found == set(), name_of(path)


def test_product_code_imports_neither_tests_nor_examples() -> None:
    offenders = [
        name_of(path)
        for path in sources()
        if {top(full) for full in imported(path)} & {"tests", "examples"}
    ]
    assert not offenders, "\n".join(["", *offenders])


def test_nobody_imports_by_a_computed_name() -> None:
    """The plan could not see it. Two files have to: the ownership guard, and the command table."""
    offenders = [
        name_of(path) for path in sources() if imported(path) & {"importlib.import_module"}
    ]
    assert set(offenders) <= {"proxy/ownership.py", "proxy/cli/__init__.py"}


def test_imports_are_absolute() -> None:
    assert [name_of(path) for path in sources() if "relative import" in imported(path)] == []


def is_in(name: str, package: str) -> bool:
    """`os.path.join` is in `os`; `http.HTTPStatus` is not in `http.client`."""
    return name == package or name.startswith(f"{package}.")


def file_of(full: str) -> Path | None:
    """The file of the house that a dotted name comes from: a module, or a name inside one."""
    parts = full.split(".")
    for length in (len(parts), len(parts) - 1):
        stem = ROOT.joinpath(*parts[:length])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None
