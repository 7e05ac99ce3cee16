"""`tollkeeper init`: everything to start with, never over something that is there."""

import json
import stat
from pathlib import Path

import pytest

from audit.verify import VALID, verify
from policies.compile import compile_policy
from proxy.state import check_state
from tests.kit.command import complaint, invoke


def test_an_empty_folder_becomes_a_house(tmp_path: Path) -> None:
    result = invoke("init", str(tmp_path / "house"))
    assert result.exit_code == 0, result.stderr
    assert compile_policy(tmp_path / "house" / "policies.yaml").findings == ()
    assert verify(tmp_path / "house" / "state" / "log").exit_code == VALID
    assert check_state(tmp_path / "house" / "state") == []
    ca = (tmp_path / "house" / "state" / "ca" / "ca.pem").absolute()
    assert f"export NODE_EXTRA_CA_CERTS={ca}" in result.stdout.splitlines()


def test_the_default_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("init").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policies.yaml", "state"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "policies.yaml").write_text("mine")
    first = invoke("init", str(tmp_path))
    second = invoke("init", str(tmp_path))
    assert (tmp_path / "policies.yaml").read_text() == "mine"
    assert second.exit_code == 0
    assert "everything was there already; nothing was changed" in second.stderr
    assert second.stdout == first.stdout


def test_the_lines_name_the_place_that_agents_will_see(tmp_path: Path) -> None:
    result = invoke("init", str(tmp_path), "--listen", "10.0.0.5:3128")
    assert "export https_proxy=http://10.0.0.5:3128" in result.stdout.splitlines()


def test_a_machine_reads_it_as_json(tmp_path: Path) -> None:
    told = json.loads(invoke("init", str(tmp_path), "--json").stdout)
    assert told["environment"]["HTTPS_PROXY"] == "http://127.0.0.1:8080"
    assert any(line.endswith("a policy to start from") for line in told["made"])


def test_variables_take_the_place_of_flags(tmp_path: Path) -> None:
    env = {
        "TOLLKEEPER_DIR": str(tmp_path / "a"),
        "TOLLKEEPER_STATE": str(tmp_path / "b"),
        "TOLLKEEPER_LISTEN": "127.0.0.1:7000",
        "TOLLKEEPER_JSON": "1",
    }
    told = json.loads(invoke("init", env=env).stdout)
    assert told["environment"]["HTTPS_PROXY"] == "http://127.0.0.1:7000"
    assert (tmp_path / "a" / "policies.yaml").is_file()
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o700


def test_a_lost_log_is_not_made_again(tmp_path: Path) -> None:
    invoke("init", str(tmp_path))
    for segment in (tmp_path / "state" / "log").iterdir():
        segment.unlink()
    assert "so the log was removed; restore it" in complaint(invoke("init", str(tmp_path)))


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "house").write_text("")
    assert "choose another DIR" in complaint(invoke("init", str(tmp_path / "house")))
