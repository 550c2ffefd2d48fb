"""Chains follow the data: what two modules read is nobody's alone."""

import copy

import pytest
import torch
from torch import nn

from edgegen import quantized
from edgegen.chains import behind, chains
from edgegen.compress._smooth import Link, equalised, links
from edgegen.spec import Scheme


class Block(nn.Module):
    """A residual block as most are written: norms beside the convolutions, ReLU as a function."""

    def __init__(self, asks=False):
        super().__init__()
        self.norm2, self.norm1 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.asks = asks

    def forward(self, x):
        if self.asks and x.sum() > 0:
            x = -x
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return self.tail(x + inner)


def drawn(net):
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
    return net.eval()


def names(net):
    return [[name for name, _ in chain] for chain in chains(net)]


def test_norms_beside_their_convolutions_are_found_by_the_data():
    assert names(Block()) == [
        ["conv1", "norm1", "", "conv2", "norm2"],
        ["tail.0", "tail.1", "tail.2"],
    ]


def test_of_what_asks_for_values_only_sequentials_are_known():
    assert names(Block(asks=True)) == [["tail.0", "tail.1", "tail.2"]]
    assert names(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == [["0", "1"]]


def test_rounded_layers_are_followed_as_well():
    net = Block()
    wanted = names(net)
    quantized.attach(net, {"conv1": Scheme(8, 0, input_bits=8), "tail.0": Scheme(8, 0)})
    assert names(net) == wanted


class Shared(nn.Module):
    """One norm behind two convolutions, and a convolution that two read."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.three, self.norm, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.one(x)) + self.norm(self.two(x))
        x = self.three(x)
        return self.last(x) + x


def test_what_is_shared_is_in_no_pair():
    assert behind(Shared()) == {}


def test_scales_move_through_a_block_and_change_nothing():
    net = drawn(Block())
    x = torch.randn(2, 4, 3, 3)
    wanted = copy.deepcopy(net)(x)
    assert list(links(net)) == [Link("conv1", "norm1", "conv2")]
    scale = equalised(net, Link("conv1", "norm1", "conv2"))
    assert scale.min() < 0.99 or scale.max() > 1.01
    torch.testing.assert_close(net(x), wanted)


@pytest.mark.parametrize("asks", [False, True])
def test_a_norm_beside_its_convolution_takes_up_a_shift_where_the_data_can_be_followed(asks):
    from edgegen.compress._static import bias_of

    net = Block(asks)
    place = bias_of(net, "conv1", behind(net))
    if asks:
        assert place is None
    else:
        sign, values = place
        assert sign == -1 and values is net.norm1.running_mean
