import pytest
import torch
from torch import nn

from edgegen.errors import FormatError, MismatchError
from edgegen.structure import refit, resize, shapes_of


def net(wide=8):
    return nn.Sequential(
        nn.Conv2d(3, wide, 3, padding=1),
        nn.BatchNorm2d(wide),
        nn.Conv2d(wide, wide, 3, groups=wide, padding=1),
        nn.ConvTranspose2d(wide, 4, 2, 2),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(4 * 16, wide),
        nn.LayerNorm(wide),
        nn.RMSNorm(wide),
        nn.Linear(wide, 2),
    )


def test_a_net_is_resized_to_the_shapes_of_a_smaller_one_and_runs():
    small, large = net(5), net(8)
    shapes = shapes_of(small, large)
    assert shapes["0.weight"] == (5, 3, 3, 3)
    assert shapes["1.running_mean"] == (5,)
    assert "4.weight" not in shapes
    resize(large, shapes)
    large.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 2, 2)
    assert torch.equal(small.eval()(x), large.eval()(x))
    assert str(small) == str(large)


def test_nothing_differs_between_a_net_and_itself():
    one = net()
    before = one.state_dict()
    assert shapes_of(one, one) == {}
    resize(one, {})
    assert one.state_dict().keys() == before.keys()


def test_a_tensor_that_two_layers_share_stays_shared():
    shared = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    shared[1].weight = shared[0].weight
    resize(shared, {"0.weight": (5, 4), "1.weight": (5, 4)})
    assert shared[1].weight is shared[0].weight
    assert (shared[0].num_embeddings, shared[1].out_features) == (5, 5)


def test_a_frozen_parameter_stays_frozen():
    one = nn.Linear(4, 4).requires_grad_(False)
    resize(one, {"weight": (4, 2)})
    assert not one.weight.requires_grad
    assert one.in_features == 2


def test_grouped_and_transposed_convolutions_count_their_channels():
    grouped = nn.Conv2d(8, 8, 1, groups=2, bias=False)
    resize(grouped, {"weight": (4, 2, 1, 1)})
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (4, 4, 2)
    up = nn.ConvTranspose2d(6, 6, 2, groups=6, bias=False)
    resize(up, {"weight": (3, 1, 2, 2)})
    assert (up.in_channels, up.out_channels, up.groups) == (3, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"wieght": (2, 4)}, "no tensor 'wieght'"),
        ({"weight": (5, 4)}, r"weight is \[5, 4\], but the configuration has \[4, 4\]"),
        ({"weight": (0, 4)}, r"weight is \[0, 4\]"),
        ({"weight": (2,)}, r"weight is \[2\]"),
        ({"weight": (2, 4)}, "bias has 4 values, wanted 2"),
    ],
)
def test_shapes_that_pruning_cannot_have_left_are_refused(shapes, message):
    with pytest.raises(FormatError, match=message) as caught:
        resize(nn.Linear(4, 4), shapes)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.GroupNorm(4, 8), {"weight": (6,), "bias": (6,)}),
        (nn.Conv2d(8, 8, 1, groups=4, bias=False), {"weight": (6, 2, 1, 1)}),
    ],
)
def test_channels_that_do_not_fill_their_groups_are_refused(layer, shapes):
    with pytest.raises(FormatError, match="6 channels in 4 groups"):
        resize(layer, shapes)


def test_norms_without_tensors_and_other_modules_are_left_alone():
    plain = (nn.GroupNorm(2, 4, affine=False), nn.RMSNorm(4, elementwise_affine=False), nn.ReLU())
    for layer in plain:
        before = dict(vars(layer))
        refit(layer)
        assert vars(layer) == before


def test_two_different_models_have_no_shapes_in_common():
    with pytest.raises(MismatchError, match=r"bias is in only one of the two models"):
        shapes_of(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
