"""The wall clock of one process, set by a test while it runs: Debian's libfaketime.

    clock = WallClock(tmp_path / "clock")
    Proxy(..., env=clock.environment)
    clock.shift(days=-1); clock.set("1970-01-01 00:10:00"); clock.restore()

Only `CLOCK_REALTIME` is moved, as on a machine whose clock is set: with DONT_FAKE_MONOTONIC
libfaketime leaves `CLOCK_BOOTTIME` alone as well, which `probe` shows.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDERS = ("/usr/lib", "/usr/local/lib")
_PROBE = """
import sys, time
from pathlib import Path
read = lambda: [time.clock_gettime(c) for c in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]
before = read()
Path(sys.argv[1]).write_text("-1d")
print([b - a for a, b in zip(before, read())])
"""  # noqa: E501


class WallClock:
    """Make one before the process; fails the test, aloud, where libfaketime is missing."""

    def __init__(self, path: Path, *, zone: str = "UTC") -> None:
        self._path = path
        found = [one for folder in _FOLDERS for one in Path(folder).glob("**/libfaketimeMT.so.1")]
        if not found:
            pytest.fail("libfaketime is missing: `apt-get install libfaketime` (.ci/setup-clients)")
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "NO_FAKE_STAT": "1",
            "TZ": zone,
        }
        self.restore()

    def probe(self) -> tuple[float, float, float]:
        """What a step of -1 day does to wall, monotonic and boot time of a process, in seconds."""
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, str(self._path)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        self.restore()
        wall, monotonic, boot = ast.literal_eval(done.stdout)
        return wall, monotonic, boot

    def shift(self, seconds: float = 0, *, days: int = 0) -> None:
        """So much from the true time on."""
        self._write(f"{seconds + days * 86_400:+f}")

    def set(self, moment: str) -> None:
        """`2026-03-29 01:59:58`, in the zone of the process; it goes on from there."""
        self._write(f"@{moment}")

    def restore(self) -> None:
        """The true time."""
        self._write("+0")

    def _write(self, text: str) -> None:
        waiting = self._path.with_suffix(".new")
        waiting.write_text(text, encoding="ascii")
        waiting.replace(self._path)  # never half of it
