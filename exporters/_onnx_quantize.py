"""What is done to an ONNX file after it was written: fp16, and integers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from edgegen.errors import UnsupportedError
from edgegen.exporters import group_size
from edgegen.exporters._onnx_nodes import drop_unused
from edgegen.exporters._onnx_shuffle import SHUFFLED, shuffle
from edgegen.spec import Feed, GraphSpec

OPSET_CHANNELS = 13
LARGEST_INLINE = 1_500_000_000  # protobuf stops at 2 GB; weights above this go to model.onnx.data
STATIC_OPS = ["Conv", "Gemm", "MatMul"]  # those with an int8 kernel
# What ends a convolution without being computed: the rounding of its output cuts off as well.
CLAMPS = ["Relu", "Clip"]


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines but errors, and the root logger as it was: a quantizer configures it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch and the quantizers
            yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers, root.level = handlers, level


def save(model: Any, path: Path) -> None:
    """Inline where protobuf allows, else with the weights beside it in `model.onnx.data`."""
    if model.ByteSize() < LARGEST_INLINE:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def quantize(
    path: Path,
    graph: GraphSpec,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> tuple[str, ...]:
    """Rewrite the file at `path`: fp16, static int8, or weight-only int8 and int4."""
    with quiet():
        if precision == "fp16":
            return _to_fp16(path)
        if precision == "int8" and calibration:
            return _static(path, calibration)
        return _weight_only(path, {"int8": 8, "int4": 4}[precision], group)


def _to_fp16(path: Path) -> tuple[str, ...]:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    blocked = _behind_angles(model)
    model = convert_float_to_float16(model, keep_io_types=True, node_block_list=blocked)
    _drop_round_trips(model)
    save(model, path)
    kept = (f"{len(blocked)} operators that compute angles stay fp32",) if blocked else ()
    return ("inputs and outputs stay fp32; a CPU without fp16 computes in fp32", *kept)


def _drop_round_trips(model: Any) -> None:
    """Between two operators that stay fp32 the converter casts to fp16 and back: read across."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    across: dict[str, str] = {}
    for name, node in casts.items():
        before = casts.get(node.input[0])
        if name.endswith("_cast_to_fp32") and before is not None:
            across[name] = before.input[0]
    written: set[str] = set()
    for node in list(model.graph.node):
        twice = node.op_type == "Cast" and node.output[0] in written  # once for each reader
        if node.output[0] in across or twice:
            model.graph.node.remove(node)
        written |= set(node.output)
        for index, name in enumerate(node.input):
            node.input[index] = across.get(name, name)


def _behind_angles(model: Any) -> list[str]:
    """Every node that Sin and Cos are computed from: in fp16, position 2,000 is off by a radian."""
    makers = {name: node for node in model.graph.node for name in node.output}
    open_nodes = [n for n in model.graph.node if n.op_type in ("Sin", "Cos")]
    found: dict[str, Any] = {}
    while open_nodes:
        node = open_nodes.pop()
        if node.name not in found:
            found[node.name] = node
            open_nodes += [makers[name] for name in node.input if name in makers]
    return list(found)


class _Reader:
    """Calibration data as ONNX Runtime's quantizer wants it, rewindable."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self._feeds)

    def get_next(self) -> Feed | None:
        return next(self._left, None)


def _static(path: Path, calibration: Sequence[Feed]) -> tuple[str, ...]:
    """QDQ with uint8 activations, int8 weights per channel; a ConvTranspose becomes a Conv where it
    can, else it has int8 weights alone. Ranges are means over the batches: one outlier in
    hundreds of images would cost all others their steps.

    int8 activations fuse less in ONNX Runtime and are computed wrongly by OpenVINO in places.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    model = _modern(onnx.load(path))
    shuffled = shuffle(model)
    del model.graph.value_info[:]  # the exporter's shapes of weights contradict the quantizer's
    count = _quantize_transposed(model)
    kept = _last_convolutions(model)
    save(model, path)
    if any(node.op_type in STATIC_OPS for node in model.graph.node):
        quantize_static(
            model,
            path,
            _Reader(calibration),
            op_types_to_quantize=[*STATIC_OPS, *CLAMPS],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            extra_options={"CalibMovingAverage": True},
        )
    note = f"{count} ConvTranspose weight-only: ONNX Runtime has no int8 kernel (not faster)"
    return (
        f"static int8 calibrated on {len(calibration)} batches",
        *([f"{shuffled} {SHUFFLED}"] if shuffled else []),
        *([f"last convolution stays fp32: {', '.join(kept)}"] if kept else []),
        *([note] if count else []),
    )


