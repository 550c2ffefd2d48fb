"""The format of EdgeGen's own engine for text: weights packed as its kernels read them.

A safetensors file, mapped into memory and used as it lies there; `_native_file` has its layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import BY_ROW, is_text
from edgegen.exporters._native_file import (
    GROUP,
    ROWS,
    Floats,
    Sizes,
    pack,
    read,
    save,
    sources,
    unpack,
)
from edgegen.exporters._native_grid import dress
from edgegen.exporters._weights import weights_of
from edgegen.spec import Array, Feed, GraphSpec

__all__ = ["FILE", "dress", "ledger", "pack", "quantize", "read", "unpack", "write"]

FILE = "model.native.safetensors"
KV_CACHES = ("int8",)
PLAIN = True
# Bits of the layers, and of embedding and head, which lose most.
SCALE_A_ROW = ("int8",)
BITS = {"fp32": (32, 32), "int8": (8, 8), "int4": (4, 8)}


def write(module: Any, graph: GraphSpec, path: Path) -> tuple[str, ...]:
    """Pack the weights of a decoder in fp32.

    Raises:
        UnsupportedError: no decoder of the `gpt` family, or sizes that do not fill the lanes.
    """
    weights = weights_of(module)
    if not weights or not is_text(graph):
        raise UnsupportedError(
            f"native: graph {graph.name} is no decoder of the gpt family",
            "leave native out of --to: it runs text alone",
        )
    sizes = _sizes(module.config)
    _check(sizes)
    save(path, sizes, dict(_tensors(weights, sizes)))
    return ()


def _sizes(config: Any) -> Sizes:
    return Sizes(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        rotary=int(config.style == "llama"),
        bits=32,
        outer_bits=32,
        epsilon=config.norm_eps,
    )


def _check(sizes: Sizes) -> None:
    """Raise `UnsupportedError`, naming the size, unless whole blocks fill head and stream."""
    wanted = {
        "head_dim": (sizes.head_dim, ROWS),
        "hidden_size": (sizes.hidden, GROUP),
        "num_attention_heads * head_dim": (sizes.heads * sizes.head_dim, GROUP),
    }
    for name, (size, unit) in wanted.items():
        if size % unit:
            raise UnsupportedError(
                f"native: {name} is {size}, wanted a multiple of {unit}",
                "leave native out of --to: ONNX Runtime and OpenVINO run any size",
            )


def _tensors(weights: dict[str, Floats], sizes: Sizes) -> Iterator[tuple[str, Array]]:
    """Every tensor of the file by its name, matrices packed in fp32."""
    yield "embedding.weight", pack(weights["embed_tokens.weight"], 32)[0]
    if "lm_head.weight" in weights:
        yield "head.weight", pack(weights["lm_head.weight"], 32)[0]
    if sizes.rotary:
        yield "frequencies", weights["frequencies"]
    else:
        yield "positions", weights["embed_positions.weight"]
    yield from _norm("last", "norm", weights)
    for n in range(sizes.layers):
        yield from _layer(n, weights)


def _layer(n: int, weights: dict[str, Floats]) -> Iterator[tuple[str, Array]]:
    here = f"layers.{n}"
    yield from _norm(f"{here}.before", f"{here}.input_layernorm", weights)
    yield from _norm(f"{here}.after", f"{here}.post_attention_layernorm", weights)
    for part in ("qkv", "out", "gate", "up", "down"):
        names = sources(str(n), part)
        if f"{names[0]}.weight" not in weights:
            continue
        rows = np.concatenate([weights[f"{name}.weight"] for name in names])
        # Rows of the inner MLP are columns of the next matrix, which come in whole groups.
        extra = -len(rows) % (GROUP if part in ("gate", "up") else ROWS)
        yield f"{here}.{part}.weight", pack(np.pad(rows, ((0, extra), (0, 0))), 32)[0]
        if f"{names[0]}.bias" in weights:
            bias = np.concatenate([weights[f"{name}.bias"] for name in names])
            yield f"{here}.{part}.bias", np.pad(bias, (0, extra))


def _norm(name: str, source: str, weights: dict[str, Floats]) -> Iterator[tuple[str, Array]]:
    for part in ("weight", "bias"):
        if f"{source}.{part}" in weights:
            yield f"{name}.{part}", weights[f"{source}.{part}"]


def quantize(
    path: Path,
    graph: GraphSpec,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> tuple[str, ...]:
    """Pack the fp32 file at `path` anew, at 8 or 4 bit.

    Raises:
        UnsupportedError: another precision, or groups of another size than 32 or a row.
    """
    if precision not in BITS or group not in (0, GROUP, BY_ROW):
        what = f"group size {group}" if precision in BITS else precision
        raise UnsupportedError(
            f"native: {what}; it runs fp32, int8 and int4 in groups of {GROUP}",
            f"export at --precision int8 or int4, --group-size {GROUP}",
        )
    sizes, tensors = read(path)
    bits, outer = BITS[precision]
    small: dict[str, Array] = {}
    for name, array in tensors.items():
        is_matrix = array.ndim == 3
        if not is_matrix:
            small[name] = array
            continue
        at = outer if name.startswith(("embedding.", "head.")) else bits
        packed, scale = pack(unpack(array), at, by_row=group == BY_ROW or at > bits)
        small[name] = packed
        if scale is not None:
            small[f"{name.removesuffix('.weight')}.scale"] = scale
    save(path, msgspec.structs.replace(sizes, bits=bits, outer_bits=outer), small)
    scales = "a scale a row" if group == BY_ROW else f"group size {GROUP}"
    # Finer scales at 8 bits would be lost beside what 4 bits take from the layers.
    finer = ", a scale a row" if outer > bits else ""
    return (
        f"weight-only {precision}, {scales}; embedding and head int{outer}{finer}",
        f"inputs of each product are rounded to int8 within groups of {GROUP}",
    )


def ledger(path: Path) -> tuple[Layer, ...]:
    """Every matrix as it stands in the file; padding counts as parameters."""
    sizes, tensors = read(path)
    return tuple(
        _row(name.removesuffix(".weight"), tensors, sizes)
        for name, array in tensors.items()
        if name.endswith(".weight") and array.ndim > 1
    )


def _row(name: str, tensors: dict[str, Array], sizes: Sizes) -> Layer:
    bits = sizes.outer_bits if name in ("embedding", "head") else sizes.bits
    stored = tensors[f"{name}.weight"].size
    if bits == 32:
        return Layer(name, "Matrix", "fp32", stored)
    is_by_row = tensors[f"{name}.scale"].shape[1] == 1
    note = "weight-only; inputs rounded to int8 within groups"
    note = f"a scale a row; {note}" if is_by_row else note
    return Layer(
        name, "Matrix", f"int{bits}", stored * 8 // bits, None if is_by_row else GROUP, note
    )
