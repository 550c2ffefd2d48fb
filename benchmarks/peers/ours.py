"""EdgeGen, on the engine that the options name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.runtimes import deploy
from edgegen.runtimes.loops.autoregressive import forward, pad_left
from edgegen.spec import Options, Request

FORMAT_OF = {"onnxruntime": "onnx"}


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    """`edgegen export`, or `compress` and `export` where the options ask for a narrower head.

    `group_size` is `export`'s own option; -1 is a scale a row.

    Returns:
        What it said of the precision.
    """
    from edgegen.export import export

    kind = FORMAT_OF.get(options["runtime"], options["runtime"])
    with tempfile.TemporaryDirectory() as folder:
        source = model
        if "embedding_bits" in options:
            source = Path(folder) / "narrow"
            _quantize(model, source, precision, int(options["embedding_bits"]))
        group_size = int(options.get("group_size", 0))
        [bundle] = export(
            str(source), output, formats=[kind], precisions=[precision], group_size=group_size
        )
    notes = [note for artifact in bundle.manifest.artifacts for note in artifact.notes]
    return "; ".join([precision, *notes])


def _quantize(model: Path, output: Path, precision: str, embedding_bits: int) -> None:
    """Plain rounding, as `export` does it, the embedding and the head included."""
    from edgegen.compress import compress
    from edgegen.recipe import Recipe, Step

    options = {"bits": int(precision.removeprefix("int")), "group_size": 32, "symmetric": True}
    step = Step("quantize", options=options | {"embedding_bits": embedding_bits})
    compress(model, Recipe(steps=(step,)), output, measure=False)


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
        found: list[int] = self._deployment.tokens(request)[:, 0].tolist()
        return found

    def logits(self, ids: list[int]) -> Any:
        padded, mask = pad_left((tuple(ids),))
        step = forward(self._deployment.session("model"))
        return step(padded, mask, np.maximum(mask.cumsum(1) - 1, 0), fresh=True)[0]
