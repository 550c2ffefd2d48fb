"""torch: the exported program itself, the reference that the torch engine runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from edgegen.bundle import Layer
from edgegen.errors import UnsupportedError
from edgegen.exporters import dynamic_axes, example
from edgegen.spec import Feed, GraphSpec

FILE = "model.pt2"


def write(module: Any, graph: GraphSpec, path: Path) -> tuple[str, ...]:
    """Save `torch.export`'s program with every free dimension dynamic."""
    if isinstance(module, Path):
        raise UnsupportedError(
            f"torch: {module} is an ONNX file, which torch cannot run", "leave torch out of --to"
        )
    args = tuple(torch.from_numpy(array) for array in example(graph).values())
    axes = dynamic_axes(module, graph, lambda _: Dim.AUTO)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch
        torch.export.save(torch.export.export(module, args, dynamic_shapes=axes), path)
    return ()


def quantize(
    path: Path,
    graph: GraphSpec,
    precision: str,
    calibration: Sequence[Feed] = (),
    group: int = 0,
) -> tuple[str, ...]:
    """torch is the fp32 reference and nothing else."""
    raise UnsupportedError(
        f"torch: the reference runs in fp32, not in {precision}",
        "export it apart: --to torch --precision fp32",
    )


def ledger(path: Path) -> tuple[Layer, ...]:
    """Every parameter of two or more dimensions, by its name in the module."""
    weights = torch.export.load(path).state_dict  # of `write`: nothing foreign is opened here
    return tuple(
        Layer(name, "Parameter", "fp32", weight.numel())
        for name, weight in weights.items()
        if weight.dim() > 1
    )
