"""Precisions by name, what they take on disk, and which group size fits a layer.

int8        one scale a row        int4-g32    32 columns share a scale
int4        groups as asked for    prune-0.5   no precision: half of the rows are 0
"""

from __future__ import annotations

import re

import msgspec
from torch import Tensor, nn

from edgegen.errors import UsageError
from edgegen.quantized import TRANSPOSED
from edgegen.spec import Scheme

NAME = re.compile(r"int([2-8])(?:-g(\d+))?(-sym|-asym)?")
FALLBACKS = (32, 16)
SCALE_BITS = 32
CONTAINERS = (4, 8)  # bits that engines have kernels and storage for


def scheme_of(name: str, group_size: int = 0) -> Scheme:
    """The scheme called `name`; `group_size` where it names none and has fewer than 8 bits.

    Below 8 bits a group has a zero point, from 8 on not, unless the name says "sym" or "asym".

    Raises:
        UsageError: no such precision.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"{name!r} is no precision", "such as: int8, int4, int4-g32, int3-g64-sym")
    bits = int(found[1])
    group = int(found[2]) if found[2] else (0 if bits == 8 else group_size)
    symmetric = found[3] == "-sym" or (not found[3] and bits == 8)
    return Scheme(bits, group, symmetric)


def name_of(scheme: Scheme) -> str:
    """`int4-g32`; with "-sym" where that is not the rule; "w8a8" where inputs are rounded too."""
    if scheme.input_bits:
        return f"w{scheme.bits}a{scheme.input_bits}"
    kind = "codebook" if scheme.codebook else "int"
    group = f"-g{scheme.group_size}" if scheme.group_size > 0 else ""
    usual = scheme.codebook or scheme.symmetric == (scheme.bits == 8)
    sign = "" if usual else "-sym" if scheme.symmetric else "-asym"
    return f"{kind}{scheme.bits}{group}{sign}"


def matrix(layer: nn.Module) -> Tensor:
    """The weight as (rows, columns): output channels, and all that one is computed from."""
    weight: Tensor = layer.weight.detach()
    return weight.movedim(1, 0).flatten(1) if isinstance(layer, TRANSPOSED) else weight.flatten(1)


def assign(layer: nn.Module, rows: Tensor) -> None:
    """Write a matrix back as the layer's weight, in place."""
    weight = layer.weight.data
    moved = weight.movedim(1, 0) if isinstance(layer, TRANSPOSED) else weight
    moved.copy_(rows.reshape(moved.shape))


def fitted(scheme: Scheme, columns: int) -> tuple[Scheme, str]:
    """The scheme with the largest group size of the asked, 32 and 16 that divides the columns,
    else one scale a row; and what to say about that.
    """
    asked = scheme.group_size
    if asked <= 0 or columns % asked == 0:
        return scheme, ""
    sizes = [size for size in FALLBACKS if size < asked and columns % size == 0]
    size = sizes[0] if sizes else 0
    what = f"groups of {size}" if size else "one scale a row"
    note = f"group size {asked} does not divide {columns} columns: {what}"
    return msgspec.structs.replace(scheme, group_size=size), note


def size_bytes(scheme: Scheme | None, rows: int, columns: int, *, whole: bool = True) -> int:
    """What a weight takes on disk: fp32 without a scheme; its integers in the next container that
    engines read (3 bits in 4), a float scale a group, and a zero point where there is one.
    """
    if scheme is None:
        return rows * columns * 4
    bits = next(size for size in CONTAINERS if size >= scheme.bits)
    groups = 1 if scheme.group_size < 0 else rows * -(-columns // (scheme.group_size or columns))
    zero = 0 if scheme.symmetric or scheme.codebook else (bits if whole else bits + SCALE_BITS)
    table = 2**scheme.bits * 32 if scheme.codebook else 0
    return -(-(rows * columns * bits + groups * (SCALE_BITS + zero) + table) // 8)
