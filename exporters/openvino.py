"""OpenVINO: straight from torch, so that NNCF can compress it; text models stateful."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import _openvino_grid, example, group_size, is_text
from edgegen.exporters._openvino_upsample import fold_upsampling
from edgegen.spec import Array, Feed, GraphSpec

FILE = "openvino_model.xml"
KV_CACHES = ("int8",)

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


SCALE_A_ROW = ("int8",)  # as it always has


def write(module: Any, graph: GraphSpec, path: Path) -> tuple[str, ...]:
    """Convert a torch module or a foreign ONNX file, never compressed unasked."""
    notes: tuple[str, ...] = ()
    if isinstance(module, Path):
        model = ov.convert_model(module)
    else:
        model, notes = _from_torch(module, graph)
    if is_text(graph):
        _make_stateful(model, graph)
        notes = (*notes, "stateful: the key/value cache is kept by the engine")
    ov.save_model(model, path, compress_to_fp16=False)
    return notes


def _from_torch(module: Any, graph: GraphSpec) -> tuple[Any, tuple[str, ...]]:
    """Trace, then give every input and output the name and shape of the spec."""
    import torch

    args = tuple(torch.from_numpy(array) for array in example(graph).values())
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        model = _trace(module, args)
    _name_ports(model, graph)
    model.reshape(
        {
            port: ov.PartialShape([-1 if isinstance(n, str) else n for n in spec.shape])
            for port, spec in zip(model.inputs, graph.inputs, strict=True)
        }
    )
    frozen = dict.fromkeys(
        f"{warning.filename}:{warning.lineno}"
        for warning in said
        if issubclass(warning.category, torch.jit.TracerWarning)
        and "site-packages" not in warning.filename  # libraries branch on shapes, which stay free
    )
    return model, tuple(f"tracing may have frozen a choice made at {place}" for place in frozen)


def _trace(module: Any, args: tuple[Any, ...]) -> Any:
    try:
        return ov.convert_model(module, example_input=args)
    except ov.frontend.OpConversionFailure as error:
        raise RuntimeError(f"{error}\n{_line_of(module, args, str(error))}") from error


def _line_of(module: Any, args: tuple[Any, ...], text: str) -> str:
    """The line of the first operator in `text`, as torch's tracer writes it: OpenVINO has none."""
    import torch

    operator = re.search(r"aten::\w+", text)
    graph = torch.jit.trace(module, args, check_trace=False).inlined_graph
    nodes = graph.findAllNodes(operator[0], recurse=True) if operator else ()
    return next((str(node.sourceRange()) for node in nodes), "")


def _name_ports(model: Any, graph: GraphSpec) -> None:
    for ports, specs in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
        if len(ports) != len(specs):
            raise UnsupportedError(
                f"openvino: graph {graph.name} has {len(ports)} ports, the spec {len(specs)}: "
                "an unused input or a repeated output",
                "drop that input or output from the module",
            )
        for port, spec in zip(ports, specs, strict=True):
            port.get_tensor().set_names({spec.name})


def _make_stateful(model: Any, graph: GraphSpec) -> None:
    """Move the cache into variables, in the form whose attention the CPU plug-in fuses.

    A `beam_idx` Gather stands in front of every past: without it nothing is fused. The empty
    start value takes its batch from `input_ids`: without it a batch above 1 fails.
    """
    from openvino._offline_transformations import apply_make_stateful_transformation

    pasts = [s.name for s in graph.inputs if s.name.startswith("past_key_values.")]
    beams = ops.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beams])
    first = ops.constant(0, dtype=np.int64)
    for name in pasts:
        port = model.input(name)
        readers = list(port.get_target_inputs())
        chosen = ops.gather(port, beams, first)
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    presents = [name.replace("past_key_values", "present") for name in pasts]
    apply_make_stateful_transformation(model, dict(zip(pasts, presents, strict=True)))
    _start_empty(model)


def _start_empty(model: Any) -> None:
    """The start value of each variable: no positions, for the batch of `input_ids`."""
    shape = ops.shape_of(model.input("input_ids"), output_type="i64")
    first = ops.constant(0, dtype=np.int64)
    batch = ops.gather(shape, ops.constant([0], dtype=np.int64), first)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [d.get_length() if d.is_static else 0 for d in node.get_output_partial_shape(0)]
            rest = [ops.constant(np.array([size], np.int64)) for size in sizes[1:]]
            zero = ops.constant(0.0, dtype=np.float32)
            node.set_arguments([ops.broadcast(zero, ops.concat([batch, *rest], 0))])
    model.validate_nodes_and_infer_types()


def fuse(path: Path) -> tuple[str, ...]:
    """Nearest upsampling and the convolution behind it as one transposed convolution."""
    model = _read(path)
    count = fold_upsampling(model)
    if not count:
        return ()
    ov.save_model(model, path, compress_to_fp16=False)
    return (f"{count} upsamplings folded into the convolution behind them (exact)",)


