"""`tollkeeper serve`: broken flags, broken state, and what it says before it listens."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from proxy.cli.serve import serve
from proxy.settings import Settings
from tests.kit.command import complaint, invoke
from tests.kit.proxy import ROOT, Proxy


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    invoke("init")
    return tmp_path


def read_settings(*words: str, env: dict[str, str] | None = None) -> Settings:
    """What the command would have run on."""
    seen: list[Settings] = []
    names = {name: None for name in os.environ if name.startswith("TOLLKEEPER_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delenv(name)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        context = serve.make_context("serve", list(words))
        knobs: dict[str, Any] = dict(context.params)
        for name in ("check", "as_json"):
            knobs.pop(name)
        seen.append(Settings(**knobs))
    return seen[0]


def test_without_flags_the_defaults_of_settings_hold() -> None:
    assert read_settings() == Settings()


FLAGS = {
    "policies": ("--policies", "p.yaml", "p.yaml"),
    "listen": ("--listen", "[::1]:3128", "[::1]:3128"),
    "admin": ("--admin", "127.0.0.1:7", "127.0.0.1:7"),
    "state": ("--state", "elsewhere", "elsewhere"),
    "state_group": ("--state-group", "root", "0"),
    "upstream_ca_files": ("--upstream-ca", "policies.yaml", "(PosixPath('policies.yaml'),)"),
    "log_format": ("--log-format", "json", "json"),
    "drain_timeout_s": ("--drain-timeout", "2.5", "2.5"),
    "connections_max": ("--max-connections", "7", "7"),
    "idle_timeout_s": ("--idle-timeout", "3", "3.0"),
    "dns": ("--dns", "10.0.0.2", "10.0.0.2:53"),
}


@pytest.mark.parametrize(("knob", "case"), FLAGS.items(), ids=FLAGS)
def test_a_flag_and_its_variable_set_the_same_knob(knob: str, case: tuple[str, str, str]) -> None:
    flag, text, shown = case
    variable = "TOLLKEEPER_" + flag.removeprefix("--").upper().replace("-", "_")
    by_flag = read_settings(flag, text)
    assert str(getattr(by_flag, knob)) == shown
    assert read_settings(env={variable: text}) == by_flag


def test_observe_is_a_switch_of_flag_and_variable() -> None:
    assert read_settings("--observe").observe
    assert read_settings(env={"TOLLKEEPER_OBSERVE": "true"}).observe
    assert not read_settings(env={"TOLLKEEPER_OBSERVE": "0"}).observe


def test_pins_repeat_and_a_variable_holds_several() -> None:
    pins = ("a.example:443:10.0.0.1", "b.example:80:[fd00::5]:8080")
    by_flag = read_settings("--resolve", pins[0], "--resolve", pins[1])
    assert [pin.host for pin in by_flag.resolve] == ["a.example", "b.example"]
    assert read_settings(env={"TOLLKEEPER_RESOLVE": " ".join(pins)}) == by_flag


def test_a_flag_wins_over_its_variable() -> None:
    env = {"TOLLKEEPER_LISTEN": "127.0.0.1:1"}
    assert read_settings("--listen", "127.0.0.1:2", env=env).listen.port == 2


def test_every_option_of_serve_reaches_a_knob() -> None:
    knobs = set(Settings.__dataclass_fields__) | {"check", "as_json", "help"}
    assert {option.name for option in serve.params if isinstance(option, click.Option)} <= knobs


BROKEN_FLAGS = {
    "no port": (("--listen", "127.0.0.1"), "`--listen 127.0.0.1`: there is no port; write ADDR:P"),
    "no address": (("--listen", ":8080"), "`--listen :8080`: there is no address; write 0.0.0.0:"),
    "a host name to listen on": (("--listen", "example.com:1"), "it is not an IP address; write"),
    "a port too high": (("--admin", "127.0.0.1:65536"), "`--admin 127.0.0.1:65536`: `65536` is no"),
    "one port for both": (
        ("--listen", "127.0.0.1:9", "--admin", "127.0.0.1:9"),
        "`--admin 127.0.0.1:9`: is the same as `--listen`; give it a port of its own",
    ),
    "a pin without an address": (("--resolve", "a.example:443"), "HOST, PORT or ADDR is missing"),
    "a pin to a name": (("--resolve", "a.example:443:b.example"), "it is not an IP address"),
    "pins that disagree": (
        ("--resolve", "a.example:1:10.0.0.1:5", "--resolve", "a.example:1:10.0.0.2:6"),
        "`--resolve a.example:1:…`: answers with different ports to dial; give them all the same",
    ),
    "a proxy with a password": (
        ("--upstream-proxy", "http://u:geheim@p.example:1"),
        "`--upstream-proxy`: credentials are refused here",
    ),
    "a proxy without a port": (("--upstream-proxy", "http://p.example"), "not the plain URL of a"),
    "a name for the resolver": (("--dns", "dns.example"), "`--dns dns.example`: it is not an IP"),
    "a log format that is none": (("--log-format", "xml"), "'xml' is not one of 'console', 'json'"),
    "no connections": (("--max-connections", "0"), "0 is not in the range"),
    "half a connection": (("--max-connections", "1.5"), "'1.5' is not a valid integer"),
    "no time to drain": (("--drain-timeout", "0"), "0.0 is not in the range"),
    "no number": (("--idle-timeout", "soon"), "'soon' is not a valid float"),
    "not a number": (("--idle-timeout", "nan"), "`idle_timeout_s`: `nan` is not above 0"),
    "an endless time": (("--idle-timeout", "inf"), "inf is not in the range"),
    "a CA file that is not there": (("--upstream-ca", "none.pem"), "'none.pem' does not exist"),
    "a CA file that is a folder": (("--upstream-ca", "."), "'.' is a directory"),
    "a group that is none": (("--state-group", "no-such"), "`--state-group no-such`: there is no"),
}


@pytest.mark.parametrize(("words", "text"), BROKEN_FLAGS.values(), ids=BROKEN_FLAGS)
def test_a_broken_flag_is_refused_with_place_cause_and_remedy(
    words: tuple[str, ...], text: str
) -> None:
    line = complaint(invoke("serve", *words))
    assert line.startswith("tollkeeper serve: ")
    assert text in line
    assert "\n" not in line
    assert "geheim" not in line


def damage_segment(change: Callable[[bytes], bytes]) -> None:
    [segment] = Path("state/log").glob("*.jsonl")
    segment.write_bytes(change(segment.read_bytes()))


def run_serve(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "proxy", "serve", *words),
            *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "a flipped bit in the log": (
        lambda: damage_segment(lambda data: data.replace(b"clean", b"cleao", 1)),
        ".jsonl:1: ",
    ),
    "a line that is no record": (lambda: damage_segment(lambda data: data + b"{}\n"), ".jsonl:3: "),
    "no log": (lambda: damage_segment(lambda _: b""), "the log holds no record"),
    "no policy": (lambda: Path("policies.yaml").unlink(), "cannot read `policies.yaml`"),
    "a policy with errors": (
        lambda: Path("policies.yaml").write_text("version: 1\nrulez: []\n"),
        "policies.yaml:2:1: error[AP006]",
    ),
    "a CA without its key": (lambda: Path("state/ca/ca.key").unlink(), "ca.key"),
    "a CA that is none": (lambda: Path("state/ca/ca.pem").write_text("x"), "state/ca"),
    "state that others may write to": (
        lambda: Path("state").chmod(0o777),
        "anybody may write to it (mode 0777); run `chmod go-w state`",
    ),
}


@pytest.mark.parametrize(("damage", "text"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_keeps_the_port_closed(damage: Callable[[], object], text: str) -> None:
    damage()
    before = {path: path.read_bytes() for path in Path("state").rglob("*") if path.is_file()}
    run = run_serve()
    assert (run.returncode, run.stdout) == (2, "")
    assert text in run.stderr
    assert "listening" not in run.stderr
    assert "Traceback" not in run.stderr
    after = {path: path.read_bytes() for path in Path("state").rglob("*") if path.is_file()}
    assert after == before


def test_check_finds_all_that_is_wrong_and_opens_nothing() -> None:
    Path("policies.yaml").write_text("version: 1\nrulez: []\n")
    Path("state/ca/ca.key").unlink()
    run = run_serve("--check")
    assert run.returncode == 1
    assert "error[AP006]" in run.stdout
    assert "ca.key" in run.stdout
    told = json.loads(run_serve("--check", "--json").stdout)
    assert told["ok"] is False
    assert len(told["problems"]) == len(run.stdout.splitlines())


def test_check_of_a_sound_house_is_silent_on_stdout() -> None:
    run = run_serve("--check")
    assert (run.returncode, run.stdout) == (0, "")
    assert json.loads(run_serve("--check", "--json").stdout) == {"ok": True, "problems": []}


def test_an_empty_state_directory_is_filled_and_said(house: Path) -> None:
    proxy = Proxy(house, house / "policies.yaml")
    proxy.state = house / "fresh"
    proxy.options += ["--state", str(proxy.state)]
    with proxy:
        assert f"{proxy.state}: is empty; it is made now" in proxy.stderr
        assert (proxy.state / "ca" / "ca.pem").is_file()
    assert proxy.process.returncode == 0


def test_json_logs_are_json_from_the_first_line_on(house: Path) -> None:
    proxy = Proxy(house, house / "policies.yaml", "--log-format", "json", "--state", "fresh")
    with proxy:
        pass
    events = [json.loads(line)["event"] for line in proxy.stderr.splitlines()]
    assert events[0] == "fresh: is empty; it is made now"
    assert f"listening on 127.0.0.1:{proxy.port}" in events


def test_a_second_server_on_the_same_state_is_refused(house: Path) -> None:
    with Proxy(house, house / "policies.yaml"):
        run = run_serve()
        assert run.returncode == 2
        assert "in use by another writer; a server is running on this state" in run.stderr


@pytest.mark.parametrize(("taken", "free"), [("--listen", "--admin"), ("--admin", "--listen")])
def test_a_taken_port_is_named(house: Path, taken: str, free: str) -> None:
    with Proxy(house, house / "policies.yaml") as proxy:
        words = ("--state", "other", taken, f"127.0.0.1:{proxy.port}", free, "127.0.0.1:0")
        run = subprocess.run(
            [sys.executable, "-m", "proxy", "serve", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert run.returncode == 2
        assert "address already in use" in run.stderr
        assert "Traceback" not in run.stderr


def test_an_upstream_ca_that_is_none_is_named() -> None:
    for words, code in ((), 2), (("--check",), 1):
        run = run_serve("--upstream-ca", "policies.yaml", *words)
        assert run.returncode == code
        assert "`--upstream-ca policies.yaml`: holds no certificate" in run.stderr + run.stdout
        assert "Traceback" not in run.stderr


def test_it_stops_in_order_under_python_without_asserts(house: Path) -> None:
    proxy = Proxy(house, house / "policies.yaml", python=(sys.executable, "-O"))
    with proxy:
        pass
    assert proxy.process.returncode == 0
    assert proxy.records()[-1] == {"kind": "log.close"}


def test_ctrl_c_is_a_stop_like_any_other(house: Path) -> None:
    proxy = Proxy(house, house / "policies.yaml").start()
    assert proxy.stop(signal.SIGINT) == 0
    assert "Traceback" not in proxy.stderr
