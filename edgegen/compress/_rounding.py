"""Weights rounded to a grid of integers, one function an algorithm; pure functions of tensors.

A weight comes as (rows, columns): output channels, and all that one of them is computed from.
`split` cuts its rows into groups that share a scale. What comes back lies on the grid, so that the
integers follow from it exactly:

    weight = (q - zero) * scale        table[q] * scale for a codebook
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from edgegen.spec import Scheme

TINY = 1e-12  # the scale of a group of zeros
EXACT_DB = 60.0  # a weight that rounding changes by less lay on the grid already
CLIPS = tuple(1 - 0.05 * step for step in range(11))  # shares of the range that are kept
SMALLEST = 1e-8  # an error below this is none


class Grid(NamedTuple):
    """A rounded weight (rows, columns) and its grid: `scale` and `zero` (rows, groups).

    `zero` is None where the scheme is symmetric; `table` (2^bits,) is there for a codebook.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor | None = None
    table: Tensor | None = None


# Scale and zero of groups (rows, groups, size); a zero of 0 where the scheme is symmetric.
Fit = Callable[[Tensor], tuple[Tensor, Tensor]]


def levels(scheme: Scheme) -> tuple[int, int]:
    """The smallest and the largest integer of an evenly spaced scheme."""
    half = 2 ** (scheme.bits - 1)
    return (-half, half - 1) if scheme.symmetric else (0, 2 * half - 1)


def split(weight: Tensor, scheme: Scheme) -> Tensor:
    """(rows, columns) -> (rows, groups, size); one row of one group for the whole tensor.

    The size must divide the columns.
    """
    if scheme.group_size < 0:
        return weight.reshape(1, 1, -1)
    return weight.unflatten(1, (-1, scheme.group_size or weight.shape[1]))


