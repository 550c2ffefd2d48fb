"""A checkpoint: a trained model as a folder of plain files, none of them a pickle.

CHECKPOINT/
  config.json          the ModelSpec: family and configuration
  model.safetensors    the weights, in fp32
  tokenizer.json       text only
  history.json         one entry for each train or compress step, with its numbers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from edgegen import records, rooms
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.spec import ModelSpec

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, HISTORY = "tokenizer.json", "history.json"


class Checkpoint(NamedTuple):
    """What `load` gives back; `net` is in eval mode, on the CPU."""

    path: Path
    spec: ModelSpec
    net: nn.Module
    history: tuple[dict[str, Any], ...]
    tokenizer: bytes | None


def save(
    path: Path | str,
    spec: ModelSpec,
    net: nn.Module,
    history: tuple[dict[str, Any], ...],
    tokenizer: bytes | None = None,
) -> None:
    """Write a checkpoint; what stood under `path` stays whole until the new one is.

    Raises:
        UsageError: something else than a checkpoint is there.
    """
    check_replaceable(Path(path))
    with records.whole(path) as part:
        write_into(part, spec, net, history, tokenizer)


def check_replaceable(path: Path) -> None:
    """Raise `UsageError` when `path` holds something that is not a checkpoint."""
    mine = (path / CONFIG).is_file() and (path / HISTORY).is_file()
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not mine):
        raise UsageError(f"{path}: exists and is not a checkpoint", "choose another -o name")


def write_into(
    folder: Path,
    spec: ModelSpec,
    net: nn.Module,
    history: tuple[dict[str, Any], ...],
    tokenizer: bytes | None = None,
) -> None:
    """Write the files of a checkpoint into `folder`, which is made."""
    folder.mkdir()
    (folder / CONFIG).write_bytes(records.encode(spec))
    (folder / HISTORY).write_bytes(records.encode(history))
    (folder / WEIGHTS).write_bytes(pack(net.state_dict()))
    if tokenizer is not None:
        (folder / TOKENIZER).write_bytes(tokenizer)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint and build its model.

    Raises:
        NotFoundError: no folder there, a file of it is missing, or its family is unknown.
        FormatError: a broken file, an unknown field, or weights of another model.
    """
    path = Path(path)
    records.recover(path)
    if not (path / CONFIG).is_file():
        raise NotFoundError(
            f"{path}: no checkpoint there ({CONFIG} is missing)",
            "make one with: edgegen train FAMILY --data DATA -o CHECKPOINT",
        )
    spec = records.read(ModelSpec, path / CONFIG)
    net = build(spec, f"{path / CONFIG}: config")
    fill(net, unpack(path / WEIGHTS), path / WEIGHTS)
    history = records.read(tuple[dict[str, Any], ...], path / HISTORY)
    tokenizer = path / TOKENIZER
    bytes_ = tokenizer.read_bytes() if tokenizer.is_file() else None
    return Checkpoint(path, spec, net.eval(), history, bytes_)


def build(spec: ModelSpec, place: str = "config") -> nn.Module:
    """A new model of that family and configuration; `place` is named in errors."""
    family = rooms.load("edgegen.models", spec.family)
    net: nn.Module = family.Net(records.convert(family.Config, spec.config, place))
    return net


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors bytes, which depend on names and values alone."""
    return bytes_of({n: tensors[n].detach().cpu().contiguous() for n in stored_names(tensors)})


def stored_names(tensors: dict[str, Tensor]) -> list[str]:
    """Names, sorted; of tensors that share their memory (tied weights) only the first."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr() or id(tensor), name)
    return sorted(first.values())


def unpack(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        NotFoundError: no such file.
        FormatError: truncated or not safetensors.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", "restore the file, or train again")
    try:
        return tensors_of(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise FormatError(
            f"{path}: not a whole safetensors file: {error}", "restore the file, or train again"
        ) from error


def fill(net: nn.Module, tensors: dict[str, Tensor], place: Path | str) -> None:
    """Copy `tensors` into a model; every one must be wanted, and every wanted one there.

    Raises:
        FormatError: a missing, unknown or misshapen tensor, the first of which is named.
    """
    state = net.state_dict()
    for name in sorted({*stored_names(state), *tensors}):
        want = list(state[name].shape) if name in state else "no such tensor"
        have = list(tensors[name].shape) if name in tensors else "no such tensor"
        if want != have:
            raise FormatError(
                f"{place}: {name}: wanted {want}, found {have}",
                f"{CONFIG} and {WEIGHTS} are of two models: restore both",
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
