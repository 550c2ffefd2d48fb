"""Operations and bytes of ONNX graphs, against numbers worked out by hand."""

from math import prod

import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, helper

from edgegen import work
from edgegen.bundle import open_bundle
from edgegen.errors import UnsupportedError
from edgegen.roofs import Bandwidth, Peak, Peaks
from edgegen.spec import Request
from edgegen.work import Kind, Work

F, I8, U8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


def node(kind, inputs, output, **options):
    return helper.make_node(kind, inputs.split(), [output], **options)


def weight(name, shape, kind=F):
    return helper.make_tensor(name, kind, shape, [0] * prod(shape))


def model(nodes, shape, weights, kind=F):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], F, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def kinds(nodes, shape, weights, sizes=None):
    return {k.kind: k for k in work.of_model(model(nodes, shape, weights), sizes or {}).kinds}


def test_a_product_reads_its_input_and_weight_and_writes_its_output_once():
    found = work.of_model(model([node("MatMul", "x w", "y")], (3, 10), [weight("w", (10, 6))]), {})
    moved = 4 * (3 * 10 + 3 * 6)
    assert found.kinds == (Kind("MatMul", 2 * 3 * 10 * 6, 0, 60, 240, moved),)
    assert found.resident_bytes == 240 + moved
    assert (found.phase, found.times, found.notes) == ("run", 1, ())


def test_the_sizes_of_a_request_count():
    nodes, weights = [node("MatMul", "x w", "y")], [weight("w", (10, 6))]
    one = kinds(nodes, ("batch", 10), weights, {"batch": 1})["MatMul"]
    four = kinds(nodes, ("batch", 10), weights, {"batch": 4})["MatMul"]
    assert (four.flops, four.moved_bytes) == (4 * one.flops, 4 * one.moved_bytes)
    assert four.weight_bytes == one.weight_bytes


def test_what_engines_merge_moves_nothing_and_what_they_do_not_does():
    nodes = [node("Relu", "x", "r"), node("Softmax", "r", "y")]
    assert kinds(nodes, (3, 10), [])["other"] == Kind("other", 0, 0, 0, 0, 2 * 4 * 30)


def quantized(name, scale="s"):
    return [
        node("QuantizeLinear", f"{name} {scale} zu", f"{name}q"),
        node("DequantizeLinear", f"{name}q {scale} zu", f"{name}d"),
    ]


def test_between_quantizing_and_dequantizing_bytes_are_read_and_multiplied():
    nodes = [
        *quantized("x"),
        node("DequantizeLinear", "w s zi", "wd"),
        node("MatMul", "xd wd", "y"),
        *quantized("y"),
        node("Relu", "yd", "z"),
    ]
    weights = [weight("w", (10, 6), I8), weight("s", ()), weight("zu", (), U8)]
    found = kinds(nodes, (3, 10), [*weights, weight("zi", (), I8)])["MatMul"]
    flops = 2 * 3 * 10 * 6
    assert found == Kind("MatMul", flops, flops, 60, 60, 3 * 10 + 3 * 6)


def test_weights_alone_in_int8_are_read_as_bytes_and_multiplied_as_floats():
    nodes = [node("DequantizeLinear", "w s", "wd"), node("MatMul", "x wd", "y")]
    found = kinds(nodes, (3, 10), [weight("w", (10, 6), I8), weight("s", ())])["MatMul"]
    assert (found.weight_bytes, found.int8_flops, found.flops) == (60, 0, 360)


def test_an_integer_operator_calculates_in_int8():
    nodes = [node("MatMulInteger", "x w", "i"), node("Cast", "i", "y", to=F)]
    found = work.of_model(model(nodes, (3, 10), [weight("w", (10, 6), I8)], U8), {}).kinds[0]
    assert found == Kind("MatMul", 360, 360, 60, 60, 30 + 4 * 18)


def test_packed_weights_of_four_bits_count_half_a_byte_and_their_scales():
    bits = node("MatMulNBits", "x w s", "y", K=64, N=8, bits=4, block_size=32)
    bits.domain = "com.microsoft"
    packed = [weight("w", (8, 2, 16), U8), weight("s", (16,))]
    found = kinds([bits], (3, 64), packed)["MatMul"]
    assert (found.flops, found.weights) == (2 * 3 * 64 * 8, 64 * 8)
    assert found.weight_bytes == 64 * 8 / 2 + 16 * 4


@pytest.mark.parametrize(("engine", "share"), [("onnxruntime", 1), ("openvino", 0)])
def test_where_onnxruntime_rounds_the_inputs_too_it_multiplies_bytes(engine, share):
    bits = node("MatMulNBits", "x w s", "y", K=64, N=8, bits=8, block_size=32, accuracy_level=4)
    bits.domain = "com.microsoft"
    made = model([bits], (3, 64), [weight("w", (8, 2, 32), U8), weight("s", (16,))])
    (found,) = work.of_model(made, {}, engine=engine).kinds
    assert found.int8_flops == share * found.flops


