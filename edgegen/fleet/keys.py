"""Certificates for mutual TLS: a folder for each machine, all signed by one CA.

FLEET/
  ca/      ca.pem, key.pem        signs the others; stays here, or offline
  hub/     ca.pem, cert.pem, key.pem
  client/  ca.pem, cert.pem, key.pem      of `edgegen profile --fleet`
  pi5/     ca.pem, cert.pem, key.pem      to be copied to the board of that name

Every machine accepts whom the CA signed, and Dask sends pickles: one key opens the whole fleet.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from edgegen import rooms
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.fleet.address import Address

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

HUB, CLIENT, CA = "hub", "client", "ca"
VALID = timedelta(days=825)
CA_VALID = timedelta(days=3650)
FILES = ("ca.pem", "cert.pem", "key.pem")
COPY = "copy the folder again from where the keys were made"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def default() -> Path:
    """Where keys are looked for when no folder is given: ~/.config/edgegen/fleet."""
    return platformdirs.user_config_path("edgegen") / "fleet"


def check_name(name: str) -> str:
    """The name of a board, for it names files and folders too.

    Raises:
        UsageError: other characters than letters, digits, dot, dash, underscore; or taken.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a device", "use letters, digits, '.', '-', '_'")
    if name in (HUB, CLIENT, CA, "all"):
        raise UsageError(f"{name!r} means something else in a fleet", "give another name")
    return name


def make(folder: Path, names: Sequence[str]) -> list[Path]:
    """Keys for the hub, a client and boards called `names`; the folders that were made.

    With keys already in `folder`, only what is missing is made, signed by the same CA.

    Raises:
        UsageError: a name that cannot be one, or that has its keys already; nothing to make.
        FormatError: the CA in `folder` is broken.
        MissingExtraError: the fleet extra is not installed.
    """
    names = list(dict.fromkeys(names))
    own = [name for name in (HUB, CLIENT) if not (folder / name).exists()]
    if not names and not own:
        raise UsageError(f"{folder}: hub and client are there already", "name a board: pi5")
    for name in names:
        if (folder / check_name(name)).exists():
            raise UsageError(f"{folder / name}: is there already", "delete it to make it anew")
    try:
        ca, ca_key = _authority(folder / CA)
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "edgegen devices keys") from error
    return [_issue(folder / name, ca, ca_key) for name in (*own, *names)]


def find(address: Address, folder: Path | None, name: str) -> Path | None:
    """The folder of keys for `address`: `folder`, or the default one of `name`; None for tcp://.

    Raises:
        NotFoundError: no keys there.
        FormatError: a private key that others may read, a certificate that is broken, past its
            date, of another key, or for the hub a client's.
    """
    if address.scheme == "tcp":
        return None
    keys = folder or default() / name
    missing = [file for file in FILES if not (keys / file).is_file()]
    if missing:
        raise NotFoundError(
            f"{address}: needs keys; {keys} has no {', '.join(missing)}",
            f"on the host run: edgegen devices keys {name if name not in (HUB, CLIENT) else 'NAME'}"
            f"; then copy FLEET/{name} here, or give its place with --keys",
        )
    if os.name == "posix" and (keys / "key.pem").stat().st_mode & 0o077:
        raise FormatError(
            f"{keys / 'key.pem'}: others than its owner may read it",
            f"run: chmod 600 {keys / 'key.pem'}",
        )
    _check_pair(keys)
    _check_certificate(keys / "cert.pem", name)
    return keys


def security(keys: Path | None) -> Any:
    """Dask's security settings from a folder of keys; None asks for none.

    Raises:
        MissingExtraError: the fleet extra is not installed.
    """
    try:
        from distributed.security import Security
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "a fleet") from error
    if keys is None:
        return None
    pair = {"cert": str(keys / "cert.pem"), "key": str(keys / "key.pem")}
    return Security(
        require_encryption=True,
        tls_ca_file=str(keys / "ca.pem"),
        **{
            f"tls_{role}_{part}": path
            for role in ("client", "scheduler", "worker")
            for part, path in pair.items()
        },
    )


def _check_pair(keys: Path) -> None:
    """What TLS would say of these files later, as a hub that is not there, or in a stack trace."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(keys / "ca.pem")
    except OSError as error:
        raise _broken(keys / "ca.pem", error) from error
    try:
        # An encrypted key would be asked for its password on the terminal.
        context.load_cert_chain(keys / "cert.pem", keys / "key.pem", password=lambda: b"")
    except OSError as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            said = "is not of the key beside it, key.pem"
            raise FormatError(f"{keys / 'cert.pem'}: {said}", COPY) from error
        raise _broken(keys / "cert.pem or key.pem", error) from error


def _broken(path: Path, error: Exception) -> FormatError:
    why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return FormatError(f"{path}: cannot be read: {why}", COPY)


def _check_certificate(path: Path, name: str) -> None:
    try:
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "a fleet") from error
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    now, end = datetime.now(UTC), certificate.not_valid_after_utc
    if now > end:
        raise FormatError(
            f"{path}: was valid until {end:%Y-%m-%d}",
            "delete its folder and run edgegen devices keys again",
        )
    if now < (begin := certificate.not_valid_before_utc):
        raise FormatError(
            f"{path}: is valid from {begin:%Y-%m-%d}, and it is {now:%Y-%m-%d} here",
            "set the clock of this machine",
        )
    said = [e.value for e in certificate.extensions if e.oid == ExtensionOID.EXTENDED_KEY_USAGE]
    if name != CLIENT and any(ExtendedKeyUsageOID.SERVER_AUTH not in uses for uses in said):
        raise FormatError(
            f"{path}: is a client's, which nobody may connect to",
            f"give the folder of {'the hub' if name == HUB else name}, FLEET/{name}: --keys",
        )


def _authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """The CA in `folder`, made when there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not (folder / "key.pem").is_file():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign("EdgeGen fleet", key, None, key)
        _write(folder, {"ca.pem": _pem(certificate), "key.pem": _secret(key)})
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        loaded = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise FormatError(
            f"{folder}: its ca.pem or key.pem cannot be read: {error}",
            "restore it; or make a new fleet in another folder: edgegen devices keys NAME -o DIR",
        ) from error
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return certificate, loaded


def _issue(folder: Path, ca: x509.Certificate, ca_key: EllipticCurvePrivateKey) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(folder.name, key, ca, ca_key)
    _write(folder, {"ca.pem": _pem(ca), "cert.pem": _pem(certificate), "key.pem": _secret(key)})
    return folder


def _sign(
    name: str,
    key: EllipticCurvePrivateKey,
    ca: x509.Certificate | None,
    ca_key: EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate of `key`, by the CA; of the CA itself where that is None.

    A client's cannot stand in for a hub: only hub and boards may also be connected to.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    uses += [] if name == CLIENT else [ExtendedKeyUsageOID.SERVER_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a board without a clock battery is behind
        .not_valid_after(now + (VALID if ca else CA_VALID))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    if ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _secret(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Only the owner may read: the mode is set as the file is created, never after."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        number = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(content)
