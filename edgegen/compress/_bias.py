"""Bias correction without any data: the mean that rounding adds, from what batch norms know.

Behind a batch norm a channel has mean `bias` and spread |`weight`|; taken as normal, its mean
behind ReLU is known as well. Rounded weights then shift the mean of a row by the change of its
weights times these means.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.1 and appendix C (analytic).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgegen.chains import NORMS, behind, chains
from edgegen.compress._smooth import HEAVY, TRANSPOSED
from edgegen.compress._static import bias_of
from edgegen.errors import UnsupportedError

PASS = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)


def shift_biases(
    net: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> list[str]:
    """Shift the biases of rounded layers, in place, by what the change of their weights, matrices
    (rows, columns) by name, adds to the mean; the layers that were shifted.

    A layer is left out that has no batch norm before it, with at most ReLU or LeakyReLU between,
    or no place for a shift: a bias of its own, or a batch norm right behind.

    Raises:
        UnsupportedError: none is left.
    """
    done = []
    readers = behind(net)
    for name, means in _inputs(net):
        place, layer = bias_of(net, name, readers), net.get_submodule(name)
        if name not in after or place is None or getattr(layer, "groups", 1) != 1:
            continue
        change = (after[name] - before[name]).unflatten(1, (len(means), -1))
        sign, values = place
        with torch.no_grad():
            # Each output of a transposed convolution sees one position in `stride` of the kernel.
            share = math.prod(layer.stride) if isinstance(layer, TRANSPOSED) else 1
            values.sub_(sign * (change.sum(2) @ means) / share)
        done.append(name)
    if not done:
        raise UnsupportedError(
            "quantize: analytic bias correction finds no layer behind a batch norm",
            "use bias_correction = true, which measures on data; or leave it out",
        )
    return done


def _inputs(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The layers whose input's mean, by channel, follows from a norm."""
    for chain in chains(net):
        norm: Any = None
        slope = 1.0
        for name, child in chain:
            if isinstance(child, NORMS) and child.affine:
                norm, slope = child, 1.0
            elif isinstance(child, nn.ReLU | nn.LeakyReLU) and slope == 1:
                slope = getattr(child, "negative_slope", 0.0)
            elif isinstance(child, HEAVY):
                if norm is not None:
                    mean = rectified_mean(norm.bias.detach(), norm.weight.detach().abs(), slope)
                    yield name, mean
                norm = None
            elif not isinstance(child, PASS):
                norm = None


def rectified_mean(mean: Tensor, spread: Tensor, slope: float = 0.0) -> Tensor:
    """The mean of max(x, slope * x) for normal x."""
    return _above_zero(mean, spread) - slope * _above_zero(-mean, spread)


def _above_zero(mean: Tensor, spread: Tensor) -> Tensor:
    """The mean of max(x, 0)."""
    z = mean / spread.clamp(min=1e-12)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return spread * density + mean * torch.special.ndtr(z)
