"""Gates that must open before the port does: known versions of everything that reads bytes, and the
seams we stand on.

Overrides live in our lock only; whoever installs the wheel without it may get an h2 that smuggles
(threats.md section 3). So what is really installed is looked at, at every start.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_Version = tuple[int, ...]


class GateClosed(RuntimeError):  # noqa: N818  named after the failure
    """A dependency is not one we have tested; the server refuses to start."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One package and the range that is safe."""

    package: str
    at_least: _Version
    below: _Version | None
    why: str
    only_http2: bool = False  # too old only means: without HTTP/2


GATES = (
    Gate("mitmproxy", (12, 2, 2), (12, 3), "the layers we build on were tested in this range"),
    Gate("h11", (0, 16, 0), None, "CVE-2025-43859: accepts malformed chunk endings"),
    Gate("pyOpenSSL", (26, 0, 0), (28,), "CVE-2026-27448: exceptions in callbacks were swallowed"),
    Gate("cryptography", (48, 0, 1), None, "known flaws in the bundled OpenSSL"),
    Gate("h2", (4, 4, 1), None, "CVE-2026-71554: two Host fields", only_http2=True),
    Gate("hpack", (4, 2, 0), None, "CVE-2026-59980: quadratic integers", only_http2=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Passed:
    """What the gates found."""

    http2: bool
    notes: tuple[str, ...]  # one line for each thing an operator should hear
    versions: dict[str, str]


def check_gates(installed: Callable[[str], str] = version) -> Passed:
    """Look at the installed versions and at the attributes of mitmproxy that we override.

    Raises:
        GateClosed: with the package, what is installed, what is needed and why.
    """
    notes: list[str] = []
    versions: dict[str, str] = {}
    http2 = True
    for gate in GATES:
        try:
            text = installed(gate.package)
        except PackageNotFoundError:
            raise GateClosed(f"{gate.package} is not installed; run `make setup`") from None
        versions[gate.package] = text
        if gate.at_least <= _parse(text) and (gate.below is None or _parse(text) < gate.below):
            continue
        need = f">= {_text(gate.at_least)}" + (f", < {_text(gate.below)}" if gate.below else "")
        if not gate.only_http2:
            raise GateClosed(
                f"{gate.package} {text} is installed, {need} is needed: {gate.why};"
                " install from requirements.lock"
            )
        http2 = False
        notes.append(
            f"HTTP/2 is off: {gate.package} {text} is installed, {need} is needed ({gate.why})"
        )
    _check_seams()
    return Passed(http2, tuple(notes), versions)


def _check_seams() -> None:
    """Every method that we override must still exist with the parameters we override it with."""
    from mitmproxy.proxy.layers.http import HttpLayer, _http1, _http2
    from mitmproxy.proxy.server import ConnectionHandler

    seams: tuple[tuple[type, str, tuple[str, ...]], ...] = (
        (ConnectionHandler, "handle_hook", ("self", "hook")),
        (ConnectionHandler, "hook_task", ("self", "hook")),
        (ConnectionHandler, "server_event", ("self", "event")),
        (ConnectionHandler, "open_connection", ("self", "command")),
        (ConnectionHandler, "handle_connection", ("self", "connection")),
        (ConnectionHandler, "close_connection", ("self", "connection", "half_close")),
        (HttpLayer, "make_stream", ("self", "stream_id")),
        (HttpLayer, "get_connection", ("self", "event", "reuse")),
        (HttpLayer, "event_to_child", ("self", "child", "event")),
        (_http1.Http1Server, "read_headers", ("self", "event")),
        (_http1.Http1Server, "read_body", ("self", "event")),
        (_http1.Http1Server, "send", ("self", "event")),
        (_http1.Http1Client, "read_headers", ("self", "event")),
        (_http1.Http1Client, "read_body", ("self", "event")),
        (_http1.Http1Client, "send", ("self", "event")),
        (_http1.Http1Client, "mark_done", ("self", "request", "response")),
        (_http2.Http2Server, "handle_h2_event", ("self", "event")),
        (_http2.Http2Server, "protocol_error", ("self", "message", "error_code")),
    )
    for owner, name, parameters in seams:
        method = getattr(owner, name, None)
        if method is None or tuple(inspect.signature(method).parameters) != parameters:
            raise GateClosed(f"mitmproxy's {owner.__name__}.{name} is not the one we override")


def _parse(text: str) -> _Version:
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _text(wanted: _Version) -> str:
    return ".".join(map(str, wanted))
