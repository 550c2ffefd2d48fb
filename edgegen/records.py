"""Read and write frozen records as JSON or TOML; nothing appears under its name half-written."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgegen.errors import EdgeGenError, FormatError, NotFoundError, UsageError
from edgegen.rooms import nearest

T = TypeVar("T")

OURS = ("manifest.json", "history.json")  # one of them is in every folder we write
SPARE_BYTES = 1 << 16  # a disk with less than this left is full


def encode(record: Any) -> bytes:
    """The record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode(kind: type[T], data: bytes, place: str) -> T:
    """A record from JSON bytes; `place` is named in errors.

    Raises:
        FormatError: not JSON, a wrong type, or an unknown field ("did you mean").
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"{place}: {error}", _field_hint(kind, str(error))) from error
    except msgspec.DecodeError as error:
        raise FormatError(f"{place}: not valid JSON: {error}", "restore the file") from error


def convert(kind: type[T], value: Any, place: str, *, strict: bool = True) -> T:
    """A record from plain dicts and lists; not `strict` also reads numbers out of strings.

    Raises:
        FormatError: as `decode`.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise FormatError(f"{place}: {error}", _field_hint(kind, str(error))) from error


def read(kind: type[T], path: Path | str) -> T:
    """A record from a `.json` or `.toml` file.

    Raises:
        NotFoundError: no such file.
        FormatError: as `decode`.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    if path.suffix != ".toml":
        return decode(kind, path.read_bytes(), str(path))
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"{path}: {error}", _field_hint(kind, str(error))) from error
    except msgspec.DecodeError as error:
        raise FormatError(f"{path}: not valid TOML: {error}") from error


def write(record: Any, path: Path | str) -> None:
    """Write a record as JSON, beside its name first."""
    with whole(path) as part:
        part.write_bytes(encode(record))


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or folder under; renamed to `path` at the end.

    When the block raises (Ctrl-C and a full disk included) the half-written output is removed
    and what stood under `path` before is untouched.

    Raises:
        UsageError: what stands under `path` is nothing that an output may replace.
    """
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    part = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield part
        _replace(part, path)
    except BaseException as error:
        full = _disk_is_full(error, path)
        _remove(part)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def target(path: Path | str) -> Path:
    """Where an output called `path` will stand, links followed.

    Raises:
        UsageError: a device or pipe stands there, or a folder that no command of ours wrote.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{path}: neither a file nor a folder", "give the name of a new file")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in OURS):
        raise UsageError(
            f"{path}: a folder with other things in it, which would be lost",
            "give a name that is not taken, or empty the folder first",
        )
    return path


def _disk_is_full(error: BaseException, path: Path) -> bool:
    """Did it fail for want of space? Libraries in C++ say so in words of their own."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    try:
        import shutil

        short = shutil.disk_usage(path.parent).free < SPARE_BYTES
    except OSError:
        return False
    return short and isinstance(error, Exception) and not isinstance(error, EdgeGenError)


def _replace(part: Path, path: Path) -> None:
    """Rename, moving an old folder aside first: a folder cannot be renamed over a full one."""
    if path.exists() and path.is_dir() != part.is_dir():
        kind = "a folder" if path.is_dir() else "a file"
        raise UsageError(f"{path}: {kind} of that name is there", "give a name that is not taken")
    if not path.is_dir():
        os.replace(part, path)
        return
    old = path.with_name(f"{path.name}.partial-old-{os.getpid()}")
    os.rename(path, old)
    try:
        os.rename(part, path)
    except BaseException:
        os.rename(old, path)
        raise
    _remove(old)


def recover(path: Path) -> None:
    """Remove what a killed run left beside `path`; bring back an old folder it had moved aside.

    What carries the id of this very process was left by one before it: containers give every run
    the same few ids.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.partial-*"):
        if _lives(left.name.rpartition("-")[2]):
            continue
        if ".partial-old-" in left.name and not path.exists():
            os.rename(left, path)
        else:
            _remove(left)


def _lives(pid: str) -> bool:
    """Is this the id of another process that runs?"""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    import psutil  # 1.5 MB, which what only reads records can do without

    return bool(psutil.pid_exists(int(pid)))


def _remove(path: Path) -> None:
    if path.is_dir():
        import shutil  # brings every packer of the standard library

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _field_hint(kind: Any, message: str) -> str:
    found = re.search(r"unknown field `(.+?)`", message)
    if not found:
        return ""
    return nearest(found[1], sorted(_fields(kind, set())))


def _fields(kind: Any, seen: set[Any]) -> set[str]:
    """The field names of a struct and of every struct inside it."""
    if kind in seen:
        return set()
    seen.add(kind)
    inside: set[str] = set()
    for child in getattr(kind, "__args__", ()):
        inside |= _fields(child, seen)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            inside |= {field.encode_name} | _fields(field.type, seen)
    return inside
