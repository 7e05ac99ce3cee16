"""Files on disk: includes, and what is unreadable rather than wrong."""

import os
from pathlib import Path

import pytest

from policies.sources import PolicyUnreadable, load_file, load_text


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "main.yaml"


def test_includes_are_read_once_each_in_the_order_met(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        main="include: [a.yaml, sub/b.yaml, ./a.yaml]",
        a="include: sub/b.yaml",
        sub__b="include: c.yaml",
        sub__c="{}",
    )
    loaded = load_file(main)
    assert [Path(one.name).name for one in loaded.sources] == [
        "main.yaml",
        "a.yaml",
        "b.yaml",
        "c.yaml",
    ]
    assert loaded.findings == ()


REFUSED = {
    "absolute": ("/etc/passwd", "not a relative path"),
    "address": ("https://example.com/p.yaml", "not a relative path"),
    "other system": ("a\\\\b.yaml", "not a relative path"),
    "above": ("../x.yaml", "leaves the folder of this file"),
    "above in the middle": ("a/../../x.yaml", "leaves the folder of this file"),
    "nothing": ("", "not a relative path"),
    "itself": ("main.yaml", "includes itself: `main.yaml` -> `main.yaml`"),
    "itself in other words": ("./main.yaml", "includes itself: `main.yaml` -> `main.yaml`"),
}


@pytest.mark.parametrize(("target", "problem"), REFUSED.values(), ids=REFUSED)
def test_an_include_is_refused(tmp_path: Path, target: str, problem: str) -> None:
    main = write(tmp_path, main=f'version: 1\ninclude: "{target}"\n')
    findings = load_file(main).findings
    assert [(one.code, one.line, one.column) for one in findings] == [("AP007", 2, 10)]
    assert problem in findings[0].message


def test_a_circle_of_includes_is_named(tmp_path: Path) -> None:
    main = write(tmp_path, main="include: a.yaml", a="include: b.yaml", b="include: a.yaml")
    findings = load_file(main).findings
    assert [one.message for one in findings] == [
        "include `a.yaml`: includes itself: `a.yaml` -> `b.yaml` -> `a.yaml`"
    ]
    assert findings[0].file.endswith("b.yaml")


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(300)]
    main = write(
        tmp_path,
        main=f"include: [{', '.join(n + '.yaml' for n in names)}]",
        **dict.fromkeys(names, "{}"),
    )
    loaded = load_file(main)
    assert len(loaded.sources) == 256
    assert "more than 256 files" in loaded.findings[0].message


def test_text_that_is_in_no_file_includes_nothing() -> None:
    findings = load_text("include: a.yaml", "p.yaml").findings
    assert "not in a file" in findings[0].message


def test_links_are_followed_as_a_config_map_needs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", main="include: a.yaml", a="{}")
    for name in ("main.yaml", "a.yaml"):
        (tmp_path / name).symlink_to(tmp_path / "data" / name)
    assert len(load_file(tmp_path / "main.yaml").sources) == 2


def test_what_cannot_be_read_is_unreadable_and_not_a_finding(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (tmp_path / "wide.yaml").write_bytes("name: x\n".encode("utf-16"))
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    write(tmp_path, main="include: missing.yaml")
    causes = {
        "latin": "not UTF-8 (byte 9)",
        "wide": "not UTF-8 (byte 0)",
        "folder": "not a regular file",
        "pipe": "not a regular file",
        "loop": "too many levels of symbolic links",
        "none": "no such file or directory",
        "nul\0": "not a file name",
    }
    for name, cause in causes.items():
        with pytest.raises(PolicyUnreadable) as caught:
            load_file(tmp_path / f"{name}.yaml")
        assert caught.value.cause == cause
    with pytest.raises(PolicyUnreadable) as caught:
        load_file(tmp_path / "main.yaml")
    assert caught.value.file.endswith("missing.yaml")
