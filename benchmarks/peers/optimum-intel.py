"""optimum-intel: OVModelForCausalLM and transformers' generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVWeightQuantizationConfig

    told, quantization = "fp32 weights", None
    if precision == "int8":
        told = "int8 a row, asymmetric"
        quantization = OVWeightQuantizationConfig(bits=8, sym=False)
    if precision == "int4":
        told = "int4 in groups of 32, symmetric, head and embedding int8"
        quantization = OVWeightQuantizationConfig(bits=4, sym=True, group_size=32, ratio=1.0)
    config = OVConfig(quantization_config=quantization) if quantization else OVConfig(dtype="fp32")
    main_export(
        str(model),
        output,
        task="text-generation-with-past",
        ov_config=config,
        convert_tokenizer=True,
    )
    return (
        f"{told}; OpenVINO's defaults for activations (bf16 where the chip has it) and cache (u8)"
    )


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    import torch
    from optimum.intel import OVModelForCausalLM

    torch.set_num_threads(threads)
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return Text(OVModelForCausalLM.from_pretrained(path, ov_config=config))


class Text:
    """Any causal model with transformers' `generate`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: list[int], count: int) -> list[int]:
        import torch

        x = torch.tensor([ids])
        with torch.inference_mode():
            found = self._model.generate(
                x,
                attention_mask=torch.ones_like(x),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
            )
        return [int(i) for i in found[0, len(ids) :]]

    def logits(self, ids: list[int]) -> Any:
        import torch

        x = torch.tensor([ids])
        position_ids = torch.arange(len(ids))[None]
        with torch.inference_mode():
            out = self._model(
                input_ids=x, attention_mask=torch.ones_like(x), position_ids=position_ids
            )
        return out.logits[0, -1].float().numpy()
