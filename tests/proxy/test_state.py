"""The state directory: made once, never overwritten, refused where others could get at it."""

import os
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from audit.verify import VALID, verify
from proxy.credentials import CredentialStore
from proxy.mitm.ca import LeafMint
from proxy.state import StateUnusable, check_state, create_state, find_group, is_blank

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OTHER_GROUP = 54_321


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    create_state(folder, NOW)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its mode and bytes."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- making


def test_what_is_made_works_and_is_ours_alone(state: Path) -> None:
    assert verify(state / "log").exit_code == VALID
    LeafMint.load(state / "ca")
    assert CredentialStore(state / "credentials.json").list() == ()
    assert (state / "policies").is_dir()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (state, *state.iterdir())}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert stat.S_IMODE((state / "ca" / "ca.key").stat().st_mode) == 0o600
    assert check_state(state) == []


def test_each_made_part_is_told(tmp_path: Path) -> None:
    lines = create_state(tmp_path / "state", NOW)
    told = [line.partition(":")[0].rpartition("/")[2] for line in lines]
    assert told == ["state", "log", "ca.pem", "bundle.pem", "credentials.json", "policies"]


def test_made_again_nothing_changes_and_nothing_is_told(state: Path) -> None:
    before = snapshot(state)
    assert create_state(state, NOW) == []
    assert snapshot(state) == before


def test_the_bundle_ends_with_our_certificate(state: Path) -> None:
    bundle, own = (state / "ca/bundle.pem").read_bytes(), (state / "ca/ca.pem").read_bytes()
    assert bundle.endswith(own)


def test_a_wide_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_state(tmp_path / "state", NOW)
    finally:
        os.umask(before)
    assert check_state(tmp_path / "state") == []


def lose(*names: str) -> Callable[[Path], None]:
    def remove(state: Path) -> None:
        for name in names:
            path = state / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


REPLACED = {
    "the credentials": lose("credentials.json"),
    "the policy archive": lose("policies"),
    "the bundle": lose("ca/bundle.pem"),
    "the whole CA": lose("ca"),
    "all but a log folder that was cut short": lose("ca", "credentials.json", "policies"),
}


@pytest.mark.parametrize("damage", REPLACED.values(), ids=REPLACED)
def test_what_may_be_made_again_is(state: Path, damage: Callable[[Path], None]) -> None:
    damage(state)
    log = snapshot(state / "log")
    assert create_state(state, NOW) != []
    assert snapshot(state / "log") == log
    assert check_state(state) == []


def write_stranger(state: Path) -> None:
    lose("log", "ca")(state)
    (state / "log").mkdir(mode=0o700)
    (state / "log" / "notes.txt").write_text("x")


def put_file_for_log(state: Path) -> None:
    lose("log", "ca")(state)
    (state / "log").write_text("")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a log that was removed": (lose("log"), "there is a CA but no log"),
    "a CA without its key": (lose("ca/ca.key"), "ca.key: is missing; restore it"),
    "a key without its CA": (lose("ca/ca.pem"), "ca.pem: is missing; restore it"),
    "a log folder with other files": (write_stranger, "holds no log but other files"),
    "a file where the log should be": (
        put_file_for_log,
        "log: file exists; give the proxy",
    ),
    "damaged credentials": (
        lambda state: (state / "credentials.json").write_text("{"),
        "is damaged .* nothing was changed; restore it",
    ),
}


