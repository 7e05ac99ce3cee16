"""Which policy is in force: applied whole or not at all, recorded and archived first."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import proxy.generation
from audit.writer import LogUnavailable
from policies.compile import compile_policy
from policies.ledger import LedgerUnavailable
from policies.model import ContractBroken
from policies.policy_set import PolicySet
from proxy.generation import PolicyKeeper
from proxy.metrics import Metrics
from proxy.settings import Settings
from tests.kit.recorder import Fault, MemoryRecorder

HEAD = 'version: 1\nagents: { local: { identity: { source: ["127.0.0.0/8"] } } }\n'
RULE = "  - {{ id: {id}, verdict: allow, match: {{ host: {host} }} }}\n"


def text(*hosts: str, head: str = "") -> str:
    rules = "".join(RULE.format(id=f"r{n}", host=host) for n, host in enumerate(hosts))
    return f"{HEAD}{head}rules:\n{rules}" if hosts else f"{HEAD}{head}rules: []\n"


@dataclass
class House:
    """A keeper over files in a folder."""

    folder: Path
    observe: bool = False
    swaps: list[str] = field(default_factory=list)
    adopted: list[tuple[str, int]] = field(default_factory=list)  # and what was in force by then
    adopt_error: Exception | None = None

    def __post_init__(self) -> None:
        self.file = self.folder / "policies.yaml"
        self.state = self.folder / "state"
        self.state.mkdir()
        self.recorder = MemoryRecorder()
        self.metrics = Metrics()

    def begin(self) -> PolicyKeeper:
        settings = Settings(policies=self.file, state=self.state, observe=self.observe)
        self.keeper = PolicyKeeper(
            settings,
            compile_policy(self.file),
            recorder=self.recorder,
            metrics=self.metrics,
            adopt=self._adopt,
            swapped=lambda: self.swaps.append(self.digest),
        )
        return self.keeper

    async def _adopt(self, policy_set: PolicySet) -> None:
        if self.adopt_error is not None:
            raise self.adopt_error
        in_force = self.keeper.generation.serial
        self.adopted.append((policy_set.digest, in_force))

    @property
    def digest(self) -> str:
        return self.keeper.generation.policy_set.digest

    @property
    def archive(self) -> Path:
        return self.state / "policies" / f"{self.digest}.yaml"

    def shows(self, line: str) -> bool:
        return line in self.metrics.exposition().decode()


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path)
    made.file.write_text(text("a.test"))
    return made


def play(house: House, *steps: Callable[[], Awaitable[Any] | Any]) -> list[Any]:
    """Start the keeper, then do one step after the other."""

    async def main() -> list[Any]:
        await house.begin().start()
        results = []
        for step in steps:
            result = step()
            results.append(await result if isinstance(result, Awaitable) else result)
        return results

    return asyncio.run(main())


def reload(house: House) -> Callable[[], Awaitable[str]]:
    return lambda: house.keeper.reload()  # noqa: PLW0108  the keeper does not exist yet


def write(path: Path, content: str) -> Callable[[], int]:
    return lambda: path.write_text(content)


def test_the_first_policy_is_recorded_and_archived_before_it_is_in_force(house: House) -> None:
    play(house)
    (event,) = house.recorder.events
    assert event == {
        "kind": "policy.load", "digest": house.digest, "serial": 1, "mode": "enforce"
    }  # fmt: skip
    assert compile_policy(house.archive).policy_set.digest == house.digest
    assert house.shows(f'digest="{house.digest}",serial="1"')
    assert house.swaps == [house.digest]


def test_without_a_log_no_policy_comes_into_force(house: House) -> None:
    house.recorder.faults["policy.load"] = Fault(LogUnavailable("audit-disk-full", "x"))
    with pytest.raises(LogUnavailable):
        play(house)
    assert house.keeper.generation.serial == 0


def test_its_limits_are_adopted_behind_its_record_and_before_it_is_in_force(house: House) -> None:
    play(house, write(house.file, text("b.test")), reload(house))
    assert [in_force for _, in_force in house.adopted] == [0, 1]
    assert [digest for digest, _ in house.adopted] == house.swaps


ADOPT_FAULTS = [LogUnavailable("audit-disk-full", "x"), LedgerUnavailable("x"), OSError("x")]


@pytest.mark.parametrize("error", ADOPT_FAULTS, ids=repr)
def test_a_policy_whose_limits_cannot_be_adopted_is_not_in_force(
    house: House, error: Exception
) -> None:
    house.adopt_error = error
    with pytest.raises(type(error)):
        play(house)
    assert house.keeper.generation.serial == 0
    assert house.swaps == []


def test_a_ledger_that_is_late_at_the_start_is_asked_again(house: House) -> None:
    """Its deadline is a request's; a busy machine that misses it must not keep the port closed."""
    house.adopt_error = LedgerUnavailable("calls before this one took too long")

    async def start_and_mend() -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(house.begin().start())
            both.create_task(mend())

    async def mend() -> None:
        while not house.recorder.of("policy.load"):
            await asyncio.sleep(0.001)
        house.adopt_error = None

    asyncio.run(start_and_mend())
    assert house.keeper.generation.serial == 1
    assert len(house.recorder.of("policy.load")) == 1


