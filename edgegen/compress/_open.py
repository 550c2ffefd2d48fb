"""What is to be compressed, from whatever brings torch weights; and what state it is in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from edgegen import checkpoint
from edgegen.compress._work import Work
from edgegen.errors import MismatchError, UnsupportedError
from edgegen.sources import kind_of, module, open_source
from edgegen.sources._probe import Plain
from edgegen.spec import ModelSpec


def open_work(
    source: str, inputs: Sequence[str] = (), pixels: tuple[float, float] | None = None
) -> Work:
    """The model `source` names, a checkpoint or anything with torch weights, its history with it.

    Raises:
        UnsupportedError: an ONNX file, which holds a graph and no torch module.
        MismatchError: a weight that is no number; it is named.
        EdgeGenError: otherwise as `open_source`.
    """
    kind = kind_of(source)
    if kind == "onnx":
        raise UnsupportedError(
            f"{source}: an ONNX file is a finished graph: there are no layers to change in it",
            f"compress what it was made from, or: edgegen export {source} --precision int8",
        )
    if kind == "checkpoint" and not (inputs or pixels):
        found = checkpoint.load(source)
        work = Work(
            found.spec, found.net, found.tokenizer, found.chat_template, history=found.history
        )
    else:
        work = _from_elsewhere(source, kind, inputs, pixels)
    check_finite(work.net, source)
    return work


def _from_elsewhere(
    source: str, kind: str, inputs: Sequence[str], pixels: tuple[float, float] | None
) -> Work:
    model = open_source(source, inputs, pixels)
    net = model.parts["model"].module
    if isinstance(net, Plain):
        config = {"source": module.absolute(source), "inputs": list(inputs)}
        span = {"pixels": list(pixels)} if pixels else {}
        return Work(ModelSpec(kind, config | span), net.module, history=model.history)
    assert isinstance(net, nn.Module)
    return Work(
        ModelSpec(model.family, model.config),
        net,
        model.files["tokenizer.json"],
        getattr(model.loop, "chat_template", ""),
        history=model.history,
    )


def check_finite(net: nn.Module, place: str | Path) -> None:
    """Raise `MismatchError`, naming the first weight that holds an infinity or no number."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise MismatchError(
                f"{place}: {name}: {count} of {tensor.numel()} weights are not finite",
                "train again with a lower --lr, or restore the file",
            )


def traces(work: Work) -> set[str]:
    """The kinds of steps that have left their mark on a model, for `recipe.check_order`."""
    found = {entry["kind"] for entry in work.history if "verdict" in entry} - {"lora"}
    found |= {"prune"} if work.spec.shapes else set()
    found |= {"quantize"} if work.spec.layers else set()
    return found | ({"lora"} if work.spec.adapters else set())


def sha256_of(net: nn.Module) -> str:
    """A hash of all weights and their names."""
    total = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        total.update(f"{name} {tuple(tensor.shape)} ".encode())
        total.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
