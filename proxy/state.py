"""The state directory: what lies where, made once, and refused where others could get at it.

    state/  ca/ca.pem ca.key bundle.pem   log/*.jsonl   credentials.json   policies/   control.sock

Rule 1: nothing is ever overwritten. `create_state` adds what is missing and says so; run again, it
        changes nothing.
Rule 2: the log is made first. So a state directory that has a CA and no log has lost its log, and
        making another one would hide that: it is refused (audit/folder.py, rule 1).
Rule 3: whoever can write here can replace the record, and whoever reads `ca.key` can be any host.
        So only we may write (and one group, where the operator names it), and keys are 0600.

Paths are in `Settings`; the list of parts is here. SPEC section 4; threats J9.
"""

import grp
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from proxy.credentials import CredentialStore, CredentialsUnusable
from proxy.settings import Settings

IGNORED = frozenset({"lost+found"})  # a fresh volume has it
KEYS = ("ca/ca.key", "credentials.json", "admin.token")  # 0600, whatever else is allowed
_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


class StateUnusable(RuntimeError):  # noqa: N818  named after the failure
    """The state directory cannot be made or completed. The text says where, why and what helps."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps the proxy from starting: where, why, and what to do about it."""

    place: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.cause}; {self.remedy}"


def describe_software() -> str:
    """What a log names as its writer: `tollkeeper/<version>`."""
    try:
        return f"tollkeeper/{version('tollkeeper')}"
    except PackageNotFoundError:  # run from a checkout
        return "tollkeeper/unknown"


def is_blank(folder: Path) -> bool:
    """Nothing is there yet: no folder, or an empty one.

    Raises:
        StateUnusable: it is no folder, or cannot be read.
    """
    try:
        return all(entry.name in IGNORED for entry in folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _unusable(folder, error) from error


def create_state(folder: Path, now: datetime) -> list[str]:
    """Make what is missing: log, CA, empty credentials, policy archive. Returns a line for each.

    Raises:
        StateUnusable: the log is gone, or the disk refuses.
    """
    settings = Settings(state=folder)
    made: list[str] = []
    try:
        _make_folder(folder, made)
        _make_log(settings, now, made)
        _make_ca(settings, now, made)
        if CredentialStore(settings.credentials_file).create():
            made.append(f"{settings.credentials_file}: no agent has a token yet")
        _make_folder(settings.policy_archive, made)
    except OSError as error:
        raise _unusable(Path(error.filename or folder), error) from error
    except CredentialsUnusable as error:
        raise StateUnusable(str(error)) from error
    return made


def check_state(folder: Path, *, group: int | None = None) -> list[Problem]:
    """Everything that lets others write to the state directory or read its keys, sorted by place.

    `group` (a gid) may write to what it owns, keys excepted.
    """
    problems: list[Problem] = []
    try:
        for parent in {*folder.absolute().parents, *folder.resolve().parents}:
            problems += _check_parent(parent)
        problems += _check_path(folder, folder.stat(), False, group)
        for path in _walk(folder):
            with suppress(FileNotFoundError):  # a running server replaces files; links may dangle
                problems += _check_path(path, path.stat(), _is_key(folder, path), group)
    except OSError as error:
        problems.append(_blame(Path(error.filename or folder), error))
    return sorted(problems, key=lambda problem: problem.place)


def find_group(name: str) -> int:
    """The gid of a group's name or number.

    Raises:
        ValueError: there is no such group.
    """
    if name.isdecimal() and name.isascii():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ValueError(
            "there is no such group; give a name or an id that `getent group` knows"
        ) from None


# --- making


def _make_folder(folder: Path, made: list[str]) -> None:
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True)
    made.append(f"{folder}: a new folder")


