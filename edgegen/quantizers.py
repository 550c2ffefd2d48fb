"""What rounds: a weight to the grid of its scheme, an input to 256 values; with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgegen.spec import Scheme


class WeightQuantizer(nn.Module):
    """Rounds a weight to its scheme's grid; hands it on as it is until its scale was set.

    Gradients pass the rounding as if it were not there, and reach `scale` as in Esser et al.
    2020, arXiv:1902.08153, equation 3, where it wants them.
    """

    def __init__(self, scheme: Scheme, shape: tuple[int, ...], axis: int) -> None:
        super().__init__()
        self.scheme, self.axis = scheme, axis
        rows, columns = shape[axis], 1
        for index, size in enumerate(shape):
            columns *= 1 if index == axis else size
        self.group = scheme.group_size if scheme.group_size > 0 else columns
        grid = (1, 1) if scheme.group_size == -1 else (rows, -(-columns // self.group))
        self.scale = nn.Parameter(torch.zeros(grid), requires_grad=False)
        if scheme.codebook:
            self.register_buffer("table", torch.zeros(2**scheme.bits))
        elif not scheme.symmetric:
            self.register_buffer("zero", torch.zeros(grid))
        self._set = False

    @property
    def levels(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        half = 2 ** (self.scheme.bits - 1)
        signed = self.scheme.symmetric and not self.scheme.codebook
        return (-half, half - 1) if signed else (0, 2 * half - 1)

    def active(self) -> bool:
        """Was the scale set, by `set_weight` or from a file?"""
        self._set = self._set or bool(self.scale.detach().any())
        return self._set

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active():
            return weight
        grouped = self.grouped(weight)
        wide = learned(self.scale, self.group, self.levels[1])[..., None]  # (rows, groups, 1)
        q = self.integers(grouped, wide)
        if self.scheme.codebook:
            # The nearest entry; its gradient goes to the weight and to the scale, not the table.
            value = straight_through(grouped / wide, self.table[q.detach().long()]) * wide
        else:
            value = (q - self._zero()) * wide
        return self.ungrouped(value, weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """So that `layer.weight = w` writes the float weight."""
        return weight

    def _zero(self) -> Tensor | float:
        return self.zero[..., None] if hasattr(self, "zero") else 0.0

    def integers(self, grouped: Tensor, wide: Tensor) -> Tensor:
        """What is stored for a grouped weight: (rows, groups, group), whole numbers as floats."""
        if self.scheme.codebook:
            middles = (self.table[1:] + self.table[:-1]) / 2
            return torch.bucketize((grouped / wide).detach(), middles).to(grouped.dtype)
        return rounded(grouped / wide + self._zero()).clamp(*self.levels)

    def grouped(self, weight: Tensor) -> Tensor:
        """A weight as (rows, groups, group), the last group padded with zeros."""
        flat = weight.movedim(self.axis, 0).flatten(1)
        short = -flat.shape[1] % self.group
        if short:
            flat = nn.functional.pad(flat, (0, short))
        return flat.unflatten(1, (-1, self.group))

    def ungrouped(self, grouped: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """The weight of `shape` again, without the padding."""
        moved = list(shape)
        moved.insert(0, moved.pop(self.axis))
        columns = 1
        for size in moved[1:]:
            columns *= size
        return grouped.flatten(1)[:, :columns].reshape(moved).movedim(0, self.axis)


class InputQuantizer(nn.Module):
    """Rounds a tensor to 256 evenly spaced values with zero among them; idle until it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.zero = nn.Parameter(torch.zeros(()), requires_grad=False)
        self._set = False

    def active(self) -> bool:
        """Was the scale set, by `set_input` or from a file?"""
        self._set = self._set or bool(self.scale.detach() != 0)
        return self._set

    def forward(self, x: Tensor) -> Tensor:
        if not self.active():
            return x
        scale = learned(self.scale, x[:1].numel(), 255)
        zero = rounded(self.zero).clamp(0, 255)
        q = (rounded(x / scale) + zero).clamp(0, 255)
        return (q - zero) * scale


def rounded(x: Tensor) -> Tensor:
    """Half to even, as ONNX's QuantizeLinear and OpenVINO's FakeQuantize; gradient 1."""
    return straight_through(x, x.round())


def learned(scale: Tensor, count: int, most: int) -> Tensor:
    """`scale`, which `count` values share; its gradient times 1 / sqrt(count * most).

    Source: Esser et al. 2020, arXiv:1902.08153, section 2.2 (LSQ); `most` is Q_P there.
    """
    if not scale.requires_grad:
        return scale
    alias = scale.view_as(scale)
    alias.register_hook(lambda slope: slope * (count * most) ** -0.5)
    return alias


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `x`."""
    return _StraightThrough.apply(x, value) if x.requires_grad else value


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Any, None]:
        return slopes[0], None
