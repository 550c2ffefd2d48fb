"""Convolutions that enlarge, rewritten: the same numbers, and integers carried over exactly."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgegen import folding, quantized
from edgegen.exporters import onnx as exporter
from edgegen.exporters._grid import in_torch
from edgegen.exporters._onnx_shuffle import SHUFFLED, Plan, phases, plan, shuffle
from edgegen.exporters._onnx_upsample import fold_upsampling
from edgegen.exporters._upsample import summed
from edgegen.spec import GraphSpec, Scheme, TensorSpec

RNG = np.random.default_rng(0)


def weight(name, *shape):
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def graph(nodes, weights, shape):
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "g", ends, out, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, x):
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def decibels(want, found):
    assert want.shape == found.shape
    noise = np.square(want.astype(np.float64) - found).sum()
    return 10 * np.log10(np.square(want.astype(np.float64)).sum() / max(noise, 1e-300))


def kinds(model):
    return [node.op_type for node in model.graph.node]


def transposed(shape, kernel, bias=True, **options):
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("ConvTranspose", inputs, ["y"], name="up", **options)
    weights = [weight("w", shape[1], 3, *kernel), *([weight("b", 3)] if bias else [])]
    return graph([node], weights, shape)


@pytest.mark.parametrize("shape", [("n", 5, 4, 6), ("n", 5, "h", "w")])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((2, 2), {"strides": [2, 2]}),
        ((6, 6), {"strides": [3, 3], "pads": [2, 2, 1, 1]}),
        ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        ((5, 4), {"strides": [2, 2], "pads": [2, 1, 2, 1], "output_padding": [1, 0]}),
    ],
)
def test_a_transposed_convolution_is_a_plain_one_and_a_shuffle(kernel, options, shape):
    model = transposed(shape, kernel, **options)
    x = RNG.normal(size=(2, 5, 4, 6)).astype(np.float32)
    want = run(model, x)
    assert shuffle(model) == 1
    assert "ConvTranspose" not in kinds(model)
    assert ("DepthToSpace" in kinds(model)) == (shape[2] == "h")
    assert decibels(want, run(model, x)) > 120


def test_one_pixel_needs_no_stride():
    model = transposed(("n", 5, 1, 1), (4, 4), bias=False)
    x = RNG.normal(size=(3, 5, 1, 1)).astype(np.float32)
    want = run(model, x)
    assert shuffle(model) == 1
    assert decibels(want, run(model, x)) > 120


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3), {}),  # stride 1 over more than a pixel: nothing to lay side by side
        ((4, 4), {"strides": [2, 1]}),
        ((3, 3), {"strides": [2, 2], "dilations": [2, 2]}),
        ((4, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((2, 2), {"strides": [2, 2], "output_padding": [1, 1]}),  # more than the taps give
    ],
)
def test_what_would_not_be_exact_stays(kernel, options):
    model = transposed(("n", 5, 4, 6), kernel, **options)
    before = model.SerializeToString()
    assert shuffle(model) == 0
    assert model.SerializeToString() == before


def test_groups_stay():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 2])
    model = graph([node], [weight("w", 4, 3, 2, 2)], ("n", 4, 4, 4))
    assert shuffle(model) == 0


def test_an_activation_goes_before_the_shuffle_unless_its_input_is_read_elsewhere():
    for other in (False, True):
        up = helper.make_node("ConvTranspose", ["x", "w"], ["u"], name="up", strides=[2, 2])
        nodes = [up, helper.make_node("Relu", ["u"], ["r"])]
        nodes.append(helper.make_node("Add", ["r", "u" if other else "r"], ["y"]))
        model = graph(nodes, [weight("w", 4, 3, 2, 2)], ("n", 4, 4, 4))
        x = RNG.normal(size=(2, 4, 4, 4)).astype(np.float32)
        want = run(model, x)
        assert shuffle(model) == 1
        assert (kinds(model)[1] == "Relu") is not other
        assert decibels(want, run(model, x)) > 120


def test_integers_and_scales_are_carried_over_as_they_are():
    integers = RNG.integers(-128, 128, (5, 3, 4, 4)).astype(np.int8)
    scales = RNG.uniform(0.01, 0.1, 3).astype(np.float32)
    parts = [integers, scales, np.zeros(3, np.int8)]
    names = ["w_int8", "w_scale", "w_zero"]
    nodes = [
        helper.make_node("DequantizeLinear", names, ["w"], axis=1),
        helper.make_node(
            "ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2], pads=[1, 1, 1, 1]
        ),
    ]
    model = graph(nodes, list(map(numpy_helper.from_array, parts, names)), ("n", 5, 4, 6))
    x = RNG.normal(size=(2, 5, 4, 6)).astype(np.float32)
    want, how = run(model, x), plan(nodes[1], (5, 3, 4, 4), (4, 6))
    assert shuffle(model) == 1
    have = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert np.array_equal(have["w_int8_phases"], phases(integers, how))
    assert sorted(have["w_int8_phases"].ravel()) == sorted(integers.ravel())
    assert np.array_equal(have["w_scale_phases"], np.tile(scales, 4))
    assert not set(names) & set(have)
    assert decibels(want, run(model, x)) > 120


def upsampled(factor=2, kernel=3, pad=1, how=("asymmetric", "floor"), mode="nearest", **options):
    scales = numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), "s")
    resize = {"mode": mode, "coordinate_transformation_mode": how[0], "nearest_mode": how[1]}
    nodes = [
        helper.make_node("Resize", ["x", "", "s"], ["u"], name="up", **resize),
        helper.make_node("Conv", ["u", "w", "b"], ["y"], name="conv", pads=[pad] * 4, **options),
    ]
    weights = [scales, weight("w", 3, 5, kernel, kernel), weight("b", 3)]
    return graph(nodes, weights, ("n", 5, 4, 6))


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"how": ("half_pixel", "round_prefer_floor")},
        {"factor": 3, "kernel": 5, "pad": 2},
        {"factor": 4, "kernel": 3, "pad": 0},
        {"kernel": 1, "pad": 0},
    ],
)
def test_upsampling_goes_into_the_convolution_behind_it_borders_included(case, tmp_path):
    model = upsampled(**case)
    x = RNG.normal(size=(2, 5, 4, 6)).astype(np.float32)
    want = run(model, x)
    onnx.save(model, tmp_path / "m.onnx")
    (note,) = exporter.fuse(tmp_path / "m.onnx")
    assert note == "1 upsamplings folded into the convolution behind them (exact)"
    found = onnx.load(tmp_path / "m.onnx")
    assert not {"Resize", "ConvTranspose"} & set(kinds(found))
    got = run(found, x)
    assert decibels(want, got) > 120
    for border in (np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., 0], np.s_[..., -1]):
        assert decibels(want[border], got[border]) > 120


@pytest.mark.parametrize(
    "case",
    [
        {"mode": "linear", "how": ("half_pixel", "floor")},
        {"how": ("align_corners", "floor")},
        {"factor": 1.5},
        {"strides": [2, 2]},
        {"kernel": 1, "pad": 1},  # it pads more than it reaches
    ],
)
def test_what_upsampling_does_not_fold_stays(case, tmp_path):
    model = upsampled(**case)
    assert fold_upsampling(model) == set()
    onnx.save(model, tmp_path / "m.onnx")
    assert exporter.fuse(tmp_path / "m.onnx") == ()
    assert onnx.load(tmp_path / "m.onnx") == model


def test_an_upsampled_image_that_is_read_twice_stays():
    model = upsampled()
    model.graph.node.append(helper.make_node("Relu", ["u"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert fold_upsampling(model) == set()


def test_the_taps_of_an_upsampled_line_are_sums():
    kernel = np.array([1, 2, 4], np.float32).reshape(1, 1, 1, 3)
    assert summed(np.tile(kernel, (1, 1, 1, 1)), 2)[0, 0, 0].tolist() == [4, 6, 3, 1]


class Decoder(nn.Module):
    """Two transposed convolutions, a batch norm to be folded, a convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8 * 16)
        layers = [nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6)]
        layers += [nn.ReLU(), nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(4, 1, 3, 1, 1))

    def forward(self, latent):
        return torch.sigmoid(self.body(self.first(latent).unflatten(1, (-1, 4, 4))))


