"""Every error has one reason code, and each code is a documented denial."""

import asyncio

import pytest

from audit.record import EventRefused
from audit.writer import LogUnavailable
from policies.ledger import LedgerUnavailable
from policies.model import ContractBroken
from policies.reasons import REASONS
from proxy.fault import NOT_RECORDED, LogSlow, explain_fault

CASES: dict[str, tuple[BaseException, str]] = {
    "the log says why": (LogUnavailable("audit-disk-full", "x"), "audit-disk-full"),
    "the log is slow": (LogSlow("x"), "audit-unavailable"),
    "the ledger": (LedgerUnavailable("x"), "ledger-unavailable"),
    "a deadline": (TimeoutError(), "deadline-exceeded"),
    "an invariant": (ContractBroken("x"), "contract-broken"),
    "an event no log takes": (EventRefused("x"), "internal-error"),
    "a bug": (KeyError("x"), "internal-error"),
    "memory": (MemoryError(), "internal-error"),
    "a cancellation": (asyncio.CancelledError(), "internal-error"),
    "an interrupt": (KeyboardInterrupt(), "internal-error"),
}


@pytest.mark.parametrize(("error", "reason"), CASES.values(), ids=CASES)
def test_an_error_becomes_a_denial_that_is_documented(error: BaseException, reason: str) -> None:
    assert explain_fault(error) == reason
    assert REASONS[reason].status == 403


def test_only_the_log_itself_can_say_that_there_is_no_record() -> None:
    assert isinstance(LogUnavailable("audit-unavailable", "x"), NOT_RECORDED)
    assert isinstance(EventRefused("x"), NOT_RECORDED)
    assert not isinstance(LogSlow("x"), NOT_RECORDED)
