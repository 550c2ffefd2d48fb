"""Nearest upsampling and the convolution behind it as OpenVINO's transposed convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import Type
from openvino import opset13 as ops

from edgegen.exporters._upsample import NEAREST, summed, taken


def fold_upsampling(model: Any) -> int:
    """Replace every such pair in `model`, in place; how many.

    With a 3x3 kernel and a factor of 2: 4 taps for every output where there were 9.
    """
    count = 0
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() != "Convolution" or not _plain(node):
            continue
        resize = node.input_value(0).get_node()
        factor = _factor(resize) if resize.get_type_name() == "Interpolate" else 0
        if factor and len(resize.output(0).get_target_inputs()) == 1:
            _replace(node, resize, factor)
            count += 1
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _replace(node: Any, resize: Any, factor: int) -> None:
    kernel = np.array(node.input_value(1).get_node().data)
    pads = taken(kernel, _pads(node))
    weight = ops.constant(summed(kernel, factor))
    weight.set_friendly_name(node.input_value(1).get_node().get_friendly_name())
    new = ops.convolution_backprop_data(
        resize.input_value(0),
        weight,
        strides=[factor, factor],
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=[1, 1],
        auto_pad="explicit",
    )
    new.set_friendly_name(node.get_friendly_name())
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(new.output(0))


def _pads(node: Any) -> list[int]:
    have = node.get_attributes()
    return [*have["pads_begin"], *have["pads_end"]]


def _plain(node: Any) -> bool:
    """Is it a convolution of stride 1 whose padding is no wider than its kernel reaches?"""
    have, weight = node.get_attributes(), node.input_value(1).get_node()
    if weight.get_type_name() != "Constant" or weight.get_element_type() != Type.f32:
        return False
    shape = list(weight.get_output_shape(0))
    once = {*have["strides"], *have["dilations"]} == {1} and have["auto_pad"] == "explicit"
    narrow = all(pad < size for pad, size in zip(_pads(node), shape[2:] * 2, strict=True))
    return once and len(shape) == 4 and narrow


def _factor(resize: Any) -> int:
    """By which whole number it repeats the pixels of both axes; 0 if that is not what it does."""
    have = resize.get_attributes()
    how = have["coordinate_transformation_mode"], have["nearest_mode"]
    inputs = [value.get_node() for value in resize.input_values()[1:]]
    known = len(inputs) == 2 and all(node.get_type_name() == "Constant" for node in inputs)
    padded = any((*have["pads_begin"], *have["pads_end"]))
    if have["mode"] != "nearest" or how not in NEAREST or not known or padded:
        return 0
    if have["shape_calculation_mode"] != "scales":
        return 0
    scales = dict(zip((int(a) for a in inputs[1].data), inputs[0].data.tolist(), strict=True))
    high, wide = scales.get(2, 1), scales.get(3, 1)
    others = all(scale == 1 for axis, scale in scales.items() if axis not in (2, 3))
    return int(high) if others and high == wide == int(high) > 1 else 0
