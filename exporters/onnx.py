"""ONNX: torch's own exporter, and ONNX Runtime's quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import dynamic_axes, example, is_text
from edgegen.exporters._onnx_grid import LAYER, dress
from edgegen.exporters._onnx_quantize import STATIC_OPS, quantize, quiet, save
from edgegen.exporters._onnx_shuffle import shuffle
from edgegen.exporters._onnx_upsample import fold_upsampling
from edgegen.spec import GraphSpec

__all__ = ["FILE", "dress", "fuse", "ledger", "quantize", "write"]

FILE = "model.onnx"
LACKS = {"bf16": "ONNX Runtime has no bf16 operators on a CPU, not even Add"}

# Opset 23 has Attention and RMSNormalization as one operator each; 20 is what the static
# quantizer and older consumers read. 26 is written with a wrong version by torch 2.13.
OPSET_TEXT, OPSET = 23, 20

QUANTIZED_OPS = [*STATIC_OPS, "ConvTranspose"]
PRECISION_OF = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
}


def write(module: Any, graph: GraphSpec, path: Path) -> tuple[str, ...]:
    """Export a torch module with every free dimension dynamic; copy a foreign file."""
    if isinstance(module, Path):
        save(onnx.load(module), path)
        return ()
    import torch

    opset = OPSET_TEXT if is_text(graph) else OPSET
    args = [torch.from_numpy(array) for array in example(graph).values()]
    with quiet():
        program = torch.onnx.export(
            module,
            tuple(args),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dynamic_axes(module, graph, str),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            verbose=False,
        )
    model = program.model_proto
    found = {entry.domain: entry.version for entry in model.opset_import}[""]
    if found != opset:
        raise UnsupportedError(f"torch wrote opset {found} where {opset} was asked for")
    _forget_origin(model)
    save(model, path)
    return ()


def fuse(path: Path) -> tuple[str, ...]:
    """Nearest upsampling and the convolution behind it as one of fewer taps and a pixel shuffle.

    A ConvTranspose of the model itself stays one: in fp32 it gains nothing.
    """
    model = onnx.load(path)
    found = fold_upsampling(model)
    if not found:
        return ()
    shuffle(model, found)
    del model.graph.value_info[:]  # written for what is no longer there
    save(model, path)
    return (f"{len(found)} upsamplings folded into the convolution behind them (exact)",)


def _forget_origin(model: Any) -> None:
    """Drop torch's notes on every node: stack traces, with the paths of the author's machine."""
    for item in (*model.graph.node, *model.graph.value_info, model.graph):
        del item.metadata_props[:]


def ledger(path: Path) -> tuple[Layer, ...]:
    """Every layer with a weight of two or more dimensions, as it stands in the file."""
    return tuple(_layers(onnx.load(path, load_external_data=False).graph, {}, {}))


def _layers(graph: Any, weights: dict[str, Any], makers: dict[str, Any]) -> Iterator[Layer]:
    """Of a graph and those inside it, which see the `weights` and `makers` around them."""
    weights = weights | {w.name: w for w in graph.initializer}
    makers = makers | {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            weights[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        name = node.name or node.output[0]
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        told = next((p.value for p in node.metadata_props if p.key == LAYER), None)
        if told is not None:
            yield msgspec.json.decode(told, type=Layer)
        elif node.op_type == "MatMulNBits":
            count = options["K"] * options["N"]
            kind = f"int{options.get('bits', 4)}"
            yield Layer(name, "MatMul", kind, count, options["block_size"], "weight-only")
        elif node.op_type in (*QUANTIZED_OPS, "Gather"):
            yield from _plain(node, name, weights, makers)
        for inside in options.values():  # the branches of an If, the body of a Loop
            if isinstance(inside, onnx.GraphProto):
                yield from _layers(inside, weights, makers)


def _plain(
    node: Any, name: str, weights: dict[str, Any], makers: dict[str, Any]
) -> Iterator[Layer]:
    sources = [_source(i, weights, makers) for i in node.input[:2]]
    found = next((w for w in reversed(sources) if w is not None and len(w.dims) > 1), None)
    if found is None or (node.op_type == "Gather" and found.dims[-1] == 1):
        return  # one number a row is the scale of an int8 embedding
    if node.op_type == "Gather" and found.name.endswith(("weight_scale", "weight_zero_rows")):
        return  # and so are these
    precision = PRECISION_OF.get(found.data_type, "fp32")
    maker = makers.get(node.input[0])
    both = maker is not None and maker.op_type == "DequantizeLinear" and node.op_type != "Gather"
    note = ("weights and activations" if both else "weight-only") if precision == "int8" else ""
    yield Layer(name, node.op_type, precision, int(np.prod(found.dims)), None, note)


def _source(name: str, weights: dict[str, Any], makers: dict[str, Any]) -> Any:
    """The stored weight behind a value, through (de)quantization, casts and transposes."""
    while name not in weights:
        node = makers.get(name)
        through = ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Reshape", "Identity")
        if node is None or node.op_type not in through:
            return None
        name = node.input[0]
    return weights[name]