def test_a_transposed_weight_is_still_a_weight():
    nodes = [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    found = kinds(nodes, (1, 100), [weight("w", (90, 100))])
    assert (found["MatMul"].weight_bytes, found["MatMul"].moved_bytes) == (36000, 4 * 190)
    assert found["other"].moved_bytes == 0


def test_of_a_table_only_the_rows_that_are_looked_up_are_read():
    table = weight("w", (1000, 8))
    graph = model([node("Gather", "w x", "y")], (3,), [table], TensorProto.INT64)
    assert work.of_model(graph, {}).kinds[0] == Kind("other", moved_bytes=2 * 4 * 3 * 8)


def test_an_operator_that_is_not_counted_is_named():
    rnn = node("LSTM", "x w r", "y", hidden_size=4)
    found = work.of_model(
        model([rnn], (5, 1, 3), [weight("w", (1, 16, 3)), weight("r", (1, 16, 4))]), {}
    )
    assert found.notes == ("run: not counted: 1x LSTM",)


def test_a_graph_whose_shapes_cannot_be_inferred_is_refused():
    made = model([node("Relu", "x", "y")], (3, 9), [])
    del made.opset_import[:]
    with pytest.raises(UnsupportedError, match="MACs not counted: "):
        work.of_model(made, {})


def test_a_bundle_without_an_onnx_graph_is_refused_with_the_command(text_bundle):
    with pytest.raises(UnsupportedError, match="counted in an ONNX graph, and there is none") as e:
        work.of_bundle(open_bundle(text_bundle), Request(prompt_tokens=4, new_tokens=4))
    assert "--to callable,onnx" in e.value.hint


def test_an_image_bundle_has_one_phase(onnx_bundle):
    (found,) = work.of_bundle(open_bundle(onnx_bundle), Request(batch=3))
    assert (found.phase, found.times) == ("run", 1)
    assert found.kinds[0] == Kind("MatMul", 2 * 3 * 4 * 64, 0, 256, 1024, 4 * 3 * (4 + 64))


@pytest.mark.slow
def test_text_reads_its_prompt_and_writes_one_token_at_a_time(exports):
    bundle = open_bundle(exports("gpt"))
    prefill, decode = work.of_bundle(bundle, Request(prompt_tokens=8, new_tokens=5))
    assert [(w.phase, w.times) for w in (prefill, decode)] == [("prefill", 1), ("decode", 4)]
    flops = [{k.kind: k.flops for k in w.kinds} for w in (prefill, decode)]
    assert flops[0]["MatMul"] == 8 * flops[1]["MatMul"]
    (only,) = work.of_bundle(bundle, Request(prompt_tokens=8, new_tokens=1))
    assert only == prefill
    weights = [sum(k.weights for k in w.kinds if k.kind != "other") for w in (prefill, decode)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_precisions_of_a_bundle_differ_in_bytes_and_arithmetic(exports):
    request = Request(prompt_tokens=8, new_tokens=5)
    held = {}
    for precision in ("fp32", "int8", "int4"):
        main = work.of_bundle(open_bundle(exports("gpt", precision)), request)[-1]
        held[precision] = next(k for k in main.kinds if k.kind == "MatMul")
    assert held["fp32"].weight_bytes > 3 * held["int8"].weight_bytes
    assert held["int8"].weight_bytes > held["int4"].weight_bytes
    assert len({k.flops for k in held.values()}) == 1
    vae = work.of_bundle(open_bundle(exports("vae", "int8")), Request())[-1]
    conv = next(k for k in vae.kinds if k.kind == "Conv")
    # The last convolution, 32 channels to 1 at 8x8, stays in fp32.
    assert conv.flops - conv.int8_flops == 2 * 8 * 8 * 9 * 32
    assert conv.int8_flops > 0


PEAKS = Peaks(
    "cpu", "a processor", 2, "2026-11-21T00:00:00+00:00",
    (Peak("fp32", 10.0, "x"), Peak("int8", 40.0, "x")),
    (Bandwidth("L2", 100.0, 512, 1024, "x"), Bandwidth("DRAM", 10.0, 4096, 0, "x")),
)  # fmt: skip


def test_the_least_time_follows_from_peak_and_nearest_memory():
    kind = Kind("MatMul", 2e6, 0, 250, 1000, 9000)
    assert work.least_ms(kind, Work("run", 1, (), 2**20), PEAKS) == pytest.approx((0.2, 0.0001))
    assert work.least_ms(kind, Work("run", 1, (), 2**20 + 1), PEAKS)[1] == pytest.approx(0.001)
    int8 = Kind("MatMul", 2e6, 2e6)
    assert work.least_ms(int8, Work("run", 1, (), 1), PEAKS)[0] == pytest.approx(0.05)
