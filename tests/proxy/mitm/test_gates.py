"""Start-up gates: each version that is not tested closes the port, or turns HTTP/2 off."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from mitmproxy.proxy.layers.http import HttpLayer, _http1, _http2
from mitmproxy.proxy.server import ConnectionHandler

from proxy.mitm.gates import GATES, GateClosed, check_gates


def installed(**changes: str) -> Callable[[str], str]:
    """The versions that are here, except those."""
    return lambda package: changes.get(package) or version(package)


def test_what_our_lock_installs_passes_with_http2() -> None:
    passed = check_gates()
    assert passed.http2
    assert passed.notes == ()
    assert set(passed.versions) == {gate.package for gate in GATES}


WRONG: dict[str, tuple[dict[str, str], bool]] = {
    # versions, and whether the server may still run, without HTTP/2
    "mitmproxy too old": ({"mitmproxy": "12.2.1"}, False),
    "mitmproxy of another series": ({"mitmproxy": "11.0.2"}, False),
    "mitmproxy too new": ({"mitmproxy": "12.3.0"}, False),
    "mitmproxy much too new": ({"mitmproxy": "13.0"}, False),
    "h11 that takes bad chunks": ({"h11": "0.14.0"}, False),
    "pyOpenSSL that swallows exceptions": ({"pyOpenSSL": "25.3.0"}, False),
    "pyOpenSSL nobody has tried": ({"pyOpenSSL": "28.0.0"}, False),
    "cryptography with an old OpenSSL": ({"cryptography": "47.0.0"}, False),
    "a version that is no number": ({"h11": "unknown"}, False),
    "h2 that smuggles": ({"h2": "4.1.0"}, True),
    "h2 that takes two hosts": ({"h2": "4.3.0"}, True),
    "h2 one too old": ({"h2": "4.4.0"}, True),
    "hpack that is quadratic": ({"hpack": "4.1.0"}, True),
}


@pytest.mark.parametrize(("changes", "runs"), WRONG.values(), ids=WRONG)
def test_a_version_that_is_not_safe_closes_the_gate(changes: dict[str, str], runs: bool) -> None:
    ((package, text),) = changes.items()
    if not runs:
        with pytest.raises(GateClosed, match=f"{package} {text}"):
            check_gates(installed(**changes))
        return
    passed = check_gates(installed(**changes))
    assert not passed.http2
    assert len(passed.notes) == 1
    assert f"{package} {text}" in passed.notes[0]


@pytest.mark.parametrize("text", ["12.2.2", "12.2.3", "12.2.10", "12.2.99.post1"])
def test_tested_versions_pass(text: str) -> None:
    assert check_gates(installed(mitmproxy=text)).versions["mitmproxy"] == text


@pytest.mark.parametrize("text", ["4.4.1", "4.5", "5.0.0"])
def test_a_safe_h2_keeps_http2(text: str) -> None:
    assert check_gates(installed(h2=text)).http2


@pytest.mark.parametrize("package", [gate.package for gate in GATES])
def test_a_package_that_is_missing_is_named(package: str) -> None:
    def find(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return version(name)

    with pytest.raises(GateClosed, match=package):
        check_gates(find)


SEAMS: dict[str, tuple[type, str]] = {
    "the hook dispatcher": (ConnectionHandler, "handle_hook"),
    "the event loop": (ConnectionHandler, "server_event"),
    "dialling": (ConnectionHandler, "open_connection"),
    "streams": (HttpLayer, "make_stream"),
    "reuse": (HttpLayer, "get_connection"),
    "HTTP/1 heads": (_http1.Http1Server, "read_headers"),
    "HTTP/1 answers": (_http1.Http1Client, "read_headers"),
    "HTTP/2 errors": (_http2.Http2Server, "protocol_error"),
}


@pytest.mark.parametrize(("owner", "name"), SEAMS.values(), ids=SEAMS)
def test_a_seam_that_changed_closes_the_gate(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(self: Any, surprise: Any) -> None:
        """The same name, other parameters."""

    monkeypatch.setattr(owner, name, changed)
    with pytest.raises(GateClosed, match=name):
        check_gates()


def test_a_seam_that_is_gone_closes_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpLayer, "make_stream")
    with pytest.raises(GateClosed, match="make_stream"):
        check_gates()
