"""ONNX Runtime's own large operators against torch, and the buffers that they work in."""

import numpy as np
import onnx
import pytest
import torch

from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.exporters import fused as exporter
from edgegen.models import gpt
from edgegen.runtimes import _fused_cache, fused
from edgegen.runtimes.loops import autoregressive
from edgegen.spec import Options, Sampling
from edgegen.verify import sqnr_db

VOCABULARY = 515
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,  # not whole groups: padded
    "max_position_embeddings": 300,
}
STYLES = {
    "llama": {"num_key_value_heads": 2, "qkv_bias": True},
    "llama-untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "gpt2": {"style": "gpt2", "num_key_value_heads": 4},
}


def make(style):
    torch.manual_seed(0)
    net = gpt.Net(gpt.Config(**SIZES, **STYLES[style]))
    for parameter in net.parameters():  # norms and biases that do something
        torch.nn.init.normal_(parameter, float(parameter.dim() < 2), 0.2)
    return gpt.graphs(net)["model"]


@pytest.fixture(scope="module", params=STYLES)
def model(request):
    return make(request.param)


def opened(model, folder, precision="fp32", threads=1):
    path = folder / exporter.FILE
    exporter.write(*model, path)
    if precision != "fp32":
        exporter.quantize(path, model[1], precision)
    return fused.open_graph(path, model[1], "cpu", Options(threads=threads))


def feed_of(graph, batch=2, time=9, past=5, hidden=3):
    """A filled cache, and padding on the left of the last sequence."""
    rng = np.random.default_rng(0)
    mask = np.ones((batch, past + time), np.int64)
    mask[-1, :hidden] = 0
    feed = {
        "input_ids": rng.integers(0, VOCABULARY, (batch, time)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, past:],
    }
    for spec in graph.inputs[3:]:
        feed[spec.name] = rng.standard_normal((batch, spec.shape[1], past, 16)).astype(np.float32)
    return feed


@pytest.mark.parametrize(("past", "hidden"), [(5, 3), (0, 3), (0, 0), (200, 0), (5, 7)])
def test_fp32_computes_what_torch_does_caches_and_padding_included(model, tmp_path, past, hidden):
    module, graph = model
    feed = feed_of(graph, past=past, hidden=hidden)
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(feed[spec.name]) for spec in graph.inputs))
    found = opened(model, tmp_path).run(feed)
    for spec, want in zip(graph.outputs, wanted, strict=True):
        assert found[spec.name].shape == want.shape
        assert sqnr_db(want.numpy(), found[spec.name]) > 100, spec.name


@pytest.mark.parametrize(("precision", "least_db"), [("int8", 25), ("int4", 5)])
def test_integers_come_near_to_what_torch_computes(model, tmp_path, precision, least_db):
    module, graph = model
    feed = feed_of(graph)
    with torch.no_grad():
        want = module(*(torch.from_numpy(feed[spec.name]) for spec in graph.inputs))[0].numpy()
    found = opened(model, tmp_path, precision).run(feed)["logits"]
    assert sqnr_db(want, found) > least_db


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_greedy_text_is_that_of_the_logits_for_prompts_of_unlike_length(model, tmp_path, precision):
    session = opened(model, tmp_path, precision)
    prompts = ((5, 9, 300), (7,), (1, 2, 3, 4, 5, 6))
    fast = session.decoder(Sampling())
    plain = autoregressive.PlainDecoder(session.cached(), VOCABULARY, 0)
    mine = [fast.start(prompts, Sampling()), *(fast.step() for _ in range(12))]
    theirs = [plain.start(prompts, Sampling()), *(plain.step() for _ in range(12))]
    assert np.array_equal(mine, theirs)


def test_a_sequence_of_a_batch_is_what_it_is_alone(model, tmp_path):
    session = opened(model, tmp_path)
    prompts = ((5, 9, 300), (7,), (1, 2, 3, 4, 5, 6))
    decoder = session.decoder(Sampling())
    together = [decoder.start(prompts, Sampling()), *(decoder.step() for _ in range(8))]
    for row, prompt in enumerate(prompts):
        alone = [decoder.start((prompt,), Sampling()), *(decoder.step() for _ in range(8))]
        assert np.array_equal(np.array(together)[:, row], np.array(alone)[:, 0])


