"""What went wrong inside, as a reason code: the one way from an exception to a denial. PURE.

Whatever is not listed is `internal-error`: a bug denies like an outage, and the log has its
traceback.
"""

import asyncio

from audit.writer import EventRefused, LogUnavailable
from policies.ledger import LedgerUnavailable
from policies.model import ContractBroken

# What code that does not wait may raise, and what must not get past it: everything but the signals
# that end the process. There, CancelledError and GeneratorExit are faults like any other (A4).
ANY_FAULT = (Exception, asyncio.CancelledError, GeneratorExit)
NOT_RECORDED = (LogUnavailable, EventRefused)  # with these the log says that there is no record


class LogSlow(RuntimeError):  # noqa: N818  named after the failure
    """The record was not durable in time; it may still become so, and then has its outcome."""


def explain_fault(error: BaseException) -> str:
    """The code of policies/reasons.py for an error of a decision. Total."""
    match error:
        case LogUnavailable():
            return error.code
        case LogSlow():
            return "audit-unavailable"
        case LedgerUnavailable():
            return "ledger-unavailable"
        case TimeoutError():
            return "deadline-exceeded"
        case ContractBroken():
            return "contract-broken"
        case _:
            return "internal-error"
