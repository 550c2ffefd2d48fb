"""MACs of ONNX graphs, against numbers worked out by hand and against torch's counter."""

from math import prod

import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, helper

from edgegen import macs

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, inputs, weights=(), outputs=("y",)):
    """A model of float values; `weights` maps names to shapes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, F, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, F, None) for name in outputs],
        [zeros(name, shape) for name, shape in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def zeros(name, shape):
    return helper.make_tensor(name, F, shape, [0.0] * prod(shape))


def node(kind, inputs, output="y", **options):
    return helper.make_node(kind, inputs.split(), [output], **options)


CASES = {
    # 8 x 8 outputs of 4 channels, each a sum over 3 channels and a 3 x 3 kernel
    "conv": (
        [node("Conv", "x w", pads=[1, 1, 1, 1])],
        {"x": (1, 3, 8, 8)},
        {"w": (4, 3, 3, 3)},
        8 * 8 * 4 * 3 * 3 * 3,
    ),
    "grouped conv with a stride": (
        [node("Conv", "x w", group=2, strides=[2, 2])],
        {"x": (2, 4, 9, 9)},
        {"w": (6, 2, 3, 3)},
        2 * 6 * 4 * 4 * 2 * 3 * 3,
    ),
    # every one of 4 x 4 x 5 inputs is spread over a 4 x 4 kernel into 7 channels
    "transposed conv": (
        [node("ConvTranspose", "x w", strides=[2, 2])],
        {"x": (1, 5, 4, 4)},
        {"w": (5, 7, 4, 4)},
        4 * 4 * 5 * 4 * 4 * 7,
    ),
    "gemm": ([node("Gemm", "x w", transB=1)], {"x": (3, 10)}, {"w": (6, 10)}, 3 * 10 * 6),
    "gemm, first transposed": (
        [node("Gemm", "x w", transA=1)],
        {"x": (10, 3)},
        {"w": (10, 6)},
        3 * 10 * 6,
    ),
    "batched matmul": (
        [node("MatMul", "x z")],
        {"x": (2, 5, 7), "z": (2, 7, 3)},
        {},
        2 * 5 * 7 * 3,
    ),
    "einsum": (
        [node("Einsum", "x z", equation="bct,bcs->bts")],
        {"x": (2, 3, 5), "z": (2, 3, 7)},
        {},
        2 * 3 * 5 * 7,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_macs_are_those_worked_out_by_hand(case):
    nodes, inputs, weights, wanted = CASES[case]
    assert macs.count(model(nodes, inputs, weights), {}) == (wanted, ())


@pytest.mark.parametrize("past", [0, 10])
def test_attention_counts_scores_and_sums_over_past_and_present(past):
    """4 query heads share 2 key heads of 8 channels; 6 queries look at past + 6 keys."""
    inputs = {"q": (1, 4, 6, 8), "k": (1, 2, 6, 8), "v": (1, 2, 6, 8)}
    names = ["q", "k", "v"]
    if past:
        inputs |= {"pk": (1, 2, past, 8), "pv": (1, 2, past, 8)}
        names += ["", "pk", "pv"]
    outputs = ["y", "present_k", "present_v"] if past else ["y"]
    made = model([helper.make_node("Attention", names, outputs)], inputs)
    assert macs.count(made, {}) == (4 * 6 * (past + 6) * (8 + 8), ())


def test_attention_in_three_dimensions_splits_the_heads():
    inputs = {"q": (2, 6, 32), "k": (2, 6, 16), "v": (2, 6, 16)}
    made = model([node("Attention", "q k v", q_num_heads=4, kv_num_heads=2)], inputs)
    assert macs.count(made, {}) == (2 * 4 * 6 * 6 * (8 + 8), ())


def test_block_quantized_weights_count_as_the_products_they_stand_for():
    options = {"K": 64, "N": 10, "bits": 4, "block_size": 32, "domain": "com.microsoft"}
    nodes = [node("MatMulNBits", "x w s", "h", **options), node("MatMul", "h z")]
    made = model(nodes, {"x": (3, 64), "z": (10, 2)})
    made.graph.initializer.extend(
        [
            helper.make_tensor("w", TensorProto.UINT8, (10, 2, 16), bytes(320), raw=True),
            zeros("s", (20,)),
        ]
    )
    assert macs.count(made, {}) == (3 * 64 * 10 + 3 * 10 * 2, ())


def test_free_dimensions_take_the_sizes_given_else_one():
    made = model([node("MatMul", "x w")], {"x": ("batch", "past+seq", 4)}, {"w": (4, 5)})
    assert macs.count(made, {"batch": 3, "past": 7, "seq": 2})[0] == 3 * 9 * 4 * 5
    made = model([node("MatMul", "x w")], {"x": ("batch", "past+seq", 4)}, {"w": (4, 5)})
    assert macs.count(made, {})[0] == 1 * 2 * 4 * 5


def test_a_shape_computed_from_shapes_is_followed():
    """(batch, 6) is reshaped to (batch * 2, 3) by numbers that only the graph knows."""
    made = model(
        [
            helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
            helper.make_node("Squeeze", ["rows"], ["row"]),
            helper.make_node("Mul", ["row", "two"], ["twice"]),
            helper.make_node("Reshape", ["twice", "one"], ["first"]),
            helper.make_node("Concat", ["first", "three"], ["target"], axis=0),
            helper.make_node("Reshape", ["x", "target"], ["h"]),
            node("MatMul", "h w"),
        ],
        {"x": ("batch", 6)},
        {"w": (3, 5)},
    )
    made.graph.initializer.extend(
        helper.make_tensor(name, I64, shape, [value])
        for name, shape, value in [("two", (), 2), ("one", (1,), 1), ("three", (1,), 3)]
    )
    assert macs.count(made, {"batch": 4}) == (8 * 3 * 5, ())


def test_nodes_out_of_order_are_counted_all_the_same():
    nodes = [node("MatMul", "h w"), node("Relu", "x", "h")]
    assert macs.count(model(nodes, {"x": (2, 3)}, {"w": (3, 4)}), {}) == (2 * 3 * 4, ())


def test_a_graph_that_runs_in_a_circle_is_not_followed_for_ever():
    nodes = [node("Add", "x b", "a"), node("Relu", "a", "b"), node("MatMul", "a w")]
    assert macs.count(model(nodes, {"x": (2, 3)}, {"w": (3, 4)}), {})[0] is None


def test_of_an_if_the_dearer_branch_counts():
    def branch(name, weight):
        return helper.make_graph(
            [node("MatMul", f"x {weight}", f"{name}_y")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", F, None)],
        )

    made = model(
        [
            helper.make_node(
                "If", ["c"], ["y"], then_branch=branch("a", "w"), else_branch=branch("b", "v")
            )
        ],
        {"x": (2, 3)},
        {"w": (3, 4), "v": (3, 9)},
    )
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, ()))
    assert macs.count(made, {}) == (2 * 3 * 9, ())


def test_what_cannot_be_counted_is_named_and_no_number_is_made_up():
    nodes = [
        node("Mystery", "x", "h", domain="com.example"),
        node("MatMul", "h w", "z"),
        helper.make_node("LSTM", ["s", "lw", "lr"], ["y"], hidden_size=2),
    ]
    weights = {"w": (3, 4), "lw": (1, 8, 3), "lr": (1, 8, 2)}
    made = model(nodes, {"x": (2, 3), "s": (5, 1, 3)}, weights)
    count, notes = macs.count(made, {})
    assert count is None
    assert set(notes) == {"MACs not counted: 1x MatMul", "MACs not counted: 1x LSTM"}


def test_a_file_that_inference_refuses_gives_a_note_and_no_number():
    made = model([node("Conv", "x w")], {"x": (1, 3, 8, 8)}, {"w": (4, 3, 3, 3)})
    del made.opset_import[:]
    count, notes = macs.count(made, {})
    assert count is None
    assert "No opset import" in notes[0]
