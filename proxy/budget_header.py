"""What an agent may know of its own budgets: the header of an allowed answer, and a table. PURE.

    Tollkeeper-Budget: "daily";requests=989;bytes_out=49999000;reset=86123, "life";steps=400

A list of RFC 9651: one string per budget, one parameter per unit with what is left of it, and
`reset`, the seconds until the next period, where there is one.

Rule 1: the input is what the agent's own accounts have left. No other name can get in.
Rule 2: the size is bounded. Of many budgets those that are nearest to their end are told.
"""

import re
from collections.abc import Iterable

from policies.budget import UNITS, Left

BUDGET_HEADER = "Tollkeeper-Budget"
BUDGETS_MAX = 16  # told at once: some 4 KB at most, which every client reads
NUMBER_MAX = 999_999_999_999_999  # the largest integer of RFC 9651 section 3.3.1

_STRING = re.compile(r"[ -~]{1,64}")  # RFC 9651 section 3.3.3, and no id is longer


def format_budget(left: tuple[Left, ...], now_ms: int) -> str:
    """The value of `Tollkeeper-Budget`; "" where there is no budget, and no field is sent.

    `left` is what is available behind the reserve, `now_ms` the ledger's clock. More than
    NUMBER_MAX is told as NUMBER_MAX.
    """
    items = []
    for budget, units in gather(left).items():
        text = budget.replace("\\", "\\\\").replace('"', '\\"')
        amounts = [f";{unit}={min(amount, NUMBER_MAX)}" for unit, amount in units.items()]
        ends = [one.until_ms for one in left if one.budget == budget and one.until_ms]
        if ends:
            # rounded up: whoever comes back then finds the new period
            rest_s = max(0, -(-(min(ends) - now_ms) // 1000))
            amounts.append(f";reset={min(rest_s, NUMBER_MAX)}")
        items.append(f'"{text}"{"".join(amounts)}')
    return ", ".join(items)


def gather(left: Iterable[Left]) -> dict[str, dict[str, int]]:
    """What is available by budget and unit, in the order given, never negative.

    Of two accounts of one budget (it was `each: agent`, and is `each: session` now) the smaller
    rest counts. What is neither a name nor a unit is left out; of more than BUDGETS_MAX budgets,
    those with the largest share left.
    """
    found: dict[str, dict[str, int]] = {}
    shares: dict[str, int] = {}
    for one in left:
        if one.unit not in UNITS or not _STRING.fullmatch(one.budget):
            continue
        available = max(0, one.available)
        units = found.setdefault(one.budget, {})
        units[one.unit] = min(available, units.get(one.unit, available))
        share = available * 1000 // one.limit if one.limit > 0 else 0
        shares[one.budget] = min(share, shares.get(one.budget, share))
    kept = set(sorted(found, key=lambda budget: shares[budget])[:BUDGETS_MAX])
    return {budget: units for budget, units in found.items() if budget in kept}
