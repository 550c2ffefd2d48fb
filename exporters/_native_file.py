"""The file of EdgeGen's own engine for text, and how its kernels want a matrix.

`runtimes/_native/engine.h` draws the layout; names are those that `engine.c` asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.spec import Array

VERSION = "1"
ROWS, GROUP, ALIGN = 16, 32, 64
SLAB = 256 * ROWS  # rows packed at a time: what is made on the way takes five times their memory

Floats = NDArray[np.float32]


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the engine must know of a decoder, in its own order."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    layers: int
    vocabulary: int
    positions: int
    rotary: int
    bits: int
    outer_bits: int
    epsilon: float


def sources(layer: str, part: str) -> list[str]:
    """The modules whose rows a matrix of a layer is made of."""
    inside = {"qkv": [f"self_attn.{p}_proj" for p in "qkv"], "out": ["self_attn.o_proj"]}
    return [f"layers.{layer}.{module}" for module in inside.get(part, [f"mlp.{part}_proj"])]


def pack(weight: Floats, bits: int, *, by_row: bool = False) -> tuple[Array, Array | None]:
    """(rows, k) as the engine reads it, and its scales (rows / 16, k / 32, 16) in fp16.

    `by_row` has all of a row share one: (rows / 16, 1, 16). Padded with zeros: rows to a multiple
    of 16, k to one of 32.
    """
    slabs = [_slab(weight[n : n + SLAB], bits, by_row) for n in range(0, len(weight), SLAB)]
    packed = np.concatenate([slab for slab, _ in slabs])
    scales = [scale for _, scale in slabs if scale is not None]
    return packed, np.concatenate(scales) if scales else None


def _slab(weight: Floats, bits: int, by_row: bool) -> tuple[Array, Array | None]:
    rows, k = weight.shape
    padded = np.pad(weight, ((0, -rows % ROWS), (0, -k % GROUP))).astype(np.float32)
    blocks = padded.reshape(-1, ROWS, padded.shape[1])  # (block, row, k)
    if bits == 32:
        return np.ascontiguousarray(blocks.transpose(0, 2, 1)), None
    size = padded.shape[1] if by_row else GROUP
    groups = blocks.reshape(len(blocks), ROWS, -1, size)  # (block, row, group, k)
    scale, stored = _rounded(groups, bits)
    half = np.ascontiguousarray(scale.transpose(0, 2, 1))
    return interleave(stored.reshape(len(blocks), ROWS, -1), bits), half


def _rounded(groups: Floats, bits: int) -> tuple[Array, Array]:
    """Scales (block, row, group) in fp16, and weights as unsigned bytes.

    At 4 bit the value furthest from zero, sign and all, becomes -8. Source: ggml, Q4_0.
    """
    first = np.abs(groups).argmax(axis=-1, keepdims=True)
    most = np.take_along_axis(groups, first, axis=-1)[..., 0]
    scale = (np.abs(most) / 127 if bits == 8 else most / -8).astype(np.float16)
    wide = scale.astype(np.float32)[..., None]
    steps = np.rint(np.divide(groups, wide, out=np.zeros_like(groups), where=wide != 0))
    low, high, offset = (-127, 127, 128) if bits == 8 else (-8, 7, 8)
    return scale, (np.clip(steps, low, high) + offset).astype(np.uint8)


def interleave(q: Array, bits: int) -> Array:
    """Unsigned integers (block, 16, k) as the kernels read them: (block, k / 4, 16, 4) at 8 bits;
    at 4, bytes of two such lines."""
    lines = q.reshape(len(q), ROWS, -1, 4).transpose(0, 2, 1, 3)
    if bits == 8:
        return np.ascontiguousarray(lines)
    return np.ascontiguousarray(lines[:, ::2] | lines[:, 1::2] << 4)


def unpack(packed: Array) -> Floats:
    """The rows of a matrix that was packed in fp32: (block, k, 16) -> (rows, k)."""
    return np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(-1, packed.shape[1])


def save(path: Path, sizes: Sizes, tensors: dict[str, Array]) -> None:
    """As safetensors, the data from a multiple of 64 bytes on."""
    kinds = {"float32": "F32", "float16": "F16", "uint8": "U8"}
    header: dict[str, Any] = {
        "__metadata__": {"format": "edgegen-native", "version": VERSION}
        | {"sizes": msgspec.json.encode(sizes).decode()}
    }
    offset = 0
    for name, array in tensors.items():
        ends = [offset, offset + array.nbytes]
        kind = kinds[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": ends}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).data)


def read(path: Path) -> tuple[Sizes, dict[str, Array]]:
    """Sizes and tensors of a file that `write` made."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        sizes = msgspec.json.decode(file.metadata()["sizes"], type=Sizes)
        return sizes, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
