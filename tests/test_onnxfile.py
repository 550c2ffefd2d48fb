"""What an ONNX file holds."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgegen import onnxfile
from edgegen.errors import FormatError
from edgegen.spec import TensorSpec


def model(nodes, stored=(), inputs=()):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, None]), *inputs],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 4])],
            [numpy_helper.from_array(array, name) for name, array in dict(stored).items()],
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
    )


RELU = helper.make_node("Relu", ["x"], ["y"])


def test_inputs_are_those_that_are_no_weights_and_unnamed_dimensions_are_marked():
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])
    made = model([RELU], {"w": np.zeros(2, np.float32)}, [weight])
    assert onnxfile.inputs(made) == (TensorSpec("x", "float32", ("batch", 3, "?")),)
    assert onnxfile.outputs(made) == (TensorSpec("y", "float16", ("batch", 4)),)


def test_operators_are_counted_with_their_domain_and_those_of_branches_too():
    def branch(name):
        return helper.make_graph([helper.make_node("Relu", ["x"], [name])], name, [], [])

    fused = helper.make_node("FastGelu", ["x"], ["z"], domain="com.microsoft")
    both = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    made = model([RELU, fused, both])
    assert onnxfile.operators(made) == {"Relu": 3, "com.microsoft.FastGelu": 1, "If": 1}
    assert onnxfile.opset(made) == 21


def test_weights_in_initializers_and_in_constant_nodes_are_parameters():
    """6 + 4 weights; shapes, scalars and indices are none."""
    constant = numpy_helper.from_array(np.zeros((2, 2), np.float32))
    nodes = [RELU, helper.make_node("Constant", [], ["c"], value=constant)]
    stored = {
        "w": np.zeros((2, 3), np.float16),
        "shape": np.zeros(7, np.int64),
        "epsilon": np.float32(1e-5),
    }
    assert onnxfile.parameters(model(nodes, stored)) == 10


def test_quantized_weights_are_counted_and_their_scales_and_zero_points_are_not():
    stored = {
        "w": np.zeros((5, 4), np.int8),
        "ws": np.zeros(4, np.float32),
        "wz": np.zeros(4, np.int8),
        "packed": np.zeros((10, 2, 16), np.uint8),
        "ps": np.zeros(20, np.float32),
        "table": np.zeros((7, 16), np.uint8),
        "ts": np.zeros((7, 1), np.float32),
    }
    block = {"domain": "com.microsoft", "bits": 4, "block_size": 32}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["d"]),
        helper.make_node("MatMulNBits", ["x", "packed", "ps"], ["m"], K=60, N=10, **block),
        helper.make_node("GatherBlockQuantized", ["table", "x", "ts"], ["t"], **block),
    ]
    assert onnxfile.parameters(model(nodes, stored)) == 5 * 4 + 60 * 10 + 7 * 32


@pytest.mark.parametrize("data", [b"", b"this is no graph", None])
def test_a_file_that_is_no_whole_graph_is_refused_by_name(tmp_path, data):
    path = tmp_path / "model.onnx"
    onnx.save(model([RELU], {"w": np.zeros(1000, np.float32)}), path)
    path.write_bytes(path.read_bytes()[:500] if data is None else data)
    with pytest.raises(FormatError, match=r"model\.onnx: not .*ONNX file") as error:
        onnxfile.load(path)
    assert error.value.hint
