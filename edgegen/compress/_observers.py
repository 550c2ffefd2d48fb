"""The range of a layer's input, of all values that it had: what lies outside will be clipped.

Each observer takes values and gives back (low, high). Values are integers 0..255 later, with 0.0
among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Observer = Literal["minmax", "entropy", "percentile", "mse"]
Range = tuple[float, float]

BINS, LEVELS = 2048, 256
PERCENTILE = 99.99
CLIPS = tuple(1 - 0.02 * step for step in range(41))
KEPT = 1 << 20  # values of a layer that are looked at
EPSILON = 1e-10


def thinned(values: Tensor, keep: int) -> Tensor:
    """Evenly spread over `values`, at most about `keep` of them, with the least and the largest."""
    flat = values.detach().flatten()
    step = -(-flat.numel() // keep)
    return torch.cat((flat[::step], flat.amin()[None], flat.amax()[None]))


def minmax(values: Tensor) -> Range:
    """All of it."""
    return float(values.min()), float(values.max())


def percentile(values: Tensor, share: float = PERCENTILE) -> Range:
    """Without the `100 - share` percent at either end."""
    order = values.sort().values
    cut = int((len(order) - 1) * (1 - share / 100))
    return float(order[cut]), float(order[len(order) - 1 - cut])


def mse(values: Tensor) -> Range:
    """The part of the range of the least squared error, rounding and clipping together."""
    low, high = minmax(values)
    ends = [(low * share, high * share) for share in CLIPS]
    return min(ends, key=lambda end: float((_rounded(values, *end) - values).square().mean()))


def _rounded(values: Tensor, low: float, high: float) -> Tensor:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, EPSILON) / (LEVELS - 1)
    zero = round(-low / scale)
    return ((values / scale).round() + zero).clamp(0, LEVELS - 1).sub(zero) * scale


def entropy(values: Tensor) -> Range:
    """The part of the range whose histogram in 256 levels differs least from the true one.

    Source: Migacz 2017, "8-bit inference with TensorRT" (KL divergence of histograms).
    """
    low, high = minmax(values)
    if high - low < EPSILON:
        return low, high
    counts = torch.histc(values, BINS, low, high).double()
    width = (high - low) / BINS
    centre = min(max(round(-low / width), 0), BINS)  # the bin of zero
    best, found = float("inf"), (low, high)
    for step in range(LEVELS, BINS + 1, 32):
        share = step / BINS
        first, last = round(centre * (1 - share)), centre + round((BINS - centre) * share)
        if last - first < LEVELS:
            continue
        divergence = _divergence(counts, first, last)
        if divergence < best:
            best, found = divergence, (low + first * width, low + last * width)
    return found


def _divergence(counts: Tensor, first: int, last: int) -> float:
    """KL of the clipped histogram from the same one in 256 levels."""
    inside = counts[first:last]
    clipped = inside.clone()
    clipped[0] += counts[:first].sum()  # what is clipped lands on the ends
    clipped[-1] += counts[last:].sum()
    level = torch.arange(last - first) * LEVELS // (last - first)
    total = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, inside)
    filled = (inside > 0).double()
    used = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, filled)
    coarse = (total / used.clamp(min=1))[level] * filled
    p = (clipped + EPSILON) / (clipped + EPSILON).sum()
    q = (coarse + EPSILON) / (coarse + EPSILON).sum()
    return float((p * (p / q).log()).sum())


OBSERVERS: dict[Observer, Callable[[Tensor], Range]] = {
    "minmax": minmax,
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
}
