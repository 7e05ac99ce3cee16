"""What the Dockerfile must contain; building it needs a container engine."""

import re

import click

from tests.house.tree import ROOMS, ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = TEXT.replace("\\\n", " ").splitlines()


def given(instruction: str) -> list[str]:
    """The arguments of every instruction of that kind, continuation lines joined."""
    return [line.partition(" ")[2] for line in INSTRUCTIONS if line.startswith(f"{instruction} ")]


def test_what_is_installed_comes_from_the_lock_with_its_hashes() -> None:
    installs = [line for line in given("RUN") if "pip install" in line]
    assert len(installs) == 2
    assert "--no-deps --require-hashes --only-binary :all: -r requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]


def test_it_runs_as_nobody_in_particular_and_writes_in_one_place() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", given("USER")[-1])
    assert given("VOLUME") == ["/var/lib/tollkeeper"]
    assert INSTRUCTIONS.index("USER 65532:65532") < INSTRUCTIONS.index('CMD ["serve"]')


def test_everything_that_is_copied_reaches_the_build() -> None:
    sent = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {
        name
        for line in given("COPY")
        if not line.startswith("--from")
        for name in line.split()[:-1]
    }
    assert copied == sent
    assert set(ROOMS) <= sent
    assert [name for name in sent if not (ROOT / name).exists()] == []


def test_its_variables_are_options_of_serve() -> None:
    from proxy.cli import root

    serve = root.get_command(click.Context(root), "serve")
    assert serve is not None
    known = {one.envvar for one in serve.params if isinstance(one, click.Option)}
    assert set(re.findall(r"(TOLLKEEPER_[A-Z_]+)=", TEXT)) <= known
