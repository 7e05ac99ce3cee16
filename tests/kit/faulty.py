"""The real server with faults inside: `python -m tests.kit.faulty -m proxy serve ...`.

    tests/kit/faults.py writes `where:what` into the file that TOLLKEEPER_TEST_FAULTS names
    this process reads it at every place of PLACES, does what it says, and appends to `<file>.hits`

Rule 1: nothing is replaced by a stand-in. A place is a function of the product; the fault happens
        in front of it, or instead of it.
Rule 2: an absent or empty file is a faultless server: it starts, proves itself and serves.
Rule 3: what hits is written down, so that no test passes because its fault never happened.

Other wishes, as arguments before `-m`:

    lookups=FILE     every host name that is asked for is appended to FILE
    answers=A,B      name servers answer A the first time, B from then on (DNS rebinding)
    modules=FILE     what was imported is written to FILE in the end
    tamper=NAME      this option of mitmproxy is set to something else after it was frozen
    loop=uvloop      run on that event loop; its name goes to stderr
    set.NAME=VALUE   another value for a knob of proxy/settings.py
"""

import asyncio
import atexit
import errno
import inspect
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from mitmproxy.exceptions import AddonHalt, OptionsError

FAULTS = "TOLLKEEPER_TEST_FAULTS"

ERRORS: dict[str, type[BaseException]] = {
    "raise": RuntimeError,
    "key-error": KeyError,
    "timeout": asyncio.TimeoutError,
    "cancel": asyncio.CancelledError,
    "generator-exit": GeneratorExit,
    "halt": AddonHalt,
    "options-error": OptionsError,
    "memory": MemoryError,
    "recursion": RecursionError,
}

_HANDLER = "proxy.mitm.handler"
_STREAM = "proxy.mitm.stream"
_ENFORCER = "proxy.enforcer"

PLACES: dict[str, tuple[str, str]] = {
    # every hook of the handler
    "hook.judge": (_HANDLER, "Handler.judge"),
    "hook.extend": (_HANDLER, "Handler.extend"),
    "hook.next-layer": (_HANDLER, "Handler.next_layer"),
    "hook.client-connected": (_HANDLER, "Handler.client_connected"),
    "hook.client-disconnected": (_HANDLER, "Handler.client_disconnected"),
    "hook.tls-clienthello": (_HANDLER, "Handler.tls_clienthello"),
    "hook.tls-start-client": (_HANDLER, "Handler.tls_start_client"),
    "hook.tls-start-server": (_HANDLER, "Handler.tls_start_server"),
    "hook.tls-established": (_HANDLER, "Handler.tls_established"),
    "hook.tls-failed-client": (_HANDLER, "Handler.tls_failed_client"),
    "hook.tls-failed-server": (_HANDLER, "Handler.tls_failed_server"),
    # reading a message
    "read-request-head": ("proxy.mitm.wire1", "read_request_head"),
    "framing": ("proxy.mitm.wire1", "framing"),
    "split-head": ("proxy.mitm.wire2", "split_head"),
    "describe-call": (_STREAM, "Stream._describe"),
    # deciding
    "open": (_ENFORCER, "Enforcer.open"),
    "judge": (_ENFORCER, "Enforcer.judge"),
    "identify": (_ENFORCER, "identify"),
    "read-call": (_ENFORCER, "read_call"),
    "canonicalise": ("proxy.call", "canonicalise_request"),
    "screen": ("proxy.exchange", "screen"),
    "resolve": ("proxy.destination", "Resolver.resolve"),
    "decide": ("proxy.exchange", "decide"),
    "reserve": ("policies.ledger.sqlite", "SqliteLedger.reserve"),
    "settle": ("policies.ledger.sqlite", "SqliteLedger.settle"),
    "digest": ("proxy.exchange", "ticket_digest"),
    # budgets
    "find-state": ("proxy.agent_states", "AgentStates.find"),
    "book-reserve": ("proxy.bookkeeper", "Bookkeeper.reserve"),
    "book-extend": ("proxy.bookkeeper", "Bookkeeper.extend"),
    "book-settle": ("proxy.bookkeeper", "Bookkeeper.settle"),
    "open-missing": ("proxy.contracts", "Contracts.open_missing"),
    "ledger-clock": ("proxy.ledger_clock", "LedgerClock.now_ms"),
    "extend": ("proxy.extension", "Extensions.extend"),
    "describe-reserve": ("proxy.extension", "describe_reserve"),
    "format-budget": (_ENFORCER, "format_budget"),
    # recording
    "store": ("audit.writer", "Writer.store"),
    "submit": ("audit.writer", "Writer.submit"),
    "disk": ("os", "fdatasync"),
    "describe-decision": (_ENFORCER, "describe_decision"),
    "describe-outcome": (_ENFORCER, "describe_outcome"),
    "describe-malformed": (_ENFORCER, "describe_malformed"),
    # answering
    "deny": (_ENFORCER, "deny"),
    "render": (_STREAM, "render"),
    "refuse": (_STREAM, "Stream._refuse"),
    # forwarding
    "forward": (_STREAM, "Stream._forward"),
    "wire-request": (_STREAM, "wire_request"),
    "dial": (_HANDLER, "dial"),
    "connect": ("asyncio", "open_connection"),
    "check-ticket-1": ("proxy.mitm.wire1", "check_ticket"),
    "check-ticket-2": ("proxy.mitm.wire2", "check_ticket"),
    # while it is under way
    "advance": (_ENFORCER, "Enforcer.advance"),
    "prepare-answer": (_STREAM, "prepare_answer"),
    "relay": ("proxy.mitm.websocket", "WebSocketRelay._relay_data"),
    "relay-end": ("proxy.mitm.websocket", "WebSocketRelay._end"),
    # before the port opens
    "start.gates": ("proxy.mitm.gates", "check_gates"),
    "start.policy": ("proxy.server", "compile_policy"),
    "start.options": ("proxy.mitm.options", "freeze_options"),
    "start.compare": ("proxy.mitm.master", "compare_options"),
    "start.tls": ("proxy.mitm.tls", "Terminator.__init__"),
    "start.keeper": ("proxy.generation", "PolicyKeeper.start"),
    "start.self-test": ("proxy.mitm.selftest", "prove_gate"),
    "start.listen": ("proxy.mitm.master", "Master.listen"),
    # talk
    "talk": (_ENFORCER, "log.info"),
    "fault-talk": (_ENFORCER, "log.error"),
}
STEPS = {
    "step.head": "_on_head",
    "step.wakeup": "_on_wakeup",
    "step.request-data": "_on_request_data",
    "step.request-end": "_on_request_end",
    "step.request-trailers": "_on_request_trailers",
    "step.request-error": "_on_request_error",
    "step.response-head": "_on_response_head",
    "step.response-data": "_on_response_data",
    "step.response-trailers": "_on_response_trailers",
    "step.response-end": "_on_response_end",
    "step.response-error": "_on_response_error",
}

