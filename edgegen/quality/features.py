"""What turns an image into the numbers that FID, KID and their like compare."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs

from edgegen import records
from edgegen.spec import Array


class Extractor(NamedTuple):
    """`features` of images in 0..1, (images, features); `probabilities` of these features.

    Figures carry the `name`; `version` tells apart features that are not the same numbers.
    """

    name: str
    version: str
    features: Callable[[Array], Array]
    probabilities: Callable[[Array], Array] | None = None


def kept(extractor: Extractor, images: Array) -> Array:
    """Features of a data set: from the user's cache where the same images were seen before."""
    file = _file(extractor, images)
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or broken: made anew
        found: Array = np.load(file, allow_pickle=False)
        if len(found) == len(images):
            return found
    features = extractor.features(images)
    with contextlib.suppress(OSError), records.whole(file) as part, part.open("wb") as out:
        np.save(out, features)  # a read-only or full disk costs the next run some time, no more
    return features


def _file(extractor: Extractor, images: Array) -> Path:
    """Named by everything the features depend on: the pixels and the extractor."""
    key = hashlib.sha256(f"{extractor.name} {extractor.version} {images.shape}".encode())
    key.update(np.ascontiguousarray(images, np.float32).data)
    return Path(platformdirs.user_cache_dir("edgegen")) / "features" / f"{key.hexdigest()}.npy"