@pytest.mark.parametrize("error", ADOPT_FAULTS, ids=repr)
def test_a_reload_whose_limits_cannot_be_adopted_waits_and_comes_into_force_later(
    house: House, error: Exception
) -> None:
    def break_books() -> None:
        house.adopt_error = error

    def mend_books() -> None:
        house.adopt_error = None

    steps = (break_books, write(house.file, text("b.test")), reload(house), mend_books)
    assert play(house, *steps, watch_until_applied(house))[2] == "rejected"
    assert house.keeper.generation.serial == 2
    assert house.keeper.problem == ""


def test_a_policy_that_waits_for_its_limits_is_recorded_once(house: House) -> None:
    def break_books() -> None:
        house.adopt_error = LedgerUnavailable("it is down")

    def mend_books() -> None:
        house.adopt_error = None

    again = [reload(house)] * 5
    steps = (break_books, write(house.file, text("b.test")), *again, mend_books, reload(house))
    assert play(house, *steps)[-1] == "applied"
    assert [one["serial"] for one in house.recorder.of("policy.load")] == [1, 2]


def test_limits_that_would_rise_by_themselves_leave_the_policy_stale(house: House) -> None:
    def break_books() -> None:
        house.adopt_error = ContractBroken("a budget rose by itself")

    steps = (break_books, write(house.file, text("b.test")), reload(house))
    assert play(house, *steps)[-1] == "rejected"
    assert "rose" in house.keeper.problem


def watch_until_applied(house: House) -> Callable[[], Awaitable[None]]:
    async def watch() -> None:
        task = asyncio.ensure_future(house.keeper.watch())
        await wait_for(lambda: house.keeper.generation.serial == 2)
        task.cancel()

    return watch


def test_a_change_is_applied(house: House) -> None:
    before = compile_policy(house.file).policy_set.digest
    assert play(house, write(house.file, text("b.test")), reload(house))[-1] == "applied"
    assert house.digest != before
    assert house.keeper.generation.serial == 2
    assert [event["serial"] for event in house.recorder.of("policy.load")] == [1, 2]
    assert compile_policy(house.archive).policy_set.digest == house.digest
    assert len(list(house.archive.parent.iterdir())) == 2
    assert house.swaps[-1] == house.digest


def test_what_says_the_same_is_no_change(house: House) -> None:
    commented = "# the same\n" + text("a.test")
    assert play(house, write(house.file, commented), reload(house))[-1] == "unchanged"
    assert house.keeper.generation.serial == 1
    assert len(house.recorder.events) == 1
    assert house.shows('policy_reloads_total{result="unchanged"} 1')


