"""Every exception has a reason, and every reason that an exception has denies."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.writer import LogUnavailable
from policies.ledger import LedgerUnavailable
from policies.model import ContractBroken
from policies.reasons import REASONS
from proxy.fault import LogSlow, explain_fault

CASES = {
    "a slow log": (LogSlow(), "audit-unavailable"),
    "a ledger that is away": (LedgerUnavailable(), "ledger-unavailable"),
    "a missed deadline": (TimeoutError(), "deadline-exceeded"),
    "a broken invariant": (ContractBroken("L1"), "contract-broken"),
    "a bug": (KeyError("x"), "internal-error"),
    "out of memory": (MemoryError(), "internal-error"),
    "a cancelled task": (asyncio.CancelledError(), "internal-error"),
    "a generator that is closed": (GeneratorExit(), "internal-error"),
}


KINDS = [
    kind
    for kind in BaseException.__subclasses__() + Exception.__subclasses__()
    if not issubclass(kind, BaseExceptionGroup | LogUnavailable)  # made with arguments only
]


@pytest.mark.parametrize(("error", "reason"), CASES.values(), ids=CASES)
def test_an_exception_becomes_a_reason(error: BaseException, reason: str) -> None:
    assert explain_fault(error) == reason


@pytest.mark.parametrize("code", [code for code in REASONS if code.startswith("audit-")])
def test_the_log_names_its_own_reason(code: str) -> None:
    assert explain_fault(LogUnavailable(code, "")) == code


@given(st.sampled_from(KINDS))
def test_whatever_it_is_the_reason_is_one_that_denies(kind: type[BaseException]) -> None:
    assert REASONS[explain_fault(kind.__new__(kind))].status == 403
