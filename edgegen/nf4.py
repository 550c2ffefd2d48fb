"""Weights frozen in NF4: 4 bits each and a scale for every 64, for training adapters beside them.

Source: Dettmers et al. 2023, arXiv:2305.14314 (QLoRA), appendix E for the sixteen values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgegen.adapters import adaptable
from edgegen.errors import UnsupportedError

BLOCK = 64
# Quantiles of N(0, 1), scaled to -1..1, with 0 among them.
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def quantiles() -> Tensor:
    """The sixteen values from their definition: the middles of equally likely parts of N(0, 1).

    The offset is bitsandbytes': half a part away from 0 and 1, averaged over 15 and 16 parts.
    """
    offset = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([above, torch.zeros(1, dtype=torch.float64), below]).sort().values
    return (values / values.abs().max()).float()


class Frozen(nn.Module):
    """A weight in NF4: two codes a byte, and the largest magnitude of each block in fp32."""

    codes: Tensor
    largest: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        codes, largest = encode(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("largest", largest)

    def forward(self) -> Tensor:
        return decode(self.codes, self.largest, self.shape)


def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, two a byte; the largest magnitude of each block) of a weight."""
    flat = weight.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    largest = blocks.abs().amax(1)
    values = torch.tensor(VALUES, device=flat.device)
    middles = (values[1:] + values[:-1]) / 2
    scaled = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(scaled, middles).to(torch.uint8).flatten()
    return codes[::2] << 4 | codes[1::2], largest


def decode(codes: Tensor, largest: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight that `encode` stored, rounded to the sixteen values of each block."""
    both = torch.stack([codes >> 4, codes & 15], 1).flatten().long()
    values = torch.tensor(VALUES, device=codes.device)[both]
    flat = (values.unflatten(0, (-1, BLOCK)) * largest[:, None]).flatten()
    return flat[: math.prod(shape)].reshape(shape)


def freeze(net: nn.Module, names: Iterable[str]) -> None:
    """Keep the weights of the named layers of `net` in NF4 only, in place, until `thaw`.

    A layer's weight is decoded when it is needed, in the backward pass again, and never kept.

    Raises:
        UnsupportedError: a weight that is quantized already, or that another layer shares.
    """
    layers = adaptable(net)
    for name in names:
        layer = layers[name]
        weight = layer._parameters.get("weight")
        if weight is None:
            raise UnsupportedError(f"{name}: is quantized already", 'use base = "as it is"')
        if any(
            weight is p
            for n, p in net.named_parameters(remove_duplicate=False)
            if n != f"{name}.weight"
        ):
            raise UnsupportedError(
                f"{name}: shares its weight with another layer", "leave it out of `layers`"
            )
        layer.add_module("frozen", Frozen(weight))
        del layer._parameters["weight"]
        layer.forward = _forward(type(layer), layer)


def _forward(kind: type[nn.Module], layer: nn.Module) -> Callable[..., Tensor]:
    """The layer's own forward, computed again in the backward pass rather than remembered."""

    def plain(*inputs: Any) -> Tensor:
        layer.__dict__["weight"] = layer.frozen()
        try:
            return kind.forward(layer, *inputs)
        finally:
            del layer.__dict__["weight"]

    def forward(*inputs: Any) -> Tensor:
        out: Tensor = checkpoint(plain, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out

    return forward


def thaw(net: nn.Module) -> None:
    """Give every frozen layer of `net` its decoded weight as a parameter, in place."""
    for layer in net.modules():
        if isinstance(getattr(layer, "frozen", None), Frozen):
            layer._parameters["weight"] = nn.Parameter(layer.frozen())
            del layer.frozen, layer.__dict__["forward"]
