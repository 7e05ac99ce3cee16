"""Each check finds what it is there for, and says what to do about it."""

import os
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit.writer import Writer
from policies.budget import Account, Contract, State, Term
from proxy import doctor
from proxy.accounting import describe_snapshot, describe_state
from proxy.credentials import CredentialStore
from proxy.doctor import Check, examine
from proxy.settings import Endpoint, Settings, parse_listen
from proxy.state import create_state

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = (
    'version: 1\nagents: { local: { identity: { source: "127.0.0.0/8" } } }\n'
    "rules: [{ id: a, verdict: allow, match: { host: api.example.com } }]\n"
)
NAMES = [
    *("interpreter", "versions", "state", "ca", "credentials", "clock", "disk", "descriptors"),
    *("port", "admin-port", "policy", "log", "ledger"),
]


def free_port() -> Endpoint:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return parse_listen(f"127.0.0.1:{probe.getsockname()[1]}")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    create_state(tmp_path / "state", NOW)
    (tmp_path / "policies.yaml").write_text(POLICY)
    return Settings(
        state=tmp_path / "state",
        policies=tmp_path / "policies.yaml",
        listen=free_port(),
        admin=free_port(),
        connections_max=64,
    )


def look(settings: Settings, name: str, now: datetime = NOW) -> Check:
    return next(check for check in examine(settings, now) if check.name == name)


def test_a_fresh_house_is_well(settings: Settings) -> None:
    checks = list(examine(settings, NOW))
    assert [check.name for check in checks] == NAMES
    told = {check.name: (check.level, check.found) for check in checks if check.level != "ok"}
    assert told.keys() <= {"disk"}  # a machine under load, or a folder in memory
    assert [check for check in checks if check.level != "ok" and not check.remedy] == []


def test_looking_changes_nothing(settings: Settings) -> None:
    def snapshot() -> dict[Path, tuple[int, int]]:
        found = settings.state.rglob("*")
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    before = snapshot()
    list(examine(settings, NOW))
    after = snapshot()
    assert after == before


def test_before_init_only_warnings_say_so(settings: Settings, tmp_path: Path) -> None:
    blank = replace(settings, state=tmp_path / "none")
    levels = {check.name: check.level for check in examine(blank, NOW)}
    assert {name for name, level in levels.items() if level == "fail"} == set()
    assert levels["state"] == levels["ca"] == levels["log"] == "warn"
    assert not (tmp_path / "none").exists()


def lose(name: str) -> Callable[[Settings], object]:
    return lambda settings: (settings.state / name).unlink()


def break_log(settings: Settings) -> None:
    [segment] = settings.log_folder.glob("*.jsonl")
    data = bytearray(segment.read_bytes())
    data[99] ^= 4
    segment.write_bytes(data)


def lose_log(settings: Settings) -> None:
    for path in settings.log_folder.iterdir():
        path.unlink()


BROKEN: dict[str, tuple[Callable[[Settings], object], str, str]] = {
    "state that others may write to": (
        lambda settings: settings.state.chmod(0o777),
        "state",
        "anybody may write to it",
    ),
    "a CA without its key": (lose("ca/ca.key"), "ca", "ca.key"),
    "damaged credentials": (
        lambda settings: settings.credentials_file.write_text("{"),
        "credentials",
        "is damaged",
    ),
    "no policy": (lambda settings: settings.policies.unlink(), "policy", "cannot read"),
    "a policy with errors": (
        lambda settings: settings.policies.write_text("version: 1\nrulez: []\n"),
        "policy",
        "1 error",
    ),
    "a flipped bit in the log": (break_log, "log", ".jsonl:1: "),
    "no log": (
        lose_log,
        "log",
        "holds no log",
    ),
}


