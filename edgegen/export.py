"""A model in, a verified bundle out; or an error, and no bundle under its name."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen import __version__, records, rooms
from edgegen.bundle import (
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    Artifact,
    Bundle,
    Case,
    Drift,
    Manifest,
    Text,
    open_bundle,
    sums,
    write_golden,
)
from edgegen.devices import meters
from edgegen.errors import NotFoundError, ParityError, UsageError
from edgegen.exporters import PRECISIONS, export_graph, is_text
from edgegen.exporters._fixed import fix
from edgegen.parity import cases, keep
from edgegen.runtimes import deploy
from edgegen.runtimes.loops.oneshot import draw
from edgegen.sources import Model, Part, open_source
from edgegen.spec import Feed, GraphSpec
from edgegen.verify import check_case

# Which engine proves a format at export.
ENGINE_OF = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
CALIBRATION_BATCHES, CALIBRATION_BATCH = 32, 8
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy", "tokenizers")

# Real text for the quality figure: random tokens say little about a language model.
SAMPLE = (
    "The sea was calm that morning, and the fishermen had already left the harbour. Anna sat by "
    "the window with a cup of tea and counted the boats as they became small against the light."
)
PROMPT_TOKENS = 32


def silent(what: str, done: int, total: int) -> None:
    """A `report` that says nothing."""


def export(
    source: str | Model,
    output: Path | str,
    *,
    formats: Sequence[str] = ("onnx", "openvino"),
    precision: str = "fp32",
    inputs: Sequence[str] = (),
    pixels: tuple[float, float] | None = None,
    static: Mapping[str, int] | None = None,
    data: str | None = None,
    group_size: int = 0,
    report: Any = silent,
) -> Bundle:
    """Export `source` to every one of `formats`, prove each on its engine, write the bundle.

    `static` fixes free dimensions. `data` names calibration images for int8 of conv nets, as for
    training. `group_size` 0 chooses from the channels.

    Raises:
        UsageError: an unknown precision, a dimension or group size that cannot be.
        UnsupportedError: the module cannot be exported.
        ParityError: an engine does not compute the model within tolerance; nothing is written.
    """
    _check_usage(formats, precision, group_size)
    meters.reset_peak()
    report("read", 0, 1)
    model = source if isinstance(source, Model) else open_source(source, inputs, pixels)
    if static:
        parts = fix(model.parts, static)
        model = model._replace(parts={name: Part(*part) for name, part in parts.items()})
    calibration = _calibration(model, precision, data)
    with records.whole(output) as part:
        part.mkdir()
        for name, content in model.files.items():
            (part / name).write_bytes(content)
        artifacts = tuple(
            _artifacts(model, part, formats, precision, calibration, group_size, report)
        )
        golden = cases(dict(model.parts), model.loop, _prompt(model))
        write_golden([case for case in golden if keep(case)], part / GOLDEN)
        manifest = _manifest(model, Path(output).name, precision, artifacts)
        rows = _prove(part, manifest, golden, report)
        _write_manifest(part, manifest, rows)
    return open_bundle(output)


def _check_usage(formats: Sequence[str], precision: str, group_size: int) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"no precision {precision!r}", rooms.nearest(precision, PRECISIONS))
    if not formats:
        raise UsageError("no format to export to", "pass --to onnx,openvino")
    have = rooms.names("edgegen.exporters")
    for name in formats:
        if name not in have:
            raise NotFoundError(f"no format {name!r}", rooms.nearest(name, have))
    if group_size and (group_size < 16 or group_size & (group_size - 1)):
        raise UsageError(f"group size {group_size}", "take a power of two from 16: 16, 32, 64, 128")


def _artifacts(
    model: Model,
    folder: Path,
    formats: Sequence[str],
    precision: str,
    calibration: Mapping[str, tuple[Sequence[Feed], str]],
    group: int,
    report: Any,
) -> Iterator[Artifact]:
    total = len(formats) * len(model.parts)
    done = 0
    for kind in formats:
        for name, (module, graph) in model.parts.items():
            report(f"export {name} to {kind} {precision}", done, total)
            feeds, note = calibration.get(name, ((), ""))
            artifact = export_graph(
                module, graph, folder, kind, precision=precision, calibration=feeds, group=group
            )
            notes = (*artifact.notes, *([note] if note else []))
            yield msgspec.structs.replace(artifact, notes=notes)
            done += 1
            report(f"export {name} to {kind} {precision}", done, total)
        exporter = rooms.load("edgegen.exporters", kind)
        if hasattr(exporter, "finish") and "tokenizer.json" in model.files:
            exporter.finish(folder)


def _prompt(model: Model) -> tuple[int, ...]:
    """Token ids of real text, where the model has a tokenizer."""
    if not isinstance(model.loop, Text) or "tokenizer.json" not in model.files:
        return ()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.files["tokenizer.json"].decode())
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    return tuple(ids[: min(PROMPT_TOKENS, model.loop.max_positions)])


def _calibration(
    model: Model, precision: str, data: str | None
) -> dict[str, tuple[Sequence[Feed], str]]:
    """Calibration batches and a note on where they come from, for every graph with convolutions."""
    if precision != "int8":
        return {}
    data = data or next((h["data"] for h in reversed(model.history) if "data" in h), None)
    found: dict[str, tuple[Sequence[Feed], str]] = {}
    for name, (module, graph) in model.parts.items():
        if not is_text(graph) and _has_convolutions(module):
            found[name] = _batches(graph, data)
    return found


def _batches(graph: GraphSpec, data: str | None) -> tuple[list[Feed], str]:
    """Images of `data` where an input has their shape, else draws in the bounds of the spec."""
    rng = np.random.default_rng(2)
    free = {n for s in graph.inputs for n in s.shape if isinstance(n, str)}
    sizes = dict.fromkeys(free, 8) | {"batch": CALIBRATION_BATCH}
    sizes = {n: min(size, graph.limits.get(n, size)) for n, size in sizes.items()}
    images = _images_for(graph, data)
    feeds: list[Feed] = []
    for index in range(CALIBRATION_BATCHES):
        given: dict[str, Any] = {}
        if images is not None:
            rows = np.arange(CALIBRATION_BATCH) + index * CALIBRATION_BATCH
            given[graph.inputs[0].name] = images[rows % len(images)]
        feeds.append(draw(graph, sizes, rng, given))
    if images is not None:
        return feeds, f"calibrated on {data}"
    return feeds, "calibrated on inputs drawn from their range"


def _images_for(graph: GraphSpec, data: str | None) -> Any:
    shape = graph.inputs[0].shape
    if data is None or data.startswith("text:") or len(shape) != 4 or isinstance(shape[0], int):
        return None
    from edgegen.data import images

    found = images(data)
    return found if found.shape[1:] == shape[1:] else None


def _has_convolutions(module: Any) -> bool:
    if isinstance(module, Path):
        import onnx

        nodes = onnx.load(module, load_external_data=False).graph.node
        return any(node.op_type in ("Conv", "ConvTranspose") for node in nodes)
    import torch

    return any(isinstance(m, torch.nn.modules.conv._ConvNd) for m in module.modules())


def _prove(folder: Path, manifest: Manifest, golden: list[Case], report: Any) -> list[Drift]:
    """Every case on every engine of the bundle; raises on the first engine that is off."""
    _write_manifest(folder, manifest, [])
    rows: list[Drift] = []
    kinds = dict.fromkeys(artifact.format for artifact in manifest.artifacts)
    for kind in kinds:
        what = f"verify on {ENGINE_OF[kind]}"
        report(what, 0, len(golden))
        deployment = deploy(folder, ENGINE_OF[kind])
        try:
            for done, case in enumerate(golden, start=1):
                rows += check_case(deployment, case)
                report(what, done, len(golden))
        finally:
            deployment.close()
    raise_unless_ok(rows)
    return rows


def raise_unless_ok(rows: Sequence[Drift]) -> None:
    """Raise `ParityError`, naming the outputs that are off, unless every row is ok."""
    bad = [row for row in rows if not row.ok]
    if bad:
        worst = "\n".join(
            f"  {r.engine} {r.graph} {r.case} {r.output}: max abs error {r.max_abs_error:.3g}, "
            f"SQNR {r.sqnr_db:.1f} dB, wanted {r.rule}"
            for r in bad[:8]
        )
        raise ParityError(
            f"{len(bad)} of {len(rows)} outputs are not what the model computes:\n{worst}",
            "export at a higher precision, or give calibration data with --data",
        )


def _manifest(model: Model, name: str, precision: str, artifacts: tuple[Artifact, ...]) -> Manifest:
    file = any(isinstance(part.module, Path) for part in model.parts.values())
    tools = {"python": platform.python_version(), "edgegen": __version__}
    return Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        family=model.family,
        config=model.config,
        loop=model.loop,
        precision=precision,
        parameters=model.parameters,
        graphs=tuple(part.spec for part in model.parts.values()),
        artifacts=artifacts,
        files={},
        reference="onnxruntime on the source file, fp32, unoptimised" if file else "torch fp32",
        history=model.history,
        tools=tools | {n: metadata.version(n) for n in TOOLS if _installed(n)},
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _write_manifest(folder: Path, manifest: Manifest, rows: Sequence[Drift]) -> None:
    """The manifest with the hashes of all other files, the parity rows and the peak memory."""
    peak = meters.peak_rss_mb()
    full = msgspec.structs.replace(
        manifest, files=sums(folder), drifts=tuple(rows), export_peak_rss_mb=peak
    )
    (folder / MANIFEST).write_bytes(records.encode(full))