Function = Callable[..., Any]
DELAYS_S = {"slow": 0.3, "sluggish": 0.08}


def find_fault(where: str) -> str:
    """What is to happen at this place now; "" for nothing."""
    path = os.environ.get(FAULTS, "")
    try:
        lines = Path(path).read_text(encoding="ascii").split() if path else []
    except OSError:  # nothing is to happen; or a descriptor that the test took away
        return ""
    for line in lines:
        place, _, what = line.partition(":")
        if place == where:
            with Path(f"{path}.hits").open("a", encoding="ascii") as hits:
                hits.write(f"{line}\n")
            return what
    return ""


def strike(what: str) -> None:
    """Raise what is named; anything else is for the caller."""
    if what == "io-error":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    error = ERRORS.get(what)
    if error is not None:
        raise error("injected")


def spoil(where: str, original: Function) -> Function:
    """The function with a place for a fault in front of it."""
    if inspect.iscoroutinefunction(original):

        @wraps(original)
        async def spoiled_wait(*args: Any, **keywords: Any) -> Any:
            what = find_fault(where)
            strike(what)
            if what == "hang":
                await asyncio.Event().wait()
            if what in DELAYS_S:
                await asyncio.sleep(DELAYS_S[what])
            if what in ("none", "odd"):
                return None if what == "none" else object()
            return await original(*args, **keywords)

        return spoiled_wait
    if inspect.isgeneratorfunction(original):

        @wraps(original)
        def spoiled_steps(*args: Any, **keywords: Any) -> Any:
            what = find_fault(where)
            strike(what)
            if what == "none":
                return None
            return (yield from original(*args, **keywords))

        return spoiled_steps

    @wraps(original)
    def spoiled(*args: Any, **keywords: Any) -> Any:
        what = find_fault(where)
        strike(what)
        if what in DELAYS_S:
            time.sleep(DELAYS_S[what])
        if what in ("none", "odd"):
            return None if what == "none" else object()
        return original(*args, **keywords)

    return spoiled


def put(owner: Any, name: str, value: Any) -> None:
    """Replace what others look up there."""
    setattr(owner, name, value)


class Talker:
    """A logger whose lines are places."""

    def __init__(self, original: Any, places: dict[str, str]) -> None:
        self._original = original
        self._places = places

    def __getattr__(self, level: str) -> Any:
        speak = getattr(self._original, level)
        return spoil(self._places[level], speak) if level in self._places else speak


def install() -> None:
    """Put every place in."""
    for where, (module_name, path) in PLACES.items():
        owner: Any = import_module(module_name)
        *parents, name = path.split(".")
        if parents == ["log"]:
            continue
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, spoil(where, inspect.getattr_static(owner, name)))
    for module_name in (_ENFORCER, _HANDLER, "proxy.runs"):
        module = import_module(module_name)
        talker = Talker(module.log, {"info": "talk", "error": "fault-talk"})
        module.log = talker  # type: ignore[attr-defined]
    _install_steps()
    _install_metrics()
    _install_clock()
    _install_builds()


def _install_steps() -> None:
    stream = import_module(_STREAM)
    names = {name: where for where, name in STEPS.items()}
    for event, step in list(stream._STEPS.items()):
        stream._STEPS[event] = spoil(names[step.__name__], step)


