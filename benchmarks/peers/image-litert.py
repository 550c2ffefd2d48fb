"""LiteRT, converted from torch by litert-torch, through XNNPACK; fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    import litert_torch
    import torch

    output.mkdir(parents=True)
    args = tuple(torch.from_numpy(np.asarray(array)) for array in models.drawn(name, 0))
    litert_torch.convert(models.made(name), args).export(str(output / "model.tflite"))
    return "fp32"


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    engine = Interpreter(str(path / "model.tflite"), num_threads=threads)
    engine.allocate_tensors()
    ports = sorted(engine.get_input_details(), key=lambda port: port["name"])
    out = engine.get_output_details()[0]["index"]

    def run(inputs: list[Any]) -> Any:
        for port, array in zip(ports, inputs, strict=True):
            engine.set_tensor(port["index"], array.astype(port["dtype"]))
        engine.invoke()
        return engine.get_tensor(out)

    return run
