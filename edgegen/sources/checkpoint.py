"""A checkpoint that `edgegen train` or `edgegen compress` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from edgegen import checkpoint, records, rooms
from edgegen.bundle import Text
from edgegen.errors import NotFoundError
from edgegen.models import gpt
from edgegen.sources import Model, Part, _sidefiles, module
from edgegen.spec import ModelSpec


def read(source: str, inputs: Sequence[str] = (), pixels: object = None) -> Model:
    """The model of a checkpoint, of whichever family; with its history.

    Raises:
        NotFoundError: a file is missing; for text that includes `tokenizer.json`.
        FormatError: a broken file, or weights of another model.
    """
    found = checkpoint.load(source)
    return model_of(
        found.path,
        found.spec,
        found.net,
        tokenizer=found.tokenizer,
        chat_template=found.chat_template,
        history=found.history,
    )


def model_of(
    path: Path,
    spec: ModelSpec,
    net: nn.Module,
    *,
    tokenizer: bytes | None = None,
    chat_template: str = "",
    history: tuple[dict[str, Any], ...] = (),
) -> Model:
    """A net in memory as what `export` takes; `path` names it, and stands in errors.

    Raises:
        NotFoundError: text without a tokenizer.
    """
    name = path.resolve().name
    if spec.family == checkpoint.MODULE:
        settings = records.convert(module.Config, spec.config, str(path / checkpoint.CONFIG))
        return module.model_of(net, settings, history)._replace(name=name)
    family = rooms.load("edgegen.models", spec.family)
    config = msgspec.convert(spec.config, family.Config)
    loop = family.loop(config)
    files: dict[str, bytes] = {}
    if isinstance(config, gpt.Config):
        if tokenizer is None:
            raise NotFoundError(
                f"{path / checkpoint.TOKENIZER}: missing: text cannot be run without it",
                "restore the file, or train again",
            )
        loop = msgspec.structs.replace(loop, chat_template=chat_template)
        files = _text_files(config, loop, tokenizer)
    graphs = checkpoint.graphs(spec, net)
    parts = {graph: Part(part, described) for graph, (part, described) in graphs.items()}
    # Only what is exported counts: a GAN's discriminator stays behind.
    weights = {id(p): p.numel() for part, _ in graphs.values() for p in part.parameters()}
    settled = msgspec.to_builtins(config)
    return Model(name, spec.family, settled, loop, parts, files, history, sum(weights.values()))


def _text_files(config: gpt.Config, loop: Text, tokenizer: bytes) -> dict[str, bytes]:
    special = _sidefiles.special_of(tokenizer, config)
    return _sidefiles.all_files(config, loop, tokenizer, special, loop.chat_template)
