"""The guard in front of every command: are the three rooms ours alone?"""

import subprocess
import sys
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from proxy.ownership import ROOMS, RoomsForeign, check_rooms

ROOT = Path(__file__).parents[2]
OURS = dict.fromkeys(ROOMS, Path("/opt/tollkeeper"))


def install(folder: Path, name: str, **files: str) -> Distribution:
    """What an installer leaves behind: a folder of metadata."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, text in files.items():
        (metadata / file).write_text(text)
    return PathDistribution(metadata)


FOREIGN = {
    "by its list of files": {"RECORD": "proxy/__init__.py,sha256=x,0\nproxy.dist-info/RECORD,,\n"},
    "further down the list": {"RECORD": "bin/x,,\npolicies/strange.py,,\n"},
    "by a file in a folder of ours": {"RECORD": "LICENSE,,\naudit/extra/__init__.py,,\n"},
    "by its list of packages": {"top_level.txt": "other\nproxy\n"},
}
HARMLESS = {
    "a longer name": {"RECORD": "proxyless/__init__.py,,\nmyproxy/x.py,,\nproxy.py,,\n"},
    "a room inside another package": {"RECORD": "other/proxy/__init__.py,,\n"},
    "other packages": {"top_level.txt": "proxy_tools\nauditing\n"},
    "nothing at all": {},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_another_distribution_in_a_room_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(RoomsForeign, match=r"`stranger` installs a package `\w+` too.*pipx"):
        check_rooms([install(tmp_path, "stranger", **files)], OURS)


@pytest.mark.parametrize("files", HARMLESS.values(), ids=HARMLESS)
def test_what_only_looks_alike_is_not_refused(tmp_path: Path, files: dict[str, str]) -> None:
    check_rooms([install(tmp_path, "stranger", **files)], OURS)


def test_our_own_distribution_owns_the_rooms(tmp_path: Path) -> None:
    check_rooms([install(tmp_path, "Tollkeeper", RECORD="proxy/__init__.py,,\n")], OURS)


def test_rooms_in_two_folders_are_refused() -> None:
    homes = {**OURS, "policies": Path("/usr/lib/python3/dist-packages")}
    with pytest.raises(RoomsForeign, match="`policies` is imported from /usr/lib"):
        check_rooms([], homes)


def test_this_very_environment_passes() -> None:
    check_rooms()


def test_the_command_refuses_to_run_among_foreign_files(tmp_path: Path) -> None:
    install(tmp_path, "proxy.py", RECORD="proxy/__init__.py,sha256=x,0\n")
    run = subprocess.run(
        [sys.executable, "-m", "proxy", "--help"],
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("tollkeeper: the distribution `proxy.py` installs a package")