BAD: dict[str, str] = {
    "no YAML": "version: [",
    "an unknown key": text("a.test") + "surprise: 1\n",
    "another version": text("a.test").replace("version: 1", "version: 99"),
    "a key twice": text("a.test") + "version: 1\n",
    "nothing": "",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_candidate_changes_nothing_and_is_recorded(house: House, bad: str) -> None:
    before = compile_policy(house.file).policy_set.digest
    assert play(house, write(house.file, bad), reload(house))[-1] == "rejected"
    assert house.digest == before
    assert house.keeper.generation.refusal == ""
    assert house.keeper.problem.startswith(str(house.file))
    (rejected,) = house.recorder.of("policy.reject")
    assert rejected["findings"][0] == house.keeper.problem
    assert house.shows("tollkeeper_policy_stale 1")


@pytest.mark.parametrize("how", ["missing", "a folder", "not UTF-8"])
def test_a_candidate_that_cannot_be_read_changes_nothing(house: House, how: str) -> None:
    def spoil() -> None:
        house.file.unlink()
        if how == "a folder":
            house.file.mkdir()
        if how == "not UTF-8":
            house.file.write_bytes(b"version: 1\xff\n")

    assert play(house, spoil, reload(house))[-1] == "rejected"
    assert "cannot read" in house.keeper.problem
    assert len(house.recorder.of("policy.reject")) == 1


def test_a_bug_in_the_compiler_changes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise RecursionError("x")

    def spoil() -> None:
        monkeypatch.setattr(proxy.generation, "compile_policy", fail)

    assert play(house, spoil, reload(house))[-1] == "rejected"
    assert house.keeper.generation.serial == 1
    assert "RecursionError" in house.keeper.problem


def test_a_good_policy_ends_a_bad_time(house: House) -> None:
    good, bad = text("b.test"), BAD["no YAML"]
    results = play(
        house, write(house.file, bad), reload(house), write(house.file, good), reload(house)
    )
    assert (results[1], results[3]) == ("rejected", "applied")
    assert house.keeper.problem == ""
    assert house.shows("tollkeeper_policy_stale 0")


def test_the_old_policy_written_again_ends_a_bad_time(house: House) -> None:
    house.file.write_text(text("a.test", head="defaults: { on_bad_reload: deny }\n"))
    good = house.file.read_text()
    results = play(
        house,
        write(house.file, "version: ["),
        reload(house),
        lambda: house.keeper.generation.refusal,
        write(house.file, good),
        reload(house),
    )
    assert (results[2], results[4]) == ("policy-stale", "unchanged")
    assert house.keeper.generation.refusal == ""


def test_on_bad_reload_deny_denies_everything(house: House) -> None:
    house.file.write_text(text("a.test", head="defaults: { on_bad_reload: deny }\n"))
    play(house, write(house.file, "version: ["), reload(house))
    assert house.keeper.generation.refusal == "policy-stale"


def test_a_policy_that_stayed_bad_for_too_long_denies_everything(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.file.write_text(text("a.test", head="defaults: { stale_limit: 10s }\n"))
    clock = [100.0]
    monkeypatch.setattr("proxy.generation.time", SimpleNamespace(monotonic=lambda: clock[0]))
    play(house, write(house.file, "version: ["), reload(house))
    refusals: list[str] = []
    for at_s in (100.0, 109.0, 110.5):
        clock[0] = at_s
        house.keeper._expire()
        refusals.append(house.keeper.generation.refusal)
    assert refusals == ["", "", "policy-stale"]


OBSERVING = text("a.test", head="defaults: { mode: observe }\n")


@pytest.mark.parametrize(
    ("content", "flag", "mode"),
    [
        (OBSERVING, True, "observe"),
        (OBSERVING, False, "enforce"),
        (text("a.test"), True, "enforce"),
    ],
    ids=["key and flag", "the key alone", "the flag alone"],
)
def test_observing_needs_key_and_flag(house: House, content: str, flag: bool, mode: str) -> None:
    house.observe = flag
    house.file.write_text(content)
    play(house)
    assert house.keeper.generation.observe is (mode == "observe")
    assert house.recorder.events[0]["mode"] == mode


# --- what the log or the disk refuses


def test_a_policy_that_cannot_be_recorded_is_not_applied_and_tried_again(house: House) -> None:
    def break_log() -> None:
        house.recorder.faults["policy.load"] = Fault(LogUnavailable("audit-disk-full", "x"))
        house.recorder.failure = "disk-full: x"

    def mend_log() -> None:
        house.recorder.faults.clear()
        house.recorder.failure = None

    steps = (break_log, write(house.file, text("b.test")), reload(house), mend_log)
    results = play(house, *steps, watch_until_applied(house))
    assert results[2] == "rejected"
    assert house.keeper.problem == ""


def test_a_policy_that_cannot_be_archived_is_not_applied(house: House) -> None:
    def spoil() -> None:
        folder = house.state / "policies"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("in the way")

    results = play(house, spoil, write(house.file, text("b.test")), reload(house))
    assert results[-1] == "rejected"
    assert "could not be brought into force" in house.keeper.problem
    assert house.keeper.generation.serial == 1


# --- watching


async def wait_for(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


def notice(house: House, *changes: Callable[[], Any]) -> None:
    """Make each change while the keeper watches; each must lead to a new policy in force."""

    async def main() -> None:
        await house.begin().start()
        task = asyncio.ensure_future(house.keeper.watch())
        for serial, change in enumerate(changes, 2):
            change()
            await wait_for(lambda serial=serial: house.keeper.generation.serial == serial)  # type: ignore[misc]
        task.cancel()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def watch_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.generation, "WATCH_S", 0.02)


def test_a_change_is_noticed(house: House) -> None:
    notice(house, write(house.file, text("b.test")))


def test_a_file_put_in_its_place_is_noticed(house: House) -> None:
    """As editors and `mv` do it: another inode under the same name."""

    def swap() -> None:
        draft = house.folder / "draft"
        draft.write_text(text("b.test"))
        os.utime(draft, (1, 1))
        draft.replace(house.file)

    notice(house, swap)


def test_a_symlink_swap_is_noticed(house: House) -> None:
    """As Kubernetes does it: the folder behind a link changes, the file's own name does not."""
    for name, host in (("v1", "a.test"), ("v2", "b.test")):
        (house.folder / name).mkdir()
        (house.folder / name / "policies.yaml").write_text(text(host))
    link = house.folder / "current"
    link.symlink_to("v1")
    house.file = link / "policies.yaml"

    def swap() -> None:
        (house.folder / "next").symlink_to("v2")
        (house.folder / "next").rename(link)

    notice(house, swap)


INCLUDING = f"{HEAD}include: [more.yaml]\nrules: []\n"
INCLUDED = "version: 1\nrules:\n" + RULE.format(id="x", host="x.test")


def test_a_change_in_an_included_file_is_noticed(house: House) -> None:
    more = house.folder / "more.yaml"
    more.write_text(INCLUDED)
    house.file.write_text(INCLUDING)
    notice(house, write(more, INCLUDED.replace("x.test", "y.test")))


def test_mending_a_broken_include_is_noticed(house: House) -> None:
    """The main file is not touched again: the include of the rejected candidate is watched."""
    more = house.folder / "more.yaml"

    async def main() -> None:
        await house.begin().start()
        task = asyncio.ensure_future(house.keeper.watch())
        more.write_text("version: [")
        house.file.write_text(INCLUDING)
        await wait_for(lambda: bool(house.recorder.of("policy.reject")))
        more.write_text(INCLUDED)
        await wait_for(lambda: house.keeper.generation.serial == 2)
        task.cancel()

    asyncio.run(main())


def test_an_include_that_was_missing_is_noticed_when_it_comes(house: House) -> None:
    async def main() -> None:
        await house.begin().start()
        task = asyncio.ensure_future(house.keeper.watch())
        house.file.write_text(INCLUDING)
        await wait_for(lambda: bool(house.recorder.of("policy.reject")))
        (house.folder / "more.yaml").write_text(INCLUDED)
        await wait_for(lambda: house.keeper.generation.serial == 2)
        task.cancel()

    asyncio.run(main())


def test_rules_that_moved_to_another_file_are_watched_there(house: House) -> None:
    """The digest stays the same, the files do not."""
    more = house.folder / "more.yaml"
    house.file.write_text(HEAD + "rules:\n" + RULE.format(id="x", host="x.test"))

    async def main() -> None:
        await house.begin().start()
        task = asyncio.ensure_future(house.keeper.watch())
        more.write_text(INCLUDED)
        house.file.write_text(INCLUDING)
        await wait_for(lambda: house.shows('policy_reloads_total{result="unchanged"}'))
        more.write_text(INCLUDED.replace("x.test", "y.test"))
        await wait_for(lambda: house.keeper.generation.serial == 2)
        task.cancel()

    asyncio.run(main())


def test_watching_goes_on_after_a_fault(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    look = PolicyKeeper._look
    calls = [0]

    def stumble(self: PolicyKeeper) -> object:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError("stale file handle")
        return look(self)

    monkeypatch.setattr(PolicyKeeper, "_look", stumble)
    notice(house, write(house.file, text("b.test")))
    assert house.shows('faults_total{where="policy-watch"} 1')
