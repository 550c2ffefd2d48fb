"""What a family is trained on: arrays, a configuration that fits them, and the batch of step n.

A batch is a pure function of seed and step, so a run can go on from any step with nothing stored
about the order of the data.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgegen import data, records, rooms
from edgegen.errors import EdgeGenError, UsageError
from edgegen.spec import Array, Report, silent

VALIDATION_WINDOWS = 256  # held-out windows of text that are looked at


class Material(NamedTuple):
    """Images (n, channels, size, size) in 0..1, or `window` long pieces of a row of token ids."""

    training: Array
    held_out: Array
    config: Any
    window: int = 0
    tokenizer: bytes | None = None

    def items(self) -> int:
        """How many different items there are to train on."""
        return len(self.training) - self.window + 1 if self.window else len(self.training)

    def sha256(self) -> str:
        """The hash of the training data."""
        return hashlib.sha256(np.ascontiguousarray(self.training).data).hexdigest()


def prepare(family: str, source: str, config: dict[str, Any], report: Report = silent) -> Material:
    """Read a data set and make the family's configuration fit it; `config` has the last word.

    Raises:
        UsageError: text for a family of images or the other way round, too little of it, or a
            field of `config` that is unknown, out of range, or contradicts the data.
        NotFoundError, FormatError, MissingExtraError: as `data.images` and `data.text`.
    """
    kind = rooms.load("edgegen.models", family).Config
    fields = kind.__struct_fields__
    if data.is_text(source) != ("vocab_size" in fields):
        wants = "text:FILES" if "vocab_size" in fields else "digits, idx:DIR or images:DIR"
        raise UsageError(f"{family} cannot be trained on --data {source}", f"use --data {wants}")
    make = _text if data.is_text(source) else _images
    return make(kind, source, config, report)


def take(material: Material, batch: int, step: int, seed: int) -> Array:
    """The training batch of one step."""
    if material.window:
        rng = np.random.default_rng([seed, step])
        return windows(material, rng.integers(0, material.items(), batch))
    return material.training[_shuffled(material.items(), batch, step, seed)]


def validation(material: Material) -> Array:
    """All held-out images, or windows spread evenly over the held-out text."""
    if not material.window:
        return material.held_out
    last = len(material.held_out) - material.window
    starts = np.linspace(0, last, min(last + 1, VALIDATION_WINDOWS)).astype(np.int64)
    return _windows(material.held_out, starts, material.window)


def windows(material: Material, starts: NDArray[np.int64]) -> Array:
    """Pieces of the training text that begin at `starts`, shape (len(starts), window)."""
    return _windows(material.training, starts, material.window)


def _windows(tokens: Array, starts: NDArray[np.int64], window: int) -> Array:
    pieces: Array = tokens[starts[:, None] + np.arange(window)]
    return pieces


def _shuffled(num: int, batch: int, step: int, seed: int) -> NDArray[np.int64]:
    """Which items: every one once, in a new order each epoch."""
    place = np.arange(step * batch, (step + 1) * batch)
    epochs = [
        _order(num, seed, int(e))[place[place // num == e] % num] for e in _epochs(place, num)
    ]
    return np.concatenate(epochs)


def _epochs(place: NDArray[np.int64], num: int) -> range:
    return range(int(place[0]) // num, int(place[-1]) // num + 1)


@lru_cache(maxsize=2)
def _order(num: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num)


def _configure(kind: Any, given: dict[str, Any], found: dict[str, Any], default: Any) -> Any:
    """The configuration from what was `given`, what the data says (`found`), and a `default`."""
    try:
        asked = records.convert(kind, default | found | given, "--config", strict=False)
    except EdgeGenError as error:
        raise UsageError(str(error), error.hint or "see the fields of Config") from error
    for name, value in found.items():
        if getattr(asked, name) != value:
            raise UsageError(
                f"--config {name}={getattr(asked, name)}, but the data has {value}",
                f"leave --config {name} out",
            )
    return asked


def _images(kind: Any, source: str, config: dict[str, Any], report: Report) -> Material:
    images = data.images(source, report)
    num, channels, high, wide = images.shape
    if high != wide:
        raise UsageError(f"{source}: {wide}x{high} pixels, wanted squares", "crop the images")
    if num < 2:
        raise UsageError(f"{source}: {num} image, wanted at least 2", "give more images")
    fit = _configure(kind, config, {"image_size": high, "channels": channels}, {})
    mine, held = data.split(num)
    return Material(images[mine], images[held], fit)


def _text(kind: Any, source: str, config: dict[str, Any], report: Report) -> Material:
    """Nine tenths of the text to train on, tokenizer included; the last tenth is held out."""
    training, held_out = data.split_text(data.text(source))
    # Read the configuration before the slow part; the vocabulary may turn out smaller than asked.
    asked = _configure(kind, config, {}, {})
    report("training the tokenizer", 0, 1)
    tokenizer = byte_level_bpe(training, asked.vocab_size)
    report("training the tokenizer", 1, 1)
    end = tokenizer.token_to_id(data.END)
    found = {"eos_token_ids": (end,), "bos_token_id": end, "vocab_size": tokenizer.get_vocab_size()}
    fit = _configure(kind, {n: v for n, v in config.items() if n not in found}, found, {})
    parts = [np.array(tokenizer.encode(t).ids, np.int64) for t in (training, held_out)]
    window = fit.max_position_embeddings + 1
    if min(map(len, parts)) < window:
        raise UsageError(
            f"{source}: {len(parts[0])} tokens to train on and {len(parts[1])} held out, "
            f"wanted {window} of each",
            "give more text, or a smaller --config max_position_embeddings=N",
        )
    return Material(parts[0], parts[1], fit, window, tokenizer.to_str().encode())


def byte_level_bpe(text: str, vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` trained on `text`: any string can be encoded, and comes back whole.

    Raises:
        UsageError: no room for the 256 bytes and the end token.

    Source: Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al. 2019 (GPT-2).
    """
    if vocab_size < 257:
        raise UsageError(
            f"--config vocab_size={vocab_size}, wanted at least 257 (256 bytes and {data.END})",
            "use --config vocab_size=1024",
        )
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "text") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[data.END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.replace(data.END, "\n").splitlines(keepends=True), trainer)
    return tokenizer
