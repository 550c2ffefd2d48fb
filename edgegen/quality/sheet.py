"""Samples side by side: what two models made of the same latents, or of the same beginnings."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from edgegen import images as pictures
from edgegen import rooms
from edgegen.errors import MismatchError, UsageError
from edgegen.spec import Array

SIDE = 64  # images of fewer pixels are enlarged, by a whole factor
STRIP = 16  # height of the line that says whose row it is


def png(rows: Mapping[str, Array]) -> bytes:
    """One PNG: a row of images for each name, images with one latent under each other.

    Images are (images, channels, height, width) in 0..1, grey or RGB.

    Raises:
        UsageError: nothing to draw.
        MismatchError: rows of different shapes.
        MissingExtraError: Pillow is not installed.
    """
    if not rows or not all(map(len, rows.values())):
        raise UsageError("no samples to draw", "give one row or more, of one image or more")
    if len({images.shape for images in rows.values()}) > 1:
        shapes = ", ".join(f"{name} {list(images.shape)}" for name, images in rows.items())
        raise MismatchError(f"rows of different shapes: {shapes}", "draw as many of one size")
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "a sheet of samples") from error
    strips = [_row(images) for images in rows.values()]  # (height, width, 3) each
    height, width = strips[0].shape[:2]
    sheet = Image.new("RGB", (width, len(strips) * (STRIP + height)), "white")
    for n, (name, strip) in enumerate(zip(rows, strips, strict=True)):
        top = n * (STRIP + height)
        ImageDraw.Draw(sheet).text((2, top + 2), name, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + STRIP))
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def _row(images: Array) -> Array:
    """All images beside each other in RGB, uint8."""
    times = -(-SIDE // min(SIDE, *images.shape[2:]))
    large = images.repeat(times, axis=2).repeat(times, axis=3)
    if large.shape[1] == 1:
        large = large.repeat(3, axis=1)
    if large.shape[1] != 3:
        raise MismatchError(
            f"images of {large.shape[1]} channels cannot be drawn, only of 1 or 3",
            "look at the numbers: edgegen run BUNDLE -o out.npz",
        )
    return np.ascontiguousarray(pictures.grid(large, columns=len(large)))


def markdown(prompts: Sequence[str], texts: Mapping[str, Sequence[str]]) -> str:
    """Each prompt and what every model went on with, as Markdown; a note where all agree."""
    parts = []
    for n, prompt in enumerate(prompts):
        parts.append(f"### {n + 1}\n\n{_quote(prompt)}\n")
        if len(texts) > 1 and len({several[n] for several in texts.values()}) == 1:
            parts.append(f"**{', '.join(texts)}** (all the same)\n\n{_quote(_first(texts)[n])}\n")
            continue
        parts += [f"**{name}**\n\n{_quote(several[n])}\n" for name, several in texts.items()]
    return "\n".join(parts)


def _first(texts: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return next(iter(texts.values()))


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
