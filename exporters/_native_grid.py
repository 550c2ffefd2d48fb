"""A quantized checkpoint for EdgeGen's own engine: its integers where the kernels want them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.errors import UnsupportedError
from edgegen.exporters import _grid
from edgegen.exporters._native_file import GROUP, ROWS, interleave, read, save, sources
from edgegen.spec import Array


def dress(path: Path, folded: Any) -> tuple[tuple[str, ...], bool]:
    """Put the integers of a quantized checkpoint into the fp32 file at `path`; notes, and that
    it is not exact: the engine rounds the inputs of each product to int8 within groups.

    Raises:
        UnsupportedError: layers that are not all at the same 4 or 8 bits (embedding and head at 8
            or at the same 4), symmetric, in groups of 32 or whole rows.
    """
    sizes, tensors = read(path)
    inner = {name for name in tensors if tensors[name].ndim == 3 and name.startswith("layers.")}
    outer = {name for name in tensors if tensors[name].ndim == 3} - inner
    bits = {n: _bits_of(n, folded) for n in (*inner, *outer)}
    for names in (inner, outer):
        if len({bits[name] for name in names}) > 1:
            what = ", ".join(f"{n.removesuffix('.weight')} {bits[n]}" for n in sorted(names))
            raise UnsupportedError(
                f"native: layers of one width are wanted, found {what} bits",
                "quantize all of them alike: --set bits=4 --set embedding_bits=8",
            )
    for name in (*inner, *outer):
        if bits[name] < 32:
            packed, scale = _packed(_parts(name, folded), bits[name], tensors[name].shape)
            tensors[name], tensors[f"{name.removesuffix('.weight')}.scale"] = packed, scale
    sizes = msgspec.structs.replace(
        sizes, bits=bits[min(inner)], outer_bits=bits["embedding.weight"]
    )
    save(path, sizes, tensors)
    rounded = "scales are rounded to fp16, inputs of each product to int8 within groups of 32"
    return (*_grid.said(folded.weights, folded.inputs), rounded), False


def _parts(name: str, folded: Any) -> list[Any]:
    """What the checkpoint holds of a matrix of the file, from the top row down."""
    outside = {"embedding.weight": ["embed_tokens"], "head.weight": ["lm_head"]}
    names = outside[name] if name in outside else sources(*name.split(".")[1:3])
    return [folded.weights.get(source) for source in names]


def _bits_of(name: str, folded: Any) -> int:
    """4 or 8, or 32 where the matrix is not quantized.

    Raises:
        UnsupportedError: a grid that the kernels do not have.
    """
    parts = _parts(name, folded)
    found = {_kernel_bits(stored) for stored in parts}
    if None in found or len(found) > 1:
        schemes = ", ".join("fp32" if s is None else str(s.scheme) for s in parts)
        raise UnsupportedError(
            f"native: {name.removesuffix('.weight')} has {schemes}; the engine has symmetric "
            f"weights of 4 and 8 bits in groups of {GROUP}, and no rounded inputs of its own",
            f"quantize with --set symmetric=true --set group_size={GROUP}, or export to onnx",
        )
    return found.pop() or 32


def _kernel_bits(stored: Any) -> int | None:
    """32 without a grid; None for one that the kernels do not have."""
    if stored is None:
        return 32
    fits = (
        stored.zero is None
        and stored.table is None
        and not stored.scheme.input_bits
        and stored.scheme.bits <= 8
        and (stored.scale.shape[1] == 1 or stored.group % GROUP == 0)
    )
    return _grid.bits_of(stored) if fits else None


def _packed(parts: Sequence[Any], bits: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Integers and scales of stacked matrices in the layout of the kernels; `shape` is that of
    the matrix in fp32, (block, k, 16). What fills it up has the scale 0."""
    blocks, k, _ = shape
    by_row = all(stored.scale.shape[1] == 1 for stored in parts)
    q = np.full((blocks * ROWS, k), 2 ** (bits - 1), np.uint8)
    scale = np.zeros((blocks * ROWS, 1 if by_row else k // GROUP), np.float16)
    row = 0
    for stored in parts:
        rows, columns = stored.q.shape
        q[row : row + rows, :columns] = _grid.unsigned(stored, bits)
        groups = [0] if by_row else _grid.columns(stored)[::GROUP]
        scale[row : row + rows, : len(groups)] = np.broadcast_to(
            stored.scale, (rows, stored.scale.shape[1])
        )[:, groups]
        row += rows
    half = scale.reshape(blocks, ROWS, -1).transpose(0, 2, 1)
    return interleave(q.reshape(blocks, ROWS, k), bits), np.ascontiguousarray(half)
