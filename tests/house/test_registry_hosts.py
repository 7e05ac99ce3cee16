"""No file names the host of a package registry: where packages come from is the machine's business.

A machine behind a mirror must be able to build this checkout as it is; a lock file that carries an
address would send it elsewhere. The names are put together here, or this file would name them.
"""

from tests.house.tree import files, name_of

HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pypi", "python", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("npmjs", "com"),
        ("registry", "yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("proxy", "golang", "org"),
        ("docker", "io"),
        ("hub", "docker", "com"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("gcr", "io"),
        ("deb", "debian", "org"),
        ("anaconda", "org"),
        ("repo", "maven", "apache", "org"),
    )
)
LOCKS = ("requirements.lock", "requirements-dev.lock", "tests/e2e/package-lock.json")


def test_no_file_names_a_package_registry() -> None:
    offenders = []
    for path in files():
        text = path.read_bytes().lower()
        offenders += [f"{name_of(path)}: {host}" for host in HOSTS if host.encode() in text]
    assert not offenders, "\n".join(["", *offenders])


def test_lock_files_carry_hashes_and_no_address() -> None:
    found = {name_of(path): path.read_text(encoding="utf-8") for path in files()}
    for name in LOCKS:
        assert "://" not in found[name], name
    assert '"resolved"' not in found["tests/e2e/package-lock.json"]
    for name in LOCKS[:2]:
        entries = [line for line in found[name].splitlines() if line and line[0] not in " #"]
        assert entries, name
        assert [line for line in entries if "==" not in line or not line.endswith("\\")] == []
        assert found[name].count("--hash=sha256:") >= len(entries)
