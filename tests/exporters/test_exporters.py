"""What every format shares: where files lie, what is traced with, group sizes, what went wrong."""

import pytest
import torch

from edgegen import exporters
from edgegen.errors import UnsupportedError
from edgegen.models import gpt
from edgegen.sources import open_source
from edgegen.spec import GraphSpec, TensorSpec

FLAT = GraphSpec("model", (TensorSpec("x", "float32", ("batch", 4)),), (), {})


def test_the_graph_named_model_lies_at_the_top_and_any_other_in_its_folder(tmp_path):
    assert exporters.file_of(tmp_path, "model", "onnx") == tmp_path / "model.onnx"
    assert exporters.file_of(tmp_path, "decoder", "openvino") == (
        tmp_path / "decoder/openvino_model.xml"
    )


def test_no_two_dimensions_are_traced_at_one_size_and_none_at_1(toys):
    feed = exporters.example(toys.MODEL)
    batch, seq = feed["input_ids"].shape
    past = feed["past_key_values.0.key"].shape[2]
    assert len({1, batch, seq, past}) == 4
    assert feed["attention_mask"].shape == (batch, past + seq)
    toys.MODEL.check(feed)


def test_examples_keep_to_the_bounds_and_limits_of_the_spec():
    spec = GraphSpec(
        "model",
        (
            TensorSpec("ids", "int64", ("batch", "seq"), 5, 6),
            TensorSpec("x", "float16", ("batch", 50), -3, -2),
            TensorSpec("noise", "float32", ("seq", 50)),
        ),
        (),
        {"seq": 2},
    )
    feed = exporters.example(spec)
    spec.check(feed)
    assert set(feed["ids"].flat) <= {5, 6}
    assert -3 <= feed["x"].min() <= feed["x"].max() <= -2
    assert feed["noise"].min() < 0 < feed["noise"].max()


def test_a_graph_with_a_cache_is_text(toys):
    assert exporters.is_text(toys.MODEL)
    assert not exporters.is_text(toys.DECODER)


def test_free_axes_of_varargs_are_nested(toys):
    module, graph = gpt.graphs(toys.tiny_net("gpt"))["model"]
    ids, mask, positions, caches = exporters.dynamic_axes(module, graph, str)
    assert ids == positions == {0: "batch", 1: "seq"}
    assert mask == {0: "batch", 1: "past+seq"}
    assert caches == ({0: "batch", 2: "past"},) * 4


@pytest.mark.parametrize(
    ("channels", "wanted", "size"),
    [
        ({"a": 64, "b": 96}, 0, 32),
        ({"a": 64, "b": 48}, 0, 16),
        ({"a": 64}, 128, 128),
        ({"a": 27}, 0, 32),
        ({}, 0, 32),
    ],
)
def test_the_group_size_is_the_largest_that_divides_all_channels(channels, wanted, size):
    assert exporters.group_size(channels, wanted)[0] == size


def test_layers_whose_last_group_is_padded_are_named():
    assert exporters.group_size({"a": 64, "b": 32})[1] == ()
    (note,) = exporters.group_size({f"n{i}": 27 for i in range(6)})[1]
    assert note == (
        "group size 32 does not divide the channels of n0 (27), n1 (27), n2 (27), n3 (27) "
        "and 2 more: last group padded"
    )


HEAD = """import torch


class Net(torch.nn.Module):
    def forward(self, x):
"""
# What a user's file may hold that an exporter cannot take: (forward, what is named, the line).
CANNOT = {
    "item": ("y = x.sum().item()\n        return x * y if y > 0 else x", "data-dependent", 7),
    "if": ("if x.sum() > 0:\n            return x\n        return x * 2", "", 6),
    "eig": ("y = x.reshape(-1, 2, 2)\n        return torch.linalg.eigvals(y).real", "eig", 7),
}


@pytest.fixture
def user_graph(tmp_path):
    """A module written by a user in a file: (module, spec, path of the file)."""

    def write(body):
        file = tmp_path / "mine.py"
        file.write_text(f"{HEAD}        {body}\n")
        return *open_source(f"{file}:Net", ["x:float32[batch,4]"]).parts["model"], file

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "kind"),
    [("item", "onnx"), ("if", "onnx"), ("if", "torch"), ("eig", "onnx"), ("eig", "openvino")],
)
def test_a_module_that_cannot_be_exported_is_blamed_by_operator_and_line(
    user_graph, tmp_path, what, kind
):
    body, named, line = CANNOT[what]
    module, graph, file = user_graph(body)
    with pytest.raises(UnsupportedError) as error:
        exporters.write_graph(module, graph, tmp_path, kind)
    message = str(error.value)
    assert message.startswith(f"{kind}: graph model cannot be exported: ")
    assert named in message
    assert message.endswith(f" at {file}:{line}")
    assert error.value.hint.startswith("rewrite that line")


def test_openvino_traces_so_a_frozen_choice_is_told_in_a_note(user_graph, tmp_path):
    module, graph, file = user_graph(CANNOT["if"][0])
    notes = exporters.write_graph(module, graph, tmp_path, "openvino")
    assert notes == (f"tracing may have frozen a choice made at {file}:6",)


def test_errors_without_a_place_or_words_still_name_their_type():
    error = exporters.explain(KeyError(), "onnx", "model")
    assert str(error) == "onnx: graph model cannot be exported: KeyError: no message"


def test_nothing_to_quantize_is_an_error(tmp_path):
    graph = GraphSpec(
        "model",
        (TensorSpec("x", "float32", ("batch", 4)),),
        (TensorSpec("y", "float32", ("batch", 4)),),
    )
    exporters.write_graph(torch.nn.Tanh(), graph, tmp_path, "onnx")
    with pytest.raises(UnsupportedError) as error:
        exporters.quantize_graph(graph, tmp_path, "onnx", precision="int4")
    assert "no layer of graph model can be int4" in str(error.value)
    assert error.value.hint


def test_what_is_not_a_question_of_the_model_is_not_blamed_on_it(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(OSError, match="model"):
        exporters.write_graph(torch.nn.Tanh(), FLAT, tmp_path / "model", "onnx")
