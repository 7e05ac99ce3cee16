"""Tokens: issued once, stored hashed, rotated with overlap, revoked; and damaged files."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.credentials import CredentialStore, CredentialsUnusable, Issued

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "credentials.json"


@pytest.fixture
def store(path: Path) -> CredentialStore:
    return CredentialStore(path)


def stands(store: CredentialStore, issued: Issued, now: datetime = NOW) -> str:
    found = store.match(issued.credential.agent, issued.token)
    return "wrong" if found is None else found.stand(now)


def test_a_token_is_long_random_and_stored_as_its_hash_only(
    store: CredentialStore, path: Path
) -> None:
    issued = store.add("coder", now=NOW)
    assert issued.token.startswith("tk_")
    assert len(issued.token) == 3 + 32  # 24 random bytes in base64url
    assert issued.token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stands(store, issued) == "valid"


def test_tokens_and_sessions_differ(store: CredentialStore) -> None:
    first, second = store.add("coder", now=NOW), store.add("coder", now=NOW)
    assert first.token != second.token
    assert first.credential.session != second.credential.session
    assert stands(store, first) == stands(store, second) == "valid"


def test_a_token_is_good_for_its_agent_only(store: CredentialStore) -> None:
    issued = store.add("coder", now=NOW)
    store.add("reviewer", now=NOW)
    assert store.match("reviewer", issued.token) is None
    assert store.match("coder", issued.token + "x") is None
    assert store.match("coder", "") is None
    assert store.match("nobody", issued.token) is None
    assert store.match("coder", "\ud800") is None


def test_the_moment_of_expiry_is_too_late(store: CredentialStore) -> None:
    issued = store.add("coder", now=NOW, expires=NOW + HOUR)
    assert stands(store, issued, NOW + HOUR - timedelta(microseconds=1)) == "valid"
    assert stands(store, issued, NOW + HOUR) == "expired"


def test_a_rotation_keeps_the_session_and_both_tokens_for_the_overlap(
    store: CredentialStore,
) -> None:
    old = store.add("coder", now=NOW)
    new = store.rotate("coder", now=NOW, overlap=HOUR)
    assert new.credential.session == old.credential.session
    assert stands(store, old) == stands(store, new) == "valid"
    assert stands(store, old, NOW + HOUR) == "expired"
    assert stands(store, new, NOW + HOUR) == "valid"


def test_without_an_overlap_the_old_token_ends_at_once(store: CredentialStore) -> None:
    old = store.add("coder", now=NOW)
    store.rotate("coder", now=NOW)
    assert stands(store, old) == "expired"


def test_a_rotation_never_makes_a_token_live_longer(store: CredentialStore) -> None:
    old = store.add("coder", now=NOW, expires=NOW + HOUR)
    new = store.rotate("coder", now=NOW, overlap=5 * HOUR)
    assert stands(store, old, NOW + HOUR) == "expired"
    assert new.credential.expires == NOW + HOUR  # as long as the one before it was meant to live


def test_revoking_an_agent_ends_every_token_and_a_rotation_does_not_bring_it_back(
    store: CredentialStore,
) -> None:
    first = store.add("coder", now=NOW)
    second = store.rotate("coder", now=NOW, overlap=HOUR)
    other = store.add("reviewer", now=NOW)
    assert len(store.revoke("coder", now=NOW)) == 2
    assert store.revoke("coder", now=NOW) == ()
    third = store.rotate("coder", now=NOW, overlap=HOUR)
    assert [stands(store, each) for each in (first, second, third, other)] == [
        "revoked", "revoked", "valid", "valid",
    ]  # fmt: skip


def test_one_token_is_revoked_by_its_id(store: CredentialStore) -> None:
    first, second = store.add("coder", now=NOW), store.add("coder", now=NOW)
    store.revoke(first.credential.id, now=NOW)
    assert stands(store, first) == "revoked"
    assert stands(store, second) == "valid"


def test_several_sessions_are_rotated_by_token_id(store: CredentialStore) -> None:
    first, _ = store.add("coder", now=NOW), store.add("coder", now=NOW)
    with pytest.raises(ValueError, match="2 sessions"):
        store.rotate("coder", now=NOW)
    rotated = store.rotate(first.credential.id, now=NOW)
    assert rotated.credential.session == first.credential.session


@pytest.mark.parametrize("name", ["", "a b", "a:b", "-a", "a" * 65, "é", "a\n"])
def test_an_agent_needs_an_id(store: CredentialStore, name: str) -> None:
    with pytest.raises(ValueError, match="agent id"):
        store.add(name, now=NOW)


def test_wrong_requests_change_nothing(store: CredentialStore, path: Path) -> None:
    store.add("coder", now=NOW)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="agent list"):
        store.revoke("nobody", now=NOW)
    with pytest.raises(ValueError, match="agent list"):
        store.rotate("nobody", now=NOW)
    with pytest.raises(ValueError, match="overlap"):
        store.rotate("coder", now=NOW, overlap=-HOUR)
    with pytest.raises(ValueError, match="has passed"):
        store.add("coder", now=NOW, expires=NOW)
    assert path.read_bytes() == before


def test_a_running_reader_sees_every_change(store: CredentialStore, path: Path) -> None:
    reader = CredentialStore(path)
    issued = store.add("coder", now=NOW)
    assert stands(reader, issued) == "valid"
    store.revoke("coder", now=NOW)
    assert stands(reader, issued) == "revoked"
    path.unlink()
    assert stands(reader, issued) == "wrong"


def test_list_shows_all_oldest_first(store: CredentialStore) -> None:
    assert store.list() == ()
    names = ["b", "a", "c"]
    for name in names:
        store.add(name, now=NOW)
    assert [credential.agent for credential in store.list()] == names


SPOILT_FILES = {
    "empty": b"",
    "half": b'{"version": 1, "credentials": [',
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "another version": b'{"version": 2, "credentials": []}',
    "no credentials": b'{"version": 1}',
    "an empty entry": b'{"version": 1, "credentials": [{}]}',
}
SPOILT_FIELDS: dict[str, dict[str, Any]] = {
    "a hash that is none": {"sha256": "x" * 64},
    "no hash": {"sha256": ""},
    "an odd agent": {"agent": "a b"},
    "no creation": {"created": None},
    "no zone": {"created": "2026-11-21T12:00:00"},
    "an odd expiry": {"expires": "soon"},
    "a number as expiry": {"expires": 5},
    "false as revocation": {"revoked": False},
}


@pytest.mark.parametrize("kind", [*SPOILT_FILES, *SPOILT_FIELDS, "twice"])
def test_a_damaged_file_identifies_nobody_and_is_not_overwritten(
    store: CredentialStore, path: Path, kind: str
) -> None:
    issued = store.add("coder", now=NOW)
    document = json.loads(path.read_text())
    (entry,) = document["credentials"]
    entries = [entry, entry] if kind == "twice" else [{**entry, **SPOILT_FIELDS.get(kind, {})}]
    spoilt = json.dumps({**document, "credentials": entries}).encode()
    path.write_bytes(before := SPOILT_FILES.get(kind, spoilt))
    assert "credentials.json" in store.problem
    with pytest.raises(CredentialsUnusable, match="damaged"):
        store.match("coder", issued.token)
    for change in (
        lambda: store.add("other", now=NOW),
        lambda: store.rotate("coder", now=NOW),
        lambda: store.revoke("coder", now=NOW),
    ):
        with pytest.raises(CredentialsUnusable, match="restore it from a backup"):
            change()
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606])
def test_a_file_open_to_others_is_refused_until_chmod(
    store: CredentialStore, path: Path, mode: int
) -> None:
    issued = store.add("coder", now=NOW)
    path.chmod(mode)
    with pytest.raises(CredentialsUnusable, match="chmod 600"):
        store.match("coder", issued.token)
    path.chmod(0o600)
    assert stands(store, issued) == "valid"


def test_a_directory_in_its_place_is_refused(store: CredentialStore, path: Path) -> None:
    path.mkdir()
    assert store.problem
    with pytest.raises(CredentialsUnusable):
        store.add("coder", now=NOW)


def test_a_missing_state_directory_is_said(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "nowhere" / "credentials.json")
    with pytest.raises(CredentialsUnusable, match="nowhere"):
        store.add("coder", now=NOW)
    assert store.problem == ""


def test_a_failed_write_leaves_the_old_file(
    store: CredentialStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = store.add("coder", now=NOW)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CredentialsUnusable, match="No space left"):
        store.revoke("coder", now=NOW)
    assert stands(store, issued) == "valid"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_changes_stays_the_servers(store: CredentialStore, path: Path) -> None:
    os.chown(path.parent, 65534, 65534)
    store.add("coder", now=NOW)
    for each in (path, path.with_suffix(".lock")):
        assert (each.stat().st_uid, stat.S_IMODE(each.stat().st_mode)) == (65534, 0o600)


def test_writers_in_other_processes_lose_nothing(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC;"
        "from proxy.credentials import CredentialStore; s = CredentialStore(Path(sys.argv[1]));"
        "[s.add(f'{sys.argv[2]}-{n}', now=datetime(2026, 11, 21, tzinfo=UTC)) for n in range(5)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("a", "b", "c")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(CredentialStore(path).list()) == 15