def quantize(
    path: Path,
    graph: GraphSpec,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> tuple[str, ...]:
    """Rewrite the file at `path`: fp16 or bf16, static int8, or weight-only int8 and int4."""
    model = _read(path)
    if precision == "fp16":
        return _to_fp16(model, path)
    if precision == "bf16":
        return _to_bf16(model, path)
    with _nncf() as nncf:
        model, notes = _compress(nncf, model, precision, calibration, group)
    ov.save_model(model, path, compress_to_fp16=False)
    return notes


def dress(path: Path, folded: Any) -> tuple[tuple[str, ...], bool]:
    """Rewrite the file at `path` with the integers of `folded`; notes, and whether it is exact.

    Raises:
        UnsupportedError: a layer with a rounded input is not in the graph.
    """
    model = _read(path)
    found = _openvino_grid.dress(model, folded)
    ov.save_model(model, path, compress_to_fp16=False)
    return found


def _compress(
    nncf: Any, model: Any, precision: str, calibration: Sequence[Feed], group: int
) -> tuple[Any, tuple[str, ...]]:
    if precision == "int8" and calibration:
        data = nncf.Dataset([dict(feed) for feed in calibration])
        model = nncf.quantize(model, data, subset_size=len(calibration))
        return model, (f"static int8 calibrated on {len(calibration)} batches",)
    mode = nncf.CompressWeightsMode
    if precision == "int8":
        model = nncf.compress_weights(model, mode=mode.INT8_ASYM)
        return model, ("weight-only int8 per channel, arithmetic in fp32",)
    size, short = group_size(_channels(model), group)
    # Embeddings and the output layer become int8: NNCF's default, and what the ledger will say.
    model = nncf.compress_weights(model, mode=mode.INT4_ASYM, group_size=size, ratio=1.0)
    return model, (f"weight-only int4, group size {size}, arithmetic in fp32", *short)


def _to_fp16(model: Any, path: Path) -> tuple[str, ...]:
    """Weights in fp16, but not what Sin and Cos are computed from: in fp16, position 2,000 is off
    by a radian. OpenVINO compresses every constant, so those are put back."""
    exact = {c.get_friendly_name(): c.data.copy() for c in _behind_angles(model)}
    ov.save_model(model, path, compress_to_fp16=True)
    note = "weights in fp16; a CPU computes in fp32"
    if not exact:
        return (note,)
    model = _read(path)
    for node in model.get_ops():
        if node.get_type_name() == "Convert" and node.get_friendly_name() in exact:
            constant = ops.constant(exact[node.get_friendly_name()])
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(constant.output(0))
    ov.save_model(model, path, compress_to_fp16=False)
    return note, f"{len(exact)} constants behind angles stay fp32"


def _to_bf16(model: Any, path: Path) -> tuple[str, ...]:
    """Weights in bf16, but not what Sin and Cos are computed from; the plug-in keeps those two in
    fp32 as well, and computes everything else in bf16 when it is opened so."""
    angles = {node.get_friendly_name() for node in _behind_angles(model)}
    count = 0
    for node in list(model.get_ops()):
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        if len(node.get_output_shape(0)) < 2 or node.get_friendly_name() in angles:
            continue
        readers = list(node.output(0).get_target_inputs())
        half = ops.constant(_nearest_bf16(np.array(node.data)), dtype=ov.Type.bf16)
        half.set_friendly_name(node.get_friendly_name())
        value = ops.convert(half, ov.Type.f32)
        for reader in readers:
            reader.replace_source_output(value.output(0))
        count += 1
    ov.save_model(model, path, compress_to_fp16=False)
    return (f"{count} weights in bf16, computed in bf16: on CPUs that have it, and no others",)


def _nearest_bf16(values: Array) -> Array:
    """Half to even; OpenVINO itself would cut off."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _behind_angles(model: Any) -> list[Any]:
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


def finish(folder: Path) -> None:
    """Beside a text graph, the tokenizer as OpenVINO graphs: what openvino_genai looks for."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from openvino_tokenizers import convert_tokenizer
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        pair = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip(("tokenizer", "detokenizer"), pair, strict=True):
        ov.save_model(model, folder / f"openvino_{name}.xml", compress_to_fp16=False)


def _read(path: Path) -> Any:
    """The model with its weights in memory: a mapped file cannot be written over."""
    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})
    return core.read_model(path)


@contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF, without its progress bars and news."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import nncf

        nncf.set_log_level(logging.ERROR)
        yield nncf


def _channels(model: Any) -> dict[str, int]:
    """Input channels of every MatMul with a weight, by name."""
    found = {}
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            constant = _constant(node.input_value(1))
            if constant is not None and len(constant.shape) == 2:
                transposed = node.get_attributes()["transpose_b"]
                found[node.get_friendly_name()] = constant.shape[1 if transposed else 0]
    return found


def ledger(path: Path) -> tuple[Layer, ...]:
    """Every layer with a weight of two or more dimensions, as it stands in the file."""
    return tuple(_layers(_read(path)))


def _layers(model: Any) -> Iterator[Layer]:
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in WEIGHTED:
            continue
        place = node.input_value(0 if kind == "Gather" else 1)
        weight = _constant(place)
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


def _constant(output: Any) -> Any:
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
