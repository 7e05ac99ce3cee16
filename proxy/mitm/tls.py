"""TLS settings of both sides, and nothing that an option could loosen.

Towards the client: a leaf for the CONNECT host (never for the SNI), TLS >= 1.2, ALPN h2 or
http/1.1. Towards the upstream: the name of the ticket is SNI and must be in the certificate (RFC
9525), verified against the system's roots and `--upstream-ca` together; there is no way to switch
verification off.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import certifi
from OpenSSL import SSL

from proxy.mitm.ca import LeafMint

_CONTEXTS_MAX = 512
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"  # TLS 1.2; forward secret and authenticated only
# Partial wildcards and matching on the subject are refused (RFC 9525 sections 6.3 and 2).
_HOST_FLAGS = (
    0x4 | 0x20
)  # X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT


class UpstreamCaUnusable(RuntimeError):  # noqa: N818  named after the failure
    """A file of `--upstream-ca` holds no certificate. The text says which, and what to do."""


class Terminator:
    """Server side of TLS towards agents: contexts by host, kept so that sessions resume."""

    def __init__(self, mint: LeafMint, *, http2: bool) -> None:
        self._mint = mint
        self._http2 = http2
        self._contexts: OrderedDict[str, tuple[SSL.Context, object]] = OrderedDict()

    def connection(self, host: str, now: datetime) -> SSL.Connection:
        """A fresh server-side connection that presents a certificate for `host`."""
        leaf = self._mint.leaf(host, now)
        known = self._contexts.get(host)
        if known is None or known[1] is not leaf:
            known = (self._context(leaf), leaf)
            self._contexts[host] = known
            if len(self._contexts) > _CONTEXTS_MAX:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(host)
        connection = SSL.Connection(known[0])
        connection.set_accept_state()
        return connection

    def _context(self, leaf: object) -> SSL.Context:
        context = _hardened(SSL.TLS_SERVER_METHOD)
        context.use_certificate(leaf)  # type: ignore[arg-type]  # pyOpenSSL takes cryptography's objects
        context.use_privatekey(self._mint.leaf_key)
        context.set_alpn_select_callback(self._select_protocol)
        return context

    def _select_protocol(
        self, _connection: SSL.Connection, offers: list[bytes]
    ) -> bytes | SSL._NoOverlappingProtocols:
        """Our order decides, as RFC 7301 has it: some clients that want h2 name http/1.1 first."""
        for known in (b"h2", b"http/1.1") if self._http2 else (b"http/1.1",):
            if known in offers:
                return known
        return SSL.NO_OVERLAPPING_PROTOCOLS


class Originator:
    """Client side of TLS towards upstreams: one context, verification always on."""

    def __init__(self, extra_ca_files: Sequence[Path] = ()) -> None:
        context = _hardened(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_PEER)
        context.load_verify_locations(_system_bundle())
        for path in extra_ca_files:
            _trust(context, path)
        self._context = context

    def connection(self, name: str, protocols: Sequence[bytes]) -> SSL.Connection:
        """A fresh client-side connection that will accept a certificate for `name` only."""
        connection = SSL.Connection(self._context)
        lib, ffi_connection = SSL._lib, connection._ssl  # type: ignore[attr-defined]
        param = lib.SSL_get0_param(ffi_connection)
        lib.X509_VERIFY_PARAM_set_hostflags(param, _HOST_FLAGS)
        try:
            packed = ip_address(name).packed
        except ValueError:
            encoded = name.encode("ascii")
            connection.set_tlsext_host_name(encoded)
            pinned = lib.X509_VERIFY_PARAM_set1_host(param, encoded, len(encoded))
        else:
            pinned = lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed))
        if pinned != 1:
            raise ValueError(f"cannot verify certificates for `{name}`")
        if protocols:
            connection.set_alpn_protos(list(protocols))
        connection.set_connect_state()
        return connection


def _hardened(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _trust(context: SSL.Context, path: Path) -> None:
    try:
        context.load_verify_locations(str(path))
    except SSL.Error as error:
        raise UpstreamCaUnusable(
            f"`--upstream-ca {path}`: holds no certificate that can be read; give a PEM file"
        ) from error


def _system_bundle() -> str:
    """The system's roots where there are any, else certifi's."""
    for path in (
        os.environ.get("SSL_CERT_FILE"),
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/ssl/cert.pem",
    ):
        if path and Path(path).is_file():
            return path
    return certifi.where()
