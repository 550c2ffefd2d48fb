"""What stands in an OpenVINO file, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgegen.bundle import Layer

WEIGHTED = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul", "Gather")
PRECISION_OF = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
    "u2": "int2",
}


def read(path: Path) -> Any:
    """The model with its weights in memory: a mapped file cannot be written over."""
    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})
    return core.read_model(path)


def layers(model: Any) -> Iterator[Layer]:
    """Every layer with a weight of two or more dimensions."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in WEIGHTED:
            continue
        place = node.input_value(0 if kind == "Gather" else 1)
        weight = constant(place)
        if weight is None or len(weight.shape) < 2:
            continue
        precision = PRECISION_OF.get(weight.get_element_type().get_type_name(), "fp32")
        note = ""
        if precision.startswith("int"):
            both = _is_quantized(node.input_value(0))
            note = "weights and activations" if both else "weight-only"
            note += ", codebook" if _looked_up(place) else ""
        # Of what is computed with: a padded group is cut off behind the constant.
        shape = place.get_partial_shape()
        count = int(np.prod(shape.to_shape() if shape.is_static else weight.shape))
        size = int(weight.shape[-1]) if len(weight.shape) == 3 and kind != "Gather" else None
        yield Layer(node.get_friendly_name(), kind, precision, count, size, note)


def constant(output: Any) -> Any:
    """The stored weight behind a value, through decompression and (de)quantization."""
    node = output.get_node()
    through = ("Convert", "Multiply", "Subtract", "Reshape", "FakeQuantize", "Transpose", "Slice")
    while node.get_type_name() in through or _is_lookup(node):
        node = node.input_value(1 if _is_lookup(node) else 0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _is_lookup(node: Any) -> bool:
    """Does it read numbers from a table of one dimension: the values of a codebook?"""
    return node.get_type_name() == "Gather" and len(node.input_value(0).get_partial_shape()) == 1


def _looked_up(output: Any) -> bool:
    node = output.get_node()
    while node.get_type_name() in ("Convert", "Multiply", "Reshape", "Transpose", "Slice"):
        node = node.input_value(0).get_node()
    return _is_lookup(node)


def _is_quantized(output: Any) -> bool:
    """Does a FakeQuantize stand before this value, reshapes aside?"""
    node = output.get_node()
    while node.get_type_name() in ("Reshape", "Transpose", "Squeeze", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")
