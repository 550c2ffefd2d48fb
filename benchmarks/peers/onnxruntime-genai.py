"""onnxruntime-genai: its own model builder, its own loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

TOLD = {
    "fp32": "fp32",
    "int8": "int8 in groups of 32, activations int8 (accuracy level 4)",
    "int4": "int4 in groups of 32, embedding and head too, activations int8 (accuracy level 4)",
}


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    """Its builder's defaults but for the group, which is 32 everywhere here."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model)]
    command += ["-o", str(output), "-p", precision, "-e", "cpu", "-c", str(output / "cache")]
    if precision != "fp32":
        command += ["--extra_options", "block_size=32", "accuracy_level=4"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError((run.stderr.strip().splitlines() or ["builder failed"])[-1])
    return TOLD[precision]


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Text:
    import onnxruntime_genai as og

    config = og.Config(str(path))
    session = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": session}}))
    return Text(og.Model(config), context)


class Text:
    def __init__(self, model: Any, context: int) -> None:
        self._model, self._context = model, context

    def _generator(self, ids: list[int], length: int) -> Any:
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.array([ids], np.int32))
        return generator

    def generate(self, ids: list[int], count: int) -> list[int]:
        generator = self._generator(ids, len(ids) + count)
        for _ in range(count):
            generator.generate_next_token()
        return [int(i) for i in generator.get_sequence(0)[len(ids) :]]

    def logits(self, ids: list[int]) -> Any:
        return self._generator(ids, len(ids) + 1).get_logits().reshape(-1)
