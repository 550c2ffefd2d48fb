"""Nearest upsampling and the convolution behind it as one ConvTranspose of an ONNX graph."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper, numpy_helper

from edgegen.exporters._onnx_nodes import drop_unused
from edgegen.exporters._onnx_shuffle import options, readers
from edgegen.exporters._upsample import NEAREST, summed, taken


def fold_upsampling(model: Any) -> set[str]:
    """Nearest upsampling and the convolution behind it become one ConvTranspose; their names.

    With a 3x3 kernel and a factor of 2: 4 taps for every output where there were 9.
    """
    graph = model.graph
    weights = {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    weights |= {w.name: w for w in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    read, outputs = readers(graph), {output.name for output in graph.output}
    found: set[str] = set()
    for node in list(graph.node):
        resize: Any = makers.get(node.input[0]) if node.op_type == "Conv" else None
        factor = 0 if resize is None else _factor(resize, weights)
        alone = factor and len(read[node.input[0]]) == 1 and node.input[0] not in outputs
        if alone and _plain(node, weights):
            node.name = node.name or node.output[0]
            node.CopyFrom(_transposed(node, resize, factor, weights))
            graph.node.remove(resize)
            if node.input[1] not in {w.name for w in graph.initializer}:
                graph.initializer.append(weights[node.input[1]])
            found.add(node.name)
    if found:
        drop_unused(model)
    return found


def _transposed(node: Any, resize: Any, factor: int, weights: dict[str, Any]) -> Any:
    """The ConvTranspose that is `node` after `resize`; its weight is put into `weights`."""
    weight = weights[node.input[1]]
    kernel, pads = numpy_helper.to_array(weight), options(node).get("pads", [0] * 4)
    name = f"{weight.name}_upsampled_{factor}"
    if name not in weights:
        weights[name] = numpy_helper.from_array(summed(kernel, factor), name)
    return helper.make_node(
        "ConvTranspose",
        [resize.input[0], name, *node.input[2:]],
        [node.output[0]],
        name=node.name,
        strides=[factor, factor],
        kernel_shape=weights[name].dims[2:],
        pads=taken(kernel, pads),
    )


def _factor(resize: Any, weights: dict[str, Any]) -> int:
    """By which whole number it repeats the pixels of both axes; 0 if that is not what it does."""
    have = options(resize)
    how = (
        have.get("coordinate_transformation_mode", b"half_pixel").decode(),
        have.get("nearest_mode", b"round_prefer_floor").decode(),
    )
    plain = resize.op_type == "Resize" and have.get("mode", b"nearest") == b"nearest"
    if not plain or how not in NEAREST or "axes" in have or len(resize.input) != 3:
        return 0
    scales = weights.get(resize.input[2])
    values = [] if scales is None else numpy_helper.to_array(scales).tolist()
    ones = len(values) == 4 and values[:2] == [1, 1] and values[2] == values[3]
    return int(values[2]) if ones and values[2] == int(values[2]) > 1 else 0


def _plain(node: Any, weights: dict[str, Any]) -> bool:
    """Is it a convolution of stride 1 whose padding is no wider than its kernel reaches?"""
    have, weight = options(node), weights.get(node.input[1])
    if weight is None or len(weight.dims) != 4 or weight.data_type != onnx.TensorProto.FLOAT:
        return False
    steps = {*have.get("strides", [1]), *have.get("dilations", [1]), have.get("group", 1)}
    pads = have.get("pads", [0] * 4)
    narrow = all(p < size for p, size in zip(pads, [*weight.dims[2:]] * 2, strict=True))
    return steps == {1} and narrow and have.get("auto_pad", b"NOTSET") == b"NOTSET"
