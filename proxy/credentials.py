"""The agents' proxy credentials: shown once, stored hashed, expiring, several valid in a rotation.

    agent add, rotate, revoke --> credentials.json --changed?--> index by agent --> identity.py

Rule 1: a token has 192 random bits, so its plain SHA-256 tells nothing. The token itself is never
        stored, logged or shown a second time.
Rule 2: the file is replaced whole, under a lock, and synced: a reader sees the old or the new one.
Rule 3: a file that cannot be read or trusted identifies nobody, and is never overwritten.
Rule 4: a session begins with one `agent add` and outlives every rotation: spending hangs on it.

The file may change under a running server: it is read again when inode, size or time differ.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

FORMAT_VERSION = 1
FILE_BYTES_MAX = 16 * 1024 * 1024  # some 50,000 credentials
TOKEN_BYTES = 24  # 192 random bits; at least 160 are promised
TOKEN_PREFIX = "tk_"  # noqa: S105  lets secret scanners and people recognise one

_AGENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_HEX = re.compile(r"[0-9a-f]+")

Standing = Literal["valid", "expired", "revoked"]
Mark = tuple[int, int, int]  # inode, size, ctime in ns: differs after any change, `chmod` too


class CredentialsUnusable(RuntimeError):  # noqa: N818  named after the failure
    """The file is corrupt, readable by others, or cannot be written. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Credential:
    """One stored token, as its hash. Times are aware UTC."""

    agent: str
    session: str  # 32 hex; the same for every token that replaced another
    sha256: str  # 64 hex, of the token
    created: datetime
    expires: datetime | None = None  # None: never
    revoked: datetime | None = None

    @property
    def id(self) -> str:
        """What people call the token by: the first 12 hex digits of its hash."""
        return self.sha256[:12]

    def stand(self, now: datetime) -> Standing:
        """Is the token good at this moment? The moment of expiry is too late."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token, for the one time that it is shown."""

    token: str
    credential: Credential


