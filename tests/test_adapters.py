"""Low-rank adapters: what they add, and that merged is added."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from edgegen import adapters
from edgegen.errors import NotFoundError, UnsupportedError, UsageError

LAYERS = {
    "linear": (nn.Linear(6, 5), (2, 3, 6)),
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    "tall kernel": (nn.Conv2d(4, 6, (3, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 7, 5)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, 2, 1), (2, 4, 5, 5)),
    "output padding": (nn.ConvTranspose2d(4, 3, (3, 5), 2, 1, 1, bias=False), (2, 4, 4, 4)),
    "dilated": (nn.ConvTranspose2d(3, 4, 3, dilation=2), (1, 3, 4, 4)),
}


def adapted(kind, scale=1.0, *, random=False):
    """(net of one layer with an adapter of rank 2, input)."""
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    net = nn.ModuleDict({"fc": copy.deepcopy(layer)}).eval()
    adapters.attach(net, {"fc": 2}, scale=scale)
    if random:
        nn.init.normal_(net["fc"].adapter.B)
    return net, torch.randn(shape)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_new_adapter_changes_nothing_to_the_last_bit(kind):
    net, x = adapted(kind)
    plain = copy.deepcopy(LAYERS[kind][0])
    assert torch.equal(net["fc"](x), plain(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_merging_equals_adding(kind):
    net, x = adapted(kind, scale=0.25, random=True)
    with torch.no_grad():
        added = net["fc"](x)
        plain = LAYERS[kind][0](x)
        assert adapters.merge(net) == ("fc",)
        merged = net["fc"](x)
    assert (added - plain).abs().max() > 0.01
    assert (merged - added).abs().max() <= 1e-6
    assert not adapters.adapted(net)
    assert list(net["fc"].state_dict()) == list(LAYERS[kind][0].state_dict())


@pytest.mark.parametrize("kind", LAYERS)
def test_taken_off_again_the_layer_is_as_before(kind):
    net, x = adapted(kind, random=True)
    adapters.detach(net)
    assert torch.equal(net["fc"](x), LAYERS[kind][0](x))
    adapters.attach(net, {"fc": 1})


def test_a_copy_is_adapted_like_the_original():
    net, x = adapted("linear", random=True)
    twin = copy.deepcopy(net)
    before = net["fc"](x)
    assert torch.equal(twin["fc"](x), before)
    adapters.merge(twin)
    assert torch.equal(net["fc"](x), before)


def test_scale_multiplies_what_is_added():
    net, x = adapted("linear", random=True)
    plain, once = LAYERS["linear"][0](x), net["fc"](x)
    net["fc"].adapter.scale.fill_(2.0)
    torch.testing.assert_close(net["fc"](x) - plain, 2 * (once - plain))


def test_dropout_is_of_training_alone():
    net, x = adapted("linear", random=True)
    still = net["fc"](x)
    net["fc"].adapter.dropout = 0.5
    assert torch.equal(net["fc"](x), still)
    net.train()
    assert not torch.equal(net["fc"](x), still)


def test_gradients_reach_only_what_wants_them():
    net, x = adapted("transposed", random=True)
    net["fc"].weight.requires_grad_(False)
    net["fc"](x).square().mean().backward()
    assert net["fc"].weight.grad is None
    assert net["fc"].adapter.A.grad.abs().sum() > 0


def test_layers_that_can_be_adapted_are_found_by_name():
    net = nn.Sequential(
        nn.Linear(2, 2), nn.Conv2d(2, 2, 1, groups=2), nn.Embedding(3, 2), nn.Conv1d(2, 2, 1)
    )
    assert list(adapters.adaptable(net)) == ["0"]
    with pytest.raises(UnsupportedError, match="Embedding cannot be adapted") as error:
        adapters.shapes(net[2], 1)
    assert "Linear, Conv2d or ConvTranspose2d" in error.value.hint


@pytest.mark.parametrize(
    ("layer", "most"),
    [(nn.Linear(6, 5), 5), (nn.Conv2d(2, 30, 3), 18), (nn.ConvTranspose2d(40, 2, 4), 32)],
)
def test_the_largest_rank_is_that_of_the_weight_as_a_matrix(layer, most):
    net = nn.Sequential(layer)
    adapters.attach(net, {"0": most})
    adapters.detach(net)
    for rank in (0, -1, most + 1):
        with pytest.raises(UsageError, match=rf"adapter of 0: rank {rank}, wanted 1 to {most}"):
            adapters.attach(net, {"0": rank})


def test_an_unknown_layer_is_named_with_its_nearest():
    net = nn.ModuleDict({"up_proj": nn.Linear(2, 2)})
    with pytest.raises(NotFoundError, match="no layer 'up_prj' to adapt") as error:
        adapters.attach(net, {"up_prj": 1})
    assert error.value.hint == "did you mean 'up_proj'?"


def test_a_second_adapter_on_a_layer_is_refused():
    net, _ = adapted("linear")
    with pytest.raises(UsageError, match="fc has an adapter already") as error:
        adapters.attach(net, {"fc": 1})
    assert "merge" in error.value.hint


def test_a_computed_weight_is_not_merged_into():
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)))
    adapters.attach(net, {"0": 1})
    with pytest.raises(UnsupportedError, match="0: its weight is computed from another") as error:
        adapters.merge(net)
    assert "merge = false" in error.value.hint
    assert adapters.adapted(net)
