"""Quantized weights put into an OpenVINO model that was traced with the float weights of the grid.

Each becomes a constant of 2, 4 or 8 bits, converted, moved by its zero points and scaled: the
plug-ins compute on those integers. A rounded input is a FakeQuantize.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as ops

from edgegen.exporters import _grid
from edgegen.exporters._grid import Finder, Found
from edgegen.spec import Array

# Seen in the plans of OpenVINO 2026.4: u8 from 0 and symmetric i8 have kernels, others none.
UNEVEN = "transposed convolutions behind an uneven range: OpenVINO computes them in fp32"
THROUGH = ("Convert", "Reshape", "Transpose")
SIGNED = {4: Type.i4, 8: Type.i8}
UNSIGNED = {2: Type.u2, 4: Type.u4, 8: Type.u8}


def dress(model: Any, folded: Any) -> tuple[tuple[str, ...], bool]:
    """Rewrite `model` with the integers of `folded`, in place; notes, and whether it is exact.

    Raises:
        UnsupportedError: a layer with a rounded input is not in the graph.
    """
    dresser = _Dresser(model, folded)
    dresser.dress()
    notes = _grid.check_found(dresser.finder, folded.inputs, "openvino")
    said = (f"{count} {what}" for what, count in dresser.said.items())
    return (*_grid.said(folded.weights, folded.inputs), *said, *notes), not folded.inputs


class _Dresser:
    """One model while it is rewritten."""

    def __init__(self, model: Any, folded: Any) -> None:
        self.model, self.folded = model, folded
        self.finder = Finder(folded.weights)
        self.said: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._rounded: dict[Any, Any] = {}

    def dress(self) -> None:
        """Every constant in turn."""
        for node in list(self.model.get_ops()):
            if node.get_type_name() != "Constant" or node.get_element_type() != Type.f32:
                continue
            found = self.finder.find(np.array(node.data)) if node.data.size > 1 else None
            if found is not None:
                self._one(node, found)
        self.model.validate_nodes_and_infer_types()

    def _one(self, node: Any, found: Found) -> None:
        readers = list(node.output(0).get_target_inputs())
        shape = [int(size) for size in node.get_output_shape(0)]
        value = self._value(found, shape)
        for reader in readers:
            reader.replace_source_output(value.output(0))
        for user in {user.get_name(): user for user in map(_user, readers)}.values():
            self._taken[found.name] += 1
            count = self._taken[found.name]
            user.set_friendly_name(found.name if count == 1 else f"{found.name}.{count}")
            if found.name in self.folded.inputs:
                self._round(user, found.name)

    def _value(self, found: Found, shape: list[int]) -> Any:
        """The weight computed from its integers, of the constant's shape."""
        stored = _grid.multiplied(self.folded.weights[found.name], found.factor)
        bits = _bits(stored)
        q, zero = stored.q, stored.zero
        if bits == 2 and stored.zero is None and stored.table is None:  # there is no signed type
            q, zero = _grid.unsigned(stored, 2), np.full(stored.scale.shape, 2, np.float32)
        if stored.scale.shape[1] == 1:
            return self._by_rows(found, stored, bits, q, zero, shape)
        return self._by_groups(found, stored, bits, q, zero, shape)

    def _by_rows(
        self, found: Found, stored: Any, bits: int, q: Array, zero: Any, shape: list[int]
    ) -> Any:
        """One scale a row: the integers in the weight's own shape, the scales along its rows."""
        codes = _grid.in_torch(q, stored)
        wide = [1] * codes.ndim
        wide[stored.axis] = -1
        scale = stored.scale.reshape(wide)
        zero = None if zero is None else zero.reshape(wide)
        if found.turned:
            codes, scale = codes.T, scale.T
            zero = None if zero is None else zero.T
        value = self._arithmetic(codes, bits, scale, zero, stored.table)
        if list(codes.shape) == shape:
            return value
        return ops.reshape(value, ops.constant(np.array(shape)), False)

    def _by_groups(
        self, found: Found, stored: Any, bits: int, q: Array, zero: Any, shape: list[int]
    ) -> Any:
        """(rows, groups, group) of integers, with a scale each; then without the padding."""
        codes = _grid.grouped(q, stored.group)
        rows, groups, group = codes.shape
        zero = None if zero is None else zero[..., None]
        value = self._arithmetic(codes, bits, stored.scale[..., None], zero, stored.table)
        value = ops.reshape(value, ops.constant(np.array([rows, groups * group])), False)
        columns = q.shape[1]
        if columns != groups * group:
            cut = [ops.constant(np.array([each])) for each in (0, columns, 1, 1)]
            value = ops.slice(value, *cut)
            self.said["layers whose last group is padded: unpacked when the model is loaded"] += 1
        rest = [size for axis, size in enumerate(stored.shape) if axis != stored.axis]
        if found.turned or stored.axis == 1:
            value = ops.reshape(value, ops.constant(np.array([rows, *rest])), False)
            order = [1, 0, *range(2, len(stored.shape))]
            value = ops.transpose(value, ops.constant(np.array(order)))
            rest = shape
        if [rows, *rest] == shape and len(shape) == 2:
            return value
        return ops.reshape(value, ops.constant(np.array(shape)), False)

    def _arithmetic(self, codes: Array, bits: int, scale: Array, zero: Any, table: Any) -> Any:
        value = self._few_bits(codes, bits)
        if table is not None:
            index = ops.convert(value, Type.i32)
            first = ops.constant(np.array(0, np.int64))
            value = ops.gather(ops.constant(table), index, first)
        else:
            value = ops.convert(value, Type.f32)
        if zero is not None:
            whole = bool((zero == np.rint(zero)).all() and zero.min() >= 0 and zero.max() < 2**bits)
            kept = (
                ops.convert(self._few_bits(zero, bits), Type.f32) if whole else ops.constant(zero)
            )
            value = ops.subtract(value, kept)
        return ops.multiply(value, ops.constant(np.ascontiguousarray(scale)))

    def _few_bits(self, codes: Array, bits: int) -> Any:
        """A constant of `bits`, signed where the numbers are."""
        kind = SIGNED[bits] if codes.dtype == np.int8 else UNSIGNED[bits]
        if bits == 8:
            dtype = np.int8 if codes.dtype == np.int8 else np.uint8
            return ops.constant(np.ascontiguousarray(codes.astype(dtype)))
        low = _grid.packed((codes.astype(np.int16) & (2**bits - 1)).reshape(-1), bits)
        # A tensor with memory of its own: one over a numpy array does not keep that alive.
        tensor = ov.Tensor(kind, ov.Shape(codes.shape))
        tensor.data[:] = low.reshape(tensor.data.shape)
        return ops.constant(tensor)

    def _round(self, user: Any, name: str) -> None:
        """A FakeQuantize before the layer; layers that read one value alike share it."""
        scale, zero = self.folded.inputs[name]
        if user.get_type_name() == "ConvolutionBackpropData" and zero not in (0, 128):
            self.said[UNEVEN] += 1
        source = user.input_value(0)
        key = source.get_node().get_name(), source.get_index(), scale, zero
        if key not in self._rounded:
            low, high = (ops.constant(np.float32((end - zero) * scale)) for end in (0, 255))
            self._rounded[key] = ops.fake_quantize(source, low, high, low, high, 256)
        user.input(0).replace_source_output(self._rounded[key].output(0))


def _bits(stored: Any) -> int:
    """Rows of an odd number of 4-bit integers are read wrongly by the CPU plug-in: 8, then."""
    bits = 2 if stored.scheme.bits == 2 and stored.table is None else _grid.bits_of(stored)
    each = 8 // bits
    length = stored.q.shape[1] if stored.scale.shape[1] == 1 else stored.group
    return 8 if length % each else bits


def _user(reader: Any) -> Any:
    """The operator that a constant is the weight of, reshapes aside."""
    node = reader.get_node()
    while node.get_type_name() in THROUGH:
        node = next(iter(node.output(0).get_target_inputs())).get_node()
    return node
