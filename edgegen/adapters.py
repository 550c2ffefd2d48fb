"""Low-rank adapters on linear layers, convolutions and transposed convolutions.

An adapter adds `scale * B(A(x))` to the output of the layer it sits on. The layer keeps its kind,
its name and its weight, which may be quantized. B starts at 0, so a new adapter changes nothing.

Source: Hu et al. 2021, arXiv:2106.09685 (LoRA).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from edgegen.errors import NotFoundError, UnsupportedError, UsageError
from edgegen.rooms import nearest

MERGE = "merge it first: edgegen compress CHECKPOINT --method lora --set steps=0"
CHILD = "adapter"  # what the adapter is called in the layer it sits on


class LowRank(nn.Module):
    """What one adapter adds to the output of its layer.

    Linear: A (rank, in), B (out, rank). Conv2d: A (rank, in, kernel), B (out, rank, 1, 1).
    ConvTranspose2d: A (rank, in), B (rank, out, kernel).
    """

    scale: Tensor

    def __init__(self, layer: nn.Module, rank: int, scale: float = 1.0, dropout: float = 0.0):
        super().__init__()
        first, second = shapes(layer, rank)
        like: dict[str, Any] = {"dtype": torch.float32, "device": layer.weight.device}
        self.A = nn.Parameter(torch.empty(first, **like))
        self.B = nn.Parameter(torch.zeros(second, **like))
        self.register_buffer("scale", torch.tensor(scale, **like))
        self.dropout = dropout
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @property
    def rank(self) -> int:
        """How many directions it has."""
        return int(self.A.shape[0])


def adaptable(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be adapted, by name. Grouped convolutions cannot."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    found = {name: layer for name, layer in net.named_modules() if isinstance(layer, kinds)}
    return {name: layer for name, layer in found.items() if getattr(layer, "groups", 1) == 1}


def adapted(net: nn.Module) -> dict[str, LowRank]:
    """The adapters of `net`, by the name of the layer each sits on."""
    end = f".{CHILD}"
    return {
        name.removesuffix(end): module
        for name, module in net.named_modules()
        if isinstance(module, LowRank) and name.endswith(end)
    }


def shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B on `layer`."""
    if isinstance(layer, nn.Linear):
        return (rank, layer.in_features), (layer.out_features, rank)
    if isinstance(layer, nn.Conv2d):
        wide, high = layer.kernel_size
        return (rank, layer.in_channels, wide, high), (layer.out_channels, rank, 1, 1)
    if isinstance(layer, nn.ConvTranspose2d):
        return (rank, layer.in_channels), (rank, layer.out_channels, *layer.kernel_size)
    raise UnsupportedError(
        f"{type(layer).__name__} cannot be adapted", "adapt Linear, Conv2d or ConvTranspose2d"
    )


def largest_rank(layer: nn.Module) -> int:
    """The smaller side of the layer as a matrix: a higher rank says nothing more."""
    (_, *inward), (outward, *_) = shapes(layer, 1)
    if isinstance(layer, nn.ConvTranspose2d):
        outward = layer.out_channels * math.prod(layer.kernel_size)
    return min(math.prod(inward), outward)


def attach(
    net: nn.Module, adapters: Mapping[str, int], *, scale: float = 1.0, dropout: float = 0.0
) -> None:
    """Put a new adapter of the given rank on each of the named layers of `net`, in place.

    `dropout` is of the adapter's input while it is trained.

    Raises:
        NotFoundError: no layer of that name that can be adapted.
        UsageError: a rank below 1 or above the layer's smaller side, or a second adapter.
    """
    layers = adaptable(net)
    for name, rank in adapters.items():
        if name not in layers:
            raise NotFoundError(f"no layer {name!r} to adapt", nearest(name, layers))
        most = largest_rank(layers[name])
        if not 1 <= rank <= most:
            raise UsageError(
                f"adapter of {name}: rank {rank}, wanted 1 to {most}, the layer's smaller side",
                f"ask for a rank of at most {most}",
            )
        if hasattr(layers[name], CHILD):
            raise UsageError(f"{name} has an adapter already", MERGE)
        adapter = LowRank(layers[name], rank, scale, dropout).train(layers[name].training)
        layers[name].add_module(CHILD, adapter)
        layers[name].register_forward_hook(_add)


def _add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The forward hook of every adapted layer."""
    adapter = getattr(layer, CHILD)
    x = functional.dropout(inputs[0], adapter.dropout, adapter.training)
    return output + low_rank(layer, x, adapter.A, adapter.B) * adapter.scale


def low_rank(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """B(A(x)), computed as `layer` would with the weight `delta(a, b)`."""
    if isinstance(layer, nn.Linear):
        return functional.linear(functional.linear(x, a), b)
    if isinstance(layer, nn.Conv2d):
        # Not F.conv2d: the layer pads in its own mode, such as "reflect".
        return functional.conv2d(layer._conv_forward(x, a, None), b)
    assert isinstance(layer, nn.ConvTranspose2d)
    inner = functional.conv2d(x, a[:, :, None, None])
    where = (layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
    return functional.conv_transpose2d(inner, b, None, *where)


def delta(a: Tensor, b: Tensor) -> Tensor:
    """What B(A(x)) is as a change of the layer's weight, of the weight's shape."""
    if a.dim() == 4:  # Conv2d
        return torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    if b.dim() == 4:  # ConvTranspose2d
        return torch.einsum("ri,rokl->iokl", a, b)
    return b @ a


def merge(net: nn.Module) -> tuple[str, ...]:
    """Add every adapter to the weight it sits on and take it off, in place; the layers' names.

    Raises:
        UnsupportedError: a quantized weight: with the adapter it would leave its grid.
    """
    found = adapted(net)
    for name in found:
        if parametrize.is_parametrized(net.get_submodule(name), "weight"):
            raise UnsupportedError(
                f"{name}: its weight is computed from another (quantized, or normalised): merged, "
                "it would have to be computed anew",
                "leave the adapters beside it (merge = false), or merge before quantizing",
            )
    for name, adapter in found.items():
        layer = net.get_submodule(name)
        with torch.no_grad():
            change = delta(adapter.A, adapter.B) * adapter.scale
            layer.weight.add_(change.to(layer.weight.dtype))
    detach(net)
    return tuple(found)


def detach(net: nn.Module) -> None:
    """Take every adapter off, in place: the layers are as they were before `attach`."""
    for name in adapted(net):
        layer = net.get_submodule(name)
        delattr(layer, CHILD)
        for key in list(_hooks(layer)):
            del layer._forward_hooks[key]


def _hooks(layer: nn.Module) -> Iterator[int]:
    return (key for key, hook in layer._forward_hooks.items() if hook is _add)
