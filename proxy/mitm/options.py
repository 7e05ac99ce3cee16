"""mitmproxy's options, set once and compared with a golden map before the port opens and every
minute after.

One flipped option turns inspection off (threats.md J1-J3), so there is no file, flag or variable
that reaches them.
"""

from collections.abc import Sequence

from mitmproxy.options import Options

GOLDEN: dict[str, object] = {
    "allow_hosts": [],
    "block_global": False,
    "block_private": False,
    "body_size_limit": None,  # own limits: mitmproxy's aborts even streamed bodies
    "cert_passphrase": None,
    "certs": [],
    "client_certs": None,
    "connection_strategy": "lazy",  # eager contacts the upstream before any request is seen (F2)
    "http2": True,
    "http2_ping_keepalive": 0,
    "http3": False,
    "ignore_hosts": [],
    "keep_host_header": False,
    "mode": ["regular"],
    "normalize_outbound_headers": True,
    "rawtcp": False,
    "request_client_cert": False,
    "scripts": [],
    "ssl_insecure": False,
    "store_streamed_bodies": False,
    "stream_large_bodies": None,
    "tcp_hosts": [],
    "udp_hosts": [],
    "upstream_cert": False,
    "validate_inbound_headers": True,
    "websocket": False,  # our own relay; mitmproxy's holds whole messages back
}

_OWN: tuple[tuple[str, type | object], ...] = (
    # what mitmproxy's Proxyserver and other addons would have registered
    ("body_size_limit", str | None),
    ("block_global", bool),
    ("block_private", bool),
    ("connection_strategy", str),
    ("keep_host_header", bool),
    ("normalize_outbound_headers", bool),
    ("request_client_cert", bool),
    ("scripts", Sequence[str]),
    ("store_streamed_bodies", bool),
    ("stream_large_bodies", str | None),
    ("validate_inbound_headers", bool),
)


class OptionsTampered(RuntimeError):  # noqa: N818  named after the failure
    """An option differs from the golden map; the server refuses to start, or seals itself."""


def freeze_options(*, idle_timeout_s: int, http2: bool) -> Options:
    """Options for every connection handler. `http2` is off where an unsafe h2 is installed
    (gates.py)."""
    options = Options()
    present = set(options.keys())
    for name, kind in _OWN:
        if name not in present:
            options.add_option(name, kind, GOLDEN[name], "")
    known = set(options.keys())
    options.update(**{name: value for name, value in GOLDEN.items() if name in known})
    options.update(http2=http2, tcp_timeout=idle_timeout_s)
    return options


def compare_options(options: Options, *, http2: bool) -> None:
    """Raise OptionsTampered naming the first option that is not as we set it."""
    expected = GOLDEN | {"http2": http2}
    known = set(options.keys())
    for name, value in expected.items():
        if name in known and getattr(options, name) != value:
            raise OptionsTampered(
                f"mitmproxy option `{name}` is {getattr(options, name)!r}, not {value!r}"
            )
