"""Are the three rooms ours? The guard in front of every command.

`proxy`, `policies` and `audit` are top-level packages with common names (docs/adr: generic names).
A published distribution, `proxy.py`, installs a package `proxy` too; installing it over ours merges
both folders silently, and a security boundary would run a stranger's file. So before anything else:

Rule 1: no other distribution may own a room, whether or not its files are the ones imported.
Rule 2: all rooms lie in one folder: half of an older copy is not ours either.

It reads the installed file lists as text: `importlib.metadata.packages_distributions` parses every
line of every list, which takes four times as long at each start of the command.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOMS = ("proxy", "policies", "audit")
DISTRIBUTION = "tollkeeper"


class RoomsForeign(RuntimeError):  # noqa: N818  named after the failure
    """A room is not, or not only, ours; nothing may start. The text says what to do."""


def check_rooms(
    installed: Iterable[Distribution] | None = None, homes: Mapping[str, Path] | None = None
) -> None:
    """Refuse to go on unless every room is ours alone.

    `installed` and `homes` (folder that holds each room) are looked up unless given.

    Raises:
        RoomsForeign: names the room, who else claims it, and the remedy.
    """
    for distribution in distributions() if installed is None else installed:
        for room in _claimed(distribution):
            name = distribution.metadata["Name"] or "an unnamed one"
            if name.lower() == DISTRIBUTION:
                break
            raise RoomsForeign(
                f"the distribution `{name}` installs a package `{room}` too, so files may be mixed;"
                " install tollkeeper in an environment of its own (container, pipx, uv tool)"
            )
    found = _locate() if homes is None else homes
    for room in ROOMS:
        if found[room] != found["audit"]:
            raise RoomsForeign(
                f"`{room}` is imported from {found[room]}, `audit` from {found['audit']};"
                " remove the stray copy, or install tollkeeper in an environment of its own"
            )


def _claimed(distribution: Distribution) -> list[str]:
    """The rooms that a distribution has files in, by its list of files or of packages."""
    files = distribution.read_text("RECORD")
    if files is not None:
        return [room for room in ROOMS if files.startswith(f"{room}/") or f"\n{room}/" in files]
    packages = (distribution.read_text("top_level.txt") or "").split()
    return [room for room in ROOMS if room in packages]


def _locate() -> dict[str, Path]:
    return {room: Path(import_module(room).__file__ or "").resolve().parents[1] for room in ROOMS}
