"""Changing the policy under a running server, and observe mode."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.certificates import Authority
from tests.kit.http1 import Answer, Http1
from tests.kit.origin import Origin
from tests.kit.proxy import ROOT, Proxy, run_command, wait_until, write_policy

API, OTHER = "api.test.example", "other.test.example"
PUBLIC = "93.184.216.34"  # ours only inside `observe`


def allow(*paths: str, host: str = API) -> str:
    """A rule for these paths."""
    listed = ", ".join(f'"{path}"' for path in paths)
    return (
        f"  - {{ id: api, verdict: allow,"
        f" match: {{ host: {host}, path: [{listed}], dest_ip: loopback }} }}\n"
    )


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Origin, Path]]:
    authority = Authority(tmp_path_factory.mktemp("reload"))
    with Origin(tls=authority.server_context(API, OTHER)) as running:
        yield running, authority.pem


@pytest.fixture
def start(
    origin: tuple[Origin, Path], tmp_path: Path
) -> Callable[..., AbstractContextManager[Proxy]]:
    running, pem = origin
    pins = [f"{host}:443:127.0.0.1:{running.port}" for host in (API, OTHER)]

    def prepare(policy: Path, *options: str) -> Proxy:
        return Proxy(tmp_path, policy, *options, resolve=pins, upstream_ca=pem)

    return prepare


def ask(proxy: Proxy, path: str, host: str = API) -> Answer:
    """One request in a tunnel of its own."""
    with Http1(proxy.tunnel(host, 443, timeout_s=15.0)) as client:
        return client.ask(path, host)


def details(proxy: Proxy) -> dict[str, Any]:
    """What /readyz says beside its checks."""
    found: dict[str, Any] = json.loads(proxy.scrape("/readyz")[1])["details"]
    return found


def digest(proxy: Proxy) -> str:
    """Of the policy in force."""
    return str(details(proxy)["policy_digest"])


# --- reload


def test_an_edited_file_comes_into_force(start: Any, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"))
    with start(policy) as proxy:
        assert [ask(proxy, path).status for path in ("/one", "/two")] == [200, 403]
        first = digest(proxy)
        write_policy(policy, allow("/two"))
        assert wait_until(lambda: digest(proxy) != first)
        assert [ask(proxy, path).status for path in ("/one", "/two")] == [403, 200]
        loads = proxy.records("policy.load")
        assert [load["serial"] for load in loads] == [1, 2]
        assert loads[-1]["digest"] == digest(proxy)
        for load in loads:
            assert (proxy.state / "policies" / f"{load['digest']}.yaml").is_file()
        recorded = {event["policy"]["digest"] for event in proxy.records("decision")}
        assert recorded == {load["digest"] for load in loads}
        metrics = proxy.scrape("/metrics")[1]
        assert 'tollkeeper_policy_reloads_total{result="applied"} 1.0' in metrics


def test_a_hangup_reloads_at_once(start: Any, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"))
    with start(policy) as proxy:
        write_policy(policy, allow("/one", "/two"))
        proxy.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: len(proxy.records("policy.load")) == 2)
        assert ask(proxy, "/two").status == 200


def test_a_hangup_at_an_odd_time_does_not_end_the_server(start: Any, tmp_path: Path) -> None:
    """While it starts, and while it drains: the default of the signal would be death."""
    policy = write_policy(tmp_path / "policies.yaml", allow("/drip/*"))
    proxy: Proxy = start(policy, "--drain-timeout", "1")
    proxy.start(wait=False)
    assert wait_until(lambda: "policy-load" in proxy.stderr)
    for _ in range(20):
        proxy.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    try:
        assert wait_until(lambda: proxy.port, timeout_s=30.0)
        with Http1(proxy.tunnel(API, 443)) as client:
            client.send("/drip/0.05", API)
            assert client.read_head().status == 200
            proxy.process.send_signal(signal.SIGTERM)
            assert wait_until(lambda: "draining" in proxy.stderr)
            proxy.process.send_signal(signal.SIGHUP)
            assert proxy.process.wait(20) == 0
    finally:
        proxy.stop()
    assert proxy.verify().returncode == 0


def test_a_broken_edit_changes_nothing_and_is_loud(start: Any, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"))
    with start(policy) as proxy:
        first = digest(proxy)
        policy.write_text(policy.read_text(encoding="utf-8").replace("verdict", "verdikt"), "utf-8")
        (rejected,) = proxy.wait_for("policy.reject", timeout_s=10.0)
        assert "verdikt" in " ".join(rejected["findings"])
        assert digest(proxy) == first
        assert ask(proxy, "/one").status == 200
        assert proxy.scrape("/readyz")[0] == 200
        assert f"{policy}:4:5: error[" in details(proxy)["policy_problem"]
        metrics = proxy.scrape("/metrics")[1]
        assert "tollkeeper_policy_stale 1.0" in metrics
        assert 'tollkeeper_policy_reloads_total{result="rejected"} 1.0' in metrics
        assert "policy-rejected" in proxy.stderr
        write_policy(policy, allow("/two"))
        assert wait_until(lambda: digest(proxy) != first)
        assert details(proxy)["policy_problem"] == ""
        assert "tollkeeper_policy_stale 0.0" in proxy.scrape("/metrics")[1]


def test_a_broken_edit_denies_all_where_the_policy_says_so(start: Any, tmp_path: Path) -> None:
    head = "defaults: { on_bad_reload: deny }\n"
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"), head=head)
    with start(policy) as proxy:
        assert ask(proxy, "/one").status == 200
        policy.write_text("version: [", encoding="utf-8")
        assert proxy.wait_for("policy.reject", timeout_s=10.0)
        with pytest.raises(ConnectionError, match="403 Forbidden: policy-stale"):
            ask(proxy, "/one")
        assert proxy.scrape("/readyz")[0] == 503
        write_policy(policy, allow("/one"), head=head)
        assert wait_until(lambda: proxy.scrape("/readyz")[0] == 200)
        assert ask(proxy, "/one").status == 200


def test_an_included_file_is_watched(start: Any, tmp_path: Path) -> None:
    included = tmp_path / "team.yaml"
    included.write_text(f"version: 1\nrules:\n{allow('/one')}", encoding="utf-8")
    policy = tmp_path / "policies.yaml"
    policy.write_text(
        "version: 1\ninclude: [team.yaml]\n"
        'agents: { local: { identity: { source: ["127.0.0.0/8"] } } }\n',
        encoding="utf-8",
    )
    with start(policy) as proxy:
        assert [ask(proxy, path).status for path in ("/one", "/two")] == [200, 403]
        included.write_text(f"version: 1\nrules:\n{allow('/two')}", encoding="utf-8")
        assert wait_until(lambda: len(proxy.records("policy.load")) == 2)
        assert [ask(proxy, path).status for path in ("/one", "/two")] == [403, 200]


def test_a_swapped_symlink_is_noticed(start: Any, tmp_path: Path) -> None:
    """The way orchestrators mount files: a link is replaced, the file it names is new."""
    for name, path in (("v1", "/one"), ("v2", "/two")):
        (tmp_path / name).mkdir()
        write_policy(tmp_path / name / "policies.yaml", allow(path))
    (tmp_path / "current").symlink_to("v1")
    policy = tmp_path / "policies.yaml"
    policy.symlink_to("current/policies.yaml")
    with start(policy) as proxy:
        assert ask(proxy, "/one").status == 200
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(tmp_path / "current")
        assert wait_until(lambda: len(proxy.records("policy.load")) == 2)
        assert [ask(proxy, path).status for path in ("/one", "/two")] == [403, 200]


def test_a_running_stream_is_cut_when_its_host_is_denied(start: Any, tmp_path: Path) -> None:
    """And one whose host stays allowed goes on under the policy it began with."""
    both = allow("/drip/*") + allow("/drip/*", host=OTHER).replace("api,", "other,")
    policy = write_policy(tmp_path / "policies.yaml", both)
    with (
        start(policy) as proxy,
        Http1(proxy.tunnel(API, 443)) as cut,
        Http1(proxy.tunnel(OTHER, 443)) as kept,
    ):
        for client, host in ((cut, API), (kept, OTHER)):
            client.send("/drip/0.05", host)
            assert client.read_head().status == 200
        write_policy(policy, allow("/drip/*", host=OTHER).replace("api,", "other,"))
        assert wait_until(lambda: len(proxy.records("policy.load")) == 2)
        with pytest.raises(OSError):
            list(cut.chunks())
        chunks = kept.chunks()
        for _ in range(10):
            assert next(chunks) == b"drip\n"
        (outcome,) = proxy.wait_for("outcome")
        assert outcome["error"] == "policy-changed"
        assert outcome["bytes_in"] > 0


def test_an_open_tunnel_is_judged_by_the_new_policy(start: Any, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"))
    with start(policy) as proxy, Http1(proxy.tunnel(API, 443)) as client:
        assert client.ask("/one", API).status == 200
        write_policy(policy, allow("/two"))
        assert wait_until(lambda: len(proxy.records("policy.load")) == 2)
        assert client.ask("/two", API).status == 200
        assert client.ask("/one", API).status == 403


# --- observe


def observe(folder: Path) -> None:
    """Runs in a network of its own, where a public address is ours."""
    rules = allow("/one").replace(", dest_ip: loopback", "") + (
        "  - { id: never, verdict: deny, match: { host: '**.test.example', path: /never } }\n"
    )
    policy = write_policy(folder / "policies.yaml", rules, head="defaults: { mode: observe }\n")
    authority = Authority(folder / "origin")
    with Origin(tls=authority.server_context(API, OTHER), host=PUBLIC) as origin:
        pins = [f"{API}:443:{PUBLIC}:{origin.port}", f"{OTHER}:443:127.0.0.1:{origin.port}"]
        with Proxy(folder, policy, "--observe", resolve=pins, upstream_ca=authority.pem) as proxy:
            assert [ask(proxy, path).status for path in ("/one", "/two", "/never")] == [
                200, 200, 403,
            ]  # fmt: skip
            private = ask(proxy, "/two", OTHER)
            assert json.loads(private.body)["reason"] == "address-not-public"
            assert origin.lines == ["GET /one HTTP/1.1", "GET /two HTTP/1.1"]
            decided = {
                (event["target"]["host"], event["target"]["path"]): event
                for event in proxy.records("decision")
                if event["stage"] == "request"
            }
            seen = decided[API, "/two"]
            assert (seen["verdict"], seen["reason"]) == ("allow", "observed")
            assert seen["would"]["verdict"] == "deny"
            assert "would" not in decided[API, "/one"]
            assert details(proxy)["mode"] == "observe"
            assert proxy.records("policy.load")[0]["mode"] == "observe"
            assert "observe" in proxy.stderr
            assert proxy.verify("--allow-open").returncode == 0


def test_observe_forwards_what_no_rule_allows_and_says_so(tmp_path: Path) -> None:
    """Not what a deny refuses, and not what the address guard refuses."""
    network = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*network, "true"], check=False, capture_output=True, timeout=20).returncode:
        pytest.skip("no network namespaces here: `unshare --user --map-root-user --net` fails")
    script = f'ip link set lo up && ip address add {PUBLIC}/32 dev lo && exec "$@"'
    code = (
        "import sys, pathlib; from tests.e2e.test_reload import observe;"
        "observe(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [*network, "sh", "-ec", script, "sh", sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("key", "flag"), [(True, False), (False, True)])
def test_observe_needs_the_key_and_the_flag(
    start: Any, tmp_path: Path, key: bool, flag: bool
) -> None:
    head = "defaults: { mode: observe }\n" if key else ""
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"), head=head)
    with start(policy, *(["--observe"] if flag else [])) as proxy:
        assert details(proxy)["mode"] == "enforce"
        assert ask(proxy, "/two").status == 403
        assert "observe-needs-both" in proxy.stderr


# --- together with the command line


def test_what_check_refuses_never_comes_into_force(start: Any, tmp_path: Path) -> None:
    """The command and the server read a policy with the same eyes."""
    policy = write_policy(tmp_path / "policies.yaml", allow("/one"))
    with start(policy) as proxy:
        policy.write_text("version: 1\nrules: [{ id: x }]\n", encoding="utf-8")
        checked = run_command("policy", "check", str(policy), check=False)
        assert checked.returncode == 1
        (rejected,) = proxy.wait_for("policy.reject", timeout_s=10.0)
        codes = {finding.partition("[")[2][:5] for finding in rejected["findings"]}
        assert codes
        assert all(code in checked.stdout + checked.stderr for code in codes)
        assert ask(proxy, "/one").status == 200
