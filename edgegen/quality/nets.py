"""A model in memory as a subject, so that a step can be judged before anything is exported."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from edgegen import rooms
from edgegen.bundle import Text
from edgegen.errors import NotFoundError, UnsupportedError
from edgegen.models._numpy import Decoder
from edgegen.quality.subject import Subject
from edgegen.runtimes.torch import TorchSession
from edgegen.sources import Model
from edgegen.text import FILE, Tokenizer


def subject(model: Model) -> Subject:
    """`model` (see `edgegen.sources`), its modules in eval mode, each on the device it is on.

    Raises:
        UnsupportedError: a graph that is an ONNX file and no module.
    """
    files = [name for name, part in model.parts.items() if isinstance(part.module, Path)]
    if files:
        raise UnsupportedError(
            f"{model.name}: graph {files[0]} is an ONNX file, not a net in memory",
            "export it, then: edgegen eval BUNDLE",
        )
    sessions = {
        name: TorchSession(part.module.eval(), part.spec, _place(part.module), False)
        for name, part in model.parts.items()
        if not isinstance(part.module, Path | Decoder)
    }
    content = model.files.get(FILE, b"")
    return Subject(
        model.name,
        model.family,
        "in memory",
        "torch",
        str(next(iter({str(_place(part.module)) for part in model.parts.values()}), "cpu")),
        model.loop,
        model.config,
        {name: part.spec for name, part in model.parts.items()},
        sessions.__getitem__,
        lambda: _tokenizer(model, content),
        hashlib.sha256(content).hexdigest() if content else "",
    )


def _place(module: Any) -> Any:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _tokenizer(model: Model, content: bytes) -> Tokenizer:
    if not content or not isinstance(model.loop, Text):
        raise NotFoundError(f"{model.name}: no {FILE} comes with it", f"put {FILE} beside it")
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "text") from error
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Tokenizer(model.name, tokenizer, model.loop)
