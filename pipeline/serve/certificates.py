"""A certificate authority of this machine's own, made once, for clients that speak https only.

Light: standard library only; cryptography is imported on use.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes

_DAYS = 825
"""Longest life of a certificate that all systems accept."""


def own_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Certificate and key for this machine's names, signed by an authority that is made with them.

    `ca-bundle.pem` beside them holds the system's authorities and this one, for SSL_CERT_FILE.
    """
    certificate, key = folder / "server.pem", folder / "server-key.pem"
    if not _is_usable(certificate, key):
        _make(folder, host)
    return certificate, key


def _is_usable(certificate: Path, key: Path) -> bool:
    from cryptography import x509

    if not certificate.is_file() or not key.is_file():
        return False
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return found.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)


def _make(folder: Path, host: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _signed("sa3-trainer local authority", authority_key, authority_key, None, host)
    certificate = _signed("sa3-trainer", key, authority_key, authority, host)
    _write(folder / "server-key.pem", _key_bytes(key))
    _write(folder / "server.pem", _pem(certificate) + _pem(authority))
    _write(folder / "ca.pem", _pem(authority))
    _write(folder / "ca-bundle.pem", _system_authorities() + _pem(authority))


def _signed(name: str, key: Any, signer: Any, issuer: Any, host: str) -> Any:
    """A certificate of a key; an authority where there is no issuer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    is_authority = issuer is None
    usage = x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if is_authority else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_authority:
        built = built.add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
    return built.sign(signer, hashes.SHA256())


def _names(host: str) -> list[Any]:
    """The names under which the server is reached."""
    from cryptography import x509

    names: list[Any] = [x509.DNSName("localhost"), x509.DNSName("queue.localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    try:
        names.append(x509.IPAddress(ipaddress.ip_address(host.strip("[]"))))
    except ValueError:
        names.append(x509.DNSName(host))
    return list(dict.fromkeys(names))


def _system_authorities() -> bytes:
    """The authorities that this machine trusts."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file).read_bytes() + b"\n" if file and Path(file).is_file() else b""


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _key_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    atomic_write_bytes(file, content)
    os.chmod(file, 0o600)  # noqa: PTH101
