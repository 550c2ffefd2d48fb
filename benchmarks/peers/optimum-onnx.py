"""optimum-onnx: ORTModelForCausalLM, its export and quantizer, transformers' generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from generate import Text
from optimum.onnxruntime import ORTModelForCausalLM, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig


def build(model: Path, output: Path, precision: str, options: dict[str, str]) -> str:
    from optimum.exporters.onnx import main_export

    plain = output / "fp32" if precision == "int8" else output
    main_export(str(model), plain, task="text-generation-with-past", do_validation=False)
    if precision == "fp32":
        return "fp32"
    quantizer = ORTQuantizer.from_pretrained(plain)
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer.quantize(save_dir=output, quantization_config=config, file_suffix="")
    return "int8 a row, activations int8 a tensor (dynamic)"


def open_model(path: Path, threads: int, context: int, options: dict[str, str]) -> Any:
    torch.set_num_threads(threads)
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(path, session_options=session, use_io_binding=True)
    return Text(model)
