"""Talk on stderr, for operators: one line per event, one canonical line per exchange.

    structlog.get_logger() --\\
    mitmproxy, asyncio, ... --> mask --> bound and escape --> console | JSON --> stderr

Rule 1: no line carries a secret. Fields are masked by name, token shapes wherever they stand, and
        whatever follows a "?" in a URL; header values and bodies are never passed here at all.
Rule 2: one event is one line of bounded size, whatever text an agent sent (threats I9, 6.1). Only
        a traceback on the console has more, and each of them begins as no event begins.
Rule 3: a log that cannot be written changes nothing: neither a verdict nor an exit code.

This is no evidence: the audit log is. Lines carry the decision id, by which both are joined.
"""

import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

MASK = "[masked]"
TEXT_CHARS_MAX = 2048  # per field; a URL may have 4 KiB, a line stays readable
TRACE_CHARS_MAX = 16_384
DEPTH_MAX = 4
MARGIN = "    | "  # in front of each line of a traceback on the console

_SECRET_NAME = re.compile(
    r"authorization|cookie|token|secret|password|passwd|api[-_]?key|private[-_]?key", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"\btk_[A-Za-z0-9_-]{16,}"  # ours
    r"|\b(?:basic|bearer|digest|negotiate)\s+[A-Za-z0-9+/=._~-]{8,}"  # a credential of a header
    r"|(?<=//)[^/\s@]{1,256}@"  # user information of a URL
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*",
    re.IGNORECASE,
)
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9.:-]{0,128}")  # of which no secret's shape can be made
_QUERY = re.compile(r"\?\S+")
_URL_NAMES = frozenset({"url", "target", "path", "location", "referer"})


def configure(log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send everything that is logged in this process to `stream` (stderr), in this format.

    Colours only on a terminal. mitmproxy, asyncio and uvicorn are heard from WARNING on.
    """
    out = _Stream(stream or sys.stderr)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        format_trace,
        mask,
        _FORMS[log_format],
    ]
    render = _renderer(log_format, out)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=_GuardedLogger,
        logger_factory=structlog.WriteLoggerFactory(out),  # type: ignore[arg-type]  # is enough of one
        cache_logger_on_first_use=True,
    )
    handler = _Route(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *shared,
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace secrets by name and by shape, drop absent fields, bound every text."""
    first: dict[str, Any] = {
        name: event.pop(name) for name in ("timestamp", "level", "event") if name in event
    }
    masked = {name: _mask(str(name), value, 0) for name, value in {**first, **event}.items()}
    return {name: value for name, value in masked.items() if value is not None}


def format_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn `exc_info` into the text `exception`, without the values of local variables."""
    found = event.pop("exc_info", None)
    error = sys.exc_info()[1] if found is True else found
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["exception"] = "".join(traceback.format_exception(error))[-TRACE_CHARS_MAX:]
    return event


def _mask(name: str, value: Any, depth: int) -> Any:
    """One field, made safe to show: text, a number, a truth, or lists and maps of them."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if _is_secret(name) or depth > DEPTH_MAX:
        return MASK
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): _mask(str(key), each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_mask(name, each, depth + 1) for each in list(value)[:100]]
    if isinstance(value, bytes | bytearray):
        value = value[: 4 * TEXT_CHARS_MAX].decode("utf-8", "backslashreplace")
    text = str(value)[: 4 * TRACE_CHARS_MAX]
    text = _SECRET_TEXT.sub(MASK, text)
    if name in _URL_NAMES:
        text = _QUERY.sub(f"?{MASK}", text)
    limit = TRACE_CHARS_MAX if name == "exception" else TEXT_CHARS_MAX
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


@lru_cache(maxsize=256)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _escape(text: str) -> str:
    """Every character that could end a line, move a cursor or turn the writing direction."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _escape_all(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """For the console, which prints text as it is; JSON escapes by itself."""
    trace = event.pop("exception", None)
    safe = {_escape(str(name)): _escape_one(value) for name, value in event.items()}
    if trace is not None:
        safe["exception"] = "\n".join(MARGIN + _escape(line) for line in trace.split("\n") if line)
    return safe


def _escape_one(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    return _escape(value if isinstance(value, str) else repr(value))


def _keep(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return event


_FORMS: dict[LogFormat, Processor] = {"console": _escape_all, "json": _keep}


def _renderer(log_format: LogFormat, out: "_Stream") -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=True, separators=(",", ":"))
    return structlog.dev.ConsoleRenderer(
        colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


class _Stream:
    """stderr, or nothing: a closed pipe or a full disk ends no exchange."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            return

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False


class _GuardedLogger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]  # made at run time
    """Logging from INFO on that never raises: a field whose text cannot be made loses its line."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> Any:
        try:
            return super()._proxy_to_logger(method_name, event, **fields)
        except Exception as failure:  # noqa: BLE001  see rule 3
            self._logger.msg(f'{{"event":"log-failed","error":"{type(failure).__name__}"}}')
            return None


class _Route(logging.StreamHandler[Any]):
    """The way in for everyone who logs through the standard library."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """A record that cannot be written is lost, silently (rule 3)."""
