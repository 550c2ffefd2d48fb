"""Which inputs prove an export, and what the reference makes of them."""

import numpy as np
import pytest
import torch

from edgegen import parity
from edgegen.bundle import Case, OneShot
from edgegen.errors import ParityError
from edgegen.models import gpt, vae
from edgegen.models._numpy import Decoder
from edgegen.runtimes.loops.autoregressive import PastForward
from edgegen.spec import GraphSpec, TensorSpec
from edgegen.verify import greedy


def flat(*shape, **fields):
    return GraphSpec(
        "model",
        (TensorSpec("x", "float32", shape),),
        (TensorSpec("y", "float32", shape),),
        **fields,
    )


class Toy:
    """The toy decoder as a reference."""

    def __init__(self, toys):
        self.graph, self.run = toys.MODEL, toys.toy_text


@pytest.fixture
def text(toys):
    ids = np.arange(10, 26)
    return dict(parity.text_feeds(Toy(toys), toys.TEXT, ids))


def test_text_is_tried_at_length_1_odd_and_last_with_the_cache_empty_and_filled(text):
    sizes = {
        name: (*feed["input_ids"].shape, feed["past_key_values.0.key"].shape[2])
        for name, feed in text.items()
    }
    assert sizes == {
        "text": (1, 16, 0),
        "one": (1, 1, 0),
        "odd": (2, 7, 0),
        "filled": (2, 1, 7),
        "chunk": (1, 3, 7),
        "last-position": (1, 1, 63),
    }


def test_every_feed_fits_its_graph(toys, text):
    for feed in text.values():
        toys.MODEL.check(feed)
    for graph in (toys.DECODER, toys.ENCODER, flat("batch", "n", limits={"n": 6})):
        for _, feed in parity.feeds(graph):
            graph.check(feed)


def test_the_second_row_of_a_batch_is_padded_on_the_left(text):
    assert text["odd"]["attention_mask"].tolist() == [[1] * 7, [0, 0, 1, 1, 1, 1, 1]]
    assert text["odd"]["position_ids"][1].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert text["filled"]["attention_mask"].tolist() == [[1] * 8, [0, 0, 1, 1, 1, 1, 1, 1]]
    assert text["filled"]["position_ids"].tolist() == [[7], [5]]


def test_positions_go_on_after_a_filled_cache(text):
    assert text["chunk"]["position_ids"].tolist() == [[7, 8, 9]]
    assert text["last-position"]["position_ids"].tolist() == [[63]]


def test_a_cache_is_what_the_model_itself_made_of_the_text_its_first_8_positions_once(text):
    keys = text["chunk"]["past_key_values.1.key"][0, 0, :, 0]
    assert keys.tolist() == [12, 13, 14, 15, 16, 17, 18]
    assert text["last-position"]["past_key_values.0.key"].shape == (1, 1, 63, 1)
    assert text["last-position"]["past_key_values.0.key"][0, 0, 16, 0] == 20


def test_images_are_tried_at_batch_1_2_and_3(toys):
    assert [len(feed["latent"]) for _, feed in parity.feeds(toys.DECODER)] == [1, 2, 3]


def test_other_free_dimensions_reach_1_an_odd_number_and_their_limit():
    graph = flat("batch", "n", limits={"n": 9})
    assert [feed["x"].shape for _, feed in parity.feeds(graph)] == [(1, 1), (2, 5), (3, 7), (1, 9)]


def test_a_graph_of_fixed_shapes_has_one_case():
    assert [(name, feed["x"].shape) for name, feed in parity.feeds(flat(1, 4))] == [
        ("fixed", (1, 4))
    ]


def test_the_reference_is_the_module_itself():
    torch.manual_seed(0)
    net = vae.Net(vae.Config()).eval()
    module, graph = vae.graphs(net)["encoder"]
    found = parity.cases({"encoder": (module, graph)}, OneShot("encoder"))
    assert [case.name for case in found] == ["one", "two", "odd"]
    with torch.no_grad():
        mean, logvar = module(torch.from_numpy(found[1].inputs["image"]))
    assert np.array_equal(found[1].outputs["mean"], mean)
    assert np.array_equal(found[1].outputs["logvar"], logvar)


