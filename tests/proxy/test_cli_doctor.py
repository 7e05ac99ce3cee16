"""`tollkeeper doctor`: lines for people, JSON for machines, exit 1 when something fails."""

import json
from pathlib import Path

import pytest

from tests.kit.command import complaint, invoke

PORTS = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    invoke("init")
    return tmp_path


def test_every_line_is_ok_warn_or_fail() -> None:
    result = invoke("doctor", *PORTS)
    lines = [line for line in result.stdout.splitlines() if not line.lstrip().startswith("->")]
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}
    assert [line.split()[1] for line in lines][:3] == ["interpreter", "versions", "state"]
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_failure_is_exit_1_with_its_remedy_on_the_next_line() -> None:
    Path("policies.yaml").unlink()
    result = invoke("doctor", *PORTS)
    lines = result.stdout.splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("fail")]
    assert "cannot read `policies.yaml`" in lines[place]
    assert lines[place + 1].lstrip() == "-> run `tollkeeper init`, or give --policies"
    assert result.exit_code == 1


def test_a_machine_reads_the_same_as_json() -> None:
    Path("state").chmod(0o777)
    result = invoke("doctor", *PORTS, "--json")
    found = {check["name"]: check for check in json.loads(result.stdout)}
    assert found["state"]["level"] == "fail"
    assert found["state"]["remedy"] == "run `chmod go-w state`"
    assert result.exit_code == 1


def test_a_broken_flag_is_refused() -> None:
    same = ("--listen", "127.0.0.1:9", "--admin", "127.0.0.1:9")
    assert "is the same as `--listen`" in complaint(invoke("doctor", *same))
