"""Quantized weights in a written graph: which constant is whose, and how its integers are kept.

A graph is traced with float weights that lie on their grids. A converter keeps such a weight as
it is, turns it round, or multiplies its rows (a batch norm folded into a convolution); it is found
again by what it holds, for its name may be lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.spec import Array, Scheme

OWN_PRECISIONS = (*(f"int{b}" for b in range(2, 9)), *(f"w{b}a8" for b in range(2, 9)), "mixed")
NEAR = 1e-5  # of the largest weight of a row: what folding a batch norm rounds


class Found(NamedTuple):
    """A constant that is a quantized weight: whose, and with which factor on each row.

    `turned`: it lies there as (columns, rows).
    """

    name: str
    turned: bool = False
    factor: Array | None = None


class Finder:
    """Knows the quantized weights of one net."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self._weights = weights
        self._exact: dict[tuple[int, bytes], Found] = {}
        self.seen: set[str] = set()
        for name, stored in weights.items():
            array = floats(stored)
            if array.ndim == 2:
                self._exact.setdefault(_key(array.T), Found(name, turned=True))
            self._exact[_key(array)] = Found(name)

    def find(self, array: Array) -> Found | None:
        """Which weight `array` is, if any."""
        if array.dtype != np.float32 or array.size < 2:
            return None
        found = self._exact.get(_key(array)) or self._multiplied(array)
        if found is not None:
            self.seen.add(found.name)
        return found

    def _multiplied(self, array: Array) -> Found | None:
        for name, stored in self._weights.items():
            if stored.shape == array.shape and array.ndim > 2:
                factor = _factor(rows_of(floats(stored), stored), rows_of(array, stored))
                if factor is not None:
                    return Found(name, factor=factor)
        return None

    def lost(self) -> list[str]:
        """The weights that were not found in the graph."""
        return [name for name in self._weights if name not in self.seen]


def _key(array: Array) -> tuple[int, bytes]:
    data = np.ascontiguousarray(array) + np.float32(0)  # rounding leaves -0.0, integers do not
    return data.size, hashlib.sha1(data.data, usedforsecurity=False).digest()


def _factor(mine: Array, theirs: Array) -> Array | None:
    """What each row of `mine` was multiplied by to give `theirs`; None if it was not."""
    power = (mine * mine).sum(1)
    factor = np.where(power > 0, (mine * theirs).sum(1) / np.where(power > 0, power, 1), 1)
    largest = np.abs(theirs).max(1, keepdims=True)
    fits = np.abs(mine * factor[:, None] - theirs) <= NEAR * largest
    return factor.astype(np.float32) if bool(fits.all()) else None


def rows_of(array: Array, stored: Any) -> Array:
    """A weight of the shape it has in torch, as (rows, columns)."""
    moved = np.moveaxis(array, stored.axis, 0)
    return moved.reshape(len(moved), -1)


def in_torch(flat: Array, stored: Any) -> Array:
    """(rows, columns) as the weight's shape in torch."""
    rest = [size for axis, size in enumerate(stored.shape) if axis != stored.axis]
    shape = [stored.shape[stored.axis], *rest]
    return np.ascontiguousarray(np.moveaxis(flat.reshape(shape), 0, stored.axis))


def floats(stored: Any) -> Array:
    """The weight that the integers stand for, as torch computes it, in its shape there."""
    index = columns(stored)
    scale = stored.scale[:, index]
    if stored.table is not None:
        return in_torch((stored.table[stored.q] * scale).astype(np.float32), stored)
    zero = 0 if stored.zero is None else stored.zero[:, index]
    return in_torch(((stored.q - np.float32(0) - zero) * scale).astype(np.float32), stored)


def columns(stored: Any) -> Array:
    """The group of each column."""
    count = stored.q.shape[1]
    return np.arange(count) // stored.group if stored.scale.shape[1] > 1 else np.zeros(count, int)


def multiplied(stored: Any, factor: Array | None) -> Any:
    """The same integers with `factor` taken into the scales of the rows."""
    if factor is None:
        return stored
    return stored._replace(scale=(stored.scale * factor[:, None]).astype(np.float32))


def bits_of(stored: Any) -> int:
    """How many bits an integer takes in a file: 3 are kept in 4, 5 to 7 in 8."""
    return 4 if stored.scheme.bits <= 4 else 8


def unsigned(stored: Any, bits: int) -> Array:
    """The integers from 0 up: signed ones are moved by half the range of `bits`."""
    if stored.q.dtype == np.uint8:
        return stored.q
    return (stored.q.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)


def whole(zero: Array, bits: int) -> bool:
    """Can these zero points be kept as integers of `bits`?"""
    return bool((zero == np.rint(zero)).all() and zero.min() >= 0 and zero.max() < 2**bits)


def grouped(q: Array, block: int) -> Array:
    """(rows, columns) as (rows, blocks, block), the last block padded with zeros."""
    count = -(-q.shape[1] // block)
    padded = np.zeros((len(q), count * block), q.dtype)
    padded[:, : q.shape[1]] = q
    return padded.reshape(len(q), count, block)


def packed(q: Array, bits: int) -> Array:
    """Integers of `bits` in bytes along the last axis, the first in the lowest bits."""
    each = 8 // bits
    found = np.zeros((*q.shape[:-1], -(-q.shape[-1] // each)), np.uint8)
    for place in range(each):
        part = q[..., place::each].astype(np.uint8)
        found[..., : part.shape[-1]] |= part << np.uint8(bits * place)
    return found


def precision_name(schemes: Sequence[Scheme]) -> str:
    """What a bundle of such layers is called: int2 to int8; w8a8 with rounded inputs; mixed."""
    weights = {scheme.bits for scheme in schemes}
    if len(weights) > 1:
        return "mixed"
    bits = weights.pop()
    return f"w{bits}a8" if any(scheme.input_bits for scheme in schemes) else f"int{bits}"


def layer(name: str, kind: str, stored: Any, bits: int, note: str) -> Layer:
    """The line of the ledger for a weight kept in `bits`."""
    asked = stored.scheme.bits
    more = f", {asked} bits kept in {bits}" if asked != bits else ""
    more += f", codebook of {len(stored.table)} values" if stored.table is not None else ""
    group = stored.group if stored.scale.shape[1] > 1 else None
    return Layer(name, kind, f"int{bits}", int(stored.q.size), group, note + more)


def check_found(finder: Finder, inputs: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Notes on weights that the graph does not hold.

    Raises:
        UnsupportedError: one of them has a rounded input, which would be lost.
    """
    lost = finder.lost()
    for name in lost:
        if name in inputs:
            raise UnsupportedError(
                f"{kind}: layer {name} has a quantized input, but no operator of the graph has its "
                "weight",
                f"leave {name} out of the quantized layers",
            )
    note = f"quantized, but no layer of this graph as {kind} wrote it: {', '.join(lost)}"
    return (note,) if lost else ()


def said(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[str]:
    """What the schemes are, and where a file keeps more bits than were asked for."""
    schemes = [stored.scheme for stored in weights.values()]
    yield (
        f"{len(weights)} layers quantized as the checkpoint has them"
        + (f", {len(inputs)} with their inputs" if inputs else "")
    )
    odd = sorted({s.bits for s in schemes} - {2, 4, 8})
    if odd:
        listed = ", ".join(f"{bits} bits in {4 if bits < 4 else 8}" for bits in odd)
        yield f"kept in more bits than they need, for which there are kernels: {listed}"
