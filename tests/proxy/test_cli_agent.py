"""`tollkeeper agent`: shown once, recorded always, refused where it cannot be recorded."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from audit.reader import Filter, read
from proxy.cli.options import read_now
from proxy.credentials import CredentialStore
from tests.kit.command import complaint, invoke
from tests.kit.proxy import Proxy


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with policy and state, and we in it."""
    monkeypatch.chdir(tmp_path)
    assert invoke("init").exit_code == 0
    return tmp_path


def store() -> CredentialStore:
    return CredentialStore(Path("state/credentials.json"))


def recorded() -> list[dict[str, Any]]:
    wanted = Filter(kinds=frozenset({"credential.change"}))
    return [line.record.event for line in read(Path("state/log"), wanted)]


def add(*words: str) -> dict[str, Any]:
    result = invoke("agent", "add", *words, "--json")
    assert result.exit_code == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_token_is_shown_once_with_the_line_to_paste() -> None:
    result = invoke("agent", "add", "coder")
    token, line, others = result.stdout.splitlines()
    assert line == f"export HTTPS_PROXY=http://coder:{token}@127.0.0.1:8080"
    assert 'https_proxy="$HTTPS_PROXY"' in others  # clients prefer the lower-case one
    found = store().match("coder", token)
    assert found is not None
    assert found.expires is not None
    assert found.expires - found.created == timedelta(days=90)
    assert token not in result.stderr
    assert token not in invoke("agent", "list").stdout + invoke("agent", "list", "--json").stdout


def test_adding_is_recorded_with_agent_session_and_who_did_it() -> None:
    told = add("coder")
    [event] = recorded()
    assert event["by"].startswith("cli:")
    assert {**event, "by": ""} == {
        "kind": "credential.change",
        "agent": "coder",
        "action": "add",
        "session": told["session"],
        "by": "",
    }
    assert told["token"].encode() not in b"".join(line.raw for line in read(Path("state/log")))


EXPIRIES = {"30d": timedelta(days=30), "12h": timedelta(hours=12), "45s": timedelta(seconds=45)}


@pytest.mark.parametrize(("text", "length"), EXPIRIES.items())
def test_a_token_ends_when_it_was_said_to(text: str, length: timedelta) -> None:
    told = add("coder", "--expires", text)
    begin, end = (datetime.fromisoformat(told[name]) for name in ("created", "expires"))
    assert end - begin == length


def test_a_token_may_be_good_for_ever() -> None:
    assert add("coder", "--expires", "never")["expires"] is None


def test_two_tokens_are_good_during_a_rotation() -> None:
    old = add("coder")
    result = invoke("agent", "rotate", "coder", "--overlap", "1d", "--json")
    new = json.loads(result.stdout)
    now = read_now()
    for token in (old["token"], new["token"]):
        found = store().match("coder", token)
        assert found is not None
        assert found.stand(now) == "valid"
    assert new["session"] == old["session"]
    assert [event["action"] for event in recorded()] == ["add", "rotate"]


def test_a_rotation_without_overlap_ends_the_old_token_at_once() -> None:
    old = add("coder")
    assert invoke("agent", "rotate", "coder", "--overlap", "0").exit_code == 0
    found = store().match("coder", old["token"])
    assert found is not None
    assert found.stand(read_now()) == "expired"


def test_revoking_ends_every_token_of_an_agent_or_one_by_its_id() -> None:
    first, second, third = add("coder"), add("coder"), add("coder")
    result = invoke("agent", "revoke", first["id"])
    assert result.stdout == f"revoked coder {first['id']}\n"
    told = json.loads(invoke("agent", "revoke", "coder", "--json").stdout)
    assert {one["id"] for one in told} == {second["id"], third["id"]}
    again = invoke("agent", "revoke", "coder")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "every token was revoked before" in again.stderr
    sessions = [event["session"] for event in recorded() if event["action"] == "revoke"]
    assert sorted(sessions) == sorted(one["session"] for one in (first, second, third))


def test_the_list_shows_standing_by_id() -> None:
    kept, gone = add("coder", "--expires", "never"), add("reviewer")
    invoke("agent", "revoke", "reviewer")
    lines = [line.split() for line in invoke("agent", "list").stdout.splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        ["coder", kept["id"], "valid"],
        ["reviewer", gone["id"], "revoked"],
    ]
    assert lines[1][-1] == "never"
    told = json.loads(invoke("agent", "list", "--json").stdout)
    assert [one["standing"] for one in told] == ["valid", "revoked"]


