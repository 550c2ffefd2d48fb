"""The matrices of a fused decoder as integers, where ONNX Runtime's own operators look for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgegen.errors import UnsupportedError
from edgegen.exporters import group_size
from edgegen.exporters._onnx_nodes import Writer, drop_unused
from edgegen.exporters._onnx_quantize import save
from edgegen.spec import Array, Feed, GraphSpec

OWN = "com.microsoft"
EMBEDDING = "embed_tokens.weight"
BITS = {"int8": (8, 8), "int4": (4, 8)}  # of the layers, and of embedding and head, as `native`

Floats = NDArray[np.float32]


def quantize(
    path: Path,
    graph: GraphSpec,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> tuple[str, ...]:
    """Matrices of 8 or 4 bit, a scale a group; embedding and head of 8.

    Raises:
        UnsupportedError: another precision, or a hidden size that groups do not fill.
    """
    if precision not in BITS:
        raise UnsupportedError(
            f"fused: has no {precision}; it runs fp32, int8 and int4",
            "export at --precision fp32, int8 or int4, or --to onnx",
        )
    model = onnx.load(path)
    weights = {w.name: w for w in model.graph.initializer}
    width = weights[EMBEDDING].dims[1]
    size, notes = group_size(
        {n.name: weights[n.input[1]].dims[0] for n in model.graph.node if n.op_type == "MatMul"},
        group,
    )
    if width % size:
        raise UnsupportedError(
            f"fused: hidden_size is {width}, wanted a multiple of the group size {size}",
            "take another --group-size, or --to onnx",
        )
    _Quantizer(model, weights, size).rewrite(*BITS[precision])
    save(model, path)
    return (
        f"weight-only {precision}, group size {size}; embedding and head int8",
        "MatMulNBits at accuracy level 4: inputs are rounded to int8 within each group",
        *notes,
    )


class _Quantizer:
    """Puts integers in the place of matrices; one that two nodes read is stored once."""

    def __init__(self, model: Any, weights: dict[str, Any], size: int) -> None:
        self._model, self._weights, self._size = model, weights, size
        self._writer = Writer(model.graph)
        self._known: dict[str, tuple[str, str]] = {}

    def rewrite(self, bits: int, outer: int) -> None:
        """`bits` for products with a matrix, `outer` for embedding and head."""
        old = list(self._model.graph.node)
        for node in old:
            if node.op_type == "MatMul":
                array = numpy_helper.to_array(self._weights[node.input[1]]).T
                self._product(node, node.input[1], array, bits)
            elif node.op_type == "Gemm":
                self._product(node, node.input[1], self._array(node.input[1]), outer)
            elif node.op_type == "Gather" and node.input[0] == EMBEDDING:
                self._look_up(node, outer)
            else:
                self._writer.nodes.append(node)
        del self._model.graph.node[:]
        self._model.graph.node.extend(self._writer.nodes)
        drop_unused(self._model)

    def _array(self, name: str) -> Floats:
        return numpy_helper.to_array(self._weights[name])

    def _packed(self, name: str, rows: Floats, bits: int) -> tuple[str, str]:
        """Integers (rows, groups, bytes of a group) and scales (rows, groups) of a matrix."""
        if name not in self._known:
            codes, scale = pack(rows, bits, self._size)
            names = name, f"{name}.scale"
            self._known[name] = self._writer.add(codes, names[0]), self._writer.add(scale, names[1])
        return self._known[name]

    def _product(self, node: Any, name: str, rows: Floats, bits: int) -> None:
        codes, scale = self._packed(f"{name}.int{bits}", rows, bits)
        self._writer.node(
            "MatMulNBits",
            [node.input[0], codes, scale],
            output=node.output[0],
            name=node.name,
            domain=OWN,
            K=rows.shape[1],
            N=rows.shape[0],
            bits=bits,
            block_size=self._size,
            accuracy_level=4,
        )

    def _look_up(self, node: Any, bits: int) -> None:
        rows = self._array(node.input[0])
        codes, scale = self._packed(f"{node.input[0]}.int{bits}", rows, bits)
        flat = self._writer.node("Reshape", [codes, self._writer.ints([-1, rows.shape[1]])])
        self._writer.node(
            "GatherBlockQuantized",
            [flat, node.input[1], scale],
            output=node.output[0],
            name=node.name,
            domain=OWN,
            gather_axis=0,
            quantize_axis=1,
            block_size=self._size,
            bits=bits,
        )


def pack(rows: Floats, bits: int, size: int) -> tuple[Array, Floats]:
    """Codes (rows, groups, size * bits / 8) as MatMulNBits reads them, scales (rows, groups).

    Zero is the middle of the range, the last group padded with it. At 4 bit the value furthest
    from zero, sign and all, becomes -8. Source: ggml, Q4_0.
    """
    groups = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).reshape(len(rows), -1, size)
    first = np.abs(groups).argmax(axis=-1, keepdims=True)
    most = np.take_along_axis(groups, first, axis=-1)
    scale = np.abs(most) / 127 if bits == 8 else most / -8
    steps = np.rint(np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0))
    middle = 1 << (bits - 1)
    codes: Array = (np.clip(steps, -middle, middle - 1) + middle).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, scale[..., 0].astype(np.float32)
