"""Agents that are halted, quarantined or warned: at once, everywhere, and for good."""

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from proxy.control import ask
from tests.kit.counting_house import (
    API,
    CREDENTIALED,
    RULES,
    CountingHouse,
    open_house,
    reason_of,
)
from tests.kit.http2 import Http2
from tests.kit.live_streams import LiveStreams
from tests.kit.proxy import wait_until
from tests.kit.volume import fill, small_volume

BOUND_S = 0.25
SLACK_S = 1.0  # two busy cores may be late with it; the figures are printed
EACH = 25
KINDS = ("sse", "websocket", "download", "upload")
WIDE = "wide: { each: agent, limits: { requests: 10000, bytes_out: 1GB, bytes_in: 1GB } }"
PER_SESSION = "own: { each: session, limits: { requests: 1000 } }"


def halt_now(house: CountingHouse, agent: str) -> tuple[float, float]:
    """The halt of the command, without its start: when it was asked for, and when answered."""
    began = time.monotonic()
    asked = {"agent": agent, "reason": "a drill", "by": "test"}
    answer = ask(house.proxy.state / "control.sock", "halt", asked)
    assert answer == {"before": "active"}
    return began, time.monotonic()


# --- live streams


def test_a_hundred_live_streams_are_cut_within_a_quarter_of_a_second(tmp_path: Path) -> None:
    """And nothing more of them reaches the origin; another agent's stream goes on."""
    with (
        open_house(tmp_path, WIDE, PER_SESSION, agents=CREDENTIALED) as house,
        LiveStreams() as streams,
        LiveStreams() as others,
        ThreadPoolExecutor(1) as pool,
    ):
        coder, reviewer = house.issue("coder"), house.issue("reviewer")
        others.open("sse", house.tunnel(reviewer))
        for kind in KINDS:
            for _ in range(EACH):
                streams.open(kind, house.tunnel(coder))
        spare = house.tunnel(coder)
        streams.run_until(lambda: False, timeout_s=0.3)
        assert streams.live == dict.fromkeys(KINDS, EACH)
        halting = pool.submit(halt_now, house, "coder")
        assert streams.run_until(lambda: not streams.live, timeout_s=5.0), streams.live
        began, answered = halting.result(10)
        frames, arrived = len(house.origin.frames), house.origin.bytes_received
        delays = sorted((at - began, kind) for kind, at in streams.ended)
        print(
            f"100 streams: cut {delays[0][0] * 1000:.0f} to {delays[-1][0] * 1000:.0f} ms after the"
            f" halt was asked for, which was answered after {(answered - began) * 1000:.0f} ms; by"
            " kind at most "
            + ", ".join(
                f"{kind} {max(s for s, one in delays if one == kind) * 1000:.0f}" for kind in KINDS
            )
        )
        assert delays[-1][0] < BOUND_S + SLACK_S
        assert reason_of(spare.ask("/ok", API)) == "halted"
        spare.connection.close()
        assert wait_until(lambda: house.origin.open_connections == 1)
        assert (len(house.origin.frames), house.origin.bytes_received) == (frames, arrived)
        outcomes = [one for one in house.proxy.records("outcome") if one.get("error") == "halted"]
        assert len(outcomes) == len(KINDS) * EACH
        others.run_until(lambda: False, timeout_s=0.2)
        assert others.live == {"sse": 1}
        others.close()
        house.check_books()
        assert house.spent("wide/coder")["requests"] == len(KINDS) * EACH
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0, house.proxy.verify().stdout


def test_streams_of_http2_are_cut_too(tmp_path: Path) -> None:
    with open_house(tmp_path, WIDE, agents=CREDENTIALED) as house:
        coder = house.issue("coder")
        with house.tunnel(coder, protocols=["h2"]) as client:
            streams = Http2(client.connection)
            opened = [streams.send("/drip/0.05", API) for _ in range(20)]
            assert wait_until(lambda: len(house.origin.requests) == len(opened))
            began, _ = halt_now(house, "coder")
            try:
                answers = streams.read(*opened, timeout_s=5.0)
            except OSError:
                answers = []
            seconds = time.monotonic() - began
        print(f"20 streams of HTTP/2: cut {seconds * 1000:.0f} ms after the halt was asked for")
        assert seconds < BOUND_S + SLACK_S
        assert all(not answer.body.endswith(b"\0") for answer in answers)
        assert wait_until(lambda: house.origin.open_connections == 0)


