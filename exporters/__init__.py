"""Formats: one file each, each with the same names (dress and fuse may be missing).

    FILE                                                   what the main file is called
    write(module, graph, path) -> notes                    a torch module, or a foreign ONNX file
    quantize(path, graph, precision, calibration, group) -> notes     in place
    dress(path, folded) -> notes, is it exact?             in place, the integers of a quantized net
    fuse(path) -> notes                                    in place, exact rewrites that are faster
    ledger(path) -> layers                                 read back from what was written

`LACKS`, where it is there, says by precision why it cannot be had: before anything is traced.
`PLAIN` says that `write` takes a decoder in numpy (`edgegen.models._numpy`) as well.
`KV_CACHES` are the precisions, other than fp32, that a key/value cache can be kept in.

Notes are what a user must be told: anything that is not simply what was asked for.
"""

from __future__ import annotations

import inspect
import io
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from edgegen import rooms
from edgegen.bundle import EXACT, ROUNDED, Artifact
from edgegen.errors import EdgeGenError, UnsupportedError
from edgegen.spec import Array, Feed, GraphSpec

ROOM = "edgegen.exporters"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
BY_ROW = -1  # in place of a group size: all weights of an output channel share a scale
GROUP_SIZES = (32, 16)  # small groups: compact models lose most to a coarse scale


