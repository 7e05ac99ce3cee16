"""TLS on both sides, over real sockets: who is believed, and what is offered."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from proxy.mitm.ca import LeafMint, create_ca
from proxy.mitm.tls import Originator, Terminator, UpstreamCaUnusable
from tests.kit.certificates import Authority
from tests.kit.proxy import ROOT

NOW = datetime.now(UTC)  # noqa: TID251  certificates are verified against the clock of the machine
HOST = "origin.test"


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> LeafMint:
    folder = tmp_path_factory.mktemp("ca")
    create_ca(folder, NOW)
    return LeafMint.load(folder)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def pair(server: Callable[[socket.socket], None]) -> socket.socket:
    """The client's end; the server works at the other one on a thread."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with closing(listener):
            connection, _ = listener.accept()
            connection.settimeout(5)
            with closing(connection):
                try:
                    server(connection)
                except (OSError, SSL.Error):
                    return

    threading.Thread(target=serve, daemon=True).start()
    client = socket.create_connection(listener.getsockname(), 5)
    client.settimeout(5)
    return client


def shake(connection: SSL.Connection, plain: socket.socket) -> None:
    """A handshake of a connection in memory over a real socket.

    Raises:
        SSL.Error: it failed.
    """
    while True:
        try:
            connection.do_handshake()
            _flush(connection, plain)
            return
        except SSL.WantReadError:
            _flush(connection, plain)
            data = plain.recv(65_536)
            if not data:
                connection.bio_shutdown()
            else:
                connection.bio_write(data)


def _flush(connection: SSL.Connection, plain: socket.socket) -> None:
    try:
        while data := connection.bio_read(65_536):
            plain.sendall(data)
    except SSL.WantReadError:
        return


