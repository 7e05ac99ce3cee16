"""What a log says was spent, summed without any of our code: `python sum_log.py LOG`.

Prints {account: {unit: spent}}, each period of an account by its own name: what outcomes settled,
and in full what was held by requests of an ended run that have no outcome. Assumes a log that
verifies; what a change of the window carries over into another name is not carried here.
"""

import json
import sys
from pathlib import Path


def sum_log(folder: Path) -> dict[str, dict[str, int]]:
    """By account and unit."""
    spent: dict[str, dict[str, int]] = {}
    held: dict[str, list[dict[str, object]]] = {}

    def book(entries: list[dict[str, object]]) -> None:
        for one in entries:
            units = spent.setdefault(str(one["account"]), {})
            unit, amount = str(one["unit"]), int(str(one["amount"]))
            units[unit] = units.get(unit, 0) + amount

    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"}\n"):
                break  # a torn tail
            event = json.loads(line)["event"]
            if event["kind"] in ("decision", "reserve"):
                held.setdefault(event.get("ref") or event["id"], []).extend(event["reserve"])
            elif event["kind"] == "outcome":
                held.pop(event["ref"], None)
                book(event["settle"])
            elif event["kind"] in ("log.open", "log.close"):
                for entries in held.values():
                    book(entries)
                held.clear()
    return spent


if __name__ == "__main__":
    print(json.dumps(sum_log(Path(sys.argv[1]))))
