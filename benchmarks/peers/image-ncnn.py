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
    args = tuple(torch.from_numpy(np.asarray(array)) for array in models.drawn(name, 0))
    os.chdir(output)
    pnnx.export(models.made(name), "model.pt", args, fp16=False)
    if not (output / "model.ncnn.param").is_file():
        raise ValueError("pnnx wrote no ncnn model")
    return "fp32"


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(str(path / "model.ncnn.param"))
    net.load_model(str(path / "model.ncnn.bin"))

    def run(inputs: list[Any]) -> Any:
        with net.create_extractor() as extractor:
            for index, array in enumerate(inputs):
                extractor.input(f"in{index}", ncnn.Mat(array[0].astype(np.float32)).clone())
            return np.array(extractor.extract("out0")[1])[None]

    return run
