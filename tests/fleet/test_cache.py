"""Bundles as they arrive on a board."""

import shutil
from collections import namedtuple

import msgspec
import pytest

from edgegen import bundle as bundles
from edgegen import records
from edgegen.bundle import FileSum, Manifest
from edgegen.errors import EdgeGenError, FormatError
from edgegen.fleet import cache


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def manifest(path, **fields):
    found = msgspec.structs.replace(bundles.open_bundle(path).manifest, **fields)
    return records.encode(found)


def send(root, path, data, size=100):
    """All that is wanted, in pieces."""
    wanted = cache.wanted(root, data)
    for name, one in records.decode(Manifest, data, "").files.items():
        have, content = wanted.have[one.sha256], (path / name).read_bytes()
        while have < len(content):
            have = cache.put(root, one.sha256, have, content[have : have + size])


def test_a_bundle_arrives_in_pieces_and_is_the_same(root, text_bundle):
    data = manifest(text_bundle)
    before = cache.wanted(root, data)
    assert not before.complete
    assert set(before.have.values()) == {0}
    send(root, text_bundle, data)
    folder = cache.assemble(root, data)
    assert folder == cache.place(root, data)
    assert bundles.sums(folder) == bundles.sums(text_bundle)
    assert list((root / "incoming").iterdir()) == []
    assert cache.wanted(root, data) == cache.Wanted(complete=True)
    assert cache.assemble(root, data) == folder


def test_after_a_break_only_what_is_missing_is_wanted(root, text_bundle):
    data = manifest(text_bundle)
    one = bundles.open_bundle(text_bundle).manifest.files["golden.npz"]
    content = (text_bundle / "golden.npz").read_bytes()
    assert cache.put(root, one.sha256, 0, content[:70]) == 70
    assert cache.wanted(root, data).have[one.sha256] == 70
    # A piece that comes twice, or from another sender who is behind, changes nothing.
    assert cache.put(root, one.sha256, 0, content[:70]) == 70
    assert cache.put(root, one.sha256, 90, content[90:]) == 70
    send(root, text_bundle, data)
    assert bundles.sums(cache.assemble(root, data)) == bundles.sums(text_bundle)


def test_an_altered_file_is_named_and_forgotten_and_no_bundle_appears(root, text_bundle):
    data = manifest(text_bundle)
    one = bundles.open_bundle(text_bundle).manifest.files["golden.npz"]
    cache.put(root, one.sha256, 0, bytes(one.bytes))
    send(root, text_bundle, data)
    with pytest.raises(FormatError, match=r"golden\.npz: did not arrive as it was sent"):
        cache.assemble(root, data)
    assert not cache.place(root, data).exists()
    assert cache.wanted(root, data).have[one.sha256] == 0


def test_files_of_one_content_and_empty_ones_are_sent_once_or_never(root, text_bundle):
    shutil.copy(text_bundle / "golden.npz", text_bundle / "again.npz")
    (text_bundle / "empty").touch()
    data = manifest(text_bundle, files=bundles.sums(text_bundle))
    send(root, text_bundle, data)
    assert bundles.sums(cache.assemble(root, data)) == bundles.sums(text_bundle)


def test_a_disk_without_links_gets_copies(root, text_bundle, monkeypatch):
    def no_links(*_):
        raise OSError("no links on this disk")

    monkeypatch.setattr(cache.os, "link", no_links)
    data = manifest(text_bundle)
    send(root, text_bundle, data)
    assert bundles.sums(cache.assemble(root, data)) == bundles.sums(text_bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:x",
        "C:\\x",
        "a\\b",
        "",
        ".",
        "a//b",
        "./a",
        "a\0b",
        "manifest.json",
    ],
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(root, text_bundle, name):
    sha256 = "0" * 64
    data = manifest(text_bundle, files={name: FileSum(1, sha256)})
    with pytest.raises(FormatError, match="which is no name inside a bundle"):
        cache.wanted(root, data)
    cache.put(root, sha256, 0, b"x")
    with pytest.raises(FormatError, match="which is no name inside a bundle"):
        cache.assemble(root, data)
    assert [p.name for p in root.rglob("*") if p.is_file()] == [sha256]


@pytest.mark.parametrize("sha256", ["../../x", "", "0" * 63, "Z" * 64, f"{'0' * 64}\n"])
def test_a_hash_that_is_none_is_refused(root, text_bundle, sha256):
    with pytest.raises(FormatError, match="is no sha256"):
        cache.put(root, sha256, 0, b"x")
    with pytest.raises(FormatError, match="no name inside a bundle"):
        cache.wanted(root, manifest(text_bundle, files={"a": FileSum(1, sha256)}))
    assert not root.exists()


def test_a_full_board_says_how_much_is_missing_before_anything_is_sent(
    root, text_bundle, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(0, 0, 60_000_000))
    files = {"big.bin": FileSum(80_000_000, "0" * 64)}
    with pytest.raises(EdgeGenError, match="80 MB to come, room for 10 MB") as error:
        cache.wanted(root, manifest(text_bundle, files=files))
    assert str(root / "bundles") in error.value.hint


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default() == tmp_path / "edgegen/fleet"
