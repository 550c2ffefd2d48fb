"""Certificates: who may read them, what they are good for, and what is said of bad ones."""

import os
import shutil
import ssl
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.fleet import keys
from edgegen.fleet.address import Address

pytest.importorskip("cryptography", reason="needs the fleet extra")
HUB = Address("tls", "hub", 8786)


def test_every_machine_gets_a_folder_of_three_files_that_only_its_owner_reads(tmp_path):
    made = keys.make(tmp_path / "fleet", ["pi5", "nuc"])
    assert [folder.name for folder in made] == ["hub", "client", "pi5", "nuc"]
    for folder in made:
        assert sorted(file.name for file in folder.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert (tmp_path / "fleet/ca/key.pem").stat().st_mode & 0o777 == 0o600


def test_a_later_board_is_signed_by_the_same_ca_and_nothing_is_made_anew(tmp_path):
    keys.make(tmp_path, ["pi5"])
    before = (tmp_path / "hub/key.pem").read_bytes()
    assert keys.make(tmp_path, ["nuc"]) == [tmp_path / "nuc"]
    assert (tmp_path / "nuc/ca.pem").read_bytes() == (tmp_path / "pi5/ca.pem").read_bytes()
    assert (tmp_path / "hub/key.pem").read_bytes() == before
    with pytest.raises(UsageError, match="nuc: is there already"):
        keys.make(tmp_path, ["rpi", "nuc"])
    assert not (tmp_path / "rpi").exists()


@pytest.mark.parametrize("name", ["", "../pi5", "a/b", "-x", "hub", "all", "ca", "a" * 64])
def test_a_name_that_cannot_name_a_device_is_refused(tmp_path, name):
    with pytest.raises(UsageError) as error:
        keys.make(tmp_path, [name])
    assert error.value.hint


def shake(server, client):
    """One TLS handshake in memory; both sides ask for a certificate."""
    contexts = []
    for folder, purpose in ((server, ssl.Purpose.CLIENT_AUTH), (client, ssl.Purpose.SERVER_AUTH)):
        context = ssl.create_default_context(purpose, cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
        contexts.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        contexts[0].wrap_bio(to_server, to_client, server_side=True),
        contexts[1].wrap_bio(to_client, to_server),
    ]
    done = 0
    for _ in range(10):
        for side in sides:
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                continue
    return done >= 2


def test_machines_of_one_fleet_accept_each_other_and_no_others(pki, tmp_path):
    assert shake(pki / "hub", pki / "client")
    assert shake(pki / "a", pki / "hub")
    keys.make(tmp_path, ["a"])
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate in cert"):
        shake(pki / "hub", tmp_path / "a")


def test_the_key_of_a_client_cannot_stand_in_for_a_hub(pki):
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake(pki / "client", pki / "a")


def test_without_tls_no_keys_are_looked_for(tmp_path):
    assert keys.find(Address("tcp", "127.0.0.1", 1), tmp_path, "pi5") is None
    assert keys.security(None) is None


def test_keys_that_are_not_there_are_named_with_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"edgegen/fleet/pi5 has no ca\.pem, cert") as error:
        keys.find(HUB, None, "pi5")
    assert "edgegen devices keys pi5" in error.value.hint
    with pytest.raises(NotFoundError) as error:
        keys.find(HUB, tmp_path, "client")
    assert "edgegen devices keys NAME" in error.value.hint


@pytest.mark.skipif(os.name != "posix", reason="modes are posix's")
def test_a_private_key_that_others_may_read_is_refused(tmp_path):
    (folder,) = (one for one in keys.make(tmp_path, ["pi5"]) if one.name == "pi5")
    assert keys.find(HUB, folder, "pi5") == folder
    (folder / "key.pem").chmod(0o640)
    with pytest.raises(FormatError, match="others than its owner may read it") as error:
        keys.find(HUB, folder, "pi5")
    assert error.value.hint == f"run: chmod 600 {folder / 'key.pem'}"


def test_a_certificate_past_its_date_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "VALID", timedelta(hours=-1))
    keys.make(tmp_path, ["pi5"])
    with pytest.raises(FormatError, match="was valid until 20") as error:
        keys.find(HUB, tmp_path / "pi5", "pi5")
    assert "edgegen devices keys" in error.value.hint


def test_a_certificate_of_days_to_come_is_a_clock_that_is_wrong(pki, monkeypatch):
    class Early(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1970, 1, 1, tzinfo=tz)  # a board without a battery, just switched on

    monkeypatch.setattr(keys, "datetime", Early)
    with pytest.raises(
        FormatError, match=r"is valid from 20.*, and it is 1970-01-01 here"
    ) as error:
        keys.find(HUB, pki / "a", "a")
    assert error.value.hint == "set the clock of this machine"


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("content", ["", "junk"])
def test_a_broken_file_is_named_before_anything_is_connected(pki, tmp_path, name, content):
    folder = Path(shutil.copytree(pki / "a", tmp_path / "a"))
    (folder / name).write_text(content)
    with pytest.raises(FormatError, match=rf"{name}.*: cannot be read: ") as error:
        keys.find(HUB, folder, "a")
    assert error.value.hint == keys.COPY


def test_a_key_that_is_encrypted_is_refused_and_not_asked_for(pki, tmp_path):
    from cryptography.hazmat.primitives import serialization as pem

    folder = Path(shutil.copytree(pki / "a", tmp_path / "a"))
    key = pem.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    locked = pem.BestAvailableEncryption(b"secret")
    kind = pem.Encoding.PEM, pem.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(*kind, locked))
    with pytest.raises(FormatError, match="cannot be read"):
        keys.find(HUB, folder, "a")


def test_the_key_of_another_is_named(pki, tmp_path):
    folder = Path(shutil.copytree(pki / "a", tmp_path / "a"))
    shutil.copy(pki / "b/key.pem", folder / "key.pem")
    with pytest.raises(FormatError, match=r"cert\.pem: is not of the key beside it"):
        keys.find(HUB, folder, "a")


def test_neither_a_hub_nor_a_board_takes_a_clients_keys(pki):
    assert keys.find(HUB, pki / "client", "client")
    for name in ("hub", "a"):
        with pytest.raises(FormatError, match="is a client's, which nobody may") as error:
            keys.find(HUB, pki / "client", name)
        assert f"FLEET/{name}" in error.value.hint


def test_a_name_given_twice_is_one_board(tmp_path):
    assert [one.name for one in keys.make(tmp_path, ["a", "b", "a"])] == ["hub", "client", "a", "b"]


def test_without_names_the_hub_and_the_client_are_made_where_they_are_missing(tmp_path):
    keys.make(tmp_path, [])
    with pytest.raises(UsageError, match="are there already") as error:
        keys.make(tmp_path, [])
    assert error.value.hint == "name a board: pi5"
    shutil.rmtree(tmp_path / "hub")
    assert keys.make(tmp_path, []) == [tmp_path / "hub"]


@pytest.mark.parametrize("name", ["ca.pem", "key.pem"])
def test_a_broken_ca_signs_nothing(tmp_path, name):
    keys.make(tmp_path, ["a"])
    (tmp_path / "ca" / name).write_text("junk")
    with pytest.raises(FormatError, match=r"ca: its ca\.pem or key\.pem cannot be read") as error:
        keys.make(tmp_path, ["b"])
    assert "make a new fleet in another folder" in error.value.hint
    assert not (tmp_path / "b").exists()
