"""Bundles on a board, by the sha256 of their manifest; files arrive under their own sha256.

CACHE/incoming/SHA256      a file as far as it has come; no name that a sender chose
CACHE/bundles/SHA256/      a whole bundle, every file checked before it got this name
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath

import platformdirs
from msgspec import Struct

from edgegen import records
from edgegen.bundle import MANIFEST, Bundle, FileSum, Manifest, check_files, digest
from edgegen.errors import EdgeGenError, FormatError

SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE_BYTES = 50_000_000  # a board whose disk is full does worse things than fail


class Wanted(Struct, frozen=True, forbid_unknown_fields=True):
    """What a board still wants of a bundle: bytes it has, by sha256; none when it is complete."""

    complete: bool
    have: dict[str, int] = {}


def default() -> Path:
    """The folder of this user's cache: ~/.cache/edgegen/fleet."""
    return platformdirs.user_cache_path("edgegen") / "fleet"


def place(root: Path, manifest: bytes) -> Path:
    """Where the bundle of that manifest stands once it is whole."""
    return root / "bundles" / hashlib.sha256(manifest).hexdigest()


def wanted(root: Path, manifest: bytes) -> Wanted:
    """What has to be sent for the bundle of `manifest` to be whole here.

    Raises:
        FormatError: no manifest, or one with a file name that leads out of the bundle.
        EdgeGenError: the disk has no room for it.
    """
    files = _files(manifest)
    if place(root, manifest).is_dir():
        return Wanted(complete=True)
    have = {one.sha256: _size(root / "incoming" / one.sha256) for one in files.values()}
    root.mkdir(parents=True, exist_ok=True)
    missing = sum(one.bytes for one in files.values()) - sum(have.values())
    free = shutil.disk_usage(root).free - SPARE_BYTES
    if missing > free:
        raise EdgeGenError(
            f"{root}: {missing / 1e6:.0f} MB to come, room for {max(free, 0) / 1e6:.0f} MB",
            f"delete what is not needed in {root / 'bundles'}",
        )
    return Wanted(complete=False, have=have)


def put(root: Path, sha256: str, offset: int, data: bytes) -> int:
    """Append `data` where the file called `sha256` has come to `offset`; the bytes there now.

    At another offset nothing is written: the sender goes on from the answer. So a piece may come
    twice, or after a break, or from two senders.

    Raises:
        FormatError: `sha256` is none.
    """
    if not SHA256.fullmatch(sha256):
        raise FormatError(f"{sha256!r} is no sha256", "export the bundle again")
    path = root / "incoming" / sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    if _size(path) == offset:
        with path.open("ab") as file:
            file.write(data)
    return _size(path)


def assemble(root: Path, manifest: bytes) -> Path:
    """The folder of the whole bundle, made of the files that have come.

    Raises:
        FormatError: a file that came altered; it is forgotten, so that it can be sent again.
    """
    final = place(root, manifest)
    if final.is_dir():
        return final
    files = _files(manifest)
    for name, want in files.items():
        came = root / "incoming" / want.sha256
        if not want.bytes:
            came.parent.mkdir(parents=True, exist_ok=True)
            came.touch()  # nothing of it is ever sent
        if _size(came) != want.bytes or digest(came) != want.sha256:
            came.unlink(missing_ok=True)
            raise FormatError(f"{name}: did not arrive as it was sent", "send it again")
    with records.whole(final) as part:
        part.mkdir()
        (part / MANIFEST).write_bytes(manifest)
        for name, want in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            _link(root / "incoming" / want.sha256, part / name)
        check_files(Bundle(part, records.decode(Manifest, manifest, MANIFEST)))
    for want in files.values():
        (root / "incoming" / want.sha256).unlink(missing_ok=True)
    return final


def _files(manifest: bytes) -> dict[str, FileSum]:
    """The files of a manifest that someone sent, none of which leads out of the bundle."""
    found = records.decode(Manifest, manifest, MANIFEST)
    for name, one in found.files.items():
        if not inside(name) or name == MANIFEST or not SHA256.fullmatch(one.sha256):
            raise FormatError(
                f"the manifest of {found.name!r} has a file {name!r}, which is no name inside a "
                "bundle",
                "export the bundle again",
            )
    return found.files


def inside(name: str) -> bool:
    """Is `name` a plain relative path, on every system? "a/b.bin" is, "../a", "C:a", "/a" not."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    plain = posix.as_posix() == name and name not in ("", ".") and "\0" not in name
    return plain and "\\" not in name and not windows.anchor and ".." not in posix.parts


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk knows no links (FAT)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
