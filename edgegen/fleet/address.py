"""Where a hub is: `tls://HOST:8786`; `tcp://` never leaves this machine."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from edgegen.errors import EdgeGenError, UnsupportedError, UsageError

PORT = 8786
ANSWER_S = 10.0
WRONG_DATE = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and ..._HAS_EXPIRED


class Address(Struct, frozen=True):
    """A hub's address; `str()` gives it back as one writes it."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse(text: str) -> Address:
    """The address `text` says; port 8786 unless it says another.

    Raises:
        UsageError: not tls://HOST:PORT, or tcp:// to another machine.
    """
    hint = f"write it as tls://HOST:{PORT}"
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname, parts.port or PORT
    except ValueError as error:
        raise UsageError(f"{text!r} is no address: {error}", hint) from error
    if scheme not in ("tls", "tcp") or not host or parts.path or parts.query:
        raise UsageError(f"{text!r} is no address of a hub", hint)
    if scheme == "tcp" and not loopback(host):
        raise UsageError(
            f"{text}: tcp:// is neither encrypted nor authenticated, so it is for this machine "
            "alone: 127.0.0.1",
            f"{hint}, with keys from: edgegen devices keys NAME",
        )
    return Address(scheme, host, port)


def loopback(host: str) -> bool:
    """Does `host` name this machine and nothing else? Other names may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def knock(address: Address, keys: Path | None, timeout_s: float = ANSWER_S) -> None:
    """Raise an error that names the cause unless a hub answers and accepts our certificate.

    Dask itself tries again in silence until its time is up, whatever the cause.

    Raises:
        EdgeGenError: nothing there, a time-out, or a certificate that one side refuses.
    """
    started = "start one there with: edgegen devices hub --host HOST"
    try:
        with socket.create_connection((address.host, address.port), timeout_s) as plain:
            if keys is None:
                plain.recv(1)
            else:
                _shake_hands(plain, address, keys)
    except TimeoutError as error:
        if keys is None:
            started = f"{started.partition(':')[0]}; if it has keys, write tls:// for tcp://"
        raise EdgeGenError(f"{address}: time-out, no answer in {timeout_s:g} s", started) from error
    except OSError as error:
        raise EdgeGenError(
            f"{address}: no hub there: {error.strerror or error}", started
        ) from error


def _shake_hands(plain: socket.socket, address: Address, keys: Path) -> None:
    context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    context.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    context.check_hostname = False  # a fleet has a CA of its own, and boards no fixed names
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    again = "make all keys of a fleet in one folder with: edgegen devices keys NAME..."
    try:
        with context.wrap_socket(plain) as secured:
            secured.recv(1)  # in TLS 1.3 it is told only now whether it takes our certificate
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in WRONG_DATE:
            raise UnsupportedError(
                f"{address}: its certificate: {error.verify_message}, by this machine's clock",
                "set the clock; or delete the folder of its keys on the hub, and run there: "
                "edgegen devices keys NAME",
            ) from error
        raise UnsupportedError(
            f"{address}: its certificate is not of the CA in {keys}: {error.verify_message}", again
        ) from error
    except (ssl.SSLError, ConnectionResetError) as error:
        why = getattr(error, "reason", None) or str(error)
        raise UnsupportedError(
            f"{address}: the hub speaks no TLS or refuses the certificate in {keys}: {why}", again
        ) from error
