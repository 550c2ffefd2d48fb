"""The products that peaks are taken of compute what they say."""

import numpy as np
import pytest

from edgegen import matmuls


def test_numpy_runs_one_product():
    assert matmuls.numpy(8, 1)["fp32"]().shape == (8, 8)


def test_the_file_written_by_hand_is_onnx():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    for kind, left, right in (
        ("MatMul", np.float32, np.float32),
        ("MatMulInteger", np.uint8, np.int8),
    ):
        data = matmuls.product(kind, np.ones((300, 4), left), np.ones((4, 5), right))
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


def test_onnxruntime_multiplies_floats_and_bytes():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    runs = matmuls.onnxruntime(16, 1)
    a, b = matmuls._floats(16)
    assert np.allclose(runs["fp32"]()[0], a @ b, atol=1e-4)
    left, right = matmuls._bytes(16, np.uint8), matmuls._bytes(16, np.int8)
    assert np.array_equal(runs["int8"]()[0], left.astype(np.int32) @ right.astype(np.int32))


def test_openvino_multiplies_at_every_precision_the_chip_has():
    pytest.importorskip("openvino", reason="openvino is not installed")
    runs = matmuls.openvino(16, 1)
    a, b = matmuls._floats(16)
    assert np.allclose(runs["fp32"]()[0], a @ b, atol=1e-3)
    for precision in set(runs) - {"fp32"}:
        assert runs[precision]()[0].shape == (16, 16)
