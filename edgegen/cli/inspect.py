"""`edgegen inspect`: graphs, shapes, parameters, MACs, sizes and the ledger of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgegen.cli import _terminal
from edgegen.errors import UsageError

if TYPE_CHECKING:
    from edgegen.bundle import Layer
    from edgegen.inspect import GraphFile, Inspection
    from edgegen.spec import TensorSpec


def inspect(
    path: Path = typer.Argument(..., help="A bundle, a checkpoint or an .onnx file."),
    size: list[str] = typer.Option(
        [], "--size", metavar="NAME=N", help="Size of a free dimension for the MACs, else 1."
    ),
    layers: bool = typer.Option(False, "--layers", help="Every layer, not only their sums."),
    sensitivity: bool = typer.Option(
        False, "--sensitivity", help="What the model loses by each layer's rounding, measured."
    ),
    data: str = typer.Option(
        "",
        "--data",
        "--dataset",
        help="For --sensitivity: digits, idx:DIR, images:DIR, text:FILES.",
    ),
    change: list[str] = typer.Option(
        [], "--change", help="For --sensitivity: int8, int4-g64, prune-0.5, ...; repeatable."
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="For --sensitivity: a heat map, as PNG."
    ),
    json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
) -> None:
    """Show what is in a bundle, checkpoint or ONNX file.

    Graphs, shapes, parameters, MACs, size by precision, and what each layer became.
    """
    if sensitivity:
        _sensitivity(str(path), data, tuple(change), output, json)
        return
    if data or change or output:
        raise UsageError("--data, --change and -o go with --sensitivity", "add --sensitivity")
    from edgegen.inspect import inspect as look

    found = look(path, dict(map(_size, size)))
    if json:
        _terminal.print_json(found)
    else:
        _print(found, layers)


def _sensitivity(
    source: str, data: str, changes: tuple[str, ...], output: Path | None, json: bool
) -> None:
    from edgegen.sensitivity import CHANGES, draw, inspect_rows, of_source

    with _terminal.progress() as report:
        found = of_source(source, data, changes or CHANGES, report=report)
    if output is not None:
        draw(found, output)
        _terminal.note(f"heat map: {output}")
    if json:
        _terminal.print_json(found)
        return
    columns, rows = inspect_rows(found)
    title = f"most sensitive first; {found.data}; the model itself: {found.reference:.4g}"
    _terminal.print_table(columns, rows, title)


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not (name and number.isdigit()):
        raise UsageError(f"--size {text}: wanted NAME=N", "for example --size batch=1 --size seq=7")
    return name, int(number)


def _print(found: Inspection, layers: bool) -> None:
    head = f"{found.kind} {found.name}: {found.family} {found.precision}".rstrip()
    sizes = ", ".join(f"{precision} {mb:.2f}" for precision, mb in found.weights_mb.items())
    typer.echo(f"{head}, {found.parameters:,} parameters\nweights at, MB: {sizes}")
    for graph in found.graphs:
        rows = [("input", *_tensor(t)) for t in graph.inputs]
        rows += [("output", *_tensor(t)) for t in graph.outputs]
        _terminal.print_table(("", "name", "dtype", "shape"), rows, f"graph {graph.name}")
    at = ", ".join(f"{name}={number}" for name, number in found.sizes.items()) or "fixed sizes"
    columns = ("graph", "format", "file", "opset", "parameters", f"MACs at {at}", "size MB")
    _terminal.print_table(columns, map(_row, found.files))
    for file in found.files:
        _print_file(file, layers)
    _print_drifts(found)
    _print_history(found)


def _print_history(found: Inspection) -> None:
    """Compression as one table, with what its methods have to say; all else a line each."""
    from edgegen.steps import COLUMNS, rows, steps_of

    for entry in found.history:
        if "verdict" not in entry:
            typer.echo("history: " + ", ".join(f"{key} {value}" for key, value in entry.items()))
    steps = steps_of(found.history)
    if steps:
        _terminal.print_table(COLUMNS, rows(steps), "compression")
    for number, step in enumerate(steps, start=1):
        for name, note in step.notes.items():
            typer.echo(f"step {number}, {step.kind}: {name}: {note}")


def _tensor(tensor: TensorSpec) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, ", ".join(map(str, tensor.shape)) or "scalar"


def _row(file: GraphFile) -> tuple[str, ...]:
    numbers = (file.opset, file.parameters, file.macs)
    cells = ("unknown" if number is None else f"{number:,}" for number in numbers)
    return file.graph, file.format, file.path, *cells, f"{file.size_mb:.2f}"


def _print_file(file: GraphFile, layers: bool) -> None:
    place = f"{file.graph} {file.format}"
    if file.operators:
        kinds = ", ".join(f"{count} {kind}" for kind, count in file.operators.items())
        typer.echo(f"{place} operators: {kinds}")
    for note in file.notes:
        typer.echo(f"{place} note: {note}")
    rows = map(_layer, file.layers) if layers else _sums(file.layers)
    columns = ("layer" if layers else "layers", "kind", "precision", "group", "parameters", "note")
    if file.layers:
        _terminal.print_table(columns, rows, f"{place}: layers")


def _layer(layer: Layer) -> tuple[str, ...]:
    return layer.name, *_what(layer), f"{layer.parameters:,}", layer.note


def _what(layer: Layer) -> tuple[str, str, str]:
    return layer.kind, layer.precision, str(layer.group_size or "")


def _sums(layers: tuple[Layer, ...]) -> list[tuple[str, ...]]:
    """One row for all layers of a kind, precision, group size and note."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for layer in layers:
        groups.setdefault((*_what(layer), layer.note), []).append(layer.parameters)
    return [
        (str(len(counts)), *key[:3], f"{sum(counts):,}", key[3]) for key, counts in groups.items()
    ]


def _print_drifts(found: Inspection) -> None:
    """The worst case of each engine, as it was when the bundle was made."""
    from edgegen.bundle import worst

    for engine in dict.fromkeys(drift.engine for drift in found.drifts):
        mine = [drift for drift in found.drifts if drift.engine == engine]
        far = worst(mine)
        error, sqnr = far.numbers()
        typer.echo(
            f"drift at export, {engine}: {sum(d.ok for d in mine)} of {len(mine)} outputs ok; "
            f"worst {far.graph} {far.case} {far.output}: max abs error {error}, SQNR {sqnr} dB "
            f"(rule: {far.rule})"
        )
