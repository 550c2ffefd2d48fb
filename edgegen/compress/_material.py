"""The data of a compression run, as the model at hand takes it."""

from __future__ import annotations

from typing import Any

import msgspec

from edgegen import checkpoint, data, rooms
from edgegen.batches import Material
from edgegen.compress._work import Work
from edgegen.errors import MismatchError, NotFoundError, UsageError
from edgegen.models import gpt
from edgegen.spec import Report, silent
from edgegen.text import Tokenizer

WINDOW = 512  # tokens a piece of text has at most: more is slow to learn from, and little is gained


def read_material(work: Work, source: str, report: Report = silent) -> Material:
    """The data set `source` cut as for training, with the model's own tokenizer for text.

    Text that is shorter than a window makes the window shorter.

    Raises:
        UsageError: text for a model of images or the other way round, images of another shape
            than the model takes, or data that is all the same or next to nothing.
        NotFoundError, FormatError, MissingExtraError: as `data.images` and `data.text`.
    """
    text = data.is_text(source)
    if text != (work.spec.family == "gpt"):
        wants = "text:FILES" if work.spec.family == "gpt" else "digits, idx:DIR or images:DIR"
        raise UsageError(
            f"--data {source}: a model of family {work.spec.family} does not take that",
            f"use --data {wants}",
        )
    report("read the data", 0, 1)
    material = _text(work, source) if text else _images(work, source, report)
    report("read the data", 1, 1)
    return material


def _text(work: Work, source: str) -> Material:
    config = msgspec.convert(work.spec.config, gpt.Config)
    tokenizer = _tokenizer(work, config)
    parts = [tokenizer.corpus(part, data.END)[0] for part in data.split_text(data.text(source))]
    for part in parts:
        if len(part) and part.max() >= config.vocab_size:
            raise MismatchError(
                f"{source}: token {part.max()}, the model's vocabulary has {config.vocab_size}",
                "tokenizer and weights are not of one model: restore the checkpoint",
            )
    shortest = min(map(len, parts))
    if shortest < 2:
        raise UsageError(
            f"--data {source}: {len(parts[0])} tokens to learn from and {len(parts[1])} held out, "
            "wanted at least 2 of each",
            "give more text",
        )
    data.refuse_constant(parts[0], source, "token")
    window = min(config.max_position_embeddings, WINDOW, shortest - 1) + 1
    return Material(parts[0], parts[1], config, window, work.tokenizer)


def _tokenizer(work: Work, config: gpt.Config) -> Tokenizer:
    if work.tokenizer is None:
        raise NotFoundError(
            "the model has no tokenizer, so text cannot be read for it",
            "restore tokenizer.json, or train again",
        )
    try:
        from tokenizers import Tokenizer as Reader
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "text") from error
    return Tokenizer("the model", Reader.from_str(work.tokenizer.decode()), gpt.loop(config))


def _images(work: Work, source: str, report: Report) -> Material:
    images = data.images(source, report)
    wanted, what = _wanted(work)
    if not _fits(images.shape[1:], wanted):
        found = "x".join(map(str, images.shape[1:]))
        raise UsageError(
            f"--data {source}: images of {found} (channels x height x width), "
            f"{what} {'x'.join(map(str, wanted)) if wanted else 'no images'}",
            "give images of the model's own shape, or leave --data out",
        )
    if len(images) < 2:
        raise UsageError(f"--data {source}: {len(images)} image, wanted 2", "give more images")
    data.refuse_constant(images, source, "image")
    mine, held = data.split(len(images))
    return Material(images[mine], images[held], _config(work))


def _config(work: Work) -> Any:
    if work.spec.family == checkpoint.MODULE:
        return work.spec.config
    kind = rooms.load("edgegen.models", work.spec.family).Config
    return msgspec.convert(work.spec.config, kind)


def _wanted(work: Work) -> tuple[tuple[int | str, ...], str]:
    """The shape of one image, and who wants it."""
    config = _config(work)
    if work.spec.family != checkpoint.MODULE:
        size = config.image_size
        return (config.channels, size, size), f"this {work.spec.family} has"
    ((_, graph),) = checkpoint.graphs(work.spec, work.net).values()
    first = graph.inputs[0]
    if len(first.shape) != 4 or first.shape[1] not in (1, 3):
        return (), f"input {first.name} takes"
    return first.shape[1:], f"input {first.name} takes"


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """A name in `wanted` is a free dimension."""
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or want == have for have, want in zip(shape, wanted, strict=True)
    )
