"""The one writer of a log: seal on the caller's thread, make durable on the writer's thread.

    loop thread     event -> chain -> laws -> queue ─┐                            ┌─> waiters
    writer thread                                    └─> group -> write -> fdatasync ─┘

Rule 1: an event is recorded when `store` returns, not before; only then may anything be forwarded.
Rule 2: while a flush runs the next group builds. No timer, no added delay when idle.
Rule 3: what fails is refused, never dropped silently. A full queue refuses (`audit-backpressure`);
        a poisoned segment refuses everything; what was refused is counted and, once records can be
        written again, recorded as `dropped{n,reason}`.
Rule 4: after a full disk or a short write the writer tries again every `retry_s`: unacknowledged
        bytes go to `torn-<seq>.bin`, then come `recovery` and `dropped`, then traffic. After any
        other failure only a restart helps (audit/appender.py).
Rule 5: an event that no verifier would accept is refused (`EventRefused`) and leaves no trace: one
        bug must not make an honest log look tampered.
Rule 6: a forked child may not write; it has neither the thread nor the lock.

`ts` is the wall clock, clamped so that it never goes back. A step back, and a step forward that the
monotonic clock did not see, leave a `clock.step` record in front of the next one.
"""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future as BlockingFuture
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from audit.appender import (
    RECOVERABLE,
    SPACE_FLOOR_BYTES,
    AppendFailed,
    FailureCause,
    Torn,
)
from audit.chain import LINE_BYTES_MAX, Head, link, ts_place
from audit.folder import (
    LogBroken,
    LogBusy,
    LogExists,
    LogMissing,
    LogUnavailable,
    Opened,
    create_log,
    format_ts,
    open_event,
    open_log,
    recovery_event,
)
from audit.record import EventRefused, encode, settle
from audit.waiters import Stored, Waiter, answer

__all__ = [
    "EventRefused",
    "LogBroken",
    "LogBusy",
    "LogExists",
    "LogMissing",
    "LogUnavailable",
    "Stored",
    "Writer",
    "WriterObserver",
    "create_log",
]

QUEUE_BYTES_MAX = 64 << 20
_STEP_S = 5  # a smaller step forward is taken for a slow process
_STEP = timedelta(seconds=_STEP_S)
_NO_TIME = timedelta(0)
_OWN_KINDS = frozenset({"log.open", "log.close", "heartbeat", "recovery", "clock.step"})
_REASONS: Mapping[FailureCause, str] = {
    "disk-full": "audit-disk-full",
    "short-write": "audit-disk-full",
}


def wall_clock() -> datetime:
    """The time now, aware, UTC."""
    return datetime.now(UTC)  # noqa: TID251  the one default; tests and the proxy may give another


class WriterObserver(Protocol):
    """Who wants to count. Called on the writer's thread; what it raises is ignored."""

    def committed(self, records: int, seconds: float) -> None:
        """A group became durable, so long after it was taken from the queue."""

    def failed(self, cause: str) -> None:
        """Nothing can be recorded from now on: one of `audit.appender.FailureCause`."""

    def recovered(self, dropped: int) -> None:
        """Records are written again; so many were refused or lost meanwhile."""


class _Sealed(NamedTuple):
    line: bytes
    head: Head  # behind it
    waiter: Waiter | None
    counted: bool  # somebody else's event, not our heartbeat