def _last_convolutions(model: Any) -> list[str]:
    """The convolutions that nothing with a weight comes behind; none where there are no others.

    ONNX Runtime's int8 kernel rounds their outputs as well, and those are the picture: 7.7 dB on
    a DCGAN, whose Tanh is steepest at the middle of the range, for a twelfth of the time.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [makers[output.name] for output in model.graph.output if output.name in makers]
    seen: set[str] = set()
    found = []
    while waiting:
        node = waiting.pop()
        if node.output[0] not in seen:
            seen.add(node.output[0])
            if node.op_type == "Conv":
                found.append(node.name)
            elif node.op_type not in (*STATIC_OPS, "ConvTranspose"):
                waiting += [makers[name] for name in node.input if name in makers]
    others = sum(node.op_type == "Conv" for node in model.graph.node) > len(found)
    return sorted(found) if others else []


def _modern(model: Any) -> Any:
    """At opset 13 or later, from which on a weight can have a scale a channel."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= OPSET_CHANNELS:
        return model
    try:
        return version_converter.convert_version(model, OPSET_CHANNELS)
    except Exception as error:  # the converter's errors share no base but Exception
        raise UnsupportedError(
            f"onnx: int8 wants opset {OPSET_CHANNELS}, found {opset}, which cannot be converted: "
            f"{error}",
            "export the file again at a newer opset, or stay at --precision fp32",
        ) from error


def _quantize_transposed(model: Any) -> int:
    """ConvTranspose weights as int8 with a scale an output channel; how many.

    Rounding their activations as well would cost accuracy and gain no time.
    """
    weights = {w.name: w for w in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "ConvTranspose" and n.input[1] in weights]
    for node in nodes:
        kernel = numpy_helper.to_array(weights[node.input[1]])  # (in, out / groups, ...)
        rest = tuple(axis for axis in range(kernel.ndim) if axis != 1)
        scale = np.maximum(np.abs(kernel).max(axis=rest), 1e-12).astype(np.float32) / 127
        wide = scale.reshape(-1, *[1] * (kernel.ndim - 2))
        names = [f"{node.output[0]}_{part}" for part in ("int8", "scale", "weight")]
        stored = np.rint(kernel / wide).astype(np.int8), scale
        model.graph.initializer.extend(map(numpy_helper.from_array, stored, names))
        back = onnx.helper.make_node("DequantizeLinear", names[:2], names[2:], axis=1)
        model.graph.node.insert(list(model.graph.node).index(node), back)
        node.input[1] = names[2]
    drop_unused(model)
    return len(nodes)


def _weight_only(path: Path, bits: int, wanted: int) -> tuple[str, ...]:
    """MatMulNBits for linear layers; int8 rows for embeddings; the output layer at least int8.

    The 8-bit kernel of ONNX Runtime is fast only when it also rounds activations to int8 group by
    group (accuracy level 4: 2.0 ms a token against 112 on a 50M decoder); the 4-bit one is fast
    with fp32 arithmetic (level 1).
    """
    model = onnx.load(path)
    fold_transposes(model)
    gemm_to_matmul(model)
    channels = _channels(model)
    size, notes = group_size(channels, wanted)
    last = {node.name for node in model.graph.node if _is_last(node, model)}
    model = _matmul_nbits(model, 8, size, [n for n in channels if bits == 8 or n in last])
    if bits == 4:
        model = _matmul_nbits(model, 4, size, [n for n in channels if n not in last])
    _quantize_rows(model)
    save(model, path)
    return (
        f"weight-only int{bits}, group size {size}",
        "8-bit MatMulNBits: ONNX Runtime rounds activations to int8 within each group",
        *notes,
    )


