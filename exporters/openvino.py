"""OpenVINO: straight from torch, so that NNCF can compress it; text models stateful."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import _openvino_grid, example, is_text
from edgegen.exporters._openvino_half import to_bf16, to_fp16
from edgegen.exporters._openvino_ledger import layers, read
from edgegen.exporters._openvino_nncf import compress, nncf_quietly
from edgegen.exporters._openvino_upsample import fold_upsampling
from edgegen.spec import Feed, GraphSpec

FILE = "openvino_model.xml"
KV_CACHES = ("int8",)


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
    model = read(path)
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
    model = read(path)
    if precision == "fp16":
        return to_fp16(model, path)
    if precision == "bf16":
        return to_bf16(model, path)
    with nncf_quietly() as nncf:
        model, notes = compress(nncf, model, precision, calibration, group)
    ov.save_model(model, path, compress_to_fp16=False)
    return notes


def dress(path: Path, folded: Any) -> tuple[tuple[str, ...], bool]:
    """Rewrite the file at `path` with the integers of `folded`; notes, and whether it is exact.

    Raises:
        UnsupportedError: a layer with a rounded input is not in the graph.
    """
    model = read(path)
    found = _openvino_grid.dress(model, folded)
    ov.save_model(model, path, compress_to_fp16=False)
    return found


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


def ledger(path: Path) -> tuple[Layer, ...]:
    """Every layer with a weight of two or more dimensions, as it stands in the file."""
    return tuple(layers(read(path)))
