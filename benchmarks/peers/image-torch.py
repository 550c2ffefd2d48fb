"""torch, eager or compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    output.mkdir(parents=True)
    (output / "model.json").write_text(json.dumps(name))
    return "fp32"


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    import importlib.util

    torch.set_num_threads(threads)
    name = json.loads((path / "model.json").read_text())
    file = Path(__file__).parents[1] / "image_models.py"
    spec = importlib.util.spec_from_file_location("image_models", file)
    assert spec and spec.loader
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    net = models.made(name)
    if options.get("compile"):
        net = torch.compile(net, dynamic=False)

    def run(inputs: list[Any]) -> Any:
        with torch.inference_mode():
            return net(*map(torch.from_numpy, inputs)).numpy()

    return run
