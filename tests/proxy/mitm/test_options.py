"""mitmproxy's options: frozen, and every difference is noticed."""

from typing import Any

import pytest
from mitmproxy.options import Options

from proxy.mitm.options import GOLDEN, OptionsTampered, compare_options, freeze_options


def frozen() -> Options:
    return freeze_options(idle_timeout_s=60, http2=True)


def known(options: Options) -> set[str]:
    keys: Any = options.keys  # mitmproxy gives it no types
    return set(keys())


# what this mitmproxy also has, and why it changes nothing: our layers never ask for it
OF_NO_USE = {
    "add_upstream_certs_to_client_chain", "confdir", "content_view_lines_cutoff",
    "http_connect_send_host_header", "key_size", "listen_host", "listen_port",
    "protobuf_definitions", "server", "show_ignored_hosts", "showhost",
    "ssl_verify_upstream_trusted_ca", "ssl_verify_upstream_trusted_confdir", "tcp_timeout",
}  # fmt: skip


def other(value: object) -> Any:
    """Something that this option would also take."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return "eager"
        case list():
            return ["x"] if value != ["regular"] else ["upstream:http://x:1"]
    return "1m"


def test_what_was_frozen_compares_equal() -> None:
    compare_options(frozen(), http2=True)
    compare_options(freeze_options(idle_timeout_s=60, http2=False), http2=False)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_each_option_that_is_flipped_is_named(name: str) -> None:
    """J1 to J3: one of them is enough to turn inspection off."""
    options: Any = frozen()
    options.update(**{name: other(GOLDEN[name])})
    with pytest.raises(OptionsTampered, match=f"`{name}`"):
        compare_options(options, http2=True)


def test_there_is_no_option_that_nobody_looked_at() -> None:
    """A mitmproxy that brings a new one fails here, before anybody ships it."""
    assert known(frozen()) == set(GOLDEN) | OF_NO_USE


def test_http2_is_what_the_gates_said() -> None:
    with pytest.raises(OptionsTampered, match="http2"):
        compare_options(frozen(), http2=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connection_strategy", "lazy"),
        ("ssl_insecure", False),
        ("rawtcp", False),
        ("upstream_cert", False),
        ("validate_inbound_headers", True),
        ("ignore_hosts", []),
        ("store_streamed_bodies", False),
        ("stream_large_bodies", None),
    ],
)
def test_options_that_would_open_a_way_round_are_shut(name: str, value: object) -> None:
    assert getattr(frozen(), name) == value
