"""Adapters inside the rounding of a quantized weight: what is learnt moves weights from one
point of the grid to the next, and nothing of it is left to compute with.

Source: Bondarenko et al. 2024, arXiv:2406.06385 (LR-QAT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgegen.adapters import LowRank, delta
from edgegen.quantized import quantizer_of

EDGE = 0.499  # of a step: a weight that far from its grid point is still rounded to it


class Inside(LowRank):
    """An adapter that is added to the float weight before it is rounded."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + delta(self.A, self.B) * self.scale


def insert(layer: nn.Module, rank: int, scale: float) -> Inside:
    """Put a new adapter between the float weight of a quantized layer and its rounding."""
    adapter = Inside(layer, rank, scale)
    layer.parametrizations["weight"].insert(0, adapter)
    return adapter


def settle(layer: nn.Module) -> None:
    """Leave the layer with the weight it computes with now, without its adapter."""
    steps = layer.parametrizations["weight"]
    with torch.no_grad():
        steps.original.copy_(layer.weight)
    del steps[0]


def remember(layer: nn.Module, exact: Tensor) -> None:
    """Move the float weight towards the `exact` one it came from, as far as its grid point goes.

    The layer computes what it did; but what was nearly rounded the other way is now near that.
    """
    step = quantizer_of(layer)
    if step is None or step.scheme.codebook or exact.shape != layer.weight.shape:
        return
    with torch.no_grad():
        grid = layer.weight.detach().clone()
        room = EDGE * step.scale[..., None]
        moved = (step.grouped(exact) - step.grouped(grid)).clamp(-room, room)
        layer.parametrizations["weight"].original.copy_(
            step.ungrouped(step.grouped(grid) + moved, grid.shape)
        )
