"""Records that no request waits for: stored with patience, or handed over and counted."""

from audit.writer import LogUnavailable
from proxy.deadline import within
from proxy.metrics import Metrics
from proxy.recording import AuditEvent, Recorder

_RECORD_S = 10.0  # a person, a reload or nobody waits


async def store_patiently(recorder: Recorder, event: AuditEvent) -> None:
    """Durable when it returns.

    Raises:
        LogUnavailable: it is not, or nobody knows.
    """
    try:
        await within(_RECORD_S, recorder.store(event))
    except TimeoutError:
        text = f"not durable within {_RECORD_S} s"
        raise LogUnavailable("audit-unavailable", text) from None


def submit_counted(recorder: Recorder, metrics: Metrics, event: AuditEvent) -> None:
    """Queued and counted; what the log does not take is counted as that, and told by the log
    itself once it works again.

    Raises:
        EventRefused: no log takes it.
    """
    try:
        recorder.submit(event)
    except LogUnavailable as error:
        code = error.code
        metrics.safely(lambda m: m.failed(code))
    else:
        metrics.safely(lambda m: m.count_record(str(event["kind"])))
