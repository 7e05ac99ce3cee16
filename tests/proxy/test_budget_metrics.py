"""What is shown of budgets and agents' states, and where it comes from."""

from collections.abc import Callable

import pytest

from policies.budget import UNITS, Account, Contract, State, Term
from policies.ledger import Book, Standing
from proxy.metrics import Metrics
from tests.kit.prometheus import check

DAY_MS = 86_400_000
NOW_MS = 20_777 * DAY_MS + 5_000


def account(budget: str = "daily", session: str = "", **changes: object) -> Account:
    terms = {"requests": Term(10, 10), "bytes_out": Term(1000, 1000), "wall_time": Term(9000, 9000)}
    contract = Contract(terms, window_ms=DAY_MS)
    made = Account(budget, "coder", session, contract, from_ms=NOW_MS // DAY_MS * DAY_MS)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def show(*accounts: Account, now_ms: int = NOW_MS, **standings: Standing) -> Metrics:
    metrics = Metrics()
    metrics.show_policy("ab" * 32, 1, agents=["coder", "idle"], rules=[])
    book = Book({one.base: one for one in accounts}, standings)
    metrics.watch_book(lambda: book, lambda: now_ms)
    return metrics


def read(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tollkeeper_{name}", labels)


def budget(metrics: Metrics, unit: str, name: str = "daily/coder") -> list[float | None]:
    return [
        read(metrics, f"budget_{word}", account=name, unit=unit)
        for word in ("limit", "spent_total", "held", "remaining")
    ]


def test_an_account_is_shown_unit_by_unit() -> None:
    metrics = show(account(spent={"requests": 3}, held={"requests": 2, "bytes_out": 256}))
    assert budget(metrics, "requests") == [10, 3, 2, 5]
    assert budget(metrics, "bytes_out") == [1000, 0, 256, 744]
    assert budget(metrics, "wall_time") == [9000, 0, 0, 9000]


def test_wall_time_passes_while_nobody_asks() -> None:
    metrics = show(account(first_ms=NOW_MS - 4000))
    assert budget(metrics, "wall_time") == [9000, 4000, 0, 5000]


def test_a_period_that_is_over_counts_as_over() -> None:
    spent = account(spent={"requests": 10}, first_ms=NOW_MS)
    metrics = show(spent, now_ms=NOW_MS + DAY_MS)
    assert budget(metrics, "requests") == [10, 0, 0, 10]
    assert budget(metrics, "wall_time") == [9000, 0, 0, 9000]
    assert spent.spent == {"requests": 10}  # the book is only read


def test_a_limit_that_is_gone_leaves_what_was_spent() -> None:
    metrics = show(account(contract=Contract(), spent={"steps": 7}))
    assert budget(metrics, "steps") == [None, 7, 0, None]


def test_sessions_have_accounts_of_their_own_and_periods_do_not() -> None:
    metrics = show(account("task", "s1"), account("task", "s2"))
    text = metrics.exposition().decode()
    assert budget(metrics, "requests", "task/coder/s2") == [10, 0, 0, 10]
    assert "@" not in text


def test_every_agent_is_in_exactly_one_state() -> None:
    metrics = show(coder=Standing(State.QUARANTINED, "x"), gone=Standing(State.HALTED, "y"))
    for agent, current in {"coder": "quarantined", "gone": "halted", "idle": "active"}.items():
        for state in State:
            found = read(metrics, "agent_state", agent=agent, state=state.word)
            assert found == (state.word == current), (agent, state)


def test_what_ran_out_is_counted_from_0_on() -> None:
    metrics = show(account())
    metrics.exposition()
    labels = {"account": "daily/coder", "unit": "requests"}
    assert read(metrics, "budget_exhausted_total", **labels) == 0
    metrics.count_exhausted("daily/coder", "requests")
    assert read(metrics, "budget_exhausted_total", **labels) == 1


def test_accounts_that_ran_out_are_bounded() -> None:
    metrics = show()
    for number in range(10_050):
        metrics.count_exhausted(f"b/coder/{number}", "steps")
    metrics.count_exhausted("b/coder\n", "steps")
    (family,) = (f for f in metrics.registry.collect() if f.name == "tollkeeper_budget_exhausted")
    assert len(family.samples) == 10_001
    assert read(metrics, "budget_exhausted_total", account="other", unit="steps") == 51


@pytest.mark.parametrize("account_name", ["b/stranger", "coder", "b/c/coder", "", "b/coder/s/t"])
def test_what_is_no_account_is_other(account_name: str) -> None:
    metrics = show()
    metrics.count_exhausted(account_name, "steps")
    assert read(metrics, "budget_exhausted_total", account="other", unit="steps") == 1


def test_an_account_of_an_agent_that_is_gone_keeps_its_name() -> None:
    metrics = show(Account("daily", "gone", "", Contract({"steps": Term(1, 1)})))
    metrics.exposition()
    metrics.count_exhausted("daily/gone", "steps")
    assert read(metrics, "budget_exhausted_total", account="daily/gone", unit="steps") == 1


def test_steps_and_halts_are_counted_from_0_on() -> None:
    metrics = show()
    assert read(metrics, "steps_total", agent="coder") == 0
    assert read(metrics, "halts_total", reason="operator") == 0
    metrics.count_steps("coder", 3)
    metrics.count_steps("stranger", 2)
    metrics.count_halt("budget")
    metrics.count_halt("boredom")
    assert read(metrics, "steps_total", agent="coder") == 3
    assert read(metrics, "steps_total", agent="unidentified") == 2
    assert read(metrics, "halts_total", reason="budget") == 1
    assert read(metrics, "halts_total", reason="other") == 1


BROKEN: dict[str, tuple[Callable[[], Book | None], Callable[[], int], int]] = {
    "no book yet": (lambda: None, lambda: 0, 0),
    "no book can be read": (lambda: Book(1 // 0), lambda: 0, 1),  # type: ignore[arg-type]  # raises
    "no clock": (Book, lambda: 1 // 0, 1),
}


@pytest.mark.parametrize(("read_book", "now_ms", "failures"), BROKEN.values(), ids=BROKEN)
def test_without_a_book_everything_else_is_shown(
    read_book: Callable[[], Book | None], now_ms: Callable[[], int], failures: int
) -> None:
    metrics = Metrics()
    metrics.watch_book(read_book, now_ms)
    text = metrics.exposition().decode()
    assert metrics.failures == failures
    assert "tollkeeper_budget_limit" not in text
    assert "tollkeeper_agent_state" not in text
    assert "tollkeeper_build_info" in text


def test_promtool_finds_nothing_to_complain_about() -> None:
    """HELP, TYPE, units and suffixes, by Prometheus' own linter (Debian package prometheus)."""
    metrics = show(account(spent=dict.fromkeys(UNITS, 1)), coder=Standing(State.WARNED))
    metrics.count_request("coder", "deny", "budget-exhausted")
    metrics.count_exhausted("daily/coder", "requests")
    assert check("check", "metrics", given=metrics.exposition().decode()) == (0, "")