def test_an_empty_list_says_what_to_do() -> None:
    result = invoke("agent", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`tollkeeper agent add NAME`" in result.stderr


NOTES = {
    "an agent that the policy does not know": ("coder", "has no agent `coder`; add it under"),
    "an agent that is known by its address": ("local", "by its address, so the token is refused"),
}


@pytest.mark.parametrize(("name", "note"), NOTES.values(), ids=NOTES)
def test_a_token_that_will_open_nothing_says_so(name: str, note: str) -> None:
    assert note in invoke("agent", "add", name).stderr


def test_a_token_that_opens_something_comes_without_a_note() -> None:
    Path("policies.yaml").write_text("version: 1\nagents: { coder: {} }\nrules: []\n")
    assert "note:" not in invoke("agent", "add", "coder").stderr


BROKEN_FLAGS = {
    "a name that is no agent id": (("add", "a b"), "`a b` is not an agent id; use letters"),
    "an expiry without a unit": (("add", "a", "--expires", "90"), "`--expires 90`: it is no dura"),
    "an expiry beyond all time": (("add", "a", "--expires", "9999999w"), "`never` is forever"),
    "an overlap before now": (("rotate", "a", "--overlap", "-1h"), "`--overlap -1h`: it is no"),
    "an agent without a token": (("rotate", "a"), "`a` is no agent and no token; `tollkeeper ag"),
    "a token that is none": (("revoke", "0123456789ab"), "is no agent and no token"),
    "a place that is none": (("add", "a", "--listen", "8080"), "`--listen 8080`: it is not an IP"),
    "a state that is none": (("add", "a", "--state", "nowhere"), "does not exist; run `tollkeepe"),
}


@pytest.mark.parametrize(("words", "text"), BROKEN_FLAGS.values(), ids=BROKEN_FLAGS)
def test_a_broken_flag_is_refused_and_changes_nothing(words: tuple[str, ...], text: str) -> None:
    assert text in complaint(invoke("agent", *words))
    assert store().list() == ()
    assert recorded() == []


ENTRY = {
    "agent": "coder",
    "session": "5e" * 16,
    "sha256": "ab" * 32,
    "created": "2026-11-21T12:00:00+00:00",
    "expires": None,
    "revoked": None,
}


def credentials(*entries: object, version: object = 1) -> bytes:
    return json.dumps({"version": version, "credentials": entries}).encode()


BROKEN_CREDENTIALS = {
    "an empty file": b"",
    "cut off": credentials(ENTRY)[:-9],
    "not JSON": b"coder:secret\n",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "of a later version": credentials(ENTRY, version=2),
    "a field is missing": credentials({"agent": "coder"}),
    "an agent id that is none": credentials({**ENTRY, "agent": "../x"}),
    "a hash that is none": credentials({**ENTRY, "sha256": "secret"}),
    "a time that is none": credentials({**ENTRY, "created": "yesterday"}),
    "a time without a zone": credentials({**ENTRY, "expires": "2026-11-21T12:00:00"}),
    "one token twice": credentials(ENTRY, ENTRY),
    "nested beyond reason": b'{"version":' + b"[" * 100_000,
}
COMMANDS = {
    "add": ("agent", "add", "other"),
    "list": ("agent", "list"),
    "rotate": ("agent", "rotate", "coder"),
    "revoke": ("agent", "revoke", "coder"),
    "serve": ("serve",),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("broken", BROKEN_CREDENTIALS.values(), ids=BROKEN_CREDENTIALS)
def test_broken_credentials_are_refused_and_left_as_they_are(
    words: tuple[str, ...], broken: bytes
) -> None:
    path = Path("state/credentials.json")
    path.write_bytes(broken)
    text = complaint(invoke(*words))
    assert "state/credentials.json: is damaged" in text
    assert "restore it from a backup" in text
    assert path.read_bytes() == broken


def test_credentials_that_others_may_read_are_refused() -> None:
    Path("state/credentials.json").chmod(0o640)
    assert "run `chmod 600 state/credentials.json`" in complaint(invoke("agent", "list"))


def segment() -> Path:
    [found] = Path("state/log").glob("*.jsonl")
    return found


def flip_a_bit() -> None:
    data = bytearray(segment().read_bytes())
    data[100] ^= 1
    segment().write_bytes(data)


def add_a_line() -> None:
    segment().write_bytes(segment().read_bytes() + b"{}\n")


def cut_the_first_line() -> None:
    segment().write_bytes(segment().read_bytes().partition(b"\n")[2])


def add_a_segment() -> None:
    other = "00" * 16 + "-" + "0" * 20 + ".jsonl"
    shutil.copy(segment(), segment().with_name(other))


BROKEN_LOGS: dict[str, tuple[Callable[[], object], str]] = {
    "a flipped bit": (flip_a_bit, "the log does not verify"),
    "a line that is no record": (add_a_line, "the log does not verify"),
    "the first record is gone": (cut_the_first_line, "the log does not verify"),
    "a second segment": (add_a_segment, "the log does not verify"),
    "an empty file": (lambda: segment().write_bytes(b""), "the log does not verify"),
    "no log": (lambda: segment().unlink(), "holds no log; run `tollkeeper init`"),
    "no folder": (lambda: shutil.rmtree("state/log"), "does not exist; run `tollkeeper init`"),
    "a hard link": (lambda: os.link(segment(), "elsewhere"), "the log does not verify"),
    "a folder for everybody": (lambda: Path("state/log").chmod(0o777), "written by anybody"),
}


@pytest.mark.parametrize(("damage", "words"), BROKEN_LOGS.values(), ids=BROKEN_LOGS)
def test_without_a_log_to_trust_no_token_is_issued(
    damage: Callable[[], object], words: str
) -> None:
    damage()
    before = {path: path.read_bytes() for path in Path("state/log").glob("*")}
    assert words in complaint(invoke("agent", "add", "coder"))
    assert store().list() == ()
    assert {path: path.read_bytes() for path in Path("state/log").glob("*")} == before


def test_a_revocation_is_made_even_where_it_cannot_be_recorded() -> None:
    told = add("coder")
    flip_a_bit()
    result = invoke("agent", "revoke", "coder")
    assert result.exit_code == 2
    assert result.stdout == f"revoked coder {told['id']}\n"
    assert "revoked, but it could not be recorded" in result.stderr
    assert [one.stand(read_now()) for one in store().list()] == ["revoked"]


def test_while_a_server_runs_it_records_the_change(house: Path) -> None:
    with Proxy(house, house / "policies.yaml") as proxy:
        told = add("coder")
        invoke("agent", "revoke", "coder")
        assert [event["action"] for event in proxy.records("credential.change")] == [
            "add",
            "revoke",
        ]
    assert {event["session"] for event in recorded()} == {told["session"]}
