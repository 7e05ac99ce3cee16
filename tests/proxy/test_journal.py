"""Records that no request waits for."""

import asyncio
from typing import Any

import pytest

from audit.writer import EventRefused, LogUnavailable
from proxy import journal
from proxy.journal import store_patiently, submit_counted
from proxy.metrics import Metrics
from tests.kit.recorder import Fault, MemoryRecorder

EVENT = {"kind": "alert", "cause": "x"}


class Hanging(MemoryRecorder):
    """Its disk does not answer."""

    async def store(self, _event: Any) -> Any:
        await asyncio.Event().wait()


async def test_what_is_stored_is_durable() -> None:
    recorder = MemoryRecorder()
    await store_patiently(recorder, EVENT)
    assert recorder.of("alert") == [EVENT]


async def test_a_log_that_hangs_is_unavailable_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_RECORD_S", 0.01)
    with pytest.raises(LogUnavailable, match="not durable within"):
        await store_patiently(Hanging(), EVENT)


def test_what_is_handed_over_is_counted_and_so_is_what_the_log_refuses() -> None:
    recorder, metrics = MemoryRecorder(), Metrics()
    submit_counted(recorder, metrics, EVENT)
    recorder.faults["alert"] = Fault(LogUnavailable("audit-disk-full", "x"))
    submit_counted(recorder, metrics, EVENT)
    text = metrics.exposition().decode()
    assert 'tollkeeper_audit_records_total{kind="alert"} 1.0' in text
    assert 'tollkeeper_audit_failures_total{cause="audit-disk-full"} 1.0' in text


def test_an_event_that_no_log_takes_is_a_bug_that_is_told() -> None:
    recorder = MemoryRecorder()
    recorder.faults["alert"] = Fault(EventRefused("x"))
    with pytest.raises(EventRefused):
        submit_counted(recorder, Metrics(), EVENT)
