"""EdgeGen, on the engine that the options name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgegen.runtimes import deploy
from edgegen.runtimes.loops.autoregressive import forward, pad_left
from edgegen.spec import Options, Request

FORMAT_OF = {"onnxruntime": "onnx"}


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    """`edgegen export`; what it said of the precision."""
    from edgegen.export import export

    kind = FORMAT_OF.get(options["runtime"], options["runtime"])
    [bundle] = export(str(model), output, formats=[kind], precisions=[precision])
    notes = [note for artifact in bundle.manifest.artifacts for note in artifact.notes]
    return "; ".join([precision, *notes])


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Text:
    """The bundle on its engine; checking every hash is part of it."""
    import edgegen.rooms

    edgegen.rooms.load("edgegen.runtimes", options["runtime"])
    return Text(deploy(path, options["runtime"], options=Options(threads=threads)))


class Text:
    """A deployment, asked for token ids."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def generate(self, ids: list[int], count: int) -> list[int]:
        request = Request(new_tokens=count, prompts=(tuple(ids),), ignore_eos=True)
        return [int(step[0]) for step in self._deployment.steps(request)]

    def logits(self, ids: list[int]) -> Any:
        padded, mask = pad_left((tuple(ids),))
        step = forward(self._deployment.session("model"))
        return step(padded, mask, np.maximum(mask.cumsum(1) - 1, 0), fresh=True)[0]
