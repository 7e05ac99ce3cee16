"""One event is one line, no line carries a secret, and a log that fails changes nothing."""

import io
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.logs import MARGIN, MASK, LogFormat, configure

FORMATS: tuple[LogFormat, ...] = ("json", "console")
TOKEN = "tk_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def write(log_format: LogFormat, event: str = "exchange", **fields: Any) -> str:
    out = io.StringIO()
    configure(log_format, out)
    structlog.get_logger().info(event, **fields)
    return out.getvalue()


def read(event: str = "exchange", **fields: Any) -> dict[str, Any]:
    line = write("json", event, **fields)
    assert line.endswith("\n")
    assert line.isascii()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


EXCHANGE: dict[str, Any] = {
    "decision": "9f2c" * 8, "agent": "coder", "verdict": "deny", "reason": "no-rule-matched",
    "method": "GET", "host": "api.example.com", "status": 403, "ms": 2, "bytes_out": 0,
}  # fmt: skip


def test_an_exchange_is_one_json_line_with_its_decision_id() -> None:
    found = read(**EXCHANGE)
    assert list(found)[:3] == ["timestamp", "level", "event"]
    assert found["timestamp"].endswith("Z")
    assert {name: found[name] for name in EXCHANGE} == EXCHANGE


def test_an_exchange_is_one_console_line_without_colours_off_a_terminal() -> None:
    line = write("console", **EXCHANGE)
    assert line.count("\n") == 1
    assert "\x1b" not in line
    for name, value in EXCHANGE.items():
        assert f"{name}={value}" in line


def test_colours_are_for_terminals() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    configure("console", out)
    structlog.get_logger().info("exchange")
    assert "\x1b[" in out.getvalue()


def test_absent_fields_are_omitted() -> None:
    assert "agent" not in read(agent=None)


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_whatever_text_comes_one_event_is_one_line(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    places: list[dict[str, Any]] = [{"host": text}, {"map": {text: [text]}}, {"raw": raw}]
    for fields in places:
        for log_format in FORMATS:
            line = write(log_format, text, **fields)
            assert line.splitlines(keepends=True) == [line]
            assert line.endswith("\n")


INJECTIONS = [
    "a\r\nb",
    "a\u2028b",
    "a\u2029b",
    "a\x85b",
    "\x1b[2J",
    "\u202eevil",
    "\ud800",
    "\0",
    "\x7f",
]


@pytest.mark.parametrize("text", INJECTIONS, ids=ascii)
def test_i9_controls_are_escaped(text: str) -> None:
    line = write("console", host=text)
    assert line[:-1].isprintable()
    assert read(host=text)["host"] == text


SECRETS = {
    "a header by name": {"proxy-authorization": "Basic Zm9vOmJhcg=="},
    "a header by another name": {"Proxy_Authorization": b"xyz-secret-xyz"},
    "a cookie": {"set_cookie": "xyz-secret-xyz"},
    "a nested name": {"headers": {"Cookie": "xyz-secret-xyz"}},
    "a list under a name": {"tokens": ["xyz-secret-xyz"]},
    "an API key": {"x_api_key": "xyz-secret-xyz"},
    "our token in a text": {"error": f"bad token {TOKEN}, sorry"},
    "a bearer in a text": {"error": "sent Bearer xyz-secret-xyz"},
    "bytes": {"seen": b"GET / HTTP/1.1\r\nAuthorization: Bearer xyz-secret-xyz\r\n"},
    "user information": {"error": "cannot dial http://agent:xyz-secret-xyz@proxy:8080"},
    "a query": {"url": "https://api.example.com/x?key=xyz-secret-xyz"},
    "a query in a target": {"target": "/x?key=xyz-secret-xyz"},
    "a key": {"error": "-----BEGIN EC PRIVATE KEY-----\nxyz-secret-xyz\n-----END"},
}  # fmt: skip


@pytest.mark.parametrize("fields", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("log_format", FORMATS)
def test_no_secret_is_written(log_format: LogFormat, fields: dict[str, Any]) -> None:
    line = write(log_format, **fields)
    assert MASK in line
    for secret in (TOKEN, "xyz-secret", "Zm9vOmJhcg"):
        assert secret not in line


def caught(text: str) -> ValueError:
    with pytest.raises(ValueError) as found:
        raise ValueError(text)
    return found.value


def test_no_secret_is_written_by_a_traceback() -> None:
    failure = caught(f"cannot use {TOKEN}")
    for log_format in FORMATS:
        line = write(log_format, exc_info=failure)
        assert "ValueError" in line
        assert TOKEN not in line


def test_counts_of_tokens_are_no_secrets() -> None:
    assert read(llm_tokens=41)["llm_tokens"] == 41


def test_a_line_is_bounded() -> None:
    fields: dict[str, Any] = {"url": "x" * 1_000_000, "many": ["y" * 10_000] * 1000}
    found = read(**fields)
    assert len(found["url"]) < 2100
    assert len(found["many"]) == 100


def test_a_traceback_cannot_forge_an_event() -> None:
    failure = caught("x\n2026-11-21T00:00:00Z [info] exchange verdict=allow")
    first, *rest = write("console", "fault", exc_info=failure).splitlines()
    assert "fault" in first
    assert rest
    assert all(line.startswith(MARGIN) for line in rest)


def test_numbers_that_json_lacks_become_text() -> None:
    assert read(ms=math.nan)["ms"] == "nan"


def test_a_value_that_cannot_be_shown_loses_its_line_only() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert json.loads(write("json", odd=Broken()))["event"] == "log-failed"


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_stream_that_fails_is_survived(log_format: LogFormat) -> None:
    out = io.StringIO()
    configure(log_format, out)
    out.close()
    structlog.get_logger().info("exchange")
    logging.getLogger("mitmproxy").warning("x")


def test_the_standard_library_and_mitmproxy_are_heard_from_warning_on() -> None:
    out = io.StringIO()
    configure("json", out)
    logging.getLogger("mitmproxy.proxy.server").info("client connect")
    logging.getLogger("mitmproxy.proxy.server").warning("odd %s", "thing\nBearer abcdefgh1234")
    structlog.get_logger().debug("too much")
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert found["event"] == f"odd thing\n{MASK}"
    assert found["logger"] == "mitmproxy.proxy.server"
    assert found["level"] == "warning"


def test_stderr_is_where_it_goes() -> None:
    code = (
        "import structlog; from proxy.logs import configure; configure('json');"
        "structlog.get_logger().info('exchange', decision='ab')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == ""
    assert json.loads(done.stderr)["decision"] == "ab"
