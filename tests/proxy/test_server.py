"""The composition root: a house is built, started, looked at and stopped, with every real part."""

import asyncio
import os
import resource
import signal
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from audit.verify import verify
from audit.writer import LogBusy, wall_clock
from policies.model import PolicyRejected
from proxy.mitm.ca import CaUnusable
from proxy.server import House, Signals, check, list_commands, raise_descriptor_limit
from proxy.settings import Settings, parse_listen
from proxy.state import create_state
from tests.kit.proxy import write_policy

ANY_PORT = parse_listen("127.0.0.1:0")
RULE = "  - { id: api, verdict: allow, match: { host: api.example.com } }\n"


async def stop(house: House) -> None:
    """As `serve` does, whose admin task closes the admin port last."""
    await house.stop()
    house.admin.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    policy = write_policy(tmp_path / "policies.yaml", RULE)
    create_state(tmp_path / "state", wall_clock())
    return Settings(
        policies=policy,
        state=tmp_path / "state",
        listen=ANY_PORT,
        admin=ANY_PORT,
        drain_timeout_s=1,
    )


async def test_a_started_house_is_ready_and_a_stopped_one_left_a_closed_log(
    settings: Settings,
) -> None:
    house = House(settings)
    listening = await house.start()
    assert house.status().ready, house.status().checks
    assert house.status().details["mode"] == "enforce"
    assert house.owns(listening.address, listening.port)
    assert not house.owns(ip_address("192.0.2.1"), listening.port)
    await stop(house)
    assert not house.status().ready
    assert verify(settings.state / "log").exit_code == 0


async def test_the_admin_port_is_ours_before_anything_listens(settings: Settings) -> None:
    house = House(settings)
    port = house.admin.getsockname()[1]
    assert house.owns(ip_address("127.0.0.1"), port)
    await house.abort()
    assert verify(settings.state / "log").exit_code == 0


async def test_a_second_house_on_the_same_state_is_refused(settings: Settings) -> None:
    house = House(settings)
    with pytest.raises(LogBusy):
        House(settings)
    await house.abort()


def test_a_bad_policy_never_takes_the_log(settings: Settings) -> None:
    settings.policies.write_text("version: 2\n")
    before = sorted((settings.state / "log").iterdir())
    with pytest.raises(PolicyRejected):
        House(settings)
    assert sorted((settings.state / "log").iterdir()) == before
    assert verify(settings.state / "log").exit_code == 0


def test_a_missing_key_of_the_ca_is_refused_with_the_remedy(settings: Settings) -> None:
    (settings.state / "ca" / "ca.key").unlink()
    with pytest.raises(CaUnusable, match="tollkeeper init"):
        House(settings)


async def test_session_keys_are_nobody_s(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/tmp/keys")
    house = House(settings)
    assert "SSLKEYLOGFILE" not in os.environ
    await house.abort()


async def test_commands_report_and_reload(settings: Settings) -> None:
    house = House(settings)
    await house.start()
    commands = list_commands(house)
    assert (await commands["reload"]({}))["result"] == "unchanged"
    write_policy(settings.policies, RULE.replace("api.example.com", "other.example.com"))
    assert (await commands["reload"]({}))["result"] == "applied"
    settings.policies.write_text("version: [")
    answer = await commands["reload"]({})
    assert answer["result"] == "rejected"
    assert answer["problem"]
    status = await commands["status"]({})
    assert isinstance(status["details"], dict)
    assert status["details"]["policy_serial"] == "2"
    await stop(house)


async def test_a_stop_that_comes_while_we_start_is_a_stop(settings: Settings) -> None:
    signals = Signals()
    os.kill(os.getpid(), signal.SIGTERM)
    house = House(settings)
    await house.start()
    async with asyncio.timeout(5):
        await signals.wait(house)
    await stop(house)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


def test_check_finds_nothing_in_a_sound_house_and_everything_in_a_bad_one(
    settings: Settings, tmp_path: Path
) -> None:
    assert check(settings) == []
    settings.policies.write_text("version: 2\n")
    (settings.state / "ca" / "ca.pem").write_text("nonsense")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    found = "\n".join(check(replace(settings, upstream_ca_files=(empty,))))
    assert "policies.yaml:1:" in found
    assert "ca.pem" in found
    assert "empty.pem" in found


def test_check_names_a_log_that_was_touched(settings: Settings) -> None:
    (segment,) = (settings.state / "log").glob("*.jsonl")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    assert any("state/log" in problem for problem in check(settings))


def test_the_soft_limit_of_descriptors_is_raised_as_far_as_it_goes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        raise_descriptor_limit(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
        raise_descriptor_limit(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