def snap(groups: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """The nearest points of the grid; `scale` and `zero` are (rows, groups)."""
    q = (groups / scale[..., None] + zero[..., None]).round().clamp(*levels(scheme))
    return (q - zero[..., None]) * scale[..., None]


def on_grid(weight: Tensor, scheme: Scheme, fit: Fit) -> Grid:
    """Every weight at its nearest point of the grid that `fit` finds."""
    groups = split(weight, scheme)
    scale, zero = fit(groups)
    rounded = snap(groups, scale, zero, scheme).reshape(weight.shape)
    return Grid(rounded, scale, None if scheme.symmetric else zero)


def span(groups: Tensor, scheme: Scheme, whole: bool = True) -> tuple[Tensor, Tensor]:
    """The grid from the smallest to the largest weight of each group: nothing is clipped.

    With `whole` the zero point is an integer, so that 0 is on the grid; else the smallest weight
    is.
    """
    return _place(groups.amin(-1), groups.amax(-1), scheme, whole)


def _place(low: Tensor, high: Tensor, scheme: Scheme, whole: bool) -> tuple[Tensor, Tensor]:
    bottom, top = levels(scheme)
    if scheme.symmetric:
        # 8 bits do without -128, as everyone's do: what was int8 before stays as it is.
        bottom = -top if scheme.bits == 8 else bottom
        scale = torch.maximum(high / top, low / bottom).clamp(min=TINY)
        return scale, torch.zeros_like(scale)
    if whole:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / top
    # A group of one value: without a span of its own it takes its size from the value.
    flat = scale <= TINY
    scale = torch.where(flat, low.abs().clamp(min=TINY), scale)
    zero = -low / scale
    return scale, zero.round() if whole else zero


def steps(scheme: Scheme) -> list[float]:
    """What the largest step is multiplied with in a search: finer clips, coarser ones leave levels
    unused, as a grid does that another quantizer chose.
    """
    top = levels(scheme)[1]
    unused = [top / k for k in range(top // 2, top)] if scheme.bits <= 4 else []
    return [*CLIPS, *unused]


def searched(
    groups: Tensor, scheme: Scheme, whole: bool = True, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The grid of the least squared error of each group, by search over its range.

    `importance` (groups, size), where given, weighs the columns: the mean square of their input.
    """
    best_scale, best_zero = span(groups, scheme, whole)
    best = _error(groups, best_scale, best_zero, scheme, importance)
    low, high = groups.amin(-1), groups.amax(-1)
    for factor in steps(scheme):
        ends = _stretched(low, high, factor, scheme)
        scale, zero = _place(*ends, scheme, whole)
        error = _error(groups, scale, zero, scheme, importance)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _stretched(low: Tensor, high: Tensor, factor: float, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The ends times `factor`; a wider range of an asymmetric grid keeps its low end."""
    if factor > 1 and not scheme.symmetric:
        return low, low + (high - low) * factor
    return low * factor, high * factor


def _error(
    groups: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme, importance: Tensor | None
) -> Tensor:
    square = (snap(groups, scale, zero, scheme) - groups).square()
    return (square if importance is None else square * importance).sum(-1)


def nearest(weight: Tensor, scheme: Scheme, *, clip: bool = False, whole: bool = True) -> Grid:
    """Round to nearest; with `clip` the range of each group is searched for the least error."""
    find = searched if clip else span
    return on_grid(weight, scheme, lambda groups: find(groups, scheme, whole))


def recovered(weight: Tensor, scheme: Scheme) -> Grid | None:
    """The grid that the weight lies on already, with a zero that need not be whole; or None.

    A file that was quantized before loses nothing here: GGUF's Q4_1 (4 bits, groups of 32, and a
    float minimum) loses about a third of its tokens with zeros that are whole, its Q8_0 (8 bits
    about 0) more than one in a hundred between its smallest and largest weight.
    """
    if scheme.symmetric or scheme.codebook:
        return None
    tries = [
        lambda: nearest(weight, scheme, whole=False),
        lambda: on_grid(weight, scheme, lambda groups: _about_zero(groups, scheme)),
    ]
    if scheme.bits <= 4:
        tries.append(lambda: nearest(weight, scheme, clip=True, whole=False))
    grids = (find() for find in tries)
    return next((grid for grid in grids if sqnr_db(weight, grid.weight) >= EXACT_DB), None)


def _about_zero(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The grid with 0 in its middle and as many steps below as above it."""
    middle = 2 ** (scheme.bits - 1)
    scale = groups.abs().amax(-1).clamp(min=TINY) / (middle - 1)
    return scale, torch.full_like(scale, middle)


def sqnr_db(wanted: Tensor, found: Tensor) -> float:
    """Signal to noise in dB; infinite where nothing differs."""
    noise = float((found - wanted).square().sum(dtype=torch.float64))
    signal = float(wanted.square().sum(dtype=torch.float64))
    return float("inf") if noise == 0 else 10 * float(torch.tensor(signal / noise).log10())


def codebook(weight: Tensor, scheme: Scheme, iterations: int = 20) -> Grid:
    """The 2^bits values that fit best, by k-means over weights divided by their group's largest.

    Exact where the weight has no more different values than that. Source: Han et al. 2015,
    arXiv:1510.00149 (shared values); Lloyd 1982.
    """
    groups, size = split(weight, scheme), 2**scheme.bits
    values = weight.unique()
    if len(values) <= size:
        scale = torch.ones(groups.shape[:2])
        table = torch.cat((values, values[-1:].expand(size - len(values))))
        return Grid(weight.clone(), scale, None, table)
    scale = groups.abs().amax(-1).clamp(min=TINY)
    flat = (groups / scale[..., None]).flatten()
    mass = scale.square()[..., None].expand_as(groups).flatten()
    table = _means(flat, mass, size, iterations)
    q = torch.bucketize(flat, (table[1:] + table[:-1]) / 2)
    rounded = table[q].reshape(groups.shape) * scale[..., None]
    return Grid(rounded.reshape(weight.shape), scale, None, table)


def _means(flat: Tensor, mass: Tensor, size: int, iterations: int) -> Tensor:
    """k-means on a line, from evenly spaced quantiles; `mass` weighs the points."""
    order = flat.sort().values
    table = order[torch.linspace(0, len(order) - 1, size).long()].unique()
    # Repeated values give fewer quantiles than entries: the rest is spread over the range.
    spare = torch.linspace(float(order[0]), float(order[-1]), size - len(table) + 2)[1:-1]
    table = torch.cat((table, spare)).sort().values
    for _ in range(iterations):
        q = torch.bucketize(flat, (table[1:] + table[:-1]) / 2)
        weight = torch.zeros(size).index_add_(0, q, mass)
        total = torch.zeros(size).index_add_(0, q, mass * flat)
        table = torch.where(weight > 0, total / weight.clamp(min=TINY), table).sort().values
    return table


def hqq(
    weight: Tensor,
    scheme: Scheme,
    *,
    whole: bool = True,
    norm: float = 0.7,
    beta: float = 10.0,
    iterations: int = 20,
) -> Grid:
    """Half-quadratic quantization: the zero of the least error^0.7, without data; the scale where
    the zero is whole or there is none.

    The power forgives a few large errors, which are outliers, for many small ones. No group comes
    out worse by that measure than round to nearest.

    Source: Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/; half-quadratic splitting:
    Geman and Reynolds 1992.
    """
    groups = split(weight, scheme)

    def fit(groups: Tensor) -> tuple[Tensor, Tensor]:
        tries = _half_quadratic(groups, scheme, whole, norm, beta, iterations)
        return _best(groups, scheme, tries, norm)

    return on_grid(groups.reshape(weight.shape), scheme, fit)


def _half_quadratic(
    groups: Tensor, scheme: Scheme, whole: bool, norm: float, beta: float, iterations: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """The grid of each iteration, round to nearest first."""
    scale, zero = span(groups, scheme, whole)
    yield scale, zero
    for _ in range(iterations):
        snapped = snap(groups, scale, zero, scheme)
        q = snapped / scale[..., None] + zero[..., None]
        without = groups - _shrunk(groups - snapped, beta, norm)  # the outliers' error taken off
        if scheme.symmetric or whole:
            apart = q - zero[..., None]
            length = apart.square().sum(-1)
            fitted = (without * apart).sum(-1) / length.clamp(min=TINY)
            scale = torch.where((length > 0) & (fitted > TINY), fitted, scale)
        else:
            zero = (q - without / scale[..., None]).mean(-1)
        beta *= 1.01
        yield scale, zero


def _shrunk(error: Tensor, beta: float, norm: float) -> Tensor:
    """Soft thresholding for the power `norm`: small errors become 0, large ones stay."""
    size = error.abs()
    threshold = size.clamp(min=SMALLEST).pow(norm - 1) / beta
    return error.sign() * (size - threshold).clamp(min=0)


def _best(
    groups: Tensor, scheme: Scheme, tries: Iterable[tuple[Tensor, Tensor]], norm: float
) -> tuple[Tensor, Tensor]:
    """Of several grids, for each group the one of the least error to the power `norm`."""
    found: tuple[Tensor, Tensor, Tensor] | None = None
    for scale, zero in tries:
        error = (snap(groups, scale, zero, scheme) - groups).abs().pow(norm).sum(-1)
        if found is None:
            found = error, scale, zero
            continue
        better = error < found[0]
        pairs = zip((error, scale, zero), found, strict=True)
        new = [torch.where(better, mine, old) for mine, old in pairs]
        found = new[0], new[1], new[2]
    assert found is not None
    return found[1], found[2]