@pytest.mark.parametrize(("damage", "words"), REFUSED.values(), ids=REFUSED)
def test_what_must_not_be_made_again_is_refused_and_left_alone(
    state: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(state)
    before = snapshot(state)
    with pytest.raises(StateUnusable, match=words):
        create_state(state, NOW)
    assert snapshot(state) == before


BLANK: dict[str, Callable[[Path], object]] = {
    "nothing there": lambda _: None,
    "an empty folder": lambda folder: folder.mkdir(),
    "a fresh volume": lambda folder: (folder / "lost+found").mkdir(parents=True),
}


@pytest.mark.parametrize("prepare", BLANK.values(), ids=BLANK)
def test_a_blank_directory_is_filled(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    folder = tmp_path / "state"
    prepare(folder)
    assert is_blank(folder)
    create_state(folder, NOW)
    assert not is_blank(folder)


def test_a_file_is_no_state_directory(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("")
    with pytest.raises(StateUnusable, match="not a directory; give the proxy a directory"):
        is_blank(path)


# --- checking


def give_away(name: str, mode: int) -> Callable[[Path], object]:
    return lambda state: (state / name).chmod(mode)


UNSAFE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "anybody may write to it": (give_away(".", 0o707), ".", "anybody may write"),
    "its group may": (give_away(".", 0o770), ".", "the group"),
    "anybody may write to the log": (give_away("log", 0o777), "log", "anybody may write"),
    "the group may add a CA": (give_away("ca", 0o770), "ca", "the group"),
    "anybody may read the CA's key": (give_away("ca/ca.key", 0o604), "ca/ca.key", "is a key"),
    "the group may read the CA's key": (give_away("ca/ca.key", 0o640), "ca/ca.key", "is a key"),
    "anybody may read the tokens": (
        give_away("credentials.json", 0o644),
        "credentials.json",
        "is a key",
    ),
    "anybody may replace the certificate": (give_away("ca/ca.pem", 0o666), "ca/ca.pem", "anybody"),
}


@pytest.mark.parametrize(("open_up", "name", "words"), UNSAFE.values(), ids=UNSAFE)
def test_what_others_can_get_at_is_named_with_a_remedy_that_helps(
    state: Path, open_up: Callable[[Path], object], name: str, words: str
) -> None:
    open_up(state)
    [problem] = check_state(state)
    assert problem.place == str(state / name)
    assert words in problem.cause
    command = problem.remedy.split("`")[1]
    assert os.system(command) == 0  # what we tell people to type
    assert check_state(state) == []


def test_all_problems_are_told_at_once_sorted_by_place(state: Path) -> None:
    for name in ("log", "ca/ca.key", "."):
        give_away(name, 0o777)(state)
    places = [problem.place for problem in check_state(state)]
    assert places == sorted(places)
    assert len(places) == 3


def test_reading_is_no_writing(state: Path) -> None:
    state.chmod(0o755)
    (state / "log").chmod(0o755)
    assert check_state(state) == []


def test_a_folder_above_that_anybody_may_write_to_is_a_way_in(tmp_path: Path) -> None:
    above = tmp_path / "above"
    create_state(above / "state", NOW)
    above.chmod(0o777)
    [problem] = check_state(above / "state")
    assert problem.place == str(above)
    above.chmod(0o1777)  # like /tmp: only owners rename
    assert check_state(above / "state") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_volume_of_the_named_group_is_allowed_its_keys_are_not(state: Path) -> None:
    os.chown(state, -1, OTHER_GROUP)
    state.chmod(0o2770)
    assert [problem.place for problem in check_state(state)] == [str(state)]
    assert check_state(state, group=OTHER_GROUP) == []
    assert [p.place for p in check_state(state, group=OTHER_GROUP + 1)] == [str(state)]
    os.chown(state / "ca" / "ca.key", -1, OTHER_GROUP)
    (state / "ca" / "ca.key").chmod(0o660)
    [problem] = check_state(state, group=OTHER_GROUP)
    assert "is a key" in problem.cause


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_belongs_to_somebody_else_is_refused(state: Path) -> None:
    os.chown(state / "log", 54_321, -1)
    [problem] = check_state(state)
    assert problem.cause == "belongs to another user (uid 54321)"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_root_changes_stays_the_servers(state: Path) -> None:
    server = 54_321
    for path in (state, *state.rglob("*")):
        os.chown(path, server, server)
    (state / "credentials.lock").unlink()
    CredentialStore(state / "credentials.json").add("coder", now=NOW)
    owners = {path.stat().st_uid for path in (state, *state.rglob("*"))}
    assert owners == {server}


def test_a_missing_directory_is_a_problem_not_an_exception(tmp_path: Path) -> None:
    [problem] = check_state(tmp_path / "nowhere")
    assert "no such file" in str(problem)


def test_a_group_is_a_name_or_a_number() -> None:
    assert find_group("root") == find_group("0") == 0
    with pytest.raises(ValueError, match="no such group; give a name"):
        find_group("nobody-has-this")
