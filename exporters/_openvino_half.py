"""OpenVINO files in fp16 and bf16, but for what angles are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edgegen.exporters._openvino_ledger import read
from edgegen.spec import Array


def to_fp16(model: Any, path: Path) -> tuple[str, ...]:
    """Weights in fp16, but not what Sin and Cos are computed from: in fp16, position 2,000 is off
    by a radian. OpenVINO compresses every constant, so those are put back."""
    exact = {c.get_friendly_name(): c.data.copy() for c in behind_angles(model)}
    ov.save_model(model, path, compress_to_fp16=True)
    note = "weights in fp16; a CPU computes in fp32"
    if not exact:
        return (note,)
    model = read(path)
    for node in model.get_ops():
        if node.get_type_name() == "Convert" and node.get_friendly_name() in exact:
            constant = ops.constant(exact[node.get_friendly_name()])
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(constant.output(0))
    ov.save_model(model, path, compress_to_fp16=False)
    return note, f"{len(exact)} constants behind angles stay fp32"


def to_bf16(model: Any, path: Path) -> tuple[str, ...]:
    """Weights in bf16, but not what Sin and Cos are computed from; the plug-in keeps those two in
    fp32 as well, and computes everything else in bf16 when it is opened so."""
    angles = {node.get_friendly_name() for node in behind_angles(model)}
    count = 0
    for node in list(model.get_ops()):
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        if len(node.get_output_shape(0)) < 2 or node.get_friendly_name() in angles:
            continue
        readers = list(node.output(0).get_target_inputs())
        half = ops.constant(nearest_bf16(np.array(node.data)), dtype=ov.Type.bf16)
        half.set_friendly_name(node.get_friendly_name())
        value = ops.convert(half, ov.Type.f32)
        for reader in readers:
            reader.replace_source_output(value.output(0))
        count += 1
    ov.save_model(model, path, compress_to_fp16=False)
    return (f"{count} weights in bf16, computed in bf16: on CPUs that have it, and no others",)


def nearest_bf16(values: Array) -> Array:
    """Half to even; OpenVINO itself would cut off."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def behind_angles(model: Any) -> list[Any]:
    """The fp32 constants that Sin and Cos are computed from."""
    waiting = [n for n in model.get_ops() if n.get_type_name() in ("Sin", "Cos")]
    seen: dict[str, Any] = {}
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in seen:
            seen[node.get_friendly_name()] = node
            waiting += [value.get_node() for value in node.input_values()]
    return [
        node
        for node in seen.values()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32
    ]
