from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgegen.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from edgegen.sources import open_source

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IR_OF = {9: 4, 13: 7, 17: 8, 21: 10, 25: 11}


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, inputs, outputs, *, opset=17, weights=(), **options):
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", opset)]
    ir = IR_OF.get(opset, 8)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="tests")
    onnx.save(model, path, **options)
    return str(path)


def matmul(path, **options):
    """y = x w, w an initializer."""
    weights = [numpy_helper.from_array(WEIGHT, "w")]
    options = {"weights": weights} | options
    inputs = options.pop("inputs", [value("x", ["batch", 3])])
    outputs = options.pop("outputs", [value("y", ["batch", 4])])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return save(path, nodes, inputs, outputs, **options)


@pytest.mark.parametrize("opset", [9, 13, 17, 21, 25])
def test_weights_in_initializers_at_every_opset(tmp_path, opset):
    path = matmul(tmp_path / "tiny.onnx", opset=opset)
    model = open_source(path)
    module, spec = model.parts["model"]
    assert module == Path(path)
    assert [(t.name, t.dtype, t.shape) for t in spec.inputs] == [("x", "float32", ("batch", 3))]
    assert [(t.name, t.dtype, t.shape) for t in spec.outputs] == [("y", "float32", ("batch", 4))]
    assert (model.name, model.family, model.parameters) == ("tiny", "onnx", 12)
    assert model.config == {"source": "tiny.onnx", "opset": opset, "producer": "tests"}


@pytest.mark.parametrize("opset", [9, 13, 17, 21, 25])
def test_weights_in_constants_and_in_the_branches_of_an_if(tmp_path, opset):
    def branch(name, factor):
        tensor = numpy_helper.from_array(WEIGHT * factor, f"{name}_w")
        nodes = [
            helper.make_node("Constant", [], [f"{name}_c"], value=tensor),
            helper.make_node("MatMul", ["x", f"{name}_c"], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [value(f"{name}_y", ["batch", 4])])

    node = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branch("a", 1), else_branch=branch("b", 2)
    )
    inputs = [value("x", ["batch", 3]), value("flag", [], TensorProto.BOOL)]
    path = save(tmp_path / "if.onnx", [node], inputs, [value("y", ["batch", 4])], opset=opset)
    model = open_source(path)
    assert model.parameters == 24
    flag = model.parts["model"].spec.inputs[1]
    assert (flag.dtype, flag.shape, flag.low, flag.high) == ("bool", (), 0, 1)


def test_an_initializer_that_is_also_an_input_is_no_input(tmp_path):
    inputs = [value("x", ["batch", 3]), value("w", [3, 4])]
    path = matmul(tmp_path / "old.onnx", inputs=inputs, opset=9)
    assert [t.name for t in open_source(path).parts["model"].spec.inputs] == ["x"]


def test_dimensions_without_a_name_are_called_by_their_axis(tmp_path):
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    inputs = [value("a", [None, 3]), value("b", [None, 3])]
    path = save(tmp_path / "add.onnx", nodes, inputs, [value("y", [None, 3])])
    _, spec = open_source(path).parts["model"]
    assert [tensor.shape for tensor in spec.inputs] == [("dim0", 3), ("dim0", 3)]
    assert spec.outputs[0].shape == ("y_dim0", 3)


def test_a_sum_of_free_dimensions_keeps_its_meaning_and_no_other(tmp_path):
    nodes = [helper.make_node("Concat", ["past", "x"], ["y"], axis=0)]
    inputs = [value("past", ["past"], INT64), value("x", ["seq"], INT64)]
    outputs = [value("y", ["past + seq"], INT64)]
    _, spec = open_source(save(tmp_path / "a.onnx", nodes, inputs, outputs)).parts["model"]
    assert spec.outputs[0].shape == ("past+seq",)
    assert (spec.inputs[0].low, spec.inputs[0].high) == (0, 1)
    outputs = [value("y", ["past + 1"], INT64)]
    _, spec = open_source(save(tmp_path / "b.onnx", nodes, inputs, outputs)).parts["model"]
    assert spec.outputs[0].shape == ("past_plus_1",)


def test_the_shape_of_an_output_is_inferred_where_it_is_not_said(tmp_path):
    path = matmul(tmp_path / "tiny.onnx", outputs=[value("y", None)])
    assert open_source(path).parts["model"].spec.outputs[0].shape == ("batch", 4)


