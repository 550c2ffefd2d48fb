"""Convolutions that enlarge, as a plain convolution and a pixel shuffle: ONNX Runtime computes
those in int8, a ConvTranspose never.

With stride s and a kernel of m * s taps, output s * r + a reads the inputs r, r - 1, ..., r - m + 1
through the taps a, a + s, ... The s outputs of every r are therefore channels of one convolution of
m taps; they are laid side by side, and what the padding took away is cut off. Exact, also at the
borders.

Source: Shi et al. 2016, arXiv:1609.07009.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from onnx import helper, numpy_helper, shape_inference

from edgegen.exporters._onnx_nodes import drop_unused
from edgegen.spec import Array

# What ONNX Runtime takes into a convolution that it follows: it goes before the shuffle.
FUSED = ("Relu", "Clip", "LeakyRelu", "QuantizeLinear")
SHUFFLED = "ConvTranspose computed as Conv and a pixel shuffle (exact), which has int8 kernels"
END = 2**62  # Slice: to the end


class Plan(NamedTuple):
    """How one transposed convolution is computed: `taps` an axis, then `stride`^2 phases.

    `crop` is what goes from the beginning and the end of each axis.
    """

    stride: int
    taps: tuple[int, int]
    crop: tuple[tuple[int, int], tuple[int, int]]


def plan(node: Any, kernel: tuple[int, ...], size: tuple[int | None, ...]) -> Plan | None:
    """How a ConvTranspose of a weight (in, out, height, width) can be computed; None where not.

    `size` is the input's (height, width) as far as known: with a stride of 1 only one pixel fits.
    A kernel that the stride does not divide is filled up with zeros.
    """
    have = options(node)
    once = have.get("group", 1) == 1 and set(have.get("dilations", [1])) == {1}
    given = have.get("auto_pad", b"NOTSET") == b"NOTSET" and "output_shape" not in have
    strides = have.get("strides", [1, 1])
    if not (once and given and len(kernel) == 4 and strides[0] == strides[-1]):
        return None
    stride = int(strides[0])
    if stride == 1:
        stride = kernel[2]
        if size != (1, 1) or kernel[2] != kernel[3]:
            return None
    pads, extra = have.get("pads", [0] * 4), have.get("output_padding", [0, 0])
    taps = -(-kernel[2] // stride), -(-kernel[3] // stride)
    height, width = (
        (pads[axis], taps[axis] * stride - kernel[2 + axis] + pads[2 + axis] - extra[axis])
        for axis in (0, 1)
    )
    fits = min(*height, *width) >= 0 and stride > 1
    return Plan(stride, taps, (height, width)) if fits else None


def phases(weight: Array, how: Plan) -> Array:
    """A transposed convolution's weight (in, out, height, width) as the plain one's.

    (phase row, phase column, out) are its rows, the last fastest; (in, taps, taps) its columns.
    """
    inputs, outputs, *kernel = weight.shape
    short = [(0, taps * how.stride - n) for taps, n in zip(how.taps, kernel, strict=True)]
    full = np.pad(weight, [(0, 0), (0, 0), *short])
    high, wide = how.taps
    split = full.reshape(inputs, outputs, high, how.stride, wide, how.stride)
    turned = split[:, :, ::-1, :, ::-1, :]  # a convolution reads backwards what the other writes
    rows = how.stride**2 * outputs
    return np.ascontiguousarray(
        turned.transpose(3, 5, 1, 0, 2, 4).reshape(rows, inputs, high, wide)
    )


def shuffle(model: Any, only: set[str] | None = None) -> int:
    """Rewrite every ConvTranspose that can be (of these names); how many.

    Its weight is a constant, or a constant of int8 behind DequantizeLinear, whose integers and
    scales are carried over as they are.
    """
    return _Shuffler(model).run(only)


class _Shuffler:
    """One graph while its transposed convolutions are replaced."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self.shapes = shapes(model)
        self.weights = {w.name: w for w in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.readers = readers(self.graph)
        self.nodes: list[Any] = []

    def run(self, only: set[str] | None) -> int:
        moved: set[str] = set()
        count = 0
        for node in list(self.graph.node):
            how = self._plan(node) if only is None or node.name in only else None
            if how is not None:
                moved |= self._replace(node, how)
                count += 1
            elif node.output[0] not in moved:
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        if count:
            drop_unused(self.model)
        return count

    def _plan(self, node: Any) -> Plan | None:
        weight = self._weight(node) if node.op_type == "ConvTranspose" else None
        if weight is None or any(name not in self.weights for name in node.input[2:] if name):
            return None
        size = tuple(self.shapes.get(node.input[0], [None] * 4)[2:])
        return plan(node, tuple(weight.dims), size)

    def _weight(self, node: Any) -> Any:
        """The constant that holds the weight, dequantized or not."""
        name = node.input[1]
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return self.weights.get(name)

    def _replace(self, node: Any, how: Plan) -> set[str]:
        """Put the convolution and the shuffle in; the outputs of what went along."""
        inputs = [node.input[0], self._phases(node, how)]
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(self.weights[node.input[2]])
            inputs.append(self._add(np.tile(bias, how.stride**2), f"{node.input[2]}_phases"))
        value, last = f"{node.output[0]}_phases", node.output[0]
        pads = [taps - 1 for taps in how.taps] * 2
        conv = helper.make_node(
            "Conv", inputs, [value], name=node.name, kernel_shape=how.taps, pads=pads
        )
        conv.metadata_props.extend(node.metadata_props)
        self.nodes.append(conv)
        moved: set[str] = set()
        while (after := self._behind(last)) is not None:
            last = after.output[0]
            moved.add(last)
            copied = type(after).FromString(after.SerializeToString())
            copied.input[0], copied.output[0] = value, f"{last}_phases"
            value = copied.output[0]
            self.nodes.append(copied)
        self.nodes += self._laid_out(node, how, value, last)
        return moved

    def _behind(self, value: str) -> Any:
        """The only reader of `value`, if it may as well come before the shuffle."""
        read = self.readers[value]
        alone = len(read) == 1 and value not in {output.name for output in self.graph.output}
        return read[0] if alone and read[0].op_type in FUSED else None

    def _phases(self, node: Any, how: Plan) -> str:
        """The weight rearranged: a constant, or one of int8 with its scales."""
        weight = self._weight(node)
        name = f"{weight.name}_phases"
        if name not in self.weights:
            self._add(phases(numpy_helper.to_array(weight), how), name)
        if weight.name == node.input[1]:
            return name
        old = self.makers[node.input[1]]
        parts = [self._tiled(part, how) for part in old.input[1:]]
        value = f"{node.output[0]}_weight"
        self.nodes.append(helper.make_node("DequantizeLinear", [name, *parts], [value], axis=0))
        return value

    def _tiled(self, name: str, how: Plan) -> str:
        array = numpy_helper.to_array(self.weights[name])
        return self._add(np.tile(array, how.stride**2), f"{name}_phases")

    def _add(self, array: Any, name: str) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.asarray(array), name)
            self.graph.initializer.append(self.weights[name])
        return name

    def _laid_out(self, node: Any, how: Plan, value: str, last: str) -> Iterator[Any]:
        """Phases side by side, channels last: ONNX Runtime's int8 convolutions want them so, and
        whole pixels are moved rather than numbers. Heights not known before: DepthToSpace."""
        base = node.output[0]
        height = self.shapes.get(node.input[0], [None] * 4)[2]
        outputs = self._channels(node)
        steps: list[tuple[str, list[str], dict[str, Any]]]
        if height is None:
            steps = [("DepthToSpace", [], {"blocksize": how.stride, "mode": "DCR"})]
            steps += self._cropped(how, base, [2, 3])
        else:
            rows = (height + how.taps[0] - 1) * how.stride
            split = self._ints([0, 0, 0, how.stride, how.stride * outputs], f"{base}_split")
            joined = self._ints([0, rows, -1, outputs], f"{base}_joined")
            steps = [("Transpose", [], {"perm": [0, 2, 3, 1]}), ("Reshape", [split], {})]
            steps += [("Transpose", [], {"perm": [0, 1, 3, 2, 4]}), ("Reshape", [joined], {})]
            steps += self._cropped(how, base, [1, 2])
            steps += [("Transpose", [], {"perm": [0, 3, 1, 2]})]
        for index, (kind, more, given) in enumerate(steps):
            made = last if index == len(steps) - 1 else f"{base}_shuffle_{index}"
            name = f"{node.name or base}_shuffle_{index}"
            yield helper.make_node(kind, [value, *more], [made], name=name, **given)
            value = made

    def _channels(self, node: Any) -> int:
        return int(self._weight(node).dims[1])

    def _cropped(self, how: Plan, base: str, axes: list[int]) -> list[tuple[str, list[str], Any]]:
        if how.crop == ((0, 0), (0, 0)):
            return []
        parts = {
            "starts": [begin for begin, _ in how.crop],
            "ends": [-end or END for _, end in how.crop],
            "axes": axes,
        }
        return [("Slice", [self._ints(v, f"{base}_{what}") for what, v in parts.items()], {})]

    def _ints(self, values: list[int], name: str) -> str:
        return self._add(np.array(values, np.int64), name)


def readers(graph: Any) -> dict[str, list[Any]]:
    """The nodes that read each value."""
    found: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def options(node: Any) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def shapes(model: Any) -> dict[str, list[int | None]]:
    """The shape of every value, None where a dimension is free."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }
