"""transformers on torch, eager or compiled; its model, a greedy loop without its `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    output.mkdir(parents=True)
    (output / "model.json").write_text(json.dumps({"model": str(model), "precision": precision}))
    if precision == "fp32":
        return "fp32"
    gpt2 = json.loads((model / "config.json").read_text())["model_type"] == "gpt2"
    which = "the head (transformers' Conv1D stays fp32)" if gpt2 else "linear layers"
    return f"{which} int8 a tensor, activations int8 (dynamic)"


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    told = json.loads((path / "model.json").read_text())
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(told["model"], dtype=torch.float32).eval()
    if told["precision"] == "int8":
        linear = {torch.nn.Linear}
        model = torch.ao.quantization.quantize_dynamic(model, linear, dtype=torch.qint8)
    return Compiled(model, context) if options else Eager(model)


class Eager:
    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(self, ids: list[int], count: int) -> list[int]:
        cache, found, x = DynamicCache(config=self.model.config), [], torch.tensor([ids])
        with torch.inference_mode():
            while len(found) < count:
                out = self.model(x, past_key_values=cache, use_cache=True, logits_to_keep=1)
                x = out.logits[:, -1:].argmax(-1)
                found.append(int(x))
        return found

    def logits(self, ids: list[int]) -> Any:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0, -1].numpy()


class Compiled(Eager):
    """The step of one token compiled, over a cache of fixed size; the prompt runs eagerly."""

    def __init__(self, model: Any, context: int) -> None:
        super().__init__(model)
        self._step = torch.compile(model.forward, dynamic=False)
        self._context = context

    def generate(self, ids: list[int], count: int) -> list[int]:
        cache = StaticCache(config=self.model.config, max_cache_len=self._context)
        x, found, at = torch.tensor([ids]), [], len(ids)
        with torch.inference_mode():
            out = self.model(
                x, past_key_values=cache, use_cache=True, cache_position=torch.arange(at)
            )
            while True:
                x = out.logits[:, -1:].argmax(-1)
                found.append(int(x))
                if len(found) == count:
                    return found
                position = torch.tensor([at])
                out = self._step(x, past_key_values=cache, use_cache=True, cache_position=position)
                at += 1
