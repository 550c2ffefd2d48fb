"""ONNX Runtime without EdgeGen: torch's export, and ONNX Runtime's own static quantizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

BATCHES = 32


def build(models: Any, name: str, output: Path, options: dict[str, str]) -> str:
    import torch

    output.mkdir(parents=True)
    path = output / "model.onnx"
    args = tuple(torch.from_numpy(np.asarray(array)) for array in models.drawn(name, 0))
    with torch.no_grad():
        torch.onnx.export(
            models.made(name),
            args,
            path,
            dynamo=True,
            opset_version=20,
            external_data=False,
            input_names=["x", "t"][: len(args)],
        )
    if options["precision"] == "fp32":
        return "fp32"
    quantize(path, [models.drawn(name, 100 + n) for n in range(BATCHES)])
    return "ONNX Runtime's quantize_static: QDQ, uint8 activations, int8 weights per channel"


def quantize(path: Path, feeds: list[list[Any]]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    logging.disable(logging.WARNING)
    model = onnx.load(path)
    del model.graph.value_info[:]  # the exporter's shapes of weights contradict the quantizer's

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Any:
            found = next(self.left, None)
            return None if found is None else dict(zip(("x", "t"), found, strict=False))

    quantize_static(
        model,
        path,
        Reader(),
        op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def open_model(path: Path, threads: int, options: dict[str, str]) -> Any:
    config = ort.SessionOptions()
    config.intra_op_num_threads = threads
    config.log_severity_level = 3
    session = ort.InferenceSession(path / "model.onnx", config)
    return lambda inputs: session.run(None, dict(zip(("x", "t"), inputs, strict=False)))[0]