def _is_last(node: Any, model: Any) -> bool:
    return bool({output.name for output in model.graph.output} & set(node.output))


def _matmul_nbits(model: Any, bits: int, size: int, include: list[str]) -> Any:
    """The model with the named MatMul nodes as MatMulNBits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    if not include:
        return model
    level = 4 if bits == 8 else 1
    config = DefaultWeightOnlyQuantConfig(block_size=size, accuracy_level=level, bits=bits)
    # Its own list of nodes to include only adds to the default, which is all of them.
    others = [node.name for node in model.graph.node if node.name not in include]
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=others, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _quantize_rows(model: Any) -> None:
    """Embeddings as int8 rows with a scale each: Gather, Cast, Mul, which every engine reads."""
    weights = {w.name: w for w in model.graph.initializer}
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type != "Gather" or len(getattr(weights.get(node.input[0]), "dims", ())) != 2:
            continue
        table = numpy_helper.to_array(weights[node.input[0]])
        if table.dtype != np.float32:
            continue
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12) / 127
        names = [f"{node.output[0]}_{part}" for part in ("int8", "scale", "row", "float", "factor")]
        rows = np.rint(table / scale).astype(np.int8)
        model.graph.initializer.append(numpy_helper.from_array(rows, names[0]))
        model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), names[1]))
        make = onnx.helper.make_node
        new = [
            make("Gather", [names[0], node.input[1]], [names[2]], name=node.name),
            make("Cast", [names[2]], [names[3]], to=onnx.TensorProto.FLOAT),
            make("Gather", [names[1], node.input[1]], [names[4]], name=f"{node.name}_scale"),
            make("Mul", [names[3], names[4]], [node.output[0]]),
        ]
        model.graph.node.remove(node)
        for offset, item in enumerate(new):
            model.graph.node.insert(index + offset, item)
    drop_unused(model)


def fold_transposes(model: Any) -> None:
    """Turn Transpose(weight) into a weight: a tied head is quantized on its own."""
    weights = {w.name: w for w in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Transpose"]:
        if node.input[0] not in weights:
            continue
        axes = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        array = numpy_helper.to_array(weights[node.input[0]]).transpose(axes)
        model.graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(array), node.output[0])
        )
        model.graph.node.remove(node)
    drop_unused(model)


def gemm_to_matmul(model: Any, minus: Callable[[Any], bool] = lambda node: False) -> None:
    """Gemm(x, W, b) becomes MatMul + Add, which the weight-only quantizer knows.

    Where `minus` says so, -b is taken away instead: ONNX Runtime would make a Gemm of an Add.
    """
    weights = {w.name: w for w in model.graph.initializer}
    for index, node in reversed(list(enumerate(model.graph.node))):
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not plain or options.get("transA"):
            continue
        if node.input[1] not in weights:
            continue
        array = numpy_helper.to_array(weights[node.input[1]])
        name = f"{node.name or node.output[0]}_weight"
        array = array.T if options.get("transB") else array
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        product = f"{node.output[0]}_product" if len(node.input) > 2 else node.output[0]
        new = [onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=node.name)]
        if len(node.input) > 2:
            kind, bias = "Add", node.input[2]
            if minus(node) and bias in weights:
                kind, less = "Sub", -numpy_helper.to_array(weights[bias])
                bias = f"{node.name or node.output[0]}_minus_bias"
                model.graph.initializer.append(numpy_helper.from_array(less, bias))
            ends = [product, bias], [node.output[0]]
            new.append(onnx.helper.make_node(kind, *ends, name=f"{node.name}_bias"))
        model.graph.node.remove(node)
        for offset, item in enumerate(new):
            model.graph.node.insert(index + offset, item)
    drop_unused(model)


def _channels(model: Any) -> dict[str, int]:
    """Input channels of every MatMul with a weight, by node name."""
    shapes = {w.name: list(w.dims) for w in model.graph.initializer}
    return {
        node.name: shapes[node.input[1]][0]
        for node in model.graph.node
        if node.op_type == "MatMul" and len(shapes.get(node.input[1], ())) == 2
    }