def answering(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as secure:
            secure.recv(1)

    return serve


def reach(context: ssl.SSLContext, name: str, trusted: tuple[Path, ...]) -> SSL.Connection:
    """Connect as towards an upstream; raises where it is not believed."""
    with closing(pair(answering(context))) as plain:
        connection = Originator(trusted).connection(name, [b"http/1.1"])
        shake(connection, plain)
        return connection


# --- towards the upstream


@pytest.mark.parametrize("name", [HOST, "127.0.0.1", "::1"])
def test_an_upstream_with_its_own_name_is_believed(authority: Authority, name: str) -> None:
    context = authority.server_context(HOST, "127.0.0.1", "::1")
    connection = reach(context, name, (authority.pem,))
    assert connection.get_alpn_proto_negotiated() == b"http/1.1"


def test_a_wildcard_of_one_label_is_believed(authority: Authority) -> None:
    reach(authority.server_context("*.origin.test"), "a.origin.test", (authority.pem,))


NOT_BELIEVED: dict[str, tuple[str, tuple[str, ...]]] = {
    "the name of another": (HOST, ("other.test",)),
    "a wildcard two labels up": ("a.b.origin.test", ("*.origin.test",)),
    "a wildcard for the bare name": ("origin.test", ("*.origin.test",)),
    "a partial wildcard": ("api.test", ("a*.test",)),
    "an address where a name is meant": (HOST, ("127.0.0.1",)),
    "a name where an address is meant": ("127.0.0.1", ("localhost",)),
    "another address": ("127.0.0.1", ("127.0.0.2",)),
    "an address written as a name": ("127.0.0.1", ("127-0-0-1.test",)),
}


@pytest.mark.parametrize(("asked", "names"), NOT_BELIEVED.values(), ids=NOT_BELIEVED)
def test_an_upstream_that_is_somebody_else_is_refused(
    authority: Authority, asked: str, names: tuple[str, ...]
) -> None:
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        reach(authority.server_context(*names), asked, (authority.pem,))


def test_an_authority_nobody_named_is_not_believed(authority: Authority) -> None:
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        reach(authority.server_context(HOST), HOST, ())


def test_a_name_in_the_subject_alone_is_not_believed(tmp_path: Path) -> None:
    """RFC 9525 section 2: only the alternative names count."""
    context = _self_made(tmp_path, named=False)
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        reach(context, HOST, (tmp_path / "own.crt",))


def test_a_self_signed_upstream_is_refused(tmp_path: Path) -> None:
    context = _self_made(tmp_path)
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        reach(context, HOST, ())
    reach(context, HOST, (tmp_path / "own.crt",))  # unless the operator says so


@pytest.mark.parametrize("days", [-10, 10], ids=["expired", "not yet valid"])
def test_an_upstream_out_of_its_time_is_refused(tmp_path: Path, days: int) -> None:
    context = _self_made(tmp_path, begins=NOW + timedelta(days=days))
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        reach(context, HOST, (tmp_path / "own.crt",))


def _self_made(
    folder: Path, *, named: bool = True, begins: datetime = NOW - timedelta(days=1)
) -> ssl.SSLContext:
    """A server whose certificate signed itself, good for two days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=2))
    )
    if named:
        alternative = x509.SubjectAlternativeName([x509.DNSName(HOST)])
        builder = builder.add_extension(alternative, critical=False)
    certificate, private = folder / "own.crt", folder / "own.key"
    pem = serialization.Encoding.PEM
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return context


def test_a_name_that_cannot_be_verified_is_no_name() -> None:
    """Canonical hosts never look like this; were one to, nothing would be dialled."""
    for name in ("b\u00fccher.test", "a\x00b"):
        with pytest.raises((ValueError, TypeError)):
            Originator().connection(name, [])


def test_a_bundle_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(UpstreamCaUnusable, match=name):
            Originator((tmp_path / name,))


# --- towards the agent


def present(mint: LeafMint, host: str, *, http2: bool = True) -> Callable[[socket.socket], None]:
    def serve(plain: socket.socket) -> None:
        connection = Terminator(mint, http2=http2).connection(host, NOW)
        shake(connection, plain)
        plain.recv(1)

    return serve


def agent(tmp: Path, mint: LeafMint) -> ssl.SSLContext:
    pem = tmp / "ca.pem"
    pem.write_bytes(mint.certificate.public_bytes(serialization.Encoding.PEM))
    return ssl.create_default_context(cafile=str(pem))


@pytest.fixture
def client(tmp_path: Path, mint: LeafMint) -> ssl.SSLContext:
    return agent(tmp_path, mint)


def test_an_agent_that_trusts_us_sees_the_host_it_asked_for(
    client: ssl.SSLContext, mint: LeafMint
) -> None:
    with (
        closing(pair(present(mint, HOST))) as plain,
        client.wrap_socket(plain, server_hostname=HOST) as secure,
    ):
        assert secure.version() == "TLSv1.3"


def test_the_certificate_is_for_the_tunnel_and_not_for_the_sni(
    client: ssl.SSLContext, mint: LeafMint
) -> None:
    with (
        closing(pair(present(mint, HOST))) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="not valid for"),
    ):
        client.wrap_socket(plain, server_hostname="other.test")


@pytest.mark.parametrize(
    ("offers", "http2", "chosen"),
    [
        (["h2", "http/1.1"], True, "h2"),
        (["http/1.1", "h2"], True, "h2"),
        (["h2", "http/1.1"], False, "http/1.1"),
        (["h2"], False, None),
        (["foo"], True, None),
        ([], True, None),
    ],
)
def test_only_protocols_that_are_read_are_chosen(
    client: ssl.SSLContext, mint: LeafMint, offers: list[str], http2: bool, chosen: str | None
) -> None:
    client.set_alpn_protocols(offers)
    with (
        closing(pair(present(mint, HOST, http2=http2))) as plain,
        client.wrap_socket(plain, server_hostname=HOST) as secure,
    ):
        assert secure.selected_alpn_protocol() == chosen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the old versions, on purpose
@pytest.mark.parametrize("old", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused_towards_agents(
    client: ssl.SSLContext, mint: LeafMint, old: ssl.TLSVersion
) -> None:
    client.minimum_version = client.maximum_version = old
    client.set_ciphers("ALL:@SECLEVEL=0")
    with closing(pair(present(mint, HOST))) as plain, pytest.raises((ssl.SSLError, OSError)):
        client.wrap_socket(plain, server_hostname=HOST)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused_towards_upstreams(authority: Authority) -> None:
    context = authority.server_context(HOST)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(SSL.Error):
        reach(context, HOST, (authority.pem,))


def test_tls_1_2_is_forward_secret(client: ssl.SSLContext, mint: LeafMint) -> None:
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        closing(pair(present(mint, HOST))) as plain,
        client.wrap_socket(plain, server_hostname=HOST) as secure,
    ):
        cipher = secure.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")


def test_a_cipher_without_forward_secrecy_is_refused(
    client: ssl.SSLContext, mint: LeafMint
) -> None:
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES128-SHA:AES128-SHA")
    with closing(pair(present(mint, HOST))) as plain, pytest.raises((ssl.SSLError, OSError)):
        client.wrap_socket(plain, server_hostname=HOST)


def test_contexts_are_kept_by_host_and_their_number_is_bounded(
    mint: LeafMint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.mitm.tls._CONTEXTS_MAX", 2)
    terminator = Terminator(mint, http2=True)
    first = terminator.connection("a.test", NOW).get_context()
    assert terminator.connection("a.test", NOW).get_context() is first
    for host in ("b.test", "c.test"):
        terminator.connection(host, NOW)
    assert len(terminator._contexts) == 2
    assert terminator.connection("a.test", NOW).get_context() is not first


def test_no_session_key_is_written_anywhere(tmp_path: Path) -> None:
    """J10: with the variables set, a handshake on both sides leaves no file."""
    keys = tmp_path / "keys.log"
    script = (
        "import tests.proxy.mitm.test_tls as t, pathlib, contextlib\n"
        "from proxy.mitm.ca import LeafMint, create_ca\n"
        f"folder = pathlib.Path({str(tmp_path)!r}) / 'ca'\n"
        "create_ca(folder, t.NOW); mint = LeafMint.load(folder)\n"
        "plain = t.pair(t.present(mint, t.HOST))\n"
        "connection = t.Originator((folder / 'ca.pem',)).connection(t.HOST, [])\n"
        "t.shake(connection, plain); plain.close()\n"
        "print('shaken')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "SSLKEYLOGFILE": str(keys), "MITMPROXY_SSLKEYLOGFILE": str(keys)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "shaken\n", done.stderr
    assert not keys.exists()
