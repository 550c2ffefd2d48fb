"""The shapes of a pruned model: what differs from its configuration, and a net made so anew."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgegen.errors import FormatError, MismatchError
from edgegen.rooms import nearest

Shape = tuple[int, ...]
HINT = "config.json and model.safetensors are of two models: restore both, or prune again"


def shapes_of(net: nn.Module, reference: nn.Module) -> dict[str, Shape]:
    """The shape of every tensor of `net` that has another one in `reference`, by name.

    Raises:
        MismatchError: the two have not the same tensors.
    """
    mine, theirs = net.state_dict(), reference.state_dict()
    if odd := sorted(mine.keys() ^ theirs.keys()):
        raise MismatchError(
            f"{odd[0]} is in only one of the two models", "compare a model with what it came from"
        )
    return {n: tuple(t.shape) for n, t in mine.items() if t.shape != theirs[n].shape}


def resize(net: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Give parameters and buffers of `net` these shapes, in place; they hold zeros then.

    A tensor that two layers share stays shared, and the layers' own numbers (`in_features`,
    `groups`, ...) follow.

    Raises:
        FormatError: no tensor of that name, or a shape that pruning cannot have left.
    """
    state = net.state_dict(keep_vars=True)
    new: dict[int, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name not in state:
            raise FormatError(f"shapes: no tensor {name!r}", nearest(name, state))
        old = state[name]
        _check(name, tuple(old.shape), tuple(shape))
        new.setdefault(id(old), _zeros(old, shape))
    touched: dict[str, nn.Module] = {}
    for name, old in state.items():
        if id(old) in new:
            owner, _, leaf = name.rpartition(".")
            touched[owner] = net.get_submodule(owner)
            setattr(touched[owner], leaf, new[id(old)])
    for name, module in touched.items():
        refit(module, name)


def _check(name: str, old: Shape, new: Shape) -> None:
    fits = len(old) == len(new) and all(1 <= n <= o for n, o in zip(new, old, strict=True))
    if not fits:
        raise FormatError(
            f"shapes: {name} is {list(new)}, but the configuration has {list(old)}", HINT
        )


def _zeros(old: torch.Tensor, shape: Shape) -> torch.Tensor:
    tensor = torch.zeros(tuple(shape), dtype=old.dtype, device=old.device)
    return nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor


def refit(module: nn.Module, name: str = "") -> None:
    """Make a layer's own numbers agree with the tensors it holds.

    Raises:
        FormatError: the tensors do not agree with each other, or with the layer's groups.
    """
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
            out = module.out_features
        case nn.modules.conv._ConvNd():
            out = _refit_conv(module, name)
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = module.weight.shape
            return
        case nn.LayerNorm() | nn.RMSNorm():
            if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
            return
        case nn.GroupNorm():
            out = module.num_channels = _length(module)
            if out % module.num_groups:
                raise FormatError(f"{name}: {out} channels in {module.num_groups} groups", HINT)
        case nn.modules.batchnorm._NormBase():
            out = module.num_features = _length(module)
        case _:
            return
    for part, tensor in module.state_dict().items():
        if part != "weight" and tensor.dim() == 1 and len(tensor) != out:
            raise FormatError(f"{name}.{part} has {len(tensor)} values, wanted {out}", HINT)


def _length(norm: nn.Module) -> int:
    """Channels of a norm layer; one without any tensor keeps its number."""
    have = getattr(norm, "num_features", None) or getattr(norm, "num_channels", 0)
    return next((len(t) for t in norm.state_dict().values() if t.dim() == 1), int(have or 0))


def _refit_conv(conv: nn.Module, name: str) -> int:
    """Sets channels and, of a depthwise one, groups; the number of channels that come out."""
    first, second = conv.weight.shape[:2]
    inward, outward = ("first", "second") if conv.transposed else ("second", "first")
    sizes = {"first": first, "second": second}
    depthwise = conv.groups > 1 and conv.groups == conv.in_channels
    if depthwise:
        # One filter, or a few, for each channel that comes in.
        copies = conv.out_channels // conv.in_channels
        conv.groups = first if conv.transposed else first // copies
    whole = sizes["first"]
    if whole % conv.groups:
        raise FormatError(f"{name}: {whole} channels in {conv.groups} groups", HINT)
    # The second axis of a grouped convolution counts the channels of one group.
    sizes["second"] *= conv.groups
    conv.in_channels, conv.out_channels = sizes[inward], sizes[outward]
    return int(conv.out_channels)
