"""The product of two large square matrices on every engine here: what a machine can do at most.

Each factory gives {precision: a function that runs the product once}; a library that is not
installed, or a precision that the chip lacks, is simply not in it. They share a process with
nothing else: see `edgegen.peaks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgegen.spec import Array

Run = Callable[[], object]
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # onnx.TensorProto.DataType


def numpy(n: int, threads: int) -> dict[str, Run]:
    """numpy's own BLAS at fp32; its threads are those of the environment."""
    a, b = _floats(n)
    out = np.empty((n, n), np.float32)
    return {"fp32": lambda: np.matmul(a, b, out=out)}


def onnxruntime(n: int, threads: int) -> dict[str, Run]:
    """MatMul at fp32, MatMulInteger (uint8 by int8) at int8."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    ort.set_default_logger_severity(3)
    a, b = _floats(n)
    found = {}
    for precision, kind, left, right in (
        ("fp32", "MatMul", a, b),
        ("int8", "MatMulInteger", _bytes(n, np.uint8), _bytes(n, np.int8)),
    ):
        session = ort.InferenceSession(
            product(kind, left, right), options, providers=["CPUExecutionProvider"]
        )
        found[precision] = _ort_run(session, left)
    return found


def _ort_run(session: Any, left: Array) -> Run:
    return lambda: session.run(["y"], {"a": left})


def openvino(n: int, threads: int) -> dict[str, Run]:
    """fp32, and bf16 and int8 where the chip has instructions for them."""
    import openvino as ov

    core = ov.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    a, b = _floats(n)
    models = {"fp32": _ov_floats(n, b)}
    models |= {"bf16": models["fp32"]} if "BF16" in able else {}
    models |= {"int8": _ov_bytes(n)} if "INT8" in able else {}
    hints = {"bf16": "bf16"}
    return {
        precision: _ov_run(core, model, hints.get(precision, "f32"), threads, a)
        for precision, model in models.items()
    }


def _ov_run(core: Any, model: Any, hint: str, threads: int, a: Array) -> Run:
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: a}, share_inputs=True)


def _ov_floats(n: int, b: Array) -> Any:
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([n, n], np.float32)
    return ov.Model([ops.matmul(x, ops.constant(b), False, False)], [x], "product")


def _ov_bytes(n: int) -> Any:
    """Inputs rounded to 256 levels, weights of a byte: what OpenVINO runs in 8-bit integers."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([n, n], np.float32)
    low, high = np.float32(-1.28), np.float32(1.27)
    rounded = ops.fake_quantize(x, low, high, low, high, 256)
    scale = ops.constant(np.full((1, n), 0.01, np.float32))
    weight = ops.convert(ops.constant(_bytes(n, np.int8)), "f32")
    return ov.Model(
        [ops.matmul(rounded, ops.multiply(weight, scale), False, False)], [x], "product"
    )


def _floats(n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    return a, b


def _bytes(n: int, dtype: Any) -> Array:
    """Small values: integer kernels without VNNI saturate on large ones."""
    return np.random.default_rng(0).integers(0, 64, (n, n)).astype(dtype)


def product(kind: str, left: Array, right: Array) -> bytes:
    """An ONNX file of y = a @ b with `right` as its weight b, without the onnx package.

    Source: onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
    """
    codes = {"float32": FLOAT, "uint8": UINT8, "int8": INT8}
    out = FLOAT if right.dtype == np.float32 else INT32
    node = _text(1, "a") + _text(1, "b") + _text(2, "y") + _text(4, kind)
    dims = b"".join(_whole(1, size) for size in right.shape)
    code = codes[str(right.dtype)]
    weight = dims + _whole(2, code) + _text(8, "b") + _part(9, right.tobytes())
    graph = _part(1, node) + _text(2, "product") + _part(5, weight)
    graph += _part(11, _value("a", codes[str(left.dtype)], left.shape))
    graph += _part(12, _value("y", out, (left.shape[0], right.shape[1])))
    return _whole(1, 8) + _part(7, graph) + _part(8, _text(1, "") + _whole(2, 13))


def _value(name: str, code: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_part(1, _whole(1, size)) for size in shape)
    tensor = _whole(1, code) + _part(2, dims)
    return _text(1, name) + _part(2, _part(1, tensor))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def _whole(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())
