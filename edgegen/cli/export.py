"""`edgegen export`: a model in, a verified bundle out."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.bundle import Artifact, Bundle

FORMAT_OF = {"onnxruntime": "onnx"}  # other engines and their formats go by one name


def export(
    source: str = typer.Argument(
        ..., help="Checkpoint, Hugging Face folder, FILE.gguf, FILE.onnx or FILE.py:CALLABLE."
    ),
    output: str = typer.Option(..., "-o", "--output", help="Folder of the bundle."),
    to: str = typer.Option(
        "onnx,openvino", "--to", help="Formats: onnx, openvino, torch; for text also native, fused."
    ),
    precision: str | None = typer.Option(
        None,
        help="fp32, fp16, bf16, int8, int4; several: fp32,int8. A quantized one has its own.",
    ),
    input: list[str] = typer.Option(
        [],
        "--input",
        help="For a module: 'NAME:DTYPE[batch,3,64,64]', 'ids:int64[batch,seq<=512]'.",
    ),
    pixels: str = typer.Option("", help="For a module: range of its image output, as '-1,1'."),
    adapter: list[str] = typer.Option(
        [], "--adapter", help="NAME=FOLDER of an adapter to switch to at run time. Repeatable."
    ),
    merge: bool = typer.Option(
        False, "--merge", help="Add a checkpoint's adapters, or --adapter's, to the weights."
    ),
    static: str = typer.Option("", help="Fix free dimensions: 'batch=1,seq=256'."),
    data: str = typer.Option("", help="Calibration images for int8: digits, idx:DIR, images:DIR."),
    group_size: int = typer.Option(
        0, help="Weights that share a scale; 0 chooses, -1 a whole row (int8 of native, openvino)."
    ),
    kv_cache: str = typer.Option(
        "",
        "--kv-cache",
        metavar="int8",
        help="Keep text's key/value cache in 8 bits (openvino, native).",
    ),
    json: bool = typer.Option(False, "--json", help="Print the manifest as JSON."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="No progress."),
) -> None:
    """Export a model to ONNX and OpenVINO, and prove that both still compute it."""
    # Before numpy is there: one token at a time, two threads would wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edgegen.export import export as run

    with _terminal.progress(quiet) as report:
        bundles = run(
            source,
            output,
            formats=[name for name in to.split(",") if name],
            precisions=None if precision is None else [n for n in precision.split(",") if n],
            inputs=input,
            pixels=_pixels(pixels),
            static=_sizes(static),
            adapters=_folders(adapter),
            merge=merge,
            data=data or None,
            group_size=group_size,
            kv_cache=kv_cache,
            report=report,
        )
    if json:
        manifests = [bundle.manifest for bundle in bundles]
        _terminal.print_json(manifests if len(manifests) > 1 else manifests[0])
        return
    for bundle in bundles:
        _print(bundle)


def _pixels(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--pixels {text!r} is not LOW,HIGH", "write --pixels=-1,1") from error
    return low, high


def _folders(given: list[str]) -> dict[str, str]:
    """["NAME=FOLDER"] as a dictionary."""
    folders: dict[str, str] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UsageError(f"--adapter {text}: not NAME=FOLDER", "write --adapter french=DIR")
        if name in folders:
            raise UsageError(f"--adapter {name}: twice", "give each adapter its own name")
        folders[name] = folder
    return folders


def _sizes(text: str) -> dict[str, int]:
    try:
        return {n: int(size) for n, size in (part.split("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise UsageError(
            f"--static {text!r} is not NAME=SIZE,...", "write --static batch=1,seq=256"
        ) from error


def _print(bundle: Bundle) -> None:
    manifest = bundle.manifest
    rows = [_row(bundle, artifact) for artifact in manifest.artifacts]
    columns = "format", "graph", "layers", "MB", "outputs", "max abs error", "SQNR dB"
    _terminal.print_table(columns, rows, f"{bundle.path}  {manifest.precision}")
    for artifact in manifest.artifacts:
        for line in artifact.notes:
            _terminal.note(f"note: {artifact.format} {artifact.graph}: {line}")
    if manifest.export_peak_rss_mb:
        _terminal.note(f"peak memory {manifest.export_peak_rss_mb:.0f} MB")


def _row(bundle: Bundle, artifact: Artifact) -> tuple[str, ...]:
    """One graph in one format: what its layers became and how far it is from the model."""
    became = Counter(layer.precision for layer in artifact.ledger)
    mine = [
        drift
        for drift in bundle.manifest.drifts
        if (drift.graph, FORMAT_OF.get(drift.engine, drift.engine))
        == (artifact.graph, artifact.format)
    ]
    errors = [d.max_abs_error for d in mine if d.max_abs_error is not None]
    decibels = [d.sqnr_db for d in mine if d.sqnr_db is not None]
    return (
        artifact.format,
        artifact.graph,
        ", ".join(f"{count} {name}" for name, count in became.items()),
        f"{bundle.size_mb(artifact.format):.2f}",
        f"{len(mine)} ok",
        f"{max(errors):.2g}",
        f"{min(decibels):.1f}",
    )