@pytest.mark.slow
def test_the_greedy_tokens_of_the_reference_are_those_of_the_module_alone(toys):
    net = toys.tiny_net("gpt")
    found = {c.name: c for c in parity.cases(gpt.graphs(net), toys.TEXT, (1, 2, 3))}
    one, two = found["decode-one"], found["decode-two"]
    assert one.outputs["tokens"].shape == (1, 32)
    ids = [1, 2, 3]
    for token in one.outputs["tokens"][0].tolist():
        tensor = torch.tensor([ids])
        positions = torch.arange(len(ids))[None]
        with torch.no_grad():
            logits = net(tensor, torch.ones_like(tensor), positions, *net.empty_cache(1))[0]
        assert int(logits[0, -1].argmax()) == token
        ids.append(token)
    assert two.inputs["input_ids"].tolist() == [[1, 2, 3], [0, 2, 3]]
    assert two.inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert two.outputs["tokens"][0].tolist() == one.outputs["tokens"][0].tolist()


class Forgetful(torch.nn.Module):
    """A decoder that does not look at its cache."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input_ids, attention_mask, position_ids, *past):
        blank = (torch.zeros_like(cache) for cache in past)
        return self.net(input_ids, attention_mask, position_ids, *blank)


@pytest.mark.slow
def test_a_module_whose_cache_does_not_work_is_refused(toys):
    net = toys.tiny_net("gpt")
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.2)  # so that what was said before matters
    module, graph = gpt.graphs(net)["model"]
    with pytest.raises(ParityError) as error:
        parity.cases({"model": (Forgetful(module), graph)}, toys.TEXT, (1, 2, 3))
    assert "decoded through the cache are not those of the full forward" in str(error.value)
    assert "mend it before exporting" in error.value.hint


def test_what_is_too_large_does_not_travel():
    small = Case("model", "one", {"x": np.zeros(4, np.float32)}, {})
    assert parity.keep(small)
    large = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (9_000_000,), (0,))
    assert not parity.keep(Case("model", "one", {}, {"y": large}))


class Logarithm(torch.nn.Module):
    def forward(self, sigma):
        return sigma.log()


def noise(**bounds):
    ends = (TensorSpec("sigma", "float32", ("batch", 4), **bounds),)
    return GraphSpec("model", ends, (TensorSpec("y", "float32", ("batch", 4)),))


def test_a_model_that_answers_nan_is_refused_with_how_to_bound_its_inputs():
    with pytest.raises(ParityError) as error:
        parity.cases({"model": (Logarithm(), noise())}, OneShot("model"))
    assert str(error.value).startswith("graph model, case one: the model itself gives NaN")
    assert "--input 'sigma:float32[batch]@0.1..80'" in error.value.hint
    bounded = {"model": (Logarithm(), noise(low=0.1, high=80))}
    assert len(parity.cases(bounded, OneShot("model"))) == 3


def test_numpy_and_torch_give_the_same_cases_and_the_pair_decodes_as_one_alone():
    torch.manual_seed(0)
    config = gpt.Config(vocab_size=97, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    net = gpt.Net(config)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.2)
    loop, prompt = gpt.loop(config), tuple(range(3, 23))
    parts = gpt.graphs(net)
    spec = parts["model"][1]
    decoder = Decoder(config, {name: t.numpy() for name, t in net.state_dict().items()})
    want = parity.cases(parts, loop, prompt)
    found = parity.cases({"model": (decoder, spec)}, loop, prompt)
    assert [case.name for case in found] == [case.name for case in want]
    for mine, theirs in zip(found, want, strict=True):
        for name, array in theirs.outputs.items():
            np.testing.assert_allclose(mine.outputs[name], array, rtol=1e-3, atol=1e-4)
    one = next(case for case in found if case.name == "decode-one")
    ids, mask = one.inputs["input_ids"], one.inputs["attention_mask"]
    alone = greedy(PastForward(parity.Reference(decoder, spec)), ids, mask, 32)
    assert (alone == one.outputs["tokens"]).all()