def write_graph(module: Any, graph: GraphSpec, folder: Path, kind: str) -> tuple[str, ...]:
    """Write one graph in one format at fp32 under `folder`; notes.

    `module` is a torch module in eval mode, its arguments in the order of `graph.inputs`, or the
    path of an ONNX file.

    Raises:
        UnsupportedError: the module cannot be exported; the operator and the line are named.
    """
    path = file_of(folder, graph.name, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    exporter = rooms.load(ROOM, kind)
    try:
        with redirect_stderr(_WithoutGraphs(sys.stderr)):
            return tuple(exporter.write(module, graph, path))
    except (EdgeGenError, OSError):
        raise
    except Exception as error:  # torch.export alone raises dozens of unrelated types
        raise explain(error, kind, graph.name) from error


class _WithoutGraphs(io.TextIOBase):
    """stderr, but for the graph that torch prints there when an export fails."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._skips = False

    def write(self, text: str) -> int:
        if "def forward(" in text or (self._skips and text == "\n"):
            self._skips = text != "\n"
            return len(text)
        self._out.write(text)
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def isatty(self) -> bool:
        return bool(self._out.isatty())

    def fileno(self) -> int:
        return int(self._out.fileno())


def quantize_graph(
    graph: GraphSpec,
    folder: Path,
    kind: str,
    *,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> Artifact:
    """Bring a written graph to `precision`, in place, and say what each layer became.

    `group` is how many weights share a scale: 0 chooses, `BY_ROW` is a whole row.
    With `calibration` data int8 is static (weights and activations); without it, int8 and int4
    quantize weights only.

    Raises:
        UnsupportedError: no layer can take `precision`.
    """
    exporter = rooms.load(ROOM, kind)
    path = file_of(folder, graph.name, kind)
    notes: tuple[str, ...] = ()
    if hasattr(exporter, "fuse") and not is_text(graph):
        notes = exporter.fuse(path)
    if group == BY_ROW and precision not in getattr(exporter, "SCALE_A_ROW", ()):
        raise UnsupportedError(
            f"{kind}: {precision} with a scale a row (--group-size {BY_ROW})",
            "leave --group-size out; --to native and --to openvino have it at int8",
        )
    if precision != "fp32":
        notes += exporter.quantize(path, graph, precision, calibration, group)
    layers = exporter.ledger(path)
    if precision != "fp32" and all(layer.precision == "fp32" for layer in layers):
        raise UnsupportedError(
            f"{kind}: no layer of graph {graph.name} can be {precision}; it would stay fp32",
            "export at --precision fp32, fp16 or int8",
        )
    return Artifact(graph.name, kind, path.relative_to(folder).as_posix(), layers, notes)


def dress_graph(graph: GraphSpec, folder: Path, kind: str, folded: Any) -> Artifact:
    """Put the integers of a quantized net (`edgegen.folding.Folded`) into a graph that was
    written from its plain copy, and say what each layer became.

    Raises:
        UnsupportedError: the format has no integers, or a layer is not in the graph.
    """
    exporter = rooms.load(ROOM, kind)
    if not hasattr(exporter, "dress"):
        raise UnsupportedError(
            f"{kind}: cannot hold a quantized model", "export it to others: --to onnx,openvino"
        )
    path = file_of(folder, graph.name, kind)
    notes, exact = exporter.dress(path, folded)
    name = path.relative_to(folder).as_posix()
    rule = EXACT if exact else ROUNDED
    return Artifact(graph.name, kind, name, exporter.ledger(path), notes, rule)


def file_of(folder: Path, graph: str, kind: str) -> Path:
    """Where a graph lies in a bundle: "model" at the top, any other in a folder of its name."""
    name = rooms.load(ROOM, kind).FILE
    return folder / name if graph == "model" else folder / graph / name


def example(graph: GraphSpec) -> dict[str, Array]:
    """Inputs to trace with. No two free dimensions get the same size, and none gets 1: a size of
    1 may be taken for a constant, and equal sizes for the same dimension."""
    names = dict.fromkeys(n for s in graph.inputs for n in s.shape if isinstance(n, str))
    sizes = {n: min(size, graph.limits.get(n, size)) for size, n in enumerate(names, start=2)}
    sizes |= {n: sum(sizes[part] for part in n.split("+")) for n in names if "+" in n}
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for spec in graph.inputs:
        shape = [sizes[n] if isinstance(n, str) else n for n in spec.shape]
        if np.dtype(spec.dtype).kind in "iub":
            feed[spec.name] = rng.integers(int(spec.low or 0), int(spec.high or 1) + 1, shape)
        elif spec.low is not None and spec.high is not None:
            feed[spec.name] = rng.uniform(spec.low, spec.high, shape)
        else:
            feed[spec.name] = rng.standard_normal(shape)
        feed[spec.name] = feed[spec.name].astype(spec.dtype)
    return feed


def is_text(graph: GraphSpec) -> bool:
    """Does it carry a key/value cache?"""
    return any(spec.name.startswith("past_key_values.") for spec in graph.inputs)


def dynamic_axes(module: Any, graph: GraphSpec, mark: Callable[[str], Any]) -> tuple[Any, ...]:
    """`{axis: mark(name)}` of every free axis, an entry a parameter of `forward`; varargs nest."""
    axes = [{i: mark(n) for i, n in enumerate(s.shape) if isinstance(n, str)} for s in graph.inputs]
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(axes)
    plain = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:plain], tuple(axes[plain:]))


def group_size(channels: Mapping[str, int], wanted: int = 0) -> tuple[int, tuple[str, ...]]:
    """The group size for the input channels of every layer, and notes.

    `wanted` 0 takes the largest of `GROUP_SIZES` that divides all of them. Where a size divides
    not all, the layers whose last group is padded are named in the notes.
    """
    fits = [size for size in GROUP_SIZES if all(n % size == 0 for n in channels.values())]
    size = wanted or (fits[0] if fits else GROUP_SIZES[0])
    short = [f"{name} ({count})" for name, count in channels.items() if count % size]
    if not short:
        return size, ()
    listed = ", ".join(short[:4]) + (f" and {len(short) - 4} more" if len(short) > 4 else "")
    return size, (f"group size {size} does not divide the channels of {listed}: last group padded",)


def explain(error: BaseException, kind: str, graph: str) -> UnsupportedError:
    """What torch could not export: the operator and the line of the user's code."""
    text = "\n".join(f"{e}\n{_fx_stack(e)}" for e in _chain(error))
    operator = re.search(r"\b(?:aten|torchvision|prims)(?:::|\.)\w+(?:\.\w+)?", text)
    what = operator[0] if operator else _first_line(error)
    place = next(_places(error, text), "")
    return UnsupportedError(
        f"{kind}: graph {graph} cannot be exported: {what}{f' at {place}' if place else ''}",
        "rewrite that line without Python control flow on tensor values, or export that part alone",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    root = list(_chain(error))[-1]
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[0] if lines else 'no message'}"


def _fx_stack(error: BaseException) -> str:
    """Where the graph node comes from that torch was converting: its error does not say."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        meta = getattr(frame.f_locals.get("node"), "meta", None)
        if isinstance(meta, dict) and meta.get("stack_trace"):
            return str(meta["stack_trace"])
    return ""


def _places(error: BaseException, text: str) -> Iterator[str]:
    """`file.py:12` of frames outside the libraries, the innermost of the user's code first."""
    frames = [
        (frame.filename, frame.lineno)
        for e in _chain(error)
        for frame in reversed(traceback.extract_tb(e.__traceback__))
    ]
    told = re.findall(r'File "([^"]+)", line (\d+)', text)
    traced = re.findall(r"^(\S+\.py)\((\d+)\)", text, re.MULTILINE)
    ours = str(Path(rooms.__file__).parent)
    for file, line in [*reversed(told), *traced, *frames]:
        if "site-packages" not in file and not file.startswith((ours, "<")):
            yield f"{file}:{line}"