def test_weights_in_another_file_are_found_missed_and_measured(tmp_path):
    options = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    path = matmul(tmp_path / "big.onnx", **options)
    data = tmp_path / "w.data"
    assert open_source(path).parameters == 12
    data.write_bytes(data.read_bytes()[:20])
    with pytest.raises(FormatError, match=r"w\.data: truncated: 20 bytes, w ends at 48") as error:
        open_source(path)
    assert error.value.hint == "copy it again"
    data.unlink()
    with pytest.raises(NotFoundError, match=r"w\.data: missing: big\.onnx keeps its") as missing:
        open_source(path)
    assert missing.value.hint == "copy w.data beside big.onnx"


def test_weights_outside_the_folder_are_refused(tmp_path):
    model = onnx.load(matmul(tmp_path / "tiny.onnx"))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (tmp_path / "tiny.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match=r"w lies in \.\./secret, outside the model's folder"):
        open_source(str(tmp_path / "tiny.onnx"))


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = Path(matmul(tmp_path / "tiny.onnx"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"tiny\.onnx: not a"):
        open_source(str(path))


def test_an_invalid_model_is_named(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "nowhere"], ["y"])]
    path = save(tmp_path / "bad.onnx", nodes, [value("x", [1, 3])], [value("y", [1, 4])])
    with pytest.raises(FormatError, match=r"bad\.onnx: not a valid ONNX model"):
        open_source(path)


@pytest.mark.parametrize("opset", [8, 26])
def test_another_opset_is_refused(tmp_path, opset):
    with pytest.raises(UnsupportedError, match=f"opset {opset}, wanted 9 to 25") as error:
        open_source(matmul(tmp_path / "tiny.onnx", opset=opset))
    assert "convert_version" in error.value.hint


def test_inputs_that_no_session_takes_are_refused(tmp_path):
    text = [value("x", [1], TensorProto.STRING)]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = save(tmp_path / "a.onnx", nodes, text, [value("y", [1], TensorProto.STRING)])
    with pytest.raises(UnsupportedError, match="input x is of type STRING") as error:
        open_source(path)
    assert error.value.hint.startswith("supported: FLOAT")
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [1])
    nodes = [helper.make_node("SequenceLength", ["x"], ["y"])]
    path = save(tmp_path / "b.onnx", nodes, [sequence], [value("y", [], INT64)])
    with pytest.raises(UnsupportedError, match="input x is no tensor: sequence_type"):
        open_source(path)
    path = matmul(tmp_path / "c.onnx", inputs=[value("x", None)])
    with pytest.raises(UnsupportedError, match="number of dimensions of input x is unknown"):
        open_source(path)


def test_an_output_is_an_image_only_for_one_who_knows_its_range(tmp_path):
    nodes = [helper.make_node("Tanh", ["x"], ["y"])]
    shape = ["batch", 3, 8, 8]
    path = save(tmp_path / "a.onnx", nodes, [value("x", shape)], [value("y", shape)])
    assert open_source(path).loop.image == ""
    loop = open_source(path, pixels=(-1.0, 1.0)).loop
    assert (loop.image, loop.pixels) == ("y", (-1.0, 1.0))
    with pytest.raises(UsageError, match="0 outputs are grey or RGB pictures") as error:
        open_source(matmul(tmp_path / "tiny.onnx"), pixels=(0.0, 1.0))
    assert error.value.hint == "leave --pixels out"


def test_ranges_and_limits_may_be_given_but_not_another_shape(tmp_path):
    path = matmul(tmp_path / "tiny.onnx")
    _, spec = open_source(path, ["x:float32[batch<=8,3]@0.1..2"]).parts["model"]
    assert (spec.inputs[0].low, spec.inputs[0].high, spec.limits) == (0.1, 2, {"batch": 8})
    with pytest.raises(UsageError, match="another type or shape than the file's") as error:
        open_source(path, ["x:float32[batch,4]"])
    assert "--input 'x:float32[batch,3]@LOW..HIGH'" in error.value.hint
    with pytest.raises(UsageError, match="no input 'z'"):
        open_source(path, ["z:float32[batch,4]"])


def test_the_terrain_unet_goes_in():
    spec = find_spec("terrain_diffusion")
    if spec is None or spec.origin is None:
        pytest.skip("adaptive-terrain-diffusion is not installed")
    weights = Path(spec.origin).parent / "weights" / "terrain_consistency_unet_difficulty100.onnx"
    model = open_source(str(weights), pixels=(-1.0, 1.0))
    _, spec = model.parts["model"]
    assert {t.name: t.shape for t in spec.inputs} == {
        "noisy": ("batch", 1, 128, 128),
        "sigma": ("batch",),
        "difficulty": ("batch",),
    }
    assert model.loop.image == "denoised"
    assert model.parameters == 10_456_629