@pytest.mark.parametrize(("damage", "name", "words"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_fails_with_a_remedy(
    settings: Settings, damage: Callable[[Settings], object], name: str, words: str
) -> None:
    damage(settings)
    check = look(settings, name)
    assert check.level == "fail"
    assert words in check.found
    assert check.remedy


def test_a_policy_with_warnings_is_a_warning(settings: Settings) -> None:
    idle = POLICY.replace("agents: {", "agents: { idle: {},", 1)
    settings.policies.write_text(idle.replace("allow,", "allow, who: { agents: local },"))
    check = look(settings, "policy")
    assert check.level == "warn"
    assert "1 rule, 2 agents, 1 warning" in check.found


@pytest.fixture
def taken(settings: Settings) -> Iterator[Settings]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        yield replace(settings, listen=parse_listen(f"127.0.0.1:{port}"))


def test_a_taken_port_fails(taken: Settings) -> None:
    check = look(taken, "port")
    assert check.level == "fail"
    assert "address already in use" in check.found
    assert "another --listen" in check.remedy


def test_an_address_of_another_machine_fails(settings: Settings) -> None:
    check = look(replace(settings, admin=parse_listen("192.0.2.1:9090")), "admin-port")
    assert check.level == "fail"
    assert "another --admin" in check.remedy


def test_a_ca_near_its_end_warns_and_past_it_fails(settings: Settings) -> None:
    assert look(settings, "ca", NOW + 3600 * DAY).level == "warn"
    assert look(settings, "ca", NOW + 3700 * DAY).level == "fail"


def test_tokens_that_end_soon_are_named(settings: Settings) -> None:
    store = CredentialStore(settings.credentials_file)
    store.add("coder", now=NOW, expires=NOW + 3 * DAY)
    store.add("reviewer", now=NOW, expires=NOW + 30 * DAY)
    check = look(settings, "credentials")
    assert check.level == "warn"
    assert "2 tokens issued, 2 of them good" in check.found
    assert "coder" in check.found
    assert "reviewer" not in check.found


def test_a_clock_behind_the_record_warns_and_one_from_the_past_fails(settings: Settings) -> None:
    behind = look(settings, "clock", NOW - DAY)
    assert (behind.level, "86400 s behind the last record" in behind.found) == ("warn", True)
    assert look(settings, "clock", datetime(1970, 1, 1, tzinfo=UTC)).level == "fail"


def test_a_run_that_crashed_is_no_failure(settings: Settings) -> None:
    writer = Writer.open(settings.log_folder, software="test")
    try:
        check = look(settings, "log", NOW + DAY)
        assert check.level == "ok"
    finally:
        writer.close()


def test_a_torn_last_line_warns(settings: Settings) -> None:
    [segment] = settings.log_folder.glob("*.jsonl")
    data = segment.read_bytes()
    segment.write_bytes(data[:-5])
    check = look(settings, "log")
    assert check.level == "warn"
    assert "unfinished record" in check.found


def test_what_the_log_says_of_budgets_is_told(settings: Settings) -> None:
    account = Account("life", "coder", "", Contract({"requests": Term(5, 5)}))
    writer = Writer.open(settings.log_folder, software="test")
    try:
        for event in (
            describe_snapshot(account, "opened", 1_000),
            describe_state("coder", State.ACTIVE, State.HALTED, "enough", by="cli:me"),
        ):
            writer.store_blocking(event, 5.0)
    finally:
        writer.close()
    check = look(settings, "ledger")
    assert check.level == "ok"
    assert check.found.startswith("1 account, 1 agent not active, by the log")


def test_a_log_that_does_not_add_up_fails(settings: Settings) -> None:
    account = Account("life", "coder", "", Contract({"requests": Term(5, 5)}))
    writer = Writer.open(settings.log_folder, software="test")
    try:
        writer.store_blocking(describe_snapshot(account, "changed", 1_000), 5.0)
    finally:
        writer.close()
    check = look(settings, "ledger")
    assert (check.level, "was never opened" in check.found) == ("fail", True)


DISKS = {
    "memory": (0.000_002, "warn", "that is memory"),
    "a usual disk": (0.002, "ok", ""),
    "a slow disk": (0.05, "warn", ""),
    "a disk that stalls": (0.7, "fail", ""),
}


@pytest.mark.parametrize(("seconds", "level", "words"), DISKS.values(), ids=DISKS)
def test_the_disk_is_judged_by_its_flushes(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    level: str,
    words: str,
) -> None:
    monkeypatch.setattr(doctor, "_measure_flushes", lambda _: [seconds] * 5)
    check = look(settings, "disk")
    assert check.level == level
    assert words in check.found


def test_too_few_descriptors_warn(settings: Settings) -> None:
    many = replace(settings, connections_max=resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert look(many, "descriptors").level == "warn"


def test_a_check_that_breaks_does_not_end_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: 1 // 0)
    checks = list(examine(settings, NOW))
    assert [check.name for check in checks] == NAMES
    [broken] = [check for check in checks if check.name == "disk"]
    assert broken.level == "fail"
    assert "ZeroDivisionError" in broken.found
