"""What an ONNX file holds, read without an engine: inputs, outputs, operators, weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from edgegen import rooms
from edgegen.errors import FormatError
from edgegen.spec import TensorSpec

STANDARD = ("", "ai.onnx")


def load(path: Path) -> Any:
    """The parsed file, weights in other files left there.

    Raises:
        MissingExtraError: onnx is not installed.
        FormatError: truncated, or not ONNX.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "reading an ONNX file") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base but Exception
        raise FormatError(f"{path}: not a whole ONNX file: {error}", "export it again") from error
    if not model.graph.node:
        raise FormatError(f"{path}: not an ONNX file: it has no graph", "export it again")
    return model


def inputs(model: Any) -> tuple[TensorSpec, ...]:
    """What must be fed: the inputs that are no weights."""
    weights = {weight.name for weight in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in weights)


def outputs(model: Any) -> tuple[TensorSpec, ...]:
    """What comes out."""
    return tuple(map(_spec, model.graph.output))


def _spec(value: Any) -> TensorSpec:
    """A dimension without number and name is called "?"."""
    from onnx import helper

    kind = value.type.tensor_type
    dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
    return TensorSpec(value.name, dtype, tuple(dims))


def operators(model: Any) -> dict[str, int]:
    """How often each operator stands in the file, branches included, the most frequent first."""
    return dict(Counter(map(_kind, walk(model.graph))).most_common())


def opset(model: Any) -> int:
    """The version of the standard operators."""
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    return max(versions, default=0)


def parameters(model: Any) -> int:
    """Elements of all stored weights; scales, zero points and indices are none."""
    return sum(_weights(model.graph))


def _kind(node: Any) -> str:
    """Conv; outside the standard with its domain, com.microsoft.MatMulNBits."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def walk(graph: Any) -> Iterator[Any]:
    """Every node, those of branches and loop bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk(attribute.g)


def options(node: Any) -> dict[str, Any]:
    """The attributes of a node."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def constants(graph: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of every Constant node, where some exporters keep the weights."""
    for node in walk(graph):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], node.attribute[0].t


def _weights(graph: Any) -> Iterator[int]:
    """Elements of each stored weight; scales, zero points and indices are none."""
    from onnx import TensorProto

    stored = {weight.name: weight for weight in graph.initializer} | dict(constants(graph))
    scales: set[str] = set()
    quantized: dict[str, int] = {}
    for node in walk(graph):
        at = {"MatMulNBits": 1, "DequantizeLinear": 0, "GatherBlockQuantized": 0}.get(node.op_type)
        if at is not None:
            scales.update(node.input[at + 1 :])
            if node.input[at] in stored:
                quantized[node.input[at]] = prod(unpacked(node, stored[node.input[at]]))
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    for name, weight in stored.items():
        if name in quantized:
            yield quantized[name]
        elif weight.dims and weight.data_type in floats and name not in scales:
            yield prod(weight.dims)


def unpacked(node: Any, weight: Any) -> tuple[int, ...]:
    """The shape of a quantized weight before its values were packed into bytes."""
    from onnx import TensorProto

    dims = tuple(weight.dims)
    if node.op_type == "MatMulNBits":
        return options(node)["K"], options(node)["N"]
    if node.op_type == "GatherBlockQuantized" and weight.data_type == TensorProto.UINT8:
        return *dims[:-1], dims[-1] * 8 // options(node).get("bits", 4)
    return dims
