"""openvino-genai's LLMPipeline, over the folder that optimum-intel exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    raise RuntimeError("runs what optimum-intel has exported")


def settings(threads: int) -> dict[str, Any]:
    """Its defaults but for the threads."""
    return {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Text:
    import openvino_genai as genai

    return Text(genai.LLMPipeline(str(path), "CPU", **settings(threads)), path, threads)


class Text:
    def __init__(self, pipeline: Any, path: Path, threads: int) -> None:
        self._pipeline, self._path, self._threads = pipeline, path, threads

    def generate(self, ids: list[int], count: int) -> list[int]:
        import openvino_genai as genai

        tokens = np.array([ids], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample = True, False
        return [int(i) for i in self._pipeline.generate(inputs, config).tokens[0]]

    def logits(self, ids: list[int]) -> Any:
        """Of the same file with the same settings: the pipeline itself does not give them."""
        model = ov.Core().compile_model(
            self._path / "openvino_model.xml", "CPU", settings(self._threads)
        )
        tokens = np.array([ids], np.int64)
        feed = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {port.get_any_name() for port in model.inputs}
        request = model.create_infer_request()
        request.infer({name: array for name, array in feed.items() if name in names})
        return request.get_output_tensor(0).data[0, -1].copy()