SPEC = GraphSpec(
    "decoder",
    (TensorSpec("latent", "float32", ("batch", 6)),),
    (TensorSpec("image", "float32", ("batch", 1, 16, 16)),),
)


@pytest.fixture(scope="module")
def decoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Decoder().train()
        with torch.no_grad():
            net(torch.randn(32, 6))  # so that the batch norm is not the identity
        return net.eval(), torch.randn(8, 4, 6)


def optimized(path, folder):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = ort.InferenceSession(path, options)
    graph = onnx.load(folder / "optimized.onnx").graph
    return session, Counter(node.op_type for node in graph.node)


@pytest.mark.slow
def test_static_int8_of_a_decoder_has_int8_up_to_its_last_convolution(decoder, tmp_path):
    net, latents = decoder
    path = tmp_path / "m.onnx"
    exporter.write(net, SPEC, path)
    notes = exporter.quantize(path, SPEC, "int8", [{"latent": z.numpy()} for z in latents])
    assert f"2 {SHUFFLED}" in notes
    assert any(note.startswith("last convolution stays fp32: ") for note in notes)
    found = [(layer.kind, layer.precision) for layer in exporter.ledger(path)]
    assert found == [("Gemm", "int8"), ("Conv", "int8"), ("Conv", "int8"), ("Conv", "fp32")]
    session, kinds = optimized(path, tmp_path)
    assert kinds["QLinearConv"] == 2
    assert not kinds["ConvTranspose"] and not kinds["Relu"]
    assert kinds["QuantizeLinear"] == 2  # the latent, and what the first Relu gives
    with torch.no_grad():
        want = net(latents[0]).numpy()
    assert decibels(want, session.run(None, {"latent": latents[0].numpy()})[0]) > 30


