"""A quantized net taken apart for exporters: plain copies, and the integers beside them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgegen.chains import NORMS, behind
from edgegen.quantized import (
    CONVOLUTIONS,
    check,
    drop_input,
    input_quantizer_of,
    make_plain,
    quantizer_of,
)
from edgegen.spec import Array, Scheme


class Stored(NamedTuple):
    """The weight of one layer as integers.

    `q` (rows, columns) is int8 where the scheme is symmetric, else uint8; `scale` and `zero` are
    (rows, groups), of one row where the tensor has one scale; `table` is (2^bits,). `shape` is the
    weight's in torch, whose axis `axis` counts the rows.
    """

    q: Array
    scale: Array
    zero: Array | None
    table: Array | None
    scheme: Scheme
    shape: tuple[int, ...]
    axis: int

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        columns = int(self.q.shape[1])
        return self.scheme.group_size if self.scheme.group_size > 0 else columns


class Folded(NamedTuple):
    """A quantized net as an exporter wants it; `weights` and `inputs` are by module name.

    `net` is plain: float weights on the grid, no quantizers. What it lacks are the rounded
    inputs, uint8 of (scale, zero): `reference` has these, too, and computes what was trained.
    """

    net: nn.Module
    weights: dict[str, Stored]
    inputs: dict[str, tuple[float, int]]
    reference: nn.Module


def stored(module: nn.Module) -> Stored:
    """The integers of a quantized layer's weight, exactly those its `weight` stands for."""
    step = quantizer_of(module)
    assert step is not None
    with torch.no_grad():
        weight = module.parametrizations["weight"].original
        q = step.integers(step.grouped(weight), step.scale[..., None]).flatten(1)
    columns = weight.numel() // weight.shape[step.axis]
    kind = torch.int8 if step.levels[0] < 0 else torch.uint8
    zero, table = getattr(step, "zero", None), getattr(step, "table", None)
    return Stored(
        q[:, :columns].to(kind).numpy(),
        step.scale.detach().numpy().copy(),
        None if zero is None else zero.numpy().copy(),
        None if table is None else table.numpy().copy(),
        step.scheme,
        tuple(weight.shape),
        step.axis,
    )


def fold(net: nn.Module) -> Folded:
    """Plain copies of `net`, and what its quantizers held.

    Raises:
        FormatError: a quantizer that was never set, or holds what is no number.
    """
    check(net)
    reference = copy.deepcopy(net)
    settle_biases(reference)
    weights: dict[str, Stored] = {}
    inputs: dict[str, tuple[float, int]] = {}
    for name, module in list(reference.named_modules()):
        if quantizer_of(module) is not None:
            weights[name] = stored(module)
            make_plain(module)
        found = input_quantizer_of(module)
        if found is not None:
            zero = int(found.zero.detach().round().clamp(0, 255))
            inputs[name] = float(found.scale.detach()), zero
    plain = copy.deepcopy(reference) if inputs else reference
    for name in inputs:
        drop_input(plain.get_submodule(name))
    return Folded(plain, weights, inputs, reference)


def settle_biases(net: nn.Module) -> None:
    """Move what is added behind each convolution of rounded inputs and weights, in place, to a
    whole number of steps of its sums: int8 kernels add it as int32.

    It is moved by half a step, 1/130050 of the range, at most; what is added is the bias, or where
    a batch norm alone reads the convolution (see `chains`), what is left of that in it.
    """
    followed = _followed(net)
    for name, layer in net.named_modules():
        weight, inputs = quantizer_of(layer), input_quantizer_of(layer)
        if not isinstance(layer, CONVOLUTIONS) or weight is None or inputs is None:
            continue
        if weight.scale.shape[1] == 1 and weight.scheme.symmetric:
            with torch.no_grad():
                _settle_bias(layer, weight.scale[:, 0] * inputs.scale, followed.get(name))


def _settle_bias(layer: Any, step: Tensor, norm: Any) -> None:
    """`step` (rows,) or (1,) is what a sum of products counts in."""
    if norm is None:
        if layer.bias is not None:
            layer.bias.copy_((layer.bias / step).round() * step)
        return
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = 0.0 if layer.bias is None else layer.bias
    added, step = norm.bias + (bias - norm.running_mean) * factor, (step * factor).abs()
    whole = torch.where(step > 0, (added / step).round() * step, added)
    norm.bias.add_(whole - added)


def _followed(net: nn.Module) -> dict[str, nn.Module]:
    """The batch norms right behind a layer, which exporters fold into it, by the layer's name."""
    return {
        name: reader
        for name, reader in behind(net).items()
        if isinstance(reader, NORMS) and reader.affine and reader.track_running_stats
    }