def test_what_is_asked_for_while_it_is_halted_is_denied(tmp_path: Path) -> None:
    """Eight clients ask as fast as they can; nothing that the log has behind the halt went out."""
    with open_house(tmp_path, WIDE, agents=CREDENTIALED) as house:
        coder = house.issue("coder")
        stop = threading.Event()
        statuses: list[tuple[int, str]] = []

        def load() -> None:
            while not stop.is_set():
                try:
                    answer = house.ask("/ok/load", coder)
                    statuses.append((answer.status, reason_of(answer)))
                except (OSError, ValueError):
                    statuses.append((0, "cut"))

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(load) for _ in range(8)]
            assert wait_until(lambda: statuses.count((200, "")) > 40, timeout_s=30.0)
            halt_now(house, "coder")
            time.sleep(0.1)  # what was on its way through the kernel has arrived
            reached = len(house.origin.requests)
            assert wait_until(lambda: statuses.count((403, "halted")) > 20, timeout_s=30.0)
            stop.set()
            for client in clients:
                client.result(30)
        assert len(house.origin.requests) == reached
        assert {status for status, _ in statuses} <= {200, 403, 0}
        records = house.proxy.records()
        halted = next(at for at, one in enumerate(records) if one["kind"] == "state")
        late = [
            one["id"]
            for one in records[halted:]
            if one["kind"] == "decision" and one["verdict"] == "allow"
        ]
        settled = {one["ref"]: one["settle"] for one in records if one["kind"] == "outcome"}
        assert [settled.get(one) for one in late if settled.get(one)] == []
        house.check_books()


# --- it stays


def check_halted(house: CountingHouse, token: str) -> None:
    """At CONNECT already, whatever it asks for; and shown."""
    before = len(house.origin.requests)
    answer = house.ask("/ok/halted", token)
    assert (answer.status, reason_of(answer)) == (403, "halted")
    assert answer.reason == "Forbidden: halted"  # of CONNECT
    assert json.loads(answer.body)["retryable"] is False
    assert len(house.origin.requests) == before
    assert house.state("coder") == "halted"


def restart(house: CountingHouse, sig: int, change: Callable[[], object]) -> None:
    house.proxy.stop(sig)
    change()
    house.proxy.start()


def test_a_halt_survives_everything(tmp_path: Path) -> None:
    limits = "{ each: agent, limits: { requests: %d } }"
    with open_house(tmp_path, f"b: {limits % 10}", agents=CREDENTIALED) as house:
        ledger, yesterday = house.proxy.state / "ledger.db", tmp_path / "yesterday.db"
        token, other = house.issue("coder"), house.issue("reviewer")
        assert [house.ask("/ok", one).status for one in (token, other)] == [200, 200]
        house.check_books()
        restart(house, signal.SIGTERM, lambda: shutil.copy(ledger, yesterday))
        with house.tunnel(token) as inside:
            assert inside.ask("/ok", API).status == 200
            assert house.halt("coder", "it loops") == "active"
            assert reason_of(inside.ask("/ok", API)) == "halted"
        check_halted(house, token)
        assert house.halt("coder", "again") == "halted"
        disasters: list[tuple[int, Callable[[], object]]] = [
            (signal.SIGKILL, lambda: None),
            (signal.SIGKILL, lambda: delete(ledger)),
            (signal.SIGTERM, lambda: restore(ledger, yesterday)),
            (signal.SIGTERM, lambda: ledger.write_bytes(b"no ledger at all" * 500)),
        ]
        for sig, change in disasters:
            restart(house, sig, change)
            check_halted(house, token)
        for budgets in ([f"b: {limits % 1000}"], [f"renamed: {limits % 10}"], []):
            house.load(*budgets)
            check_halted(house, token)
        house.load("b: " + limits % 10, agents="reviewer: {}")
        house.load("b: " + limits % 10, agents=CREDENTIALED)
        check_halted(house, token)
        check_halted(house, house.issue("coder", "rotate"))
        refused = house.command("agent", "add", "coder", check=False)
        assert refused.returncode == 2
        assert "halted" in refused.stderr
        assert house.ask("/ok", other).status == 200
        (state,) = house.proxy.records("state")
        assert (state["from"], state["to"], state["cause"]) == ("active", "halted", "it loops")
        assert state["by"]
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0
        refused = house.command("agent", "add", "coder", check=False)
        assert (refused.returncode, "halted" in refused.stderr) == (2, True)
        assert house.halt("reviewer") == "active"  # also where no server runs
        house.proxy.start()
        assert reason_of(house.ask("/ok", other)) == "halted"


