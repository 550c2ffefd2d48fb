"""Quantized weights put into an ONNX file that was traced with the float weights of the grid.

Linear layers become MatMulNBits; embeddings gather packed rows, which they share with a tied
output layer; what has a rounded input gets QuantizeLinear, DequantizeLinear and an int8 weight,
which ONNX Runtime fuses. Any other weight is spelled out in arithmetic on its integers that
engines fold when they load the file. (DequantizeLinear of a weight is not folded by ONNX Runtime,
which would repeat it in each run, and its 4-bit form with a scale a row is read wrongly by
OpenVINO.)
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgegen.exporters import _grid
from edgegen.exporters._grid import Finder, Found
from edgegen.exporters._onnx_nodes import Writer, drop_unused
from edgegen.exporters._onnx_quantize import fold_transposes, gemm_to_matmul, save
from edgegen.exporters._onnx_shuffle import SHUFFLED, plan, shapes, shuffle
from edgegen.spec import Array

BLOCKS = (16, 32, 64, 128, 256)  # what MatMulNBits takes
FLOAT_ZEROS = (2, 4)  # bits at which ONNX Runtime has MatMulNBits with zero points between integers
# Which arithmetic MatMulNBits is asked for: 1 is fp32, 4 rounds activations to int8 in each block.
# 8 bits have no fast kernel at 1.
LEVELS = {2: 1, 4: 1, 8: 4}
INT8_OPS = ("Conv", "MatMul")  # what ONNX Runtime has int8 kernels for
MS = "com.microsoft"
LAYER = "edgegen.layer"  # the key under which a node says which layer it is


def dress(
    path: Path, folded: Any, levels: dict[int, int] | None = None
) -> tuple[tuple[str, ...], bool]:
    """Rewrite the file at `path` with the integers of `folded`; notes, and whether it is exact.

    Exact is what engines compute in fp32 throughout. `levels` are MatMulNBits' by bits; `LEVELS`
    unless given.

    Raises:
        UnsupportedError: a layer with a rounded input is not in the graph.
    """
    model = onnx.load(path)
    dresser = _Dresser(model, folded, levels or LEVELS)
    dresser.dress()
    shuffled = shuffle(model, dresser.shuffled)
    del model.graph.value_info[:]  # written for what is no longer there
    drop_unused(model)
    notes = _grid.check_found(dresser.finder, folded.inputs, "onnx")
    save(model, path)
    if shuffled:
        dresser.said[SHUFFLED] += shuffled
    counted = (f"{count} {what}" for what, count in dresser.said.items())
    notes = (*_grid.said(folded.weights, folded.inputs), *counted, *notes)
    return notes, not folded.inputs and not dresser.rounds


class _Dresser:
    """One graph while it is rewritten."""

    def __init__(self, model: Any, folded: Any, levels: dict[int, int]) -> None:
        self.model, self.folded, self.levels = model, folded, levels
        self.finder = Finder(folded.weights)
        self.found: dict[str, Found | None] = {}
        self.said: Counter[str] = Counter()
        self.rounds = False  # does a kernel round what it is given?
        self.shuffled: set[str] = set()  # ConvTranspose nodes that will be a Conv
        self.sizes = shapes(model)
        self.out = Writer(model.graph)

    def dress(self) -> None:
        """Every node in turn; what it needs is put before it."""
        self._search()
        fold_transposes(self.model)
        gemm_to_matmul(self.model, minus=self._rounds_input)
        self._search()
        for node in list(self.model.graph.node):
            if not self._one(node):
                self.out.nodes.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.out.nodes)
        have = {entry.domain for entry in self.model.opset_import}
        if MS not in have and any(node.domain == MS for node in self.out.nodes):
            self.model.opset_import.append(helper.make_opsetid(MS, 1))

    def _search(self) -> None:
        """Which constants are quantized weights."""
        for weight in self.model.graph.initializer:
            if weight.name not in self.found and len(weight.dims) > 1:
                self.found[weight.name] = self.finder.find(numpy_helper.to_array(weight))

    def _rounds_input(self, node: Any) -> bool:
        """Then it must stay MatMul: the int8 kernel for Gemm adds its bias in whole steps."""
        found = self.found.get(node.input[1])
        return found is not None and found.name in self.folded.inputs

    def _one(self, node: Any) -> bool:
        """Dress one node; true when other nodes were put in its place."""
        for index, name in enumerate(node.input):
            found = self.found.get(name)
            if found is None:
                continue
            node.name = self.out.called(found.name)
            if node.op_type == "Gather" and index == 0 and not _axis(node):
                self._rows(node, found)
                return True
            if node.op_type == "MatMul" and index == 1 and (plan := self._nbits(node)):
                self._matmul_nbits(node, found, plan)
                return True
            if found.name not in self.folded.inputs:
                node.input[index] = self._spelled(name, found)
                stored = self.folded.weights[found.name]
                self._note(node, stored, _layout(stored)[0], "weight-only, unpacked when loaded")
            elif self._has_int8(node, found):
                self._int8(node, found)
            else:
                self._rounded_float(node, index, found)
        return False

    def _note(self, node: Any, stored: Any, bits: int, note: str) -> None:
        """What the ledger reads: packed integers do not show what they are."""
        layer = _grid.layer(node.name, node.op_type.replace("NBits", ""), stored, bits, note)
        node.metadata_props.add(key=LAYER, value=msgspec.json.encode(layer).decode())

    # MatMulNBits

    def _nbits(self, node: Any) -> tuple[int, int] | None:
        """The bits and the block with which a node can be MatMulNBits."""
        found = self.found.get(node.input[1])
        if found is None or not found.turned or found.name in self.folded.inputs:
            return None
        stored = self.folded.weights[found.name]
        if stored.table is not None:
            return None
        bits = 2 if stored.scheme.bits == 2 else _grid.bits_of(stored)
        if (
            stored.zero is not None
            and not _grid.whole(stored.zero, bits)
            and bits not in FLOAT_ZEROS
        ):
            return None
        columns = stored.q.shape[1]
        if stored.scale.shape[1] > 1:
            fits = [block for block in BLOCKS if stored.group % block == 0]
            return (bits, fits[-1]) if fits else None
        # One scale a row: the block that costs least, a scale each and the padding of the last.
        return bits, min(BLOCKS, key=lambda b: -(-columns // b) * (b * bits / 8 + 4))

    def _matmul_nbits(self, node: Any, found: Found, plan: tuple[int, int]) -> None:
        bits, block = plan
        stored = self.folded.weights[found.name]
        rows, columns = stored.q.shape
        scale = self._part(found.name, "scale", _wide(stored.scale, stored, block))
        inputs = [node.input[0], self._codes(found.name, bits, block), scale]
        if stored.zero is not None:
            wide = _wide(stored.zero, stored, block)
            wide = _grid.packed(wide, bits) if _grid.whole(stored.zero, bits) else wide
            inputs.append(self._part(found.name, "zero", wide))
        options = {"K": columns, "N": rows, "bits": bits, "block_size": block}
        options["accuracy_level"] = self.levels[bits]
        if self.levels[bits] == 4:
            self.rounds = True
            what = f"MatMulNBits of {bits} bits: ONNX Runtime rounds activations to int8 by blocks"
            self.said[what] += 1
        self.out.node(
            "MatMulNBits", inputs, output=node.output[0], name=node.name, domain=MS, **options
        )
        self._note(self.out.nodes[-1], stored, bits, "weight-only")

    def _codes(self, name: str, bits: int, block: int) -> str:
        """The packed integers of a layer, (rows, blocks, bytes of a block)."""
        q = _grid.unsigned(self.folded.weights[name], bits)
        return self._part(name, f"int{bits}", _grid.packed(_grid.grouped(q, block), bits))

    def _part(self, name: str, what: str, array: Array) -> str:
        """A part of a layer's weight, which all nodes that read it share."""
        return self.out.once((name, what), lambda: self.out.add(array, f"{name}.weight_{what}"))

    # Rows of an embedding

    def _rows(self, node: Any, found: Found) -> None:
        stored = self.folded.weights[found.name]
        bits, block = self._layout(stored, found)
        ids, columns = node.input[1], stored.q.shape[1]
        codes = self.out.node("Gather", [self._codes(found.name, bits, block), ids], name=node.name)
        self._note(self.out.nodes[-1], stored, bits, "weight-only")
        blocks = -(-columns // block)
        value = self.out.decoded(
            codes,
            bits,
            [-1, blocks, block],
            scale=self._row(found.name, "scale", stored, ids, block),
            zero=None if stored.zero is None else self._row(found.name, "zero", stored, ids, block),
            table=stored.table,
        )
        value = self.out.cut(value, blocks * block, columns)
        shape = [self.out.node("Shape", [ids]), self.out.ints([columns])]
        shape = [self.out.node("Concat", shape, axis=0)]
        self.out.node("Reshape", [value, *shape], output=node.output[0])

    def _layout(self, stored: Any, found: Found) -> tuple[int, int]:
        """Bits and block of rows: those of a tied output layer, else the groups themselves."""
        for node in self.model.graph.node:
            if node.op_type == "MatMul" and self.found.get(node.input[1]) is not None:
                plan = self._nbits(node)
                if self.found[node.input[1]].name == found.name and plan and plan[0] != 2:  # type: ignore[union-attr]
                    return plan
        return _layout(stored)

    def _row(self, name: str, what: str, stored: Any, ids: str, block: int) -> str:
        """Zero points or scales of the rows that `ids` pick, (-1, blocks, 1)."""
        array = getattr(stored, what)
        wide = _wide(array, stored, block)
        # MatMulNBits keeps its scales in the same form, and whole zero points packed.
        kept = self._part(name, what if what == "scale" else f"{what}_rows", wide)
        rows = self.out.node("Gather", [kept, ids])
        return self.out.node("Reshape", [rows, self.out.ints([-1, wide.shape[1], 1])])

    # Rounded inputs

    def _has_int8(self, node: Any, found: Found) -> bool:
        """Is there an int8 kernel for this operator with this weight?"""
        stored = self._stored(found)
        plain = stored.scheme.symmetric and stored.table is None and stored.scale.shape[1] == 1
        if node.op_type == "ConvTranspose" and plain:
            size = tuple(self.sizes.get(node.input[0], [None] * 4)[2:])
            if plan(node, stored.shape, size) is not None:
                self.shuffled.add(node.name)
                return True
        return plain and node.op_type in INT8_OPS

    def _stored(self, found: Found) -> Any:
        return _grid.multiplied(self.folded.weights[found.name], found.factor)

    def _int8(self, node: Any, found: Found) -> None:
        """QuantizeLinear and DequantizeLinear on the input, an int8 weight.

        The bias of a fused Conv ONNX Runtime turns to int32 itself.
        """
        stored = self._stored(found)
        self._note(node, stored, 8, "weights and activations")
        scale, zero = self.folded.inputs[found.name]
        name, axis = node.input[1], 1 if found.turned else stored.axis
        q = _grid.in_torch(stored.q, stored)
        rows = np.broadcast_to(stored.scale[:, 0], (len(stored.q),)).copy()
        parts = [(q.T if found.turned else q, "int8"), (rows, "scale")]
        parts.append((np.zeros(len(rows), np.int8), "zero"))
        node.input[1] = self.out.once(
            (name, "int8"),
            lambda: self.out.node(
                "DequantizeLinear",
                [self.out.add(array, f"{found.name}.weight_{what}") for array, what in parts],
                axis=axis,
            ),
        )
        grid = [self.out.float(scale), self.out.small(np.uint8(zero))]
        q_name = self._quantized(node.input[0], found.name)
        node.input[0] = self.out.once(
            (q_name, "float"), lambda: self.out.node("DequantizeLinear", [q_name, *grid])
        )

    def _rounded_float(self, node: Any, index: int, found: Found) -> None:
        """The input is rounded, then all is fp32: (q - zero), its scale taken into the weight.

        No DequantizeLinear: ONNX Runtime would round the weight of a ConvTranspose behind one to
        8 bits, unasked.
        """
        scale, zero = self.folded.inputs[found.name]
        node.input[index] = self._spelled(node.input[index], found, scale)
        q = self._quantized(node.input[0], found.name)
        value = self.out.once(
            (q, "whole"), lambda: self.out.node("Cast", [q], to=onnx.TensorProto.FLOAT)
        )
        if zero:
            value = self.out.once(
                (q, "moved"), lambda: self.out.node("Sub", [value, self.out.float(zero)])
            )
        node.input[0] = value
        bits = _layout(self.folded.weights[found.name])[0]
        self._note(node, self._stored(found), bits, "weights and activations, computed in fp32")
        self.said[f"{node.op_type} computed in fp32: ONNX Runtime has no int8 kernel for it"] += 1

    def _quantized(self, value: str, name: str) -> str:
        scale, zero = self.folded.inputs[name]
        grid = [self.out.float(scale), self.out.small(np.uint8(zero))]
        key = value, scale, zero
        return self.out.once(key, lambda: self.out.node("QuantizeLinear", [value, *grid]))

    # Any other weight

    def _spelled(self, constant: str, found: Found, factor: float = 1.0) -> str:
        """The weight as a value computed from its integers; it replaces the constant."""
        return self.out.once(
            (constant, "spelled", factor), lambda: self._spell(self._stored(found), found, factor)
        )

    def _spell(self, stored: Any, found: Found, factor: float) -> str:
        bits, block = _layout(stored)
        rows, columns = stored.q.shape
        kept = _grid.packed(_grid.grouped(_grid.unsigned(stored, bits), block), bits)
        blocks = kept.shape[1]
        scale = _wide(stored.scale * np.float32(factor), stored, block)[..., None]
        zero = None if stored.zero is None else _wide(stored.zero, stored, block)[..., None]
        value = self.out.decoded(
            self.out.add(kept, f"{found.name}.weight_int{bits}"),
            bits,
            [rows, blocks, block],
            scale=self.out.add(scale, f"{found.name}.weight_scale"),
            zero=None if zero is None else self.out.add(zero, f"{found.name}.weight_zero"),
            table=stored.table,
        )
        value = self.out.cut(value, blocks * block, columns)
        rest = [size for axis, size in enumerate(stored.shape) if axis != stored.axis]
        value = self.out.node("Reshape", [value, self.out.ints([rows, *rest])])
        if found.turned or stored.axis == 1:
            order = [1, 0, *range(2, len(stored.shape))]
            value = self.out.node("Transpose", [value], perm=order)
        return value


def _axis(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _layout(stored: Any) -> tuple[int, int]:
    """Bits and block in which integers are kept by themselves: two of 4 bits share a byte."""
    bits, group = _grid.bits_of(stored), stored.group
    if stored.scale.shape[1] == 1:
        return bits, group + (group % 2 if bits == 4 else 0)
    return (8 if group % 2 else bits), group


def _wide(array: Array, stored: Any, block: int) -> Array:
    """One value a block from one a group: (rows, blocks)."""
    rows, columns = stored.q.shape
    blocks = -(-columns // block)
    if array.shape[1] == 1:
        return np.ascontiguousarray(np.broadcast_to(array, (rows, blocks)))
    return np.ascontiguousarray(np.repeat(array, stored.group // block, axis=1)[:, :blocks])
