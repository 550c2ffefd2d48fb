"""What is in a bundle, an ONNX file or a checkpoint: graphs, shapes, MACs, sizes, the ledger.

Works from the manifest where the libraries that read more are not installed, and says what is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from msgspec import Struct

from edgegen import macs, onnxfile, rooms
from edgegen.bundle import MANIFEST, Artifact, Bundle, Drift, Layer, open_bundle
from edgegen.errors import FormatError, MissingExtraError, NotFoundError
from edgegen.rooms import nearest
from edgegen.spec import GraphSpec, Scheme

BYTES_OF = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}


class GraphFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One graph in one format; None and empty where `notes` say why it is not known.

    `macs` are for `sizes` of the free dimensions. `size_mb` is the file with its weights.
    """

    graph: str
    format: str
    path: str
    size_mb: float
    opset: int | None = None
    parameters: int | None = None
    macs: int | None = None
    operators: dict[str, int] = {}
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()


class Inspection(Struct, frozen=True, forbid_unknown_fields=True):
    """What was found. `weights_mb` is what the parameters take at each precision, without scales.

    `sizes` are those of the free dimensions at which MACs were counted.
    """

    kind: str
    name: str
    family: str
    precision: str
    parameters: int
    weights_mb: dict[str, float]
    sizes: dict[str, int]
    graphs: tuple[GraphSpec, ...]
    files: tuple[GraphFile, ...]
    config: dict[str, Any] = {}
    drifts: tuple[Drift, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    tools: dict[str, str] = {}


def inspect(path: Path | str, sizes: Mapping[str, int] | None = None) -> Inspection:
    """Look into the bundle, `.onnx` file or checkpoint at `path`; `sizes` of dimensions for MACs.

    Raises:
        NotFoundError: none of the three is there.
        FormatError: a broken file, or one of a newer version.
        MissingExtraError: an ONNX file needs onnx, a checkpoint torch.
    """
    path, sizes = Path(path), dict(sizes or {})
    if path.is_file() and path.suffix == ".onnx":
        return _onnx(path, sizes)
    if (path / MANIFEST).is_file():
        return _bundle(open_bundle(path), sizes)
    if (path / "config.json").is_file():
        return _checkpoint(path, sizes)
    raise NotFoundError(
        f"{path}: neither a bundle ({MANIFEST}), a checkpoint (config.json) nor an ONNX file",
        "give the folder of a bundle or checkpoint, or a file ending in .onnx",
    )


def weights_mb(parameters: int) -> dict[str, float]:
    """MB that many weights take at each precision."""
    return {precision: parameters * size / 1e6 for precision, size in BYTES_OF.items()}


def _all_sizes(graphs: tuple[GraphSpec, ...], sizes: dict[str, int]) -> dict[str, int]:
    """A size for every free dimension but sums of others: 1 where none is given.

    Raises:
        NotFoundError: a size for a dimension that no graph has.
    """
    tensors = [t for g in graphs for t in (*g.inputs, *g.outputs)]
    free = dict.fromkeys(dim for t in tensors for dim in t.shape if isinstance(dim, str))
    for name in sizes:
        if name not in free:
            raise NotFoundError(f"no free dimension {name!r}", nearest(name, free))
    return {dim: macs.size_of(dim, sizes) for dim in free if "+" not in dim}


def _bundle(bundle: Bundle, sizes: dict[str, int]) -> Inspection:
    manifest = bundle.manifest
    sizes = _all_sizes(manifest.graphs, sizes)
    return Inspection(
        kind="bundle",
        name=manifest.name,
        family=manifest.family,
        precision=manifest.precision,
        parameters=manifest.parameters,
        weights_mb=weights_mb(manifest.parameters),
        sizes=sizes,
        graphs=manifest.graphs,
        files=tuple(_file(bundle, artifact, sizes) for artifact in manifest.artifacts),
        config=manifest.config,
        drifts=manifest.drifts,
        history=manifest.history,
        tools=manifest.tools,
    )


def _file(bundle: Bundle, artifact: Artifact, sizes: dict[str, int]) -> GraphFile:
    path = bundle.path / artifact.path
    if not path.is_file():
        raise FormatError(f"{path}: missing from the bundle", "export or copy it again")
    found = {"onnx": _onnx_facts, "openvino": _openvino_facts}.get(artifact.format, _no_facts)
    facts = found(path, sizes)
    facts["notes"] = (*artifact.notes, *facts.get("notes", ()))
    return GraphFile(
        artifact.graph,
        artifact.format,
        artifact.path,
        _size_mb(path),
        layers=artifact.ledger,
        **facts,
    )


def _size_mb(path: Path) -> float:
    """A graph with the weights beside it."""
    beside = (path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in beside if file.is_file()) / 1e6


def _onnx_facts(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    try:
        model = onnxfile.load(path)
    except MissingExtraError as error:
        return {"notes": (f"operators and MACs: {error}; {error.hint}",)}
    facts = {
        "opset": onnxfile.opset(model),
        "parameters": onnxfile.parameters(model),
        "operators": onnxfile.operators(model),
    }
    count, notes = macs.count(model, sizes)
    return {**facts, "macs": count, "notes": notes}


def _openvino_facts(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Operators from the XML, which is all that can be had without OpenVINO."""
    try:
        layers = ElementTree.parse(path).getroot().iter("layer")
        kinds = Counter(layer.get("type", "?") for layer in layers)
    except ElementTree.ParseError as error:
        raise FormatError(f"{path}: not a whole OpenVINO file: {error}", "export again") from error
    return {
        "operators": dict(kinds.most_common()),
        "notes": ("MACs are counted in ONNX files only: export with --to onnx to see them",),
    }


def _no_facts(path: Path, sizes: dict[str, int]) -> dict[str, Any]:
    return {"notes": ("operators and MACs are read from onnx and openvino files only",)}


def _onnx(path: Path, sizes: dict[str, int]) -> Inspection:
    model = onnxfile.load(path)
    graph = GraphSpec(path.stem, onnxfile.inputs(model), onnxfile.outputs(model))
    sizes = _all_sizes((graph,), sizes)
    file = GraphFile(graph.name, "onnx", str(path), _size_mb(path), **_onnx_facts(path, sizes))
    return Inspection(
        kind="onnx",
        name=path.stem,
        family="onnx",
        precision="",
        parameters=file.parameters or 0,
        weights_mb=weights_mb(file.parameters or 0),
        sizes=sizes,
        graphs=(graph,),
        files=(file,),
    )


def _checkpoint(path: Path, sizes: dict[str, int]) -> Inspection:
    """Builds the model: a checkpoint holds weights and a configuration, and no graph."""
    try:
        from edgegen import checkpoint
        from edgegen.exporters._grid import precision_name
        from edgegen.models import _macs
        from edgegen.quantized import count
    except ModuleNotFoundError as error:
        raise rooms.missing(error, "reading a checkpoint") from error

    found = checkpoint.load(path)
    parts = checkpoint.graphs(found.spec, found.net)
    names = {id(module): name for name, module in found.net.named_modules()}
    schemes = {i: found.spec.layers[name] for i, name in names.items() if name in found.spec.layers}
    graphs = tuple(graph for _, graph in parts.values())
    sizes, size_mb = _all_sizes(graphs, sizes), (path / checkpoint.WEIGHTS).stat().st_size / 1e6
    parameters = count(found.net)
    files = tuple(
        GraphFile(
            graph.name,
            "checkpoint",
            checkpoint.WEIGHTS,
            size_mb,
            parameters=count(module),
            macs=_macs.count(module, graph, sizes),
            layers=_layers(module, schemes),
        )
        for module, graph in parts.values()
    )
    return Inspection(
        kind="checkpoint",
        name=path.name,
        family=found.spec.family,
        precision=precision_name(list(schemes.values())) if schemes else "fp32",
        parameters=parameters,
        weights_mb=weights_mb(parameters),
        sizes=sizes,
        graphs=graphs,
        files=files,
        config=found.spec.config,
        history=found.history,
    )


def _layers(module: Any, schemes: Mapping[int, Scheme]) -> tuple[Layer, ...]:
    """Every module with weights of its own; `schemes` of the quantized ones by `id`."""
    inside = {id(part) for m in module.modules() if id(m) in schemes for part in m.modules()}
    inside -= set(schemes)  # the quantizers of a layer are not layers
    return tuple(
        _layer(name, m, schemes.get(id(m)))
        for name, m in module.named_modules()
        if id(m) not in inside and (id(m) in schemes or list(m.parameters(recurse=False)))
    )


def _layer(name: str, module: Any, scheme: Scheme | None) -> Layer:
    """The kind of a parametrized module is that of the class it was."""
    from edgegen.exporters._grid import precision_name

    if scheme is None:
        count = sum(weight.numel() for weight in module.parameters(recurse=False))
        return Layer(name, type(module).__name__, "fp32", count)
    kind = type(module).__name__.removeprefix("Parametrized")
    group = scheme.group_size if scheme.group_size > 0 else None
    note = "codebook" if scheme.codebook else ""
    return Layer(name, kind, precision_name([scheme]), int(module.weight.numel()), group, note)