@pytest.mark.slow
def test_the_own_integers_of_a_transposed_convolution_are_computed_with(decoder, tmp_path):
    net, latents = folding.fold(decoder[0]).net, decoder[1]
    names = list(quantized.quantizable(net))
    quantized.attach(net, dict.fromkeys(names, Scheme(8, 0, input_bits=8)))
    for name in names:
        layer = net.get_submodule(name)
        low, high = quantized.quantizer_of(layer).grouped(layer.weight.detach()).aminmax(dim=-1)
        quantized.set_weight(layer, torch.maximum(-low, high) / 127)
        quantized.set_input(layer, -4.0 if name == "first" else 0.0, 4.0)
    folded, path = folding.fold(net), tmp_path / "m.onnx"
    exporter.write(folded.net, SPEC, path)
    notes, exact = exporter.dress(path, folded)
    assert f"2 {SHUFFLED}" in notes and not exact
    assert {layer.precision for layer in exporter.ledger(path)} == {"int8"}
    stored, how = folded.weights["body.1"], Plan(2, (2, 2), ((1, 1), (1, 1)))
    have = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    found = have["body.1.weight_int8_phases"]
    assert np.array_equal(found, phases(in_torch(stored.q, stored), how))
    session, kinds = optimized(path, tmp_path)
    assert kinds["QLinearConv"] == 2 and not kinds["ConvTranspose"] and not kinds["Relu"]
    with torch.no_grad():
        want = folded.reference(latents[0]).numpy()
    assert decibels(want, session.run(None, {"latent": latents[0].numpy()})[0]) > 100
