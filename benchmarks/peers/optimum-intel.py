"""optimum-intel: OVModelForCausalLM and transformers' generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from generate import Text
from optimum.intel import OVModelForCausalLM


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        str(model),
        output,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp32"),
        convert_tokenizer=True,
    )
    told = "fp32 weights" if precision == "fp32" else _quantize(output, precision)
    return (
        f"{told}; OpenVINO's defaults for activations (bf16 where the chip has it) and cache (u8)"
    )


def _quantize(folder: Path, precision: str) -> str:
    """As `optimum-cli export openvino --weight-format` does it, by NNCF: `main_export` itself takes
    a quantization and leaves the weights as they are."""
    import nncf
    import openvino as ov

    file = folder / "openvino_model.xml"
    model = ov.Core().read_model(file.read_bytes(), file.with_suffix(".bin").read_bytes())
    if precision == "int8":
        small, told = nncf.compress_weights(model), "int8 a row, asymmetric"
    else:
        mode = nncf.CompressWeightsMode.INT4_SYM
        small = nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0)
        told = "int4 in groups of 32, symmetric, head and embedding int8"
    before = file.with_suffix(".bin").stat().st_size
    ov.save_model(small, file, compress_to_fp16=False)
    after = file.with_suffix(".bin").stat().st_size
    if after > before / 2:
        raise RuntimeError(f"{precision} weights of {after:,} bytes where fp32 had {before:,}")
    return told


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    torch.set_num_threads(threads)
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return Text(OVModelForCausalLM.from_pretrained(path, ov_config=config))
