"""A checkpoint: a trained model as a folder of plain files, none of them a pickle.

CHECKPOINT/
  config.json          the ModelSpec: family and configuration
  model.safetensors    the weights, in fp32
  tokenizer.json       text only
  chat_template.jinja  text only, where the model has one
  history.json         one entry for each train or compress step, with its numbers

A model of family "module" is any `FILE.py:CALLABLE`: its configuration says where that file lies
and what goes in, and the file is imported again whenever the checkpoint is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgegen import records, rooms
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.spec import GraphSpec, ModelSpec

if TYPE_CHECKING:  # what a checkpoint says beside its weights is read without torch
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, TEMPLATE, HISTORY = "tokenizer.json", "chat_template.jinja", "history.json"
MODULE = "module"  # the family of what belongs to none
AGAIN = "restore the file, or train again"


class Record(NamedTuple):
    """All of a checkpoint but its weights."""

    path: Path
    spec: ModelSpec
    history: tuple[dict[str, Any], ...]
    tokenizer: bytes | None
    chat_template: str


class Checkpoint(NamedTuple):
    """What `load` gives back; `net` is in eval mode, on the CPU."""

    path: Path
    spec: ModelSpec
    net: nn.Module
    history: tuple[dict[str, Any], ...]
    tokenizer: bytes | None
    chat_template: str = ""


def save(
    path: Path | str,
    spec: ModelSpec,
    net: nn.Module,
    history: tuple[dict[str, Any], ...],
    tokenizer: bytes | None = None,
    chat_template: str = "",
) -> None:
    """Write a checkpoint; what stood under `path` stays whole until the new one is.

    Raises:
        UsageError: something else than a checkpoint is there.
    """
    check_replaceable(Path(path))
    with records.whole(path) as part:
        write_into(part, spec, net, history, tokenizer, chat_template)


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
    chat_template: str = "",
) -> None:
    """Write the files of a checkpoint into `folder`, which is made."""
    folder.mkdir()
    (folder / CONFIG).write_bytes(records.encode(spec))
    (folder / HISTORY).write_bytes(records.encode(history))
    (folder / WEIGHTS).write_bytes(pack(net.state_dict()))
    if tokenizer is not None:
        (folder / TOKENIZER).write_bytes(tokenizer)
    if chat_template:
        (folder / TEMPLATE).write_text(chat_template, encoding="utf-8")


def describe(path: Path | str) -> Record:
    """Read all but the weights.

    Raises:
        NotFoundError: no folder there, or a file of it is missing.
        FormatError: a broken file or an unknown field.
    """
    path = Path(path)
    records.recover(path)
    if not (path / CONFIG).is_file():
        raise NotFoundError(
            f"{path}: no checkpoint there ({CONFIG} is missing)",
            "make one with: edgegen train FAMILY --data DATA -o CHECKPOINT",
        )
    spec = records.read(ModelSpec, path / CONFIG)
    history = records.read(tuple[dict[str, Any], ...], path / HISTORY)
    tokenizer, template = path / TOKENIZER, path / TEMPLATE
    bytes_ = tokenizer.read_bytes() if tokenizer.is_file() else None
    chat = template.read_text(encoding="utf-8") if template.is_file() else ""
    return Record(path, spec, history, bytes_, chat)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint and build its model.

    Raises:
        NotFoundError: no folder there, a file of it is missing, or its family is unknown.
        FormatError: a broken file, an unknown field, or weights of another model.
    """
    path, spec, history, tokenizer, template = describe(path)
    net = build(spec, f"{path / CONFIG}: config")
    fill(net, unpack(path / WEIGHTS), path / WEIGHTS)
    return Checkpoint(path, spec, net.eval(), history, tokenizer, template)


def build(spec: ModelSpec, place: str = "config") -> nn.Module:
    """A new model of that family and configuration, pruned, quantized and adapted as `spec` says.

    Its weights are still to be filled in; `place` is named in errors.
    """
    net = _plain(spec, place)
    if spec.shapes:
        from edgegen.structure import resize

        resize(net, spec.shapes)
    if spec.adapters:
        from edgegen.adapters import attach as adapt

        adapt(net, spec.adapters)
    if spec.layers:
        from edgegen.quantized import attach as quantize

        quantize(net, spec.layers)
    return net


def _plain(spec: ModelSpec, place: str) -> nn.Module:
    if spec.family == MODULE:
        from edgegen.sources import module

        return module.rebuild(records.convert(module.Config, spec.config, place))
    family = rooms.load("edgegen.models", spec.family)
    net: nn.Module = family.Net(records.convert(family.Config, spec.config, place))
    return net


def graphs(spec: ModelSpec, net: nn.Module) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """What of `net` is exported, whatever its family: {graph name: (module, its spec)}.

    A module of family "module" is wrapped, so its parameters are called "module.NAME" there; its
    outputs are found by running it.
    """
    if spec.family == MODULE:
        from edgegen.sources import module

        plain, graph, _ = module.graph_of(net, records.convert(module.Config, spec.config, MODULE))
        return {graph.name: (plain, graph)}
    found: dict[str, tuple[nn.Module, GraphSpec]]
    found = rooms.load("edgegen.models", spec.family).graphs(net)
    return found


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors bytes, which depend on names and values alone."""
    from safetensors.torch import save as bytes_of

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
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors_of

    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", AGAIN)
    try:
        return tensors_of(path.read_bytes())
    except SafetensorError as error:
        raise FormatError(f"{path}: not a whole safetensors file: {error}", AGAIN) from error


def fill(net: nn.Module, tensors: dict[str, Tensor], place: Path | str) -> None:
    """Copy `tensors` into a model; every one must be wanted, and every wanted one there.

    Raises:
        FormatError: a missing, unknown or misshapen tensor, the first of which is named.
    """
    import torch

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
