"""What graphs are run on to see which channels hang together."""

import pytest
import torch

from edgegen import checkpoint
from edgegen.compress._dependency import example, outputs
from edgegen.sources._probe import sizes
from edgegen.spec import TensorSpec


def test_a_decoder_runs_on_its_example(tiny_checkpoint):
    found = checkpoint.load(tiny_checkpoint("gpt"))
    module, graph = checkpoint.graphs(found.spec, found.net)["model"]
    feed = dict(zip([spec.name for spec in graph.inputs], example(graph), strict=True))
    batch, seq = feed["input_ids"].shape
    past = feed["past_key_values.0.key"].shape[2]
    assert feed["attention_mask"].shape == (batch, past + seq)
    assert past + seq <= graph.limits["past+seq"] and past != seq
    with torch.no_grad():
        assert outputs(module, tuple(feed.values()))[0].shape == (batch, seq, 257)


@pytest.mark.parametrize("limits", [{}, {"a+b": 9}, {"a+b": 2}])
def test_a_dimension_that_is_a_sum_is_the_sum(limits):
    specs = (TensorSpec("x", "float32", ("a", "b")), TensorSpec("y", "float32", ("a+b",)))
    for at in sizes(specs, limits):
        assert at["a+b"] == at["a"] + at["b"] <= limits.get("a+b", 10**6)
        assert min(at.values()) >= 1
