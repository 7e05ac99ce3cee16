"""A fresh log and writers that are closed again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.writer import Writer, create_log, wall_clock

type OpenWriter = Callable[..., Writer]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log folder as `audit init` makes it."""
    folder = tmp_path / "log"
    create_log(folder, software="test/1", now=wall_clock())
    return folder


@pytest.fixture
def open_writer(log: Path) -> Iterator[OpenWriter]:
    """Opens the log (or another folder); whatever is still open is closed in the end."""
    writers: list[Writer] = []

    def open_it(folder: Path = log, **settings: Any) -> Writer:
        writers.append(Writer.open(folder, software="test/1", **settings))
        return writers[-1]

    yield open_it
    for writer in writers:
        writer.close()
