"""Pictures and arrays: PNG in and out, grids. Images are (n, channels, height, width)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen import records, rooms
from edgegen.errors import EdgeGenError, FormatError, MismatchError, NotFoundError, UnsupportedError
from edgegen.spec import Array

Pixels = tuple[float, float]  # the values of black and white
GAP = 2  # pixels between the images of a grid
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def _pillow() -> Any:
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "images") from error
    return PIL.Image


def to_bytes(images: Array, pixels: Pixels = (0.0, 1.0)) -> Array:
    """uint8 of the same shape; values outside `pixels` become black or white."""
    low, high = pixels
    scaled = (np.asarray(images, np.float32) - low) / (high - low)
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), np.uint8)


def grid(images: Array, pixels: Pixels = (0.0, 1.0), columns: int | None = None) -> Array:
    """All images on one white sheet, row by row: uint8, (height, width, channels).

    As square as it gets, unless `columns` says otherwise.
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels
    sheet = np.full(size, 255, np.uint8)
    for i, image in enumerate(to_bytes(images, pixels)):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet


def write_grid(
    path: Path | str, images: Array, pixels: Pixels = (0.0, 1.0), columns: int | None = None
) -> None:
    """Store `grid` as a PNG.

    Raises:
        UnsupportedError: neither 1, 3 nor 4 channels.
    """
    image = _pillow()
    channels = images.shape[1]
    if channels not in MODES:
        raise UnsupportedError(
            f"{path}: images of {channels} channels cannot be drawn, only of {list(MODES)}",
            "store the numbers: -o out.npz",
        )
    sheet = grid(images, pixels, columns)
    with records.whole(path) as part, part.open("wb") as file:
        image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(file, format="PNG")


def read(
    paths: Sequence[Path | str], shape: tuple[int, int, int], pixels: Pixels = (0.0, 1.0)
) -> Array:
    """Image files as float32 (n, channels, height, width), values in `pixels`.

    `shape` is (channels, height, width); a picture is never resized, and converted only where
    nothing gets lost.

    Raises:
        NotFoundError: no such file.
        FormatError: empty, or not an image.
        MismatchError: another size, or colours or transparency the model cannot see.
    """
    low, high = pixels
    sheets = [_read_one(Path(path), shape) for path in paths]
    scaled = np.stack(sheets).astype(np.float32) / 255
    return np.asarray(scaled * np.float32(high - low) + np.float32(low))


def _read_one(path: Path, shape: tuple[int, int, int]) -> Array:
    """One image as uint8 (channels, height, width)."""
    channels, height, width = shape
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    if not path.stat().st_size:
        raise FormatError(f"{path}: the file is empty", "give a PNG, JPEG or other image")
    try:
        with _pillow().open(path) as image:
            if image.size != (width, height):
                raise MismatchError(
                    f"{path}: found {image.width} x {image.height} pixels, "
                    f"wanted {width} x {height}",
                    f"resize it: magick {path} -resize '{width}x{height}!' {path.stem}-fit.png",
                )
            return _channels(path, image, channels)
    except EdgeGenError:
        raise
    except Exception as error:  # Pillow has a different kind for every way to be broken
        raise FormatError(f"{path}: not a readable image: {error}", "replace the file") from error


def _channels(path: Path, image: Any, channels: int) -> Array:
    """The pixels as (channels, height, width), if nothing gets lost on the way."""
    if image.mode.startswith(("I", "F")):
        raise MismatchError(
            f"{path}: found {image.mode} pixels of more than 8 bits, wanted 8 bits",
            f"convert it: magick {path} -depth 8 {path.stem}-8bit.png",
        )
    found = np.asarray(image.convert("RGBA")).transpose(2, 0, 1)
    colour, alpha = found[:3], found[3]
    if channels != 4 and alpha.min() < 255:
        raise MismatchError(
            f"{path}: found transparent pixels, the model takes {channels} channels",
            f"convert it: magick {path} -background white -flatten {path.stem}-flat.png",
        )
    if channels == 1 and (colour != colour[0]).any():
        raise MismatchError(
            f"{path}: found colours, the model takes 1 grey channel",
            f"convert it: magick {path} -colorspace Gray {path.stem}-grey.png",
        )
    return found[:channels]
