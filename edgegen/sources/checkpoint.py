"""A checkpoint that `edgegen train` wrote."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgegen import checkpoint, rooms
from edgegen.errors import NotFoundError
from edgegen.models import gpt
from edgegen.sources import Model, Part, _sidefiles


def read(source: str, inputs: Sequence[str] = (), pixels: object = None) -> Model:
    """The model of a checkpoint, of whichever family; with its history.

    Raises:
        NotFoundError: a file is missing; for text that includes `tokenizer.json`.
        FormatError: a broken file, or weights of another model.
    """
    found = checkpoint.load(source)
    family = rooms.load("edgegen.models", found.spec.family)
    config = msgspec.convert(found.spec.config, family.Config)
    loop = family.loop(config)
    files: dict[str, bytes] = {}
    if isinstance(config, gpt.Config):
        if found.tokenizer is None:
            raise NotFoundError(
                f"{found.path / checkpoint.TOKENIZER}: missing: text cannot be run without it",
                "restore the file, or train again",
            )
        special = _sidefiles.special_of(found.tokenizer, config)
        files = _sidefiles.all_files(config, loop, found.tokenizer, special, loop.chat_template)
    graphs = family.graphs(found.net)
    parts = {name: Part(module, spec) for name, (module, spec) in graphs.items()}
    # Only what is exported counts: a GAN's discriminator stays behind.
    weights = {id(p): p.numel() for module, _ in graphs.values() for p in module.parameters()}
    name = found.path.resolve().name
    settings = msgspec.to_builtins(config)
    count = sum(weights.values())
    return Model(name, found.spec.family, settings, loop, parts, files, found.history, count)
