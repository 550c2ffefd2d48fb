"""Where a hub may be, and what is said of one that does not answer as it should."""

import shutil
import socket
import ssl
from contextlib import suppress
from datetime import timedelta
from threading import Thread

import pytest

from edgegen.errors import EdgeGenError, UnsupportedError, UsageError
from edgegen.fleet import keys
from edgegen.fleet.address import Address, knock, loopback, parse


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("tls://hub.local:9000", Address("tls", "hub.local", 9000)),
        ("tls://10.0.0.1", Address("tls", "10.0.0.1", 8786)),
        ("tls://[fe80::1]:1", Address("tls", "fe80::1", 1)),
        ("tcp://127.0.0.1:1", Address("tcp", "127.0.0.1", 1)),
        ("tcp://localhost", Address("tcp", "localhost", 8786)),
    ],
)
def test_an_address_is_read_and_written_back(text, want):
    assert parse(text) == want
    assert parse(str(want)) == want


@pytest.mark.parametrize("text", ["pi5", "pi5:8786", "http://pi5", "tls://", "tls://a:99999999"])
def test_anything_else_is_refused_with_the_form_it_has(text):
    with pytest.raises(UsageError, match="is no address") as error:
        parse(text)
    assert error.value.hint == "write it as tls://HOST:8786"


@pytest.mark.parametrize("host", ["10.0.0.1", "hub.local", "0.0.0.0", "localhost.example.org"])
def test_plain_tcp_to_another_machine_is_refused(host):
    assert not loopback(host)
    with pytest.raises(UsageError, match="neither encrypted nor authenticated") as error:
        parse(f"tcp://{host}:8786")
    assert "edgegen devices keys" in error.value.hint


def test_nobody_there_is_said_with_what_to_start():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        where = Address("tcp", "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(EdgeGenError, match="no hub there: Connection refused") as error:
            knock(where, None)
    assert "edgegen devices hub" in error.value.hint


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


def where(server, scheme="tls"):
    return Address(scheme, "127.0.0.1", server.getsockname()[1])


def test_silence_is_called_a_time_out(listening):
    with pytest.raises(EdgeGenError, match=r"time-out, no answer in 0\.2 s"):
        knock(where(listening, "tcp"), None, timeout_s=0.2)


def test_a_hub_that_waits_for_tls_is_asked_for_by_its_right_name(listening):
    with pytest.raises(EdgeGenError, match="time-out") as error:
        knock(where(listening, "tcp"), None, timeout_s=0.2)
    assert error.value.hint.endswith("write tls:// for tcp://")


@pytest.mark.parametrize(
    ("valid", "said"), [(timedelta(hours=-1), "has expired"), (timedelta(days=9), "not of the CA")]
)
def test_a_hub_past_its_date_is_not_called_a_strangers(
    listening, pki, tmp_path, monkeypatch, valid, said
):
    monkeypatch.setattr(keys, "VALID", valid)
    if valid < timedelta(0):  # of this fleet
        shutil.copytree(pki / "ca", tmp_path / "ca")
    keys.make(tmp_path, [])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "hub/cert.pem", tmp_path / "hub/key.pem")

    def answer():
        with suppress(ssl.SSLError), listening.accept()[0] as plain:
            context.wrap_socket(plain, server_side=True)

    thread = Thread(target=answer)
    thread.start()
    with pytest.raises(UnsupportedError, match=f"its certificate.* {said}"):
        knock(where(listening), pki / "client")
    thread.join()


def test_a_server_that_speaks_no_tls_is_named(listening, pki):
    def answer():
        connection = listening.accept()[0]
        connection.sendall(b"hello, this is no TLS at all")
        connection.close()

    thread = Thread(target=answer)
    thread.start()
    with pytest.raises(UnsupportedError, match="speaks no TLS or refuses the certificate"):
        knock(where(listening), pki / "client")
    thread.join()
