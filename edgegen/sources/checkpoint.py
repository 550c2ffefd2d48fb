"""A checkpoint that `edgegen train` or `edgegen compress` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgegen import checkpoint, records, rooms
from edgegen.errors import NotFoundError
from edgegen.models._decoder import Config, loop
from edgegen.sources import Model, Part, _plain, _sidefiles
from edgegen.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn


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


def plain(source: str) -> Model | None:
    """A decoder in numpy; None for another family, and where compression changed its layers.

    Raises:
        NotFoundError, FormatError: as `read`.
        MismatchError: a tensor of another shape than the config says.
    """
    path, spec, history, tokenizer, template = checkpoint.describe(source)
    if spec.family != "gpt" or spec.shapes or spec.adapters or spec.layers:
        return None
    config = records.convert(Config, spec.config, f"{path / checkpoint.CONFIG}: config")
    weights = path / checkpoint.WEIGHTS
    if not weights.is_file():
        raise NotFoundError(f"{weights}: no such file", checkpoint.AGAIN)
    mapped = _plain.read(weights, checkpoint.AGAIN)
    if mapped is None:
        return None
    return _plain.assemble(
        path.resolve().name,
        config,
        mapped.tensors,
        _text_files(config, path, tokenizer, template),
        chat_template=template,
        history=history,
        place=str(weights),
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
    from edgegen.sources import module

    name = path.resolve().name
    if spec.family == checkpoint.MODULE:
        settings = records.convert(module.Config, spec.config, str(path / checkpoint.CONFIG))
        return module.model_of(net, settings, history)._replace(name=name)
    family = rooms.load("edgegen.models", spec.family)
    config = msgspec.convert(spec.config, family.Config)
    way = family.loop(config)
    files: dict[str, bytes] = {}
    if isinstance(config, Config):
        way = msgspec.structs.replace(way, chat_template=chat_template)
        files = _text_files(config, path, tokenizer, chat_template)
    graphs = checkpoint.graphs(spec, net)
    parts = {graph: Part(part, described) for graph, (part, described) in graphs.items()}
    # Only what is exported counts: a GAN's discriminator stays behind.
    weights = {id(p): p.numel() for part, _ in graphs.values() for p in part.parameters()}
    settled = msgspec.to_builtins(config)
    return Model(name, spec.family, settled, way, parts, files, history, sum(weights.values()))


def _text_files(
    config: Config, path: Path, tokenizer: bytes | None, template: str
) -> dict[str, bytes]:
    if tokenizer is None:
        raise NotFoundError(
            f"{path / checkpoint.TOKENIZER}: missing: text cannot be run without it",
            checkpoint.AGAIN,
        )
    special = _sidefiles.special_of(tokenizer, config)
    return _sidefiles.all_files(config, loop(config), tokenizer, special, template)