def _install_metrics() -> None:
    from proxy.metrics import Metrics

    for name, method in list(vars(Metrics).items()):
        if inspect.isfunction(method) and name.startswith(("count_", "observe_", "committed")):
            setattr(Metrics, name, spoil("metrics", method))


def _install_clock() -> None:
    """`clock:DAYS` shifts what the wall clock shows; `clock:broken` makes it raise."""
    import audit.writer

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            what = find_fault("clock")
            if what == "broken":
                raise OverflowError("the date is out of range")
            now = datetime.now(tz)  # noqa: TID251  the real one
            return now + timedelta(days=int(what)) if what else now

    put(audit.writer, "datetime", Shifted)


def _install_builds() -> None:
    """Builds that are wrong on purpose: permission without a ticket, at three depths."""
    from proxy.enforcer import Enforcer
    from proxy.mitm.stream import Stream
    from tests.kit import careless

    judge, forward = Enforcer.judge, Stream._forward

    async def judge_carelessly(self: Any, exchange: Any, call: Any) -> Any:
        what = find_fault("build") if call.stage.value == "request" else ""
        if what in ("no-ticket", "other-ticket", "blind", "own-connection", "warm"):
            return careless.admit(exchange, call, ticket=what == "other-ticket")
        return await judge(self, exchange, call)

    def forward_carelessly(self: Any, event: Any, verdict: Any) -> Any:
        what = find_fault("build")
        step = careless.FORWARDS.get(what)
        return (yield from (step(self, event, verdict) if step else forward(self, event, verdict)))

    Enforcer.judge = judge_carelessly  # type: ignore[method-assign]
    Stream._forward = forward_carelessly  # type: ignore[method-assign]


def note_lookups(path: Path) -> None:
    """Write down every name that this process asks for, whoever asks."""
    ask = socket.getaddrinfo

    def noted(host: Any, *args: Any, **keywords: Any) -> Any:
        text = host.decode("ascii") if isinstance(host, bytes) else str(host)
        with path.open("a", encoding="utf-8") as notes:
            notes.write(f"{text}\n")
        return ask(host, *args, **keywords)

    socket.getaddrinfo = noted


def answer_lookups(answers: list[str]) -> None:
    """A name server that changes its mind; whoever in this process asks, asks it."""
    asked = iter(answers[:-1])

    def answered(host: Any, port: Any, *args: Any, **keywords: Any) -> Any:
        place = next(asked, answers[-1])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, int(port or 0)))]

    put(socket, "getaddrinfo", answered)


def note_modules(path: Path) -> None:
    """Write down what was imported, and from where, when all is over."""

    def note() -> None:
        places = {name: getattr(module, "__file__", "") for name, module in sys.modules.items()}
        lines = [f"{name} {place}\n" for name, place in sorted(places.items())]
        path.write_text("".join(lines), encoding="utf-8")

    atexit.register(note)


def tamper(name: str) -> None:
    """Turn one option, after they were frozen and before they are compared."""
    import proxy.mitm.options as golden

    freeze = golden.freeze_options

    def tampered(**keywords: Any) -> Any:
        options: Any = freeze(**keywords)
        value = getattr(options, name)
        other = not value if isinstance(value, bool) else [*(value or ()), ".*"]
        options.update(**{name: "eager" if isinstance(value, str) else other})
        return options

    put(golden, "freeze_options", tampered)


def use_uvloop() -> None:
    """Run on uvloop, and say so."""
    import uvloop

    run_on = asyncio.run

    def run(work: Any, **keywords: Any) -> Any:
        async def named() -> Any:
            loop = asyncio.get_running_loop()
            print(f"loop is {type(loop).__module__}", file=sys.stderr, flush=True)
            return await work

        return run_on(named(), loop_factory=uvloop.new_event_loop, **keywords)

    put(asyncio, "run", run)


def change_settings(knobs: dict[str, str]) -> None:
    """Other values than the defaults, for knobs that have no flag."""
    import proxy.cli.serve as command
    from proxy.settings import Settings

    values: dict[str, Any] = {name: float(value) for name, value in knobs.items()}
    put(command, "Settings", partial(Settings, **values))


def main() -> None:
    """Install what is wished for, then be the product."""
    words = sys.argv[1 : sys.argv.index("-m")]
    sys.argv = ["tollkeeper", *sys.argv[sys.argv.index("-m") + 2 :]]
    wishes = dict(word.split("=", 1) for word in words)
    install()
    if "lookups" in wishes:
        note_lookups(Path(wishes["lookups"]))
    if "answers" in wishes:
        answer_lookups(wishes["answers"].split(","))
    if "modules" in wishes:
        note_modules(Path(wishes["modules"]))
    if "tamper" in wishes:
        tamper(wishes["tamper"])
    if wishes.get("loop") == "uvloop":
        use_uvloop()
    knobs = {name[4:]: value for name, value in wishes.items() if name.startswith("set.")}
    if knobs:
        change_settings(knobs)
    from proxy.cli import main as product

    product()


if __name__ == "__main__":
    main()