class Writer:
    """See the module. Made by `open`, which takes the lock; `close` gives it back."""

    def __init__(
        self,
        opened: Opened,
        *,
        software: str,
        heartbeat_s: float = 60.0,
        now: Callable[[], datetime] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        queue_records_max: int = 10_000,
        retry_s: float = 5.0,
        observer: WriterObserver | None = None,
    ) -> None:
        self._opened = opened
        self._appender = opened.appender
        self._laws = opened.laws
        self._head = self._durable = opened.head
        self._now = now
        self._monotonic = monotonic
        self._last_now = now()
        self._last_s = monotonic()
        self._second = datetime.min.replace(tzinfo=UTC)  # of the record before, and its spelling
        self._second_text = b""
        self._heartbeat_s = heartbeat_s
        self._heartbeat_due_s = time.monotonic() + heartbeat_s
        self._retry_s = retry_s
        self._queue: list[_Sealed] = []
        self._queue_bytes = 0
        self._queue_records_max = queue_records_max
        self._dropped: Counter[str] = Counter()
        self._observer = observer
        self._lock = threading.Lock()  # guards sealing and the queue
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._failure: FailureCause | None = None
        self._failure_detail = ""
        self._torn: Torn | None = None  # moved away, not yet named by a `recovery` record
        self._closing = False
        self._pid = os.getpid()
        self.last_commit_monotonic = time.monotonic()
        self._open_run(software)
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        software: str,
        heartbeat_s: float = 60.0,
        now: Callable[[], datetime] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        queue_records_max: int = 10_000,
        retry_s: float = 5.0,
        space_floor_bytes: int = SPACE_FLOOR_BYTES,
        observer: WriterObserver | None = None,
    ) -> "Writer":
        """Lock the log, verify it whole, recover a torn tail, record `log.open`, start the thread.

        Raises:
            LogMissing: there is no log; `audit init` makes one.
            LogBusy: another writer holds the lock.
            LogBroken: the log was tampered with; it was left as it is, the text names the line.
            LogUnavailable: the disk refuses; nothing can be recorded.
        """
        opened = open_log(directory, space_floor_bytes)
        try:
            return cls(
                opened,
                software=software,
                heartbeat_s=heartbeat_s,
                now=now,
                monotonic=monotonic,
                queue_records_max=queue_records_max,
                retry_s=retry_s,
                observer=observer,
            )
        except AppendFailed as failed:
            opened.release()
            reason = _REASONS.get(failed.cause, "audit-unavailable")
            raise LogUnavailable(reason, f"`{directory}`: {failed}") from failed
        except BaseException:
            opened.release()
            raise

    @property
    def log_id(self) -> str:
        """The random id of this log, 32 hex digits."""
        return self._durable.log.decode()

    @property
    def size(self) -> int:
        """How many records are durable."""
        return self._durable.seq

    @property
    def queue_depth(self) -> int:
        """How many records wait for the disk."""
        return len(self._queue)

    @property
    def failure(self) -> str | None:
        """Why nothing can be recorded now; None means healthy."""
        if self._closing:
            return "closed"
        return f"{self._failure}: {self._failure_detail}" if self._failure else None

    async def store(self, event: Mapping[str, object]) -> Stored:
        """Record an event; durable when this returns. Cancelling the wait does not unrecord it.

        Sealing and enqueueing happen before the first await, in the caller's order.

        Raises:
            LogUnavailable: it is not recorded; `code` is the reason.
            EventRefused: the event is not one a verifier would accept; a bug of the caller.
        """
        waiter: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._enqueue(event, waiter)
        return await waiter

    def submit(self, event: Mapping[str, object]) -> None:
        """Enqueue an event and do not wait: for what already happened (outcomes).

        Raises:
            LogUnavailable, EventRefused: as `store`.
        """
        self._enqueue(event, None)

    def store_blocking(self, event: Mapping[str, object], timeout_s: float) -> Stored:
        """`store` for callers without an event loop.

        Raises: LogUnavailable, EventRefused: as `store`; also when the disk took longer than
            `timeout_s`, in which case the record may still come to be written.
        """
        waiter: BlockingFuture[Stored] = BlockingFuture()
        self._enqueue(event, waiter)
        try:
            return waiter.result(timeout_s)
        except TimeoutError as error:
            text = f"not durable within {timeout_s} s"
            raise LogUnavailable("audit-unavailable", text) from error

    def close(self) -> None:
        """Record `log.close` behind all that waits and give the lock back. Idempotent.

        Blocks until the disk has answered. In a forked child it does nothing but forget.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closing:
                return
            if self._failure is None:
                self._seal_dropped()
                self._seal({"kind": "log.close"}, None, counted=False)
            self._closing = True
        self._bell.put(None)
        self._thread.join()
        self._opened.release()

    # -- sealing: any thread, under the lock ----------------------------------------------------

    def _enqueue(
        self,
        event: Mapping[str, object],
        waiter: Waiter | None,
    ) -> None:
        if os.getpid() != self._pid:
            raise LogUnavailable(
                "audit-unavailable", "the process was forked after opening the log"
            )
        if event.get("kind") in _OWN_KINDS:
            raise EventRefused(f"`{event['kind']}` is recorded by the writer itself")
        with self._lock:
            self._refuse_if_sealed()
            self._seal(event, waiter, counted=True)
            ring, self._idle = self._idle, False
        if ring:
            self._bell.put(None)

    def _refuse_if_sealed(self) -> None:
        if self._closing:
            raise LogUnavailable("audit-unavailable", "the log is closed")
        if self._failure is not None:
            code = _REASONS.get(self._failure, "audit-unavailable")
            self._dropped[code] += 1
            raise LogUnavailable(code, self._failure_detail)
        if len(self._queue) >= self._queue_records_max or self._queue_bytes >= QUEUE_BYTES_MAX:
            self._dropped["audit-backpressure"] += 1
            raise LogUnavailable("audit-backpressure", "the queue of the audit log is full")

    def _seal(
        self,
        event: Mapping[str, object],
        waiter: Waiter | None,
        *,
        counted: bool,
    ) -> None:
        now, was, was_s = self._now(), self._last_now, self._last_s
        self._last_now, self._last_s = now, self._monotonic()
        ahead = now - was
        if ahead < _NO_TIME or (
            ahead > _STEP and ahead.total_seconds() - (self._last_s - was_s) > _STEP_S
        ):
            step = {"kind": "clock.step", "from": _text(was), "to": _text(now)}
            self._link(step, format_ts(now), None, counted=False)
        self._link(event, self._spell(now), waiter, counted=counted)

    def _spell(self, now: datetime) -> bytes:
        """`format_ts`, but most records fall into the same second as the one before."""
        since = now - self._second
        if since.days or since.seconds:
            self._second = now.replace(microsecond=0)
            self._second_text = format_ts(self._second)[:20]
            since = now - self._second
        return b"%s%06dZ" % (self._second_text, since.microseconds)

    def _link(
        self,
        event: Mapping[str, object],
        now: bytes,
        waiter: Waiter | None,
        *,
        counted: bool,
    ) -> None:
        before = self._head
        ts = max(now, before.ts)
        at = ts_place(before.seq)
        try:
            line, head = link(before, encode(event), ts)
            problem = self._judge(line, at)
        except EventRefused as refused:
            problem = str(refused)
        if problem:  # odd bytes, too long, or wrong: the slow road mends or says what is wrong
            line, head = link(before, settle(event), ts)
            problem = self._judge(line, at)
            if problem:
                raise EventRefused(problem)
        self._head = head
        self._queue.append(_Sealed(line, head, waiter, counted))
        self._queue_bytes += len(line)

    def _judge(self, line: bytes, at: int) -> str | None:
        if len(line) > LINE_BYTES_MAX:
            return "the record is too long"
        problem = self._laws.judge(line, at)
        return problem[0] if problem else None

    # -- the start of a run: before the thread exists -----------------------------------------

    def _open_run(self, software: str) -> None:
        after = "crash" if self._laws.running else "clean"
        ahead = self._head.ts > format_ts(self._last_now)
        clock_was = self._head.ts.decode()
        event = open_event(software, self._heartbeat_s, after=after)
        self._link(event, format_ts(self._last_now), None, counted=False)
        for torn in self._opened.torn:
            self._link(recovery_event("torn-tail", torn), self._head.ts, None, counted=False)
        if ahead:  # the clock went back while no writer ran
            step = {"kind": "clock.step", "from": clock_was, "to": _text(self._last_now)}
            self._link(step, self._head.ts, None, counted=False)
        group, self._queue, self._queue_bytes = self._queue, [], 0
        self._appender.append(b"".join(sealed.line for sealed in group))
        self._durable = self._head

    # -- the writer's thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except Exception as error:  # noqa: BLE001  a bug here must deny, not die unseen
            self._fail([], "internal", f"{type(error).__name__}: {error}")

    def _work(self) -> bool:
        """Write what waits, or wait for it. False when the log is closed."""
        with self._lock:
            if self._failure is None and not self._closing:
                self._seal_own()
            group = self._take()
            closing = self._closing
            self._idle = not (group or closing)
        if group:
            self._commit(group)
            return True
        if closing:
            self._end()
            return False
        healthy = self._failure is None
        wait_s = self._heartbeat_due_s - time.monotonic() if healthy else self._retry_s
        with suppress(Empty):
            self._bell.get(timeout=max(0.001, wait_s))
        if self._failure in RECOVERABLE and not self._closing:
            self._recover(use_reserve=False)
        return True

    def _take(self) -> list[_Sealed]:
        group, self._queue, self._queue_bytes = self._queue, [], 0
        return group

    def _seal_own(self) -> None:
        """Under the lock: the heartbeat when it is due, and the count of what was refused."""
        if time.monotonic() >= self._heartbeat_due_s:
            self._heartbeat_due_s = time.monotonic() + self._heartbeat_s
            self._seal({"kind": "heartbeat"}, None, counted=False)
        if self._dropped and not self._queue:
            self._seal_dropped()

    def _seal_dropped(self) -> Counter[str]:
        """Under the lock: say how many were refused since this was last said."""
        dropped, self._dropped = self._dropped, Counter()
        for reason, count in sorted(dropped.items()):
            event = {"kind": "dropped", "n": count, "reason": reason}
            self._seal(event, None, counted=False)
        return dropped

    def _commit(self, group: list[_Sealed]) -> None:
        started_s = time.monotonic()
        try:
            data = b"".join([sealed.line for sealed in group])
            self._appender.append(data, use_reserve=self._closing)
        except AppendFailed as failed:
            self._fail(group, failed.cause, str(failed))
            return
        except Exception as error:  # a bug of ours: who waits for this group must not wait for ever
            self._fail(group, "internal", f"{type(error).__name__}: {error}")
            raise
        self._durable = group[-1].head
        self.last_commit_monotonic = time.monotonic()
        answer([(sealed.waiter, sealed.head) for sealed in group], None)
        self._tell(lambda to: to.committed(len(group), self.last_commit_monotonic - started_s))

    def _fail(self, group: list[_Sealed], cause: FailureCause, detail: str) -> None:
        """Refuse everything from now on, first what waits; the chain goes back to the disk's."""
        code = _REASONS.get(cause, "audit-unavailable")
        with self._lock:
            news = cause != self._failure
            self._failure, self._failure_detail = cause, detail
            lost = group + self._take()
            self._dropped[code] += sum(sealed.counted for sealed in lost)
            self._head = self._durable
            self._laws.rewind(self._durable.ts, (sealed.line for sealed in lost))
        if news:
            self._tell(lambda to: to.failed(cause))
        answer([(sealed.waiter, sealed.head) for sealed in lost], LogUnavailable(code, detail))

    def _recover(self, *, use_reserve: bool) -> bool:
        """After a full disk: move the unacknowledged away, say so, go on. False: not yet."""
        dropped: Counter[str] = Counter()
        try:
            if not use_reserve and not self._appender.has_space():
                return False
            self._torn = self._appender.salvage(self._durable.seq) or self._torn
            with self._lock:
                self._seal(recovery_event("disk-full", self._torn), None, counted=False)
                dropped = self._seal_dropped()
                group = self._take()
            data = b"".join([sealed.line for sealed in group])
            self._appender.append(data, use_reserve=use_reserve)
        except AppendFailed as failed:
            with self._lock:
                self._dropped += dropped
            self._fail([], failed.cause, str(failed))
            return False
        with self._lock:
            self._durable = group[-1].head
            self._failure = self._torn = None
        self._tell(lambda to: to.recovered(dropped.total()))
        return True

    def _end(self) -> None:
        """A log that can still be written gets its `log.close`, from the reserve if need be."""
        if self._failure in RECOVERABLE and self._recover(use_reserve=True):
            with self._lock:
                self._seal({"kind": "log.close"}, None, counted=False)
                group = self._take()
            self._commit(group)

    def _tell(self, message: Callable[[WriterObserver], None]) -> None:
        if self._observer is not None:
            with suppress(BaseException):  # an observer counts; it must not stop the record
                message(self._observer)


def _text(now: datetime) -> str:
    return format_ts(now).decode()