class CredentialStore:
    """Credentials of one state directory. Reading is cheap: one `stat` when nothing changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: Mark | None = None
        self._by_agent: dict[str, tuple[Credential, ...]] = {}
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why nobody can be identified by credential; "" when all is well. For logs and /readyz."""
        self._refresh()
        return self._problem

    def create(self) -> bool:
        """Write a file without credentials where there is none. Was there none?

        Raises:
            CredentialsUnusable: the file cannot be read or written.
        """
        with self._locked():
            if self._path.exists():
                return False
            self._write(())
        return True

    def match(self, agent: str, token: str) -> Credential | None:
        """The credential of this agent whose token this is, whatever its standing; None if wrong.

        Raises:
            CredentialsUnusable: nobody can be identified.
        """
        self._refresh()
        if self._problem:
            raise CredentialsUnusable(self._problem)
        digest = _digest(token)
        found = None
        for credential in self._by_agent.get(agent, ()):  # all of them: no early way out to time
            if hmac.compare_digest(credential.sha256, digest):
                found = credential
        return found

    def list(self) -> tuple[Credential, ...]:
        """Every credential ever issued, oldest first.

        Raises:
            CredentialsUnusable: the file cannot be read or trusted.
        """
        return self._read()[0]

    def add(self, agent: str, *, now: datetime, expires: datetime | None = None) -> Issued:
        """Issue a first token: the beginning of a session.

        Raises:
            ValueError: not an agent id, or already expired.
            CredentialsUnusable: nothing was changed.
        """
        if not _AGENT.fullmatch(agent):
            raise ValueError(f"`{agent}` is not an agent id; use letters, digits, `.`, `_` and `-`")
        if expires is not None and expires <= now:
            raise ValueError(f"`{expires.isoformat()}` has passed; give a time in the future")
        with self._locked() as stored:
            issued = _issue(agent, secrets.token_hex(16), now, expires)
            self._write((*stored, issued.credential))
        return issued

    def rotate(self, name: str, *, now: datetime, overlap: timedelta = timedelta()) -> Issued:
        """Issue the next token of a session; the ones before it are good for `overlap` longer.

        `name` is an agent, or a token id where the agent has several sessions. The new token lives
        as long as the newest one before it was meant to. Revoked tokens stay revoked.

        Raises:
            ValueError: unknown name, several sessions, or a negative overlap.
            CredentialsUnusable: nothing was changed.
        """
        if overlap < timedelta():
            raise ValueError(f"`{overlap}` is before now; the overlap is zero or longer")
        with self._locked() as stored:
            session = _find_session(stored, name, now)
            before = [credential for credential in stored if credential.session == session]
            last = before[-1]
            expires = None if last.expires is None else now + (last.expires - last.created)
            issued = _issue(last.agent, session, now, expires)
            end = now + overlap
            kept = (
                replace(c, expires=min(c.expires or end, end))
                if c.session == session and c.stand(now) == "valid"
                else c
                for c in stored
            )
            self._write((*kept, issued.credential))
        return issued

    def revoke(self, name: str, *, now: datetime) -> tuple[Credential, ...]:
        """Revoke every token of an agent, or one by its id. Returns those that were not before.

        Raises:
            ValueError: no such agent or token.
            CredentialsUnusable: nothing was changed.
        """
        with self._locked() as stored:
            named = _find(stored, name)
            fresh = tuple(replace(c, revoked=now) for c in named if c.revoked is None)
            by_hash = {credential.sha256: credential for credential in fresh}
            self._write(tuple(by_hash.get(c.sha256, c) for c in stored))
        return fresh

    # --- the file

    def _refresh(self) -> None:
        """Read the file again if it changed; whatever is wrong with it ends up in `_problem`."""
        try:
            found = self._path.stat()
            mark = (found.st_ino, found.st_size, found.st_ctime_ns)
            if mark == self._mark:
                return
            stored, self._mark = self._read()
            by_agent: dict[str, tuple[Credential, ...]] = {}
            for credential in stored:
                by_agent[credential.agent] = (*by_agent.get(credential.agent, ()), credential)
            self._by_agent, self._problem = by_agent, ""
        except FileNotFoundError:
            self._mark, self._by_agent, self._problem = None, {}, ""  # nobody was added yet
        except (OSError, CredentialsUnusable) as failure:
            self._mark, self._by_agent = None, {}
            self._problem = str(failure)

    def _read(self) -> tuple[tuple[Credential, ...], Mark | None]:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                self._check(found)
                text = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return (), None
        except OSError as failure:
            raise CredentialsUnusable(f"{self._path}: {failure.strerror}") from failure
        try:
            stored = _decode(text)
        except (ValueError, TypeError, KeyError, RecursionError) as failure:
            raise CredentialsUnusable(
                f"{self._path}: is damaged ({failure}); nothing was changed; restore it from a"
                " backup, or move it away and issue every credential again"
            ) from failure
        return stored, (found.st_ino, found.st_size, found.st_ctime_ns)

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            raise CredentialsUnusable(f"{self._path}: is not a file of credentials")
        if found.st_mode & 0o077:
            raise CredentialsUnusable(
                f"{self._path}: others may read or write it; run `chmod 600 {self._path}`"
            )

    @contextmanager
    def _locked(self) -> Iterator[tuple[Credential, ...]]:
        """What is stored, with every other writer waiting. The lock is a file of its own, since
        the credentials file is replaced."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            lock = os.open(self._path.with_suffix(".lock"), flags, 0o600)
        except OSError as failure:
            raise CredentialsUnusable(f"{self._path.parent}: {failure.strerror}") from failure
        try:
            _hand_over(lock, self._path.parent)
            self._keep_owner(lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()[0]
        finally:
            os.close(lock)

    def _keep_owner(self, fd: int) -> None:
        """What root writes stays readable to the user that runs the server."""
        if os.geteuid() == 0:
            owner = (self._path if self._path.exists() else self._path.parent).stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)

    def _write(self, credentials: tuple[Credential, ...]) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)  # left behind by a crash
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                _hand_over(file.fileno(), self._path.parent)
                self._keep_owner(file.fileno())
                file.write(_encode(credentials))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as failure:
            raise CredentialsUnusable(f"{self._path}: {failure.strerror}") from failure


def _hand_over(descriptor: int, folder: Path) -> None:
    """Root may change the file beside a server that is not root: the folder's owner keeps it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _issue(agent: str, session: str, now: datetime, expires: datetime | None) -> Issued:
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return Issued(token, Credential(agent, session, _digest(token), now, expires))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _find(stored: tuple[Credential, ...], name: str) -> tuple[Credential, ...]:
    named = tuple(c for c in stored if name in (c.agent, c.id))
    if not named:
        raise ValueError(f"`{name}` is no agent and no token; `tollkeeper agent list` shows all")
    return named


def _find_session(stored: tuple[Credential, ...], name: str, now: datetime) -> str:
    named = _find(stored, name)
    live = {c.session for c in named if c.stand(now) == "valid"}
    sessions = live or {c.session for c in named}
    if len(sessions) > 1:
        raise ValueError(f"`{name}` has {len(sessions)} sessions; name a token id instead")
    return sessions.pop()


def _encode(credentials: tuple[Credential, ...]) -> bytes:
    entries = [
        {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(c).items()}
        for c in credentials
    ]
    document = {"version": FORMAT_VERSION, "credentials": entries}
    return json.dumps(document, indent=1).encode("utf-8") + b"\n"


def _decode(text: bytes) -> tuple[Credential, ...]:
    """Raises ValueError, TypeError or KeyError for anything that `_encode` does not write."""
    document = json.loads(text.decode("utf-8"))
    if document["version"] != FORMAT_VERSION:
        raise ValueError(f"unknown version {document['version']!r}")
    stored = tuple(_decode_one(entry) for entry in document["credentials"])
    if len({credential.sha256 for credential in stored}) != len(stored):
        raise ValueError("a token is listed twice")
    return stored


def _decode_one(entry: dict[str, Any]) -> Credential:
    created = _time(entry["created"])
    if created is None:
        raise ValueError("a token without a time of creation")
    credential = Credential(
        agent=str(entry["agent"]),
        session=str(entry["session"]),
        sha256=str(entry["sha256"]),
        created=created,
        expires=_time(entry["expires"]),
        revoked=_time(entry["revoked"]),
    )
    if not _AGENT.fullmatch(credential.agent):
        raise ValueError("not an agent id")
    for text, length in ((credential.session, 32), (credential.sha256, 64)):
        if len(text) != length or not _HEX.fullmatch(text):
            raise ValueError("not a hash")
    return credential


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.astimezone(UTC)
