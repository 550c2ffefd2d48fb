"""What stands in the ONNX files: counted exactly, and read back by the ledger."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgegen.bundle import open_bundle
from edgegen.exporters import _onnx_quantize
from edgegen.exporters import onnx as exporter
from edgegen.spec import GraphSpec, TensorSpec

pytestmark = pytest.mark.slow

LINEAR = 2 * 7 + 1  # q, k, v, o, gate, up, down of two layers, and the head
X = GraphSpec(
    "model",
    (TensorSpec("x", "float32", ("batch", 4)),),
    (TensorSpec("y", "float32", ("batch", 4)),),
)


def ledger(path, kind="onnx", graph="model"):
    return open_bundle(path).artifact(graph, kind).ledger


def counts(layers):
    return Counter((layer.kind, layer.precision) for layer in layers)


def test_fp32_is_every_layer_as_it_was(exports):
    assert counts(ledger(exports("gpt"))) == {("MatMul", "fp32"): LINEAR, ("Gather", "fp32"): 1}


def test_int8_is_every_linear_layer_and_the_embedding(exports):
    layers = ledger(exports("gpt", "int8"))
    assert counts(layers) == {("MatMul", "int8"): LINEAR, ("Gather", "int8"): 1}
    assert {layer.note for layer in layers} == {"weight-only"}
    assert {layer.group_size for layer in layers if layer.kind == "MatMul"} == {16}


def test_int4_leaves_the_output_layer_and_the_embedding_at_int8(exports):
    layers = ledger(exports("gpt", "int4"))
    assert counts(layers) == {
        ("MatMul", "int4"): LINEAR - 1,
        ("MatMul", "int8"): 1,
        ("Gather", "int8"): 1,
    }
    (head,) = (layer for layer in layers if (layer.kind, layer.precision) == ("MatMul", "int8"))
    assert head.parameters == 257 * 32


def test_fp16_is_every_layer(exports):
    assert set(counts(ledger(exports("gpt", "fp16")))) == {("MatMul", "fp16"), ("Gather", "fp16")}


def test_static_int8_rounds_convolutions_with_their_activations(exports):
    layers = ledger(exports("vae", "int8"), graph="encoder")
    assert {layer.precision for layer in layers} == {"int8"}
    assert {layer.note for layer in layers if layer.kind == "Conv"} == {"weights and activations"}


def test_transposed_convolutions_are_plain_ones_in_int8_and_said_to_be(exports):
    artifact = open_bundle(exports("gan", "int8")).artifact("generator", "onnx")
    became = {("Conv", "int8"): 1, ("Conv", "fp32"): 1, ("Gemm", "int8"): 1}
    assert counts(artifact.ledger) == became
    assert any(note.startswith("1 ConvTranspose computed as Conv") for note in artifact.notes)


def test_the_numbers_of_parameters_are_those_of_the_fp32_file(exports):
    for precision in ("fp16", "int8", "int4"):
        found = [layer.parameters for layer in ledger(exports("gpt", precision))]
        assert sorted(found) == sorted(layer.parameters for layer in ledger(exports("gpt")))


def test_what_angles_are_computed_from_stays_fp32_in_fp16(exports):
    model = onnx.load(exports("gpt", "fp16") / "model.onnx")
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [n for n in model.graph.node if n.op_type in ("Sin", "Cos")]
    assert waiting
    weights = {w.name: w.data_type for w in model.graph.initializer}
    while waiting:
        node = waiting.pop()
        target = next((a.i for a in node.attribute if node.op_type == "Cast"), TensorProto.FLOAT)
        assert target != TensorProto.FLOAT16
        assert all(weights.get(name) != TensorProto.FLOAT16 for name in node.input)
        waiting += [makers[name] for name in node.input if name in makers]


def test_every_quantized_file_is_smaller(exports):
    size = {p: open_bundle(exports("gpt", p)).size_mb("onnx") for p in ("fp32", "fp16", "int8")}
    assert size["int8"] < size["fp16"] < size["fp32"]


def weight(name, *shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def save(path, nodes, weights, opset=20, inputs=(("x", ["batch", 4]),)):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", ends, out, weights)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_weight_in_a_constant_node_is_in_the_ledger(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight("w", 4, 6)),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    (layer,) = exporter.ledger(save(tmp_path / "m.onnx", nodes, []))
    assert (layer.name, layer.kind, layer.precision, layer.parameters) == (
        ("product", "MatMul", "fp32", 24)
    )


def test_weights_of_both_branches_of_an_if_are_in_the_ledger(tmp_path):
    def branch(name):
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 4])
        node = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"], name=name)
        return helper.make_graph([node], name, [], [out], [weight(f"{name}_w", 4, 4)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["choice"], to=TensorProto.BOOL),
        helper.make_node("If", ["choice"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    layers = exporter.ledger(save(tmp_path / "m.onnx", nodes, []))
    assert {(layer.name, layer.parameters) for layer in layers} == {("a", 16), ("b", 16)}


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_gemm_keeps_its_bias_when_its_weight_is_rounded(tmp_path, bits):
    import onnxruntime as ort

    bias = numpy_helper.from_array(np.arange(6, dtype=np.float32), "b")
    node = helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="gemm", transB=1)
    last = helper.make_node("Relu", ["h"], ["y"], name="last")
    path = save(tmp_path / "m.onnx", [node, last], [weight("w", 6, 4), bias])
    x = np.eye(4, dtype=np.float32)
    want = ort.InferenceSession(path).run(None, {"x": x})[0]
    notes = exporter.quantize(path, X, bits)
    found = ort.InferenceSession(path).run(None, {"x": x})[0]
    assert [layer.precision for layer in exporter.ledger(path)] == [bits]
    assert np.abs(found - want).max() < {"int8": 0.05, "int4": 0.3}[bits]
    assert any("does not divide the channels of gemm (4): last group padded" in n for n in notes)


def test_the_group_size_asked_for_is_the_one_in_the_file(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    path = save(tmp_path / "m.onnx", [node], [weight("w", 128, 8)], inputs=[("x", ["batch", 128])])
    exporter.quantize(path, X, "int8", group=64)
    (layer,) = exporter.ledger(path)
    assert layer.group_size == 64


def test_weights_past_the_limit_of_protobuf_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_onnx_quantize, "LARGEST_INLINE", 100)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    source = save(tmp_path / "m.onnx", [node], [weight("w", 64, 64)], inputs=[("x", ["n", 64])])
    assert exporter.write(source, X, tmp_path / "model.onnx") == ()
    assert (tmp_path / "model.onnx.data").stat().st_size >= 64 * 64 * 4
    (layer,) = exporter.ledger(tmp_path / "model.onnx")
    assert layer.parameters == 64 * 64
    exporter.quantize(tmp_path / "model.onnx", X, "int8")
    assert [layer.precision for layer in exporter.ledger(tmp_path / "model.onnx")] == ["int8"]


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_static_int8_of_a_foreign_file_of_an_older_opset(tmp_path, opset):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "ConvTranspose", ["h", "v"], ["y"], name="up", strides=[2, 2], dilations=[2, 2]
        ),
    ]
    shape = [("x", ["batch", 3, 8, 8])]
    weights = [weight("w", 4, 3, 3, 3), weight("v", 4, 2, 2, 2)]
    path = save(tmp_path / "m.onnx", nodes, weights, opset, shape)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    import onnxruntime as ort

    want = ort.InferenceSession(path).run(None, feeds[0])[0]
    exporter.quantize(path, X, "int8", feeds)
    found = ort.InferenceSession(path).run(None, feeds[0])[0]
    assert counts(exporter.ledger(path)) == {("Conv", "int8"): 1, ("ConvTranspose", "int8"): 1}
    assert np.square(found - want).sum() < 0.01 * np.square(want).sum()