def test_buffers_that_grow_in_the_middle_change_no_token(model, tmp_path, monkeypatch):
    session = opened(model, tmp_path)
    prompt = (tuple(range(100)),)

    def text():
        decoder = session.decoder(Sampling())
        return [decoder.start(prompt, Sampling()), *(decoder.step() for _ in range(40))]

    grown = text()
    monkeypatch.setattr(_fused_cache, "LEAST_ROOM", 256)
    assert np.array_equal(grown, text())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "top_k": 1},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 2.5, "top_k": VOCABULARY - 1},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.7},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_top_k_in_the_graph_draws_the_tokens_of_the_common_loop(model, tmp_path, options):
    session, sampling = opened(model, tmp_path, "int8"), Sampling(**options)
    prompts = ((5, 9, 300), (7,), (5, 9, 300))
    for seed in range(3):
        fast = session.decoder(sampling, seed)
        plain = autoregressive.PlainDecoder(session.cached(), VOCABULARY, seed)
        mine = [fast.start(prompts, sampling), *(fast.step() for _ in range(20))]
        theirs = [plain.start(prompts, sampling), *(plain.step() for _ in range(20))]
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=3)])
def test_equal_logits_are_chosen_from_as_everywhere(tmp_path, sampling):
    module, graph = make("llama-untied")
    rows = module.lm_head.weight.data
    rows[:] = rows[0]  # every token alike, so that there are more than k best
    session = opened((module, graph), tmp_path)
    fast = session.decoder(sampling, 1)
    plain = autoregressive.PlainDecoder(session.cached(), VOCABULARY, 1)
    mine = [fast.start(((5, 9),), sampling), *(fast.step() for _ in range(10))]
    theirs = [plain.start(((5, 9),), sampling), *(plain.step() for _ in range(10))]
    assert np.array_equal(mine, theirs)
    assert (len(np.unique(mine)) > 3) == (sampling.temperature > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": VOCABULARY},
        {"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.2},
        {"repetition_penalty": 1.2},
    ],
)
def test_what_needs_every_logit_is_left_to_the_loop(model, tmp_path, options):
    assert opened(model, tmp_path).decoder(Sampling(**options)) is None


def test_positions_that_skip_are_refused_with_the_fix(model, tmp_path):
    feed = feed_of(model[1]) | {"position_ids": np.tile(np.arange(5, 14), (2, 1))}
    with pytest.raises(MismatchError, match="one by one from 0") as caught:
        opened(model, tmp_path).run(feed)
    assert "cumsum(attention_mask)" in caught.value.hint


def test_a_text_longer_than_the_model_is_refused(tmp_path):
    decoder = opened(make("llama"), tmp_path).decoder(Sampling())
    decoder.start((tuple(range(300)),), Sampling())
    with pytest.raises(UsageError, match="301 positions, the model has 300"):
        decoder.step()


def test_weights_that_are_not_finite_are_named_before_any_token(tmp_path):
    module, graph = make("llama")
    module.norm.weight.data[0] = float("nan")
    decoder = opened((module, graph), tmp_path).decoder(Sampling())
    with pytest.raises(MismatchError, match="not finite"):
        decoder.start(((1, 2),), Sampling())


def test_another_device_an_option_and_a_broken_file_are_refused(tmp_path):
    graph = make("llama")[1]
    path = tmp_path / exporter.FILE
    with pytest.raises(NotFoundError, match="no device 'gpu'") as caught:
        fused.open_graph(path, graph, "gpu", Options())
    assert "--runtime onnxruntime" in caught.value.hint
    with pytest.raises(UnsupportedError, match="no option 'x'"):
        fused.open_graph(path, graph, "cpu", Options(provider={"x": "1"}))
    path.write_bytes(b"no graph")
    with pytest.raises(FormatError, match=exporter.FILE):
        fused.open_graph(path, graph, "cpu", Options())


def test_a_graph_of_an_older_version_is_refused_with_the_fix(tmp_path):
    module, graph = make("llama")
    path = tmp_path / exporter.FILE
    exporter.write(module, graph, path)
    old = onnx.load(path)
    old.graph.node.pop()
    for ends in (old.graph.input, old.graph.output):
        for end in [e for e in ends if e.name in ("count", "best", "tokens")]:
            ends.remove(end)
    onnx.save(old, path)
    with pytest.raises(FormatError, match="older EdgeGen") as caught:
        fused.open_graph(path, graph, "cpu", Options())
    assert "--to fused" in caught.value.hint


def test_logits_that_overflow_in_the_middle_are_named(tmp_path):
    decoder = opened(make("llama"), tmp_path).decoder(Sampling())
    decoder.start(((5, 9),), Sampling())
    decoder._cache.buffers["past_key_values.0.value"][:] = np.inf
    with pytest.raises(MismatchError, match="not finite"):
        decoder.step()


def test_a_closed_session_says_so(tmp_path):
    session = opened(make("llama"), tmp_path)
    session.close()
    assert session.operators() == ()
    with pytest.raises(UsageError, match="closed"):
        session.decoder(Sampling()).start(((1,),), Sampling())


def test_it_says_what_it_is():
    assert fused.devices() == ["cpu"]
    assert fused.version()[0].isdigit()
