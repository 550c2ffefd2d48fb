"""CTranslate2: its converter from transformers, its Generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2

TOLD = {"fp32": "fp32", "int8": "int8 a row, activations int8 a row"}


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    from ctranslate2.converters import TransformersConverter

    kind = {"fp32": "float32", "int8": "int8_float32"}[precision]
    TransformersConverter(str(model)).convert(str(output), quantization=kind)
    file = output / "config.json"
    config = json.loads(file.read_text())
    # For a tokenizer without an unknown token it writes null, and then does not load that.
    config["unk_token"] = config["unk_token"] or config["eos_token"]
    file.write_text(json.dumps(config))
    return TOLD[precision]


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Text:
    generator = ctranslate2.Generator(
        str(path), device="cpu", intra_threads=threads, inter_threads=1
    )
    return Text(generator, json.loads((path / "vocabulary.json").read_text()))


class Text:
    def __init__(self, generator: Any, vocabulary: list[str]) -> None:
        self._generator, self._vocabulary = generator, vocabulary

    def generate(self, ids: list[int], count: int) -> list[int]:
        [found] = self._generator.generate_batch(
            [[self._vocabulary[i] for i in ids]],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
        )
        return [int(i) for i in found.sequences_ids[0]]

    def logits(self, ids: list[int]) -> Any:
        import numpy as np

        return np.asarray(self._generator.forward_batch([ids]))[0, -1]
