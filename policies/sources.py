"""Policy files on disk: the main file and everything it includes, read once each.

Rule 1: an include is relative and stays, by name, at or below the folder of the file that includes
        it. Symbolic links are followed: a Kubernetes ConfigMap is a folder of links, and who may
        make one there may write the policy.
Rule 2: a file that is missing, irregular, unreadable or not UTF-8 is `PolicyUnreadable`; all else
        is a Finding.
Rule 3: includes have no circle (a Finding); a file reached twice is read once.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from policies.findings import arrange, find
from policies.load import FILE_BYTES_MAX, parse
from policies.model import Finding
from policies.node import Node

FILES_MAX = 256


class PolicyUnreadable(OSError):  # noqa: N818  named after the failure (house.md section 4)
    """A policy file is missing, unreadable or not UTF-8: exit 2, as opposed to findings."""

    def __init__(self, file: str, cause: str) -> None:
        super().__init__(f"cannot read `{file}`: {cause}")
        self.file = file
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Source:
    """One file that was read. `root` is None where the file is not YAML at all."""

    name: str  # as findings print it
    text: str
    root: Node | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The main file first, then every included file once, in the order met."""

    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]


def load_file(path: Path) -> Loaded:
    """Read `path` and everything it includes.

    Raises:
        PolicyUnreadable: a file is missing, not a regular file, unreadable or not UTF-8.
    """
    return _load(str(path), _read(path), path.parent)


def load_text(text: str, file: str = "policies.yaml") -> Loaded:
    """Like `load_file` for text that is in no file; `include:` is then a finding."""
    return _load(file, text, None)


def _read(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PolicyUnreadable(str(path), "not a regular file")
        with path.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(error.object) > FILE_BYTES_MAX:  # cut in the middle of a character; reported by size
            return error.object[: error.start].decode("utf-8", "replace")
        raise PolicyUnreadable(str(path), f"not UTF-8 (byte {error.start})") from None
    except OSError as error:
        if isinstance(error, PolicyUnreadable):
            raise
        raise PolicyUnreadable(str(path), (error.strerror or "unreadable").lower()) from None
    except ValueError:  # a NUL in the name
        raise PolicyUnreadable(str(path), "not a file name") from None


def _load(name: str, text: str, folder: Path | None) -> Loaded:
    sources: dict[str, Source] = {}
    findings: list[Finding] = []
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(name, text, (os.path.normpath(name),))]
    while waiting:
        name, text, trail = waiting.pop(0)
        root, problems = parse(text, name)
        findings += problems
        sources[trail[-1]] = Source(name, text, root)
        for node in _includes(root):
            target = _target(node, name, trail, folder is not None)
            if isinstance(target, Finding):
                findings.append(target)
            elif (
                os.path.normpath(target) not in sources and len(sources) + len(waiting) < FILES_MAX
            ):
                key = os.path.normpath(target)
                if all(key != other[2][-1] for other in waiting):
                    waiting.append((target, _read(Path(target)), (*trail, key)))
            elif os.path.normpath(target) not in sources:
                findings.append(_shape(node, name, f"more than {FILES_MAX} files", "merge some"))
    return Loaded(tuple(sources.values()), arrange(findings))


def _includes(root: Node | None) -> list[Node]:
    node = root.get("include") if root else None
    return [item for item in node.texts() if item.kind == "str"] if node else []


def _shape(node: Node, name: str, problem: str, hint: str) -> Finding:
    message = f"include `{node.text}`: {problem}"
    return find("AP007", name, (node.line, node.column), message, hint)


def _target(node: Node, name: str, trail: tuple[str, ...], on_disk: bool) -> str | Finding:
    """The path of an included file, or why it may not be included."""
    parts = PurePosixPath(node.text)
    if not on_disk:
        return _shape(node, name, "this text is not in a file", "put it into a file first")
    if not node.text or parts.is_absolute() or "\\" in node.text or ":" in node.text:
        return _shape(node, name, "not a relative path", "name a file beside or below this one")
    if ".." in parts.parts:
        return _shape(
            node, name, "leaves the folder of this file", "name a file beside or below this one"
        )
    target = str(Path(name).parent / parts)
    if os.path.normpath(target) in trail:
        circle = trail[trail.index(os.path.normpath(target)) :]
        steps = " -> ".join(f"`{Path(step).name}`" for step in (*circle, circle[0]))
        return _shape(node, name, f"includes itself: {steps}", "remove one of these includes")
    return target