def delete(ledger: Path) -> None:
    for path in ledger.parent.glob("ledger.db*"):
        path.unlink()


def restore(ledger: Path, copy: Path) -> None:
    delete(ledger)
    shutil.copy(copy, ledger)


def test_a_halt_on_a_full_disk_is_in_force_and_recorded_later(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    with contextlib.ExitStack() as undo:
        undo.enter_context(small_volume(volume, 12 << 20))
        house = undo.enter_context(open_house(volume, WIDE, agents=CREDENTIALED))
        streams = undo.enter_context(LiveStreams())
        token, other = house.issue("coder"), house.issue("reviewer")
        streams.open("sse", house.tunnel(token))
        fill(volume)
        assert wait_until(lambda: reason_of(house.ask("/ok", other)) == "audit-disk-full")
        refused = house.command("halt", "coder", "--reason", "full", check=False)
        assert refused.returncode == 2
        assert "in force" in refused.stderr
        assert streams.run_until(lambda: not streams.live, timeout_s=5.0)
        assert house.ask("/ok", token).status == 403
        assert house.proxy.records("state") == []
        (volume / "filler").unlink()
        assert wait_until(lambda: house.proxy.records("state"), timeout_s=20.0)
        check_halted(house, token)
        restart(house, signal.SIGKILL, lambda: None)
        check_halted(house, token)
        assert len(house.proxy.records("state")) == 1
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


# --- by threshold


def at(*marks: str) -> str:
    return f"small: {{ each: agent, limits: {{ requests: 10 }}, at: [{', '.join(marks)}] }}"


def test_a_warning_changes_nothing_but_the_state(tmp_path: Path) -> None:
    with open_house(tmp_path, at("{ reached: 50%, do: warn }")) as house:
        assert [house.ask("/ok").status for _ in range(12)] == [200] * 10 + [403] * 2
        assert house.state("local") == "warned"
        house.check_books()
        (state,) = house.proxy.records("state")
        assert (state["from"], state["to"]) == ("active", "warned")
        assert state["cause"] == "budget small/local requests 50%"
        assert state["ref"] in {one["id"] for one in house.proxy.records("decision")}


def test_what_reaches_a_hundred_percent_halts_only_if_it_says_so(tmp_path: Path) -> None:
    """The request that reaches it completes; live streams of the agent are cut."""
    marks = at("{ reached: 100%, do: halt }")
    with open_house(tmp_path, marks) as house, LiveStreams() as streams:
        streams.open("sse", house.tunnel())
        streams.open("websocket", house.tunnel())
        answers = [house.ask("/ok") for _ in range(8)]
        assert [one.status for one in answers] == [200] * 8
        assert reason_of(house.ask("/ok")) == "budget-exhausted"
        assert house.state("local") == "active"  # thresholds are judged on what is spent
        streams.close()
        assert wait_until(lambda: house.state("local") == "halted")
        refused = house.ask("/ok")
        assert (refused.status, reason_of(refused)) == (403, "halted")
        (state,) = house.proxy.records("state")
        assert state["cause"] == "budget small/local requests 100%"
        restart(house, signal.SIGKILL, lambda: delete(house.proxy.state / "ledger.db"))
        house.load("small: { each: agent, limits: { requests: 1000 } }")
        assert reason_of(house.ask("/ok")) == "halted"
        assert len(house.proxy.records("state")) == 1
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


def test_a_threshold_cuts_what_is_live(tmp_path: Path) -> None:
    """Sixteen streams hold one request each; the short ones that settle bring the halt."""
    marks = "small: { each: agent, limits: { requests: 20 }, at: [{ reached: 20%, do: halt }] }"
    with open_house(tmp_path, marks) as house, LiveStreams() as streams:
        for kind in KINDS:
            for _ in range(4):
                streams.open(kind, house.tunnel())
        assert [house.ask("/ok").status for _ in range(3)] == [200] * 3
        assert streams.live == dict.fromkeys(KINDS, 4)
        began = time.monotonic()
        assert house.ask("/ok").status == 200
        assert streams.run_until(lambda: not streams.live, timeout_s=5.0)
        assert streams.ended[-1][1] - began < BOUND_S + SLACK_S
        house.check_books()
        assert house.spent("small/local") == {"requests": 20}  # who is cut has paid


def test_a_quarantined_agent_keeps_the_rules_that_are_kept(tmp_path: Path) -> None:
    kept = RULES[0].replace("id: api", "id: kept").replace("/**", "/kept/**")
    marks = at("{ reached: 30%, do: quarantine }")
    more = "quarantine: { keep_rules: [kept] }\n"
    with (
        open_house(tmp_path, marks, rules=(kept, *RULES), more=more) as house,
        LiveStreams() as streams,
        LiveStreams() as others,
    ):
        for kind in ("sse", "websocket", "download", "upload"):
            others.open(kind, house.tunnel())
        streams.open("upload", house.tunnel(), prefix="/kept")
        assert [house.ask("/ok").status for _ in range(3)] == [200] * 3
        assert wait_until(lambda: house.state("local") == "quarantined")
        assert others.run_until(lambda: not others.live, timeout_s=5.0), others.live
        streams.run_until(lambda: False, timeout_s=0.3)
        assert streams.live == {"upload": 1}
        refused = house.ask("/ok")
        assert (refused.status, reason_of(refused)) == (403, "quarantined")
        assert house.ask("/kept/one").status == 200
        assert house.ask("/never").status == 403
        restart(house, signal.SIGKILL, lambda: delete(house.proxy.state / "ledger.db"))
        assert [reason_of(house.ask(path)) for path in ("/ok", "/kept/two")] == ["quarantined", ""]
        cut = [one for one in house.proxy.records("outcome") if one.get("error") == "quarantined"]
        assert len(cut) == 4
        assert house.halt("local") == "quarantined"
        assert reason_of(house.ask("/kept/three")) == "halted"
        assert [one["to"] for one in house.proxy.records("state")] == ["quarantined", "halted"]
        assert house.proxy.stop() == 0
        assert house.proxy.verify().returncode == 0


def test_a_reload_that_keeps_less_cuts_the_streams_of_a_quarantined_agent(tmp_path: Path) -> None:
    marks = at("{ reached: 30%, do: quarantine }")
    with (
        open_house(tmp_path, marks, more="quarantine: { keep_rules: [api] }\n") as house,
        LiveStreams() as streams,
    ):
        streams.open("sse", house.tunnel())
        assert [house.ask("/ok").status for _ in range(3)] == [200] * 3
        assert wait_until(lambda: house.state("local") == "quarantined")
        streams.run_until(lambda: False, timeout_s=0.3)
        assert streams.live == {"sse": 1}
        house.load(marks, more="quarantine: { keep_rules: [] }\n")
        assert streams.run_until(lambda: not streams.live, timeout_s=5.0), streams.live
        cut = [one for one in house.proxy.records("outcome") if one.get("error")]
        assert [one["error"] for one in cut] in (["policy-changed"], ["quarantined"])


def test_states_only_move_right(tmp_path: Path) -> None:
    """One after the other, each once, also when the spending jumps over some of them."""
    marks = at(*(f"{{ reached: {n}%, do: {do} }}" for n, do in ((10, "warn"), (20, "quarantine"))))
    with open_house(tmp_path, marks, more="quarantine: { keep_rules: [api] }\n") as house:
        seen = []
        for _ in range(4):
            assert house.ask("/ok").status == 200
            house.check_books()
            seen.append(house.state("local"))
        assert seen == ["warned", "quarantined", "quarantined", "quarantined"]
        house.load("small: { each: agent, limits: { requests: 10 } }")
        restart(house, signal.SIGTERM, lambda: None)
        assert house.state("local") == "quarantined"
        assert len(house.proxy.records("state")) == 2


def test_a_halt_names_somebody_who_is_known_and_says_why(tmp_path: Path) -> None:
    """A mistyped name must not look like a halt."""
    with open_house(tmp_path, WIDE) as house:
        for reason in ("", "two\nlines", "x" * 2_000):
            refused = house.command("halt", "local", "--reason", reason, check=False)
            assert refused.returncode == 2
        refused = house.command("halt", "locla", "--reason", "typo", check=False)
        assert refused.returncode == 2
        assert "`local`" in refused.stderr
        assert house.proxy.records("state") == []
        assert house.ask("/ok").status == 200
