"""Images of a model as a file: a board makes them, another machine scores them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from msgspec import Struct

from edgegen import records
from edgegen.bundle import Bundle
from edgegen.errors import FormatError, MismatchError, NotFoundError
from edgegen.records import encode
from edgegen.spec import Array


class About(Struct, frozen=True, forbid_unknown_fields=True):
    """Where samples come from. `files_sha256` is `identity` of the bundle that made them."""

    model: str
    files_sha256: str
    engine: str
    device: str
    seed: int


class Samples(NamedTuple):
    """Images in 0..1, (images, channels, height, width), of the latents of `about.seed`."""

    images: Array
    about: About


def identity(bundle: Bundle) -> str:
    """A hash of every file of the bundle but the manifest, in which figures may be added."""
    return hashlib.sha256(encode(bundle.manifest.files)).hexdigest()


def save(samples: Samples, path: Path | str) -> None:
    """Write an .npz, whole or not at all."""
    with records.whole(path) as part, part.open("wb") as file:
        about = np.array(encode(samples.about).decode())
        np.savez_compressed(file, images=samples.images, about=about)


def load(path: Path | str, bundle: Bundle) -> Samples:
    """The samples at `path`, which `bundle` must have made.

    Raises:
        NotFoundError: no such file.
        FormatError: not a file of samples.
        MismatchError: another bundle made them.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", "make it: edgegen eval --write-samples FILE")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            images, about = file["images"], str(file["about"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile) as error:
        raise FormatError(
            f"{path}: no samples: {error}", "make it: edgegen eval --write-samples FILE"
        ) from error
    found = Samples(images, records.decode(About, about.encode(), str(path)))
    if found.about.files_sha256 != identity(bundle):
        raise MismatchError(
            f"{path}: made by another bundle, {found.about.model}; wanted {bundle.path}",
            f"make it with: edgegen eval {bundle.path} --write-samples {path}",
        )
    return found
