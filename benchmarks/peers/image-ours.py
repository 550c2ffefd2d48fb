"""EdgeGen: a bundle with its batch fixed to 1, on the engine that the options name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgegen.runtimes import deploy
from edgegen.spec import Options

FORMAT_OF = {"onnxruntime": "onnx"}


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    """`edgegen export`; what it said of the precision."""
    from edgegen.export import export

    [bundle] = export(
        f"{models.__file__}:{name}",
        output,
        formats=[FORMAT_OF.get(options["runtime"], options["runtime"])],
        precisions=[options["precision"]],
        inputs=models.INPUTS[name.removesuffix("_half")],
        static={"batch": 1},
    )
    notes = [note for artifact in bundle.manifest.artifacts for note in artifact.notes]
    return "; ".join([options["precision"], *notes])


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    """The bundle on its engine; checking every hash is part of it."""
    deployment = deploy(path, options["runtime"], options=Options(threads=threads))
    [graph] = deployment.bundle.manifest.graphs
    session = deployment.session(graph.name)
    names, output = [spec.name for spec in graph.inputs], graph.outputs[0].name

    def run(inputs: list[Any]) -> Any:
        return session.run(dict(zip(names, inputs, strict=True)))[output]

    return run
