"""An ONNX file that something else wrote: it is checked and copied, not converted.

Weights may lie in initializers, in Constant nodes, in the branches of an If, or in other files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
from onnx import checker, shape_inference
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from edgegen import onnxfile
from edgegen.bundle import OneShot
from edgegen.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from edgegen.rooms import nearest
from edgegen.sources import Model, Part
from edgegen.sources._inputs import parse_inputs
from edgegen.spec import GraphSpec, TensorSpec

OLDEST, NEWEST = 9, 25
INTEGERS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
ELEMENTS = ("FLOAT", "FLOAT16", "DOUBLE", "BOOL", *INTEGERS)


def read(
    source: str, inputs: Sequence[str] = (), pixels: tuple[float, float] | None = None
) -> Model:
    """The file as one graph that is run once; with `pixels` its picture-shaped output is an image.

    `inputs` give the values an input may have, and limits of free dimensions; not its shape.

    Raises:
        FormatError: truncated, not ONNX, or not valid.
        NotFoundError: a file its weights lie in is missing.
        UnsupportedError: an opset, an input or an output that engines here cannot take.
        UsageError: `inputs` that are not the file's; `pixels`, but no one output is an image.
    """
    path = Path(source)
    model = onnxfile.load(path)
    opset = onnxfile.opset(model)
    if not OLDEST <= opset <= NEWEST:
        raise UnsupportedError(
            f"{path}: opset {opset}, wanted {OLDEST} to {NEWEST}",
            "convert it: onnx.version_converter.convert_version(model, 20)",
        )
    for tensor in _tensors(model.graph):
        _check_external(tensor, path)
    graph = _bounded(_graph(model, path), inputs, path)
    _check(path)
    image = _image(graph, pixels, path)
    loop = OneShot("model", image=image, pixels=pixels or (0.0, 1.0))
    config = {"source": path.name, "opset": opset, "producer": model.producer_name}
    entry = {"kind": "source", "format": "onnx", "source": path.name, "opset": opset}
    count = onnxfile.parameters(model)
    return Model(path.stem, "onnx", config, loop, {"model": Part(path, graph)}, {}, (entry,), count)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every stored tensor, those of branches and loop bodies too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _check_external(tensor: Any, path: Path) -> None:
    """Is the file there that holds this tensor, beside the model and long enough?"""
    if not uses_external_data(tensor):
        return
    info = ExternalDataInfo(tensor)
    file = path.parent / info.location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise FormatError(
            f"{path}: {tensor.name} lies in {info.location}, outside the model's folder",
            "save the model again, with its weights beside it",
        )
    if not file.is_file():
        raise NotFoundError(
            f"{file}: missing: {path.name} keeps its weights there",
            f"copy {info.location} beside {path.name}",
        )
    wanted = (info.offset or 0) + (info.length or 0)
    if file.stat().st_size < wanted:
        raise FormatError(
            f"{file}: truncated: {file.stat().st_size} bytes, {tensor.name} ends at {wanted}",
            "copy it again",
        )


def _check(path: Path) -> None:
    """By path, so that weights in other files are not read into memory."""
    try:
        checker.check_model(str(path))
    except checker.ValidationError as error:
        if "Field 'shape' of 'type' is required" in str(error):
            return  # engines take an output without a shape, and `_graph` has inferred it
        text = str(error).strip().splitlines()
        raise FormatError(
            f"{path}: not a valid ONNX model: {text[0] if text else error}", "export it again"
        ) from error


def _graph(model: Any, path: Path) -> GraphSpec:
    """The spec, with a shape inferred for outputs that come without one."""
    for value in model.graph.input:
        _check_tensor(value, "input", path)
    if any(not _has_shape(value) for value in model.graph.output):
        model = shape_inference.infer_shapes(model)
    for value in model.graph.output:
        _check_tensor(value, "output", path)
    inputs, outputs = onnxfile.inputs(model), onnxfile.outputs(model)
    if not outputs:
        raise FormatError(f"{path}: the graph has no output", "export it again")
    known = {n.replace(" ", "") for spec in inputs for n in spec.shape if isinstance(n, str)}
    named = tuple(_named(spec, known, "") for spec in inputs)
    return GraphSpec("model", named, tuple(_named(o, known, f"{o.name}_") for o in outputs))


def _bounded(graph: GraphSpec, texts: Sequence[str], path: Path) -> GraphSpec:
    """The spec with the ranges and limits of `--input`: a file says neither."""
    given, limits = parse_inputs(texts)
    mine = {spec.name: spec for spec in graph.inputs}
    for spec in given:
        if spec.name not in mine:
            raise UsageError(f"{path}: no input {spec.name!r}", nearest(spec.name, mine))
        found = mine[spec.name]
        if (spec.dtype, spec.shape) != (found.dtype, found.shape):
            wanted = f"{spec.name}:{found.dtype}[{','.join(map(str, found.shape))}]@LOW..HIGH"
            raise UsageError(
                f"{path}: --input {spec.name} is of another type or shape than the file's input",
                f"write it as the file has it: --input '{wanted}'",
            )
        mine[spec.name] = spec
    return msgspec.structs.replace(graph, inputs=tuple(mine.values()), limits=limits)


def _has_shape(value: Any) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _check_tensor(value: Any, what: str, path: Path) -> None:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "of no type"
        raise UnsupportedError(f"{path}: {what} {value.name} is no tensor: {kind}", "cut it off")
    element = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if element not in ELEMENTS:
        raise UnsupportedError(
            f"{path}: {what} {value.name} is of type {element}",
            f"supported: {', '.join(ELEMENTS)}",
        )
    if not _has_shape(value):
        raise UnsupportedError(
            f"{path}: the number of dimensions of {what} {value.name} is unknown",
            "run: python -m onnxruntime.tools.symbolic_shape_infer --input IN --output OUT",
        )


def _named(spec: TensorSpec, known: set[str], prefix: str) -> TensorSpec:
    """The spec with a name for every free dimension, and integers bounded to 0 and 1.

    Without a name of its own it is dim0, dim1, ... by its axis, so that unnamed batches agree.
    A sum of others ("past+seq") keeps its meaning; any other sum is a name like all the rest.
    """
    shape: list[int | str] = []
    for axis, dim in enumerate(spec.shape):
        name = dim.replace(" ", "") if isinstance(dim, str) else ""
        if isinstance(dim, int) and dim > 0:
            shape.append(dim)
        elif name in ("", "?"):  # older exporters write 0 or -1 for "any"
            shape.append(f"{prefix}dim{axis}")
        else:
            is_sum = set(name.split("+")) <= known
            shape.append(name if is_sum else name.replace("+", "_plus_"))
    bounds = (None, None) if spec.dtype.startswith("float") else (0, 1)
    return TensorSpec(spec.name, spec.dtype, tuple(shape), *bounds)


def _image(graph: GraphSpec, pixels: tuple[float, float] | None, path: Path) -> str:
    """The one output shaped like a picture; only a caller who knows its range makes it an image."""
    if pixels is None:
        return ""
    found = [o.name for o in graph.outputs if len(o.shape) == 4 and o.shape[1] in (1, 3)]
    if len(found) != 1:
        raise UsageError(
            f"{path}: --pixels, but {len(found)} outputs are grey or RGB pictures, wanted 1",
            "leave --pixels out",
        )
    return found[0]
