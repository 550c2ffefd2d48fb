"""What static int8 is calibrated on: real images where an input has their shape, else draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgegen.errors import UsageError
from edgegen.exporters import is_text
from edgegen.runtimes.loops.oneshot import draw
from edgegen.sources import Model
from edgegen.spec import Array, Feed, GraphSpec

BATCHES, BATCH = 32, 8
VALUES = 64 * 64 * 8  # of a batch; one large image has as many values as many small ones


class Calibration(NamedTuple):
    """Batches of inputs, and where they come from."""

    feeds: Sequence[Feed] = ()
    origin: str = ""


def calibration(model: Model, precision: str, data: str | None) -> dict[str, Calibration]:
    """Batches for every graph with convolutions, by its name; none for other precisions.

    Without `data` a checkpoint is calibrated on what it was trained on.

    Raises:
        UsageError: `data` was asked for and fits no input, or is the same image throughout.
        NotFoundError, FormatError, MissingExtraError: as `data.images`.
    """
    if precision != "int8":
        return {}
    known = data or next((h["data"] for h in reversed(model.history) if "data" in h), None)
    images = _images(known)
    found = {
        name: _batches(graph, images, known)
        for name, (module, graph) in model.parts.items()
        if not is_text(graph) and _has_convolutions(module)
    }
    if data and not any(each.origin.endswith(data) for each in found.values()):
        shape = list(images.shape[1:]) if images is not None else "text"
        raise UsageError(
            f"--data {data}: no graph of {model.name} takes images of {shape}",
            "leave --data out: inputs are then drawn from their range",
        )
    return found


def _images(data: str | None) -> Array | None:
    if data is None or data.startswith("text:"):
        return None
    from edgegen.data import images, refuse_constant

    found = images(data)
    refuse_constant(found, data, "image")
    return found


def _batches(graph: GraphSpec, images: Array | None, data: str | None) -> Calibration:
    rng = np.random.default_rng(2)
    spec = graph.inputs[0]
    free = {n for s in graph.inputs for n in s.shape if isinstance(n, str)}
    each = max(math.prod(n for n in s.shape if isinstance(n, int)) for s in graph.inputs)
    batch = min(BATCH, max(1, VALUES // each))
    sizes = dict.fromkeys(free, 8) | {"batch": batch}
    sizes = {n: min(size, graph.limits.get(n, size)) for n, size in sizes.items()}
    fits = images is not None and images.shape[1:] == spec.shape[1:] and spec.shape[0] == "batch"
    feeds: list[Feed] = []
    for index in range(BATCHES):
        given: dict[str, Any] = {}
        if images is not None and fits:
            low, high = spec.low or 0.0, 1.0 if spec.high is None else spec.high
            rows = images[(np.arange(batch) + index * batch) % len(images)]
            given[spec.name] = (low + rows * (high - low)).astype(spec.dtype)
        feeds.append(draw(graph, sizes, rng, given))
    return Calibration(feeds, f"calibrated on {data if fits else 'inputs drawn from their range'}")


def _has_convolutions(module: Any) -> bool:
    if isinstance(module, Path):
        import onnx

        nodes = onnx.load(module, load_external_data=False).graph.node
        return any(node.op_type in ("Conv", "ConvTranspose") for node in nodes)
    import torch

    return any(isinstance(m, torch.nn.modules.conv._ConvNd) for m in module.modules())
