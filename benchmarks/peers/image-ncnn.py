"""ncnn, converted from torch by pnnx; fp32 arithmetic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ncnn
import numpy as np


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    import pnnx
    import torch

    output.mkdir(parents=True)
    # Times as floats from the start: ncnn has no layer that converts integers.
    arrays = [np.asarray(array, np.float32) for array in models.drawn(name, 0)]
    args = tuple(map(torch.from_numpy, arrays))
    os.chdir(output)
    pnnx.export(models.made(name), "model.pt", args, fp16=False)
    if not (output / "model.ncnn.param").is_file():
        raise ValueError("pnnx wrote no ncnn model")
    return "fp32"


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    for load, file in ((net.load_param, "model.ncnn.param"), (net.load_model, "model.ncnn.bin")):
        if load(str(path / file)):
            raise ValueError(f"ncnn cannot load what pnnx wrote: {file}")

    def run(inputs: list[Any]) -> Any:
        with net.create_extractor() as extractor:
            for index, array in enumerate(inputs):
                value = np.atleast_1d(array[0]).astype(np.float32)
                extractor.input(f"in{index}", ncnn.Mat(value).clone())
            return np.array(extractor.extract("out0")[1])[None]

    return run
