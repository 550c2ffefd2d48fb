"""Fixed shapes: what `--static` makes of a model."""

from pathlib import Path

import pytest
import torch

from edgegen.errors import UnsupportedError, UsageError
from edgegen.exporters._fixed import Window, fix
from edgegen.models import gan, gpt
from edgegen.spec import GraphSpec, TensorSpec


@pytest.fixture
def net(toys):
    return toys.tiny_net("gpt")


@pytest.fixture
def text(net):
    return gpt.graphs(net)


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    return gan.graphs(gan.Net(gan.Config()).eval())


def test_only_the_named_dimension_of_an_image_graph_is_fixed(pictures):
    module, graph = fix(pictures, {"batch": 1})["generator"]
    assert module is pictures["generator"][0]
    assert graph.inputs[0].shape == (1, 16)
    assert graph.outputs[0].shape == (1, 1, 8, 8)


def test_a_text_graph_becomes_a_window_without_a_cache(text):
    module, graph = fix(text, {"batch": 2, "seq": 16})["model"]
    assert isinstance(module, Window)
    assert [(s.name, s.shape) for s in graph.inputs] == [
        ("input_ids", (2, 16)),
        ("attention_mask", (2, 16)),
        ("position_ids", (2, 16)),
    ]
    assert [(s.name, s.shape) for s in graph.outputs] == [("logits", (2, 16, 257))]
    assert "seq" not in graph.limits


def test_the_window_computes_what_the_net_computes_from_an_empty_cache(net):
    ids = torch.randint(257, (2, 5), generator=torch.manual_seed(1))
    mask, positions = torch.ones_like(ids), torch.arange(5).expand_as(ids)
    with torch.no_grad():
        want = net(ids, mask, positions, *net.empty_cache(2))[0]
        assert torch.equal(Window(net)(ids, mask, positions), want)


@pytest.mark.parametrize(
    ("static", "message", "hint"),
    [
        ({"bacth": 1}, "--static bacth: no graph has it free", "did you mean 'batch'?"),
        ({"batch": 0, "seq": 4}, "--static batch=0: wanted 1 to ", ""),
        ({"batch": 1, "seq": 65}, "--static seq=65: wanted 1 to 64", ""),
        ({"seq": 8}, "--static for text needs both", "write --static batch=1,seq=256"),
    ],
)
def test_a_size_that_cannot_be_says_which_can(text, static, message, hint):
    with pytest.raises(UsageError) as error:
        fix(text, static)
    assert str(error.value).startswith(message)
    assert error.value.hint == hint


def test_a_foreign_onnx_file_keeps_its_shapes():
    spec = GraphSpec("model", (TensorSpec("x", "float32", ("batch", 2)),), ())
    with pytest.raises(UnsupportedError) as error:
        fix({"model": (Path("net.onnx"), spec)}, {"batch": 1})
    assert str(error.value).startswith("net.onnx: ")
    assert "make_dynamic_shape_fixed" in error.value.hint
