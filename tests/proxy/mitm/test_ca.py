"""The CA: a leaf that every client's verifier accepts, keys that nobody else can read."""

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

import proxy.mitm.ca
from proxy.mitm.ca import CaUnusable, LeafMint, create_ca

NOW = datetime.now(UTC)  # noqa: TID251  openssl verifies against the clock of the machine
LONG = ".".join(["a" * 60] * 3) + ".test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("house") / "ca"
    create_ca(made, NOW)
    return made


@pytest.fixture(scope="module")
def mint(folder: Path) -> LeafMint:
    return LeafMint.load(folder)


def verify(folder: Path, leaf: x509.Certificate, *flags: str) -> str:
    """What openssl says, as strictly as it can."""
    path = folder / "leaf.pem"
    path.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver",
         "-CAfile", str(folder / "ca.pem"), *flags, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    path.unlink()
    return (done.stdout + done.stderr).strip()


NAMES: dict[str, tuple[str, list[str]]] = {
    "a name": ("api.example.com", ["-verify_hostname", "api.example.com"]),
    "an A-label": ("xn--bcher-kva.example", ["-verify_hostname", "xn--bcher-kva.example"]),
    "an IPv4 address": ("93.184.216.34", ["-verify_ip", "93.184.216.34"]),
    "an IPv6 address": ("2606:4700::1111", ["-verify_ip", "2606:4700::1111"]),
    "a name too long for a common name": (LONG, ["-verify_hostname", LONG]),
}


@pytest.mark.parametrize(("host", "flags"), NAMES.values(), ids=NAMES)
def test_openssl_accepts_a_leaf_for_exactly_its_host(
    folder: Path, mint: LeafMint, host: str, flags: list[str]
) -> None:
    leaf = mint.leaf(host, NOW)
    assert verify(folder, leaf, *flags).endswith(": OK")
    assert "mismatch" in verify(folder, leaf, "-verify_hostname", "other.example")


def test_a_leaf_names_its_host_and_nothing_else(mint: LeafMint) -> None:
    names = mint.leaf("api.example.com", NOW).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert list(names.value) == [x509.DNSName("api.example.com")]
    numbers = mint.leaf("2606:4700::1111", NOW).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert list(numbers.value) == [x509.IPAddress(ip_address("2606:4700::1111"))]


def test_a_leaf_is_a_server_and_no_authority(folder: Path, mint: LeafMint) -> None:
    extensions = mint.leaf("api.example.com", NOW).extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_leaf_lives_shorter_than_any_client_allows(mint: LeafMint) -> None:
    leaf = mint.leaf("api.example.com", NOW)
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert timedelta(days=60) < life < timedelta(days=398)
    assert leaf.not_valid_before_utc < NOW - timedelta(hours=24)


def test_a_leaf_is_kept_and_minted_again_before_it_ends(mint: LeafMint) -> None:
    first = mint.leaf("kept.example.com", NOW)
    assert mint.leaf("kept.example.com", NOW + timedelta(days=80)) is first
    later = mint.leaf("kept.example.com", NOW + timedelta(days=84))
    assert later is not first
    assert later.not_valid_after_utc > first.not_valid_after_utc


def test_the_number_of_leaves_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.mitm.ca, "LEAVES_MAX", 2)
    mint = LeafMint.load(folder)
    first = mint.leaf("a.test", NOW)
    for host in ("b.test", "c.test"):
        mint.leaf(host, NOW)
    assert len(mint._leaves) == 2
    assert mint.leaf("a.test", NOW) is not first


def test_the_authority_may_sign_leaves_only(mint: LeafMint) -> None:
    certificate = mint.certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_after_utc - NOW > timedelta(days=3600)


def test_no_two_authorities_share_a_key_or_a_number(tmp_path: Path, mint: LeafMint) -> None:
    create_ca(tmp_path / "ca", NOW)
    other = LeafMint.load(tmp_path / "ca").certificate
    assert other.serial_number != mint.certificate.serial_number
    assert other.public_key() != mint.certificate.public_key()


def test_only_the_owner_reads_the_key(folder: Path) -> None:
    """J9: what agents get is the certificate alone."""
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert b"PRIVATE" not in (folder / "ca.pem").read_bytes()


@pytest.mark.parametrize("present", [("ca.key", "ca.pem"), ("ca.key",), ("ca.pem",)])
def test_nothing_is_ever_overwritten(tmp_path: Path, present: tuple[str, ...]) -> None:
    for name in present:
        (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError):
        create_ca(tmp_path, NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(present)
    assert all((tmp_path / name).read_text() == "precious" for name in present)


UNUSABLE = {
    "no certificate": lambda folder: (folder / "ca.pem").unlink(),
    "no key": lambda folder: (folder / "ca.key").unlink(),
    "a certificate that is none": lambda folder: (folder / "ca.pem").write_text("no"),
    "a key that is none": lambda folder: (folder / "ca.key").write_text("no"),
    "another key": lambda folder: (folder / "ca.key").write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    ),
}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE)
def test_a_pair_that_does_not_work_is_refused_with_its_place(tmp_path: Path, spoil: object) -> None:
    create_ca(tmp_path, NOW)
    spoil(tmp_path)  # type: ignore[operator]  # a lambda over a folder
    with pytest.raises(CaUnusable, match=str(tmp_path)):
        LeafMint.load(tmp_path)