def _make_log(settings: Settings, now: datetime, made: list[str]) -> None:
    from audit.writer import LogExists, create_log

    folder = settings.log_folder
    if any(folder.glob("*.jsonl")):
        return
    if (settings.ca_folder / "ca.pem").exists():
        raise StateUnusable(
            f"{folder}: there is a CA but no log, so the log was removed; restore it, or run"
            f" `tollkeeper audit init {folder}` to begin another one"
        )
    try:
        log = create_log(
            folder, software=describe_software(), now=now, heartbeat_s=settings.heartbeat_s
        )
    except LogExists as error:
        raise StateUnusable(f"{folder}: holds no log but other files; move them away") from error
    made.append(f"{folder}: new log {log}")


def _make_ca(settings: Settings, now: datetime, made: list[str]) -> None:
    from proxy.mitm.ca import create_ca  # costs 100 ms: cryptography

    folder = settings.ca_folder
    certificate, key, bundle = folder / "ca.pem", folder / "ca.key", folder / "bundle.pem"
    if certificate.exists() != key.exists():
        gone, left = (key, certificate) if certificate.exists() else (certificate, key)
        raise StateUnusable(
            f"{gone}: is missing; restore it, or remove {left} and give every agent the new"
            " certificate"
        )
    if not key.exists():
        create_ca(folder, now)
        made.append(f"{certificate}: the certificate that agents trust")
    if not bundle.exists():
        draft = bundle.with_suffix(".new")
        draft.unlink(missing_ok=True)  # left behind by a crash
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(_read_public_roots() + certificate.read_bytes())
        draft.rename(bundle)
        made.append(f"{bundle}: the public roots and that certificate, for clients that take one")


def _read_public_roots() -> bytes:
    """The system's roots in PEM; empty where the system has none."""
    for path in map(Path, _SYSTEM_ROOTS):
        if path.is_file():
            return path.read_bytes().rstrip() + b"\n"
    roots = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, roots)).encode("ascii")


# --- checking


def _walk(folder: Path) -> Iterator[Path]:
    """The parts of the folder and what they hold: two levels, as the layout has them."""
    for entry in sorted(folder.iterdir()):
        if entry.name in IGNORED:
            continue
        yield entry
        if entry.is_dir():
            yield from sorted(entry.iterdir())


def _is_key(folder: Path, path: Path) -> bool:
    name = path.relative_to(folder).as_posix()
    return name in KEYS or name.startswith("keys/")


def _check_parent(parent: Path) -> Iterator[Problem]:
    mode = parent.stat().st_mode if parent.exists() else 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # like /tmp, where only owners rename
        cause = "anybody may write there, and so replace the state directory"
        yield Problem(str(parent), cause, f"run `chmod o-w {parent}`")


def _check_path(
    path: Path, found: os.stat_result, is_key: bool, group: int | None
) -> Iterator[Problem]:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (os.geteuid(), 0):
        cause = f"belongs to another user (uid {found.st_uid})"
        remedy = f"run as that user, or `chown {os.geteuid()} {path}` as root"
        yield Problem(str(path), cause, remedy)
    if is_key and not stat.S_ISDIR(found.st_mode):
        if mode & 0o077:
            cause = f"is a key that others may read (mode {mode:04o})"
            yield Problem(str(path), cause, f"run `chmod 600 {path}`")
        return
    is_shared = group is not None and found.st_gid == group
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not is_shared):
        who = "anybody" if mode & stat.S_IWOTH else f"the group {found.st_gid}"
        hint = "" if mode & stat.S_IWOTH else ", or name the group with `--state-group`"
        cause = f"{who} may write to it (mode {mode:04o})"
        yield Problem(str(path), cause, f"run `chmod go-w {path}`{hint}")


def _blame(path: Path, error: OSError) -> Problem:
    cause = (error.strerror or str(error)).lower()
    return Problem(str(path), cause, "give the proxy a directory of its own with `--state`")


def _unusable(path: Path, error: OSError) -> StateUnusable:
    return StateUnusable(str(_blame(path, error)))
