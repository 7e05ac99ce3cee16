"""A running server whose faults are switched on and off from outside (the other side of faulty.py),
and its log, read as it grows.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kit.faulty import FAULTS
from tests.kit.proxy import Proxy

Event = dict[str, Any]


class FaultyProxy(Proxy):
    """`python -m tests.kit.faulty WISHES -m proxy serve ...`."""

    def __init__(
        self,
        folder: Path,
        policy: Path,
        *options: str,
        resolve: Sequence[str] = (),
        upstream_ca: Path | None = None,
        wishes: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        shell: str = "",
    ) -> None:
        self.faults = folder / "faults"
        launch = [sys.executable, "-m", "tests.kit.faulty", *wishes]
        if shell:  # a limit that only the server is to have
            launch = ["/bin/sh", "-c", f'{shell}; exec "$0" "$@"', *launch]
        super().__init__(
            folder,
            policy,
            *options,
            resolve=resolve,
            upstream_ca=upstream_ca,
            env={**(env or {}), FAULTS: str(self.faults)},
            python=launch,
        )
        self.journal = Journal(self.state / "log")

    @contextlib.contextmanager
    def fault(self, *faults: str) -> Iterator[None]:
        """Switch `where:what` on, for a while."""
        hits = self.hits
        waiting = self.faults.with_suffix(".new")
        waiting.write_text("\n".join(faults), encoding="ascii")
        waiting.replace(self.faults)
        hits.unlink(missing_ok=True)
        try:
            yield
        finally:
            self.faults.unlink()

    @property
    def hits(self) -> Path:
        """What has struck since the last `fault` began."""
        return self.faults.with_name(f"{self.faults.name}.hits")

    @property
    def struck(self) -> list[str]:
        """The faults that happened, once for each time."""
        try:
            return self.hits.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return []


class Journal:
    """The events of a log folder, in order; each byte is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._events: list[Event] = []

    @property
    def events(self) -> list[Event]:
        """All that is on disk now."""
        for segment in sorted(self._folder.glob("*.jsonl")):
            with segment.open("rb") as lines:
                lines.seek(self._read.get(segment, 0))
                data = lines.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[segment] = self._read.get(segment, 0) + len(whole)
            self._events += [json.loads(line)["event"] for line in whole.splitlines()]
        return self._events

    def wait(self, since: int, path: str, kind: str, timeout_s: float = 8.0) -> list[Event]:
        """The events after number `since`, once the one of this kind for this path is there."""
        until = time.monotonic() + timeout_s
        while True:
            events = self.events[since:]
            ids = {e["id"] for e in events if e.get("target", {}).get("path") == path}
            for event in events:
                if event["kind"] == kind and (event.get("ref") or event.get("id")) in ids:
                    return events
            if time.monotonic() > until:
                raise AssertionError(f"no {kind} for {path} among {events}")
            time.sleep(0.005)
