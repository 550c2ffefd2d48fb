"""OpenVINO without EdgeGen, as it comes: bf16 where the chip has it; NNCF's plain int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

BATCHES = 32


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    import torch

    output.mkdir(parents=True)
    arrays = models.drawn(name, 0)
    model = ov.convert_model(
        models.made(name), example_input=tuple(torch.from_numpy(np.asarray(a)) for a in arrays)
    )
    model.reshape({n: ov.PartialShape(a.shape) for n, a in enumerate(arrays)})
    told = "as OpenVINO has it by default"
    if options["precision"] == "int8":
        import nncf

        feeds = [tuple(models.drawn(name, 100 + n)) for n in range(BATCHES)]
        model = nncf.quantize(model, nncf.Dataset(feeds), subset_size=BATCHES)
        told = "nncf.quantize with its defaults"
    ov.save_model(model, output / "model.xml", compress_to_fp16=False)
    return told


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(path / "model.xml", "CPU", config)
    request = compiled.create_infer_request()

    def run(inputs: list[Any]) -> Any:
        request.infer(inputs, share_inputs=True)
        return request.get_output_tensor(0).data

    return run
