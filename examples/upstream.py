"""A real HTTPS server on loopback, with a CA of its own: an origin for the tour, without internet.

    python -m examples.upstream --name api.example.com  writes upstream-ca.pem, runs until Ctrl-C

It answers any request to 200 with a line of JSON that tells what arrived, so that a person sees
what an origin sees. `/bytes/N` is answered with N bytes.

The key lives in memory and, for a moment, in a file that only we can read: `ssl` loads no other.
"""

import argparse
import json
import signal
import ssl
import sys
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFE = timedelta(days=7)
BYTES_MAX = 10_000_000


class Upstream:
    """A running server. `with Upstream([...], ca) as upstream:` gives its `port`; `ca` is written.

    `seen` lists every request that arrived, as "METHOD PATH".
    """

    def __init__(self, names: Sequence[str], ca: Path, *, port: int = 0) -> None:
        self.seen: list[str] = []
        self._server = _Server(("127.0.0.1", port), _Answer)
        self._server.seen = self.seen
        self._server.socket = _serve_tls(names, ca).wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self._server.server_port

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[str]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in mid-sentence is nothing to talk about."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms
    server: _Server

    def _answer(self) -> None:
        arrived = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append(f"{self.command} {self.path}")
        kind, body = "application/json", self._describe(len(arrived))
        if self.path.startswith("/bytes/") and self.path[7:].isdecimal():
            kind, body = "text/plain", b"b" * min(int(self.path[7:]), BYTES_MAX)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815  its names

    def _describe(self, body_bytes: int) -> bytes:
        told = {
            "upstream": self.headers.get("host"),
            "method": self.command,
            "path": self.path,
            "body_bytes": body_bytes,
        }
        return json.dumps(told).encode() + b"\n"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name
        """Say nothing: the proxy's log is what the tour is about."""


def _serve_tls(names: Sequence[str], ca: Path) -> ssl.SSLContext:
    """A certificate for `names` by a fresh CA, whose own certificate goes to `ca`."""
    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certify("Upstream of the tour: CA", authority, authority, ca=True)
    leaf = _certify("Upstream of the tour", own, authority, names=names)
    ca.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as chain:  # made with mode 0600
        chain.write(
            own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        chain.write(leaf.public_bytes(serialization.Encoding.PEM))
        chain.flush()
        context.load_cert_chain(chain.name)
    return context


def _certify(
    title: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: ec.EllipticCurvePrivateKey,
    *,
    names: Sequence[str] = (),
    ca: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)  # noqa: TID251  a certificate for the next days
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Upstream of the tour: CA")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(root)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(issuer, hashes.SHA256())


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="A real HTTPS server on loopback.")
    parser.add_argument("--name", action="append", help="a host name it has; repeatable")
    parser.add_argument("--port", type=int, default=8443, help="default: 8443")
    parser.add_argument("--ca", type=Path, default=Path("upstream-ca.pem"), help="file to write")
    asked = parser.parse_args()
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with Upstream(asked.name or ["api.example.com"], asked.ca, port=asked.port) as upstream:
        print(f"upstream on 127.0.0.1:{upstream.port}, its CA is {asked.ca}", file=sys.stderr)
        ended.wait()


if __name__ == "__main__":
    main()
