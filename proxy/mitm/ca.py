"""The certificate authority agents trust: one EC P-256 key, leaves minted per exact host.

The CA certificate (`ca.pem`) is what agents get; its key (`ca.key`, 0600) never leaves the state
directory (threats.md J9). Leaves share one key for the life of the process: minting then costs one
signature.
"""

import os
from collections import OrderedDict
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650  # as long as a deployment; rotating it means touching every agent image
LEAF_DAYS = 90  # under every client's ceiling for leaf certificates (398 days)
LEAVES_MAX = 2048  # ~1.5 KB each; hosts beyond the most recent are minted again


class CaUnusable(RuntimeError):  # noqa: N818  named after the failure
    """The CA files are missing, unreadable or do not belong together; `serve` refuses to start."""


def create_ca(folder: Path, now: datetime) -> Path:
    """Write `ca.key` (0600) and `ca.pem` into `folder`; never overwrites.

    Returns the path of the certificate.

    Raises:
        FileExistsError: there is a CA already.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("ca.key", "ca.pem"):  # half a pair left behind would hide which half is missing
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name}: there is a CA already")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "Tollkeeper CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tollkeeper"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))  # clients' clocks lag
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_new(folder / "ca.key", private, 0o600)
    path = folder / "ca.pem"
    _write_new(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return path


def _write_new(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class LeafMint:
    """Mints and remembers server certificates, one per exact host."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key
        self.leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[str, tuple[x509.Certificate, datetime]] = OrderedDict()

    @classmethod
    def load(cls, folder: Path) -> "LeafMint":
        """Read `ca.pem` and `ca.key`.

        Raises:
            CaUnusable: with the path and the remedy.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            cause = str(error)
            if isinstance(error, OSError):
                cause = f"{Path(error.filename).name}: {(error.strerror or cause).lower()}"
            raise CaUnusable(
                f"{folder}: {cause}; restore ca.pem and ca.key, or move the folder away and run"
                " `tollkeeper init` for a new CA that every agent must then trust"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise CaUnusable(f"{folder}: ca.key does not belong to ca.pem; restore the pair")
        return cls(certificate, key)

    def leaf(self, host: str, now: datetime) -> x509.Certificate:
        """The certificate for `host` (an A-label or IP literal), minted if need be."""
        known = self._leaves.get(host)
        if known is not None and now < known[1]:
            self._leaves.move_to_end(host)
            return known[0]
        certificate = self._mint(host, now)
        self._leaves[host] = (certificate, now + timedelta(days=LEAF_DAYS - 7))
        if len(self._leaves) > LEAVES_MAX:
            self._leaves.popitem(last=False)
        return certificate

    def _mint(self, host: str, now: datetime) -> x509.Certificate:
        san: x509.GeneralName
        try:
            san = x509.IPAddress(ip_address(host))
        except ValueError:
            san = x509.DNSName(host)
        # A common name holds at most 64 characters (X.520); the subject alternative name is what
        # counts.
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, host)] if len(host) <= 64 else []
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.certificate.subject)
            .public_key(self.leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=LEAF_DAYS))
            .add_extension(x509.SubjectAlternativeName([san]), critical=not subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
