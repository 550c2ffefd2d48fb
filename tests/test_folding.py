"""What is folded for exporters lies where int8 kernels compute it."""

import copy

import pytest
import torch
from torch import nn

from edgegen import quantized
from edgegen.folding import settle_biases
from edgegen.spec import Scheme


@pytest.mark.parametrize("normed", [False, True])
def test_what_is_added_behind_a_convolution_is_whole_steps_of_its_sums(normed):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 1, bias=not normed), nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -1.3, 0.0]))
        norm.running_mean.normal_()
        norm.bias.normal_()
    net = nn.Sequential(conv, *([norm] if normed else []), nn.ReLU()).eval()
    quantized.attach(net, {"0": Scheme(8, 0, input_bits=8)})
    scale = conv.weight.detach().flatten(1).abs().amax(1) / 127
    quantized.set_weight(conv, scale)
    quantized.set_input(conv, 0, 1)
    x = torch.zeros(1, 2, 1, 1)  # what comes out is what is added
    before = copy.deepcopy(net[:2] if normed else net[:1])(x).flatten()
    settle_biases(net)
    after = (net[:2] if normed else net[:1])(x).flatten()
    factor = norm.weight.abs() / (norm.running_var + norm.eps).sqrt() if normed else torch.ones(3)
    step = (scale / 255 * factor).detach()
    counted = after[:2] / step[:2]
    torch.testing.assert_close(counted, counted.round(), rtol=0, atol=2e-3)
    assert bool(((after - before).abs() <= 0.501 * step + 1e-6).all())
    again = copy.deepcopy(net)
    settle_biases(again)
    torch.testing.assert_close(again(x), net(x), rtol=1e-6, atol=1e-7)


class Beside(nn.Module):
    """A convolution and its norm outside any `Sequential`."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(2, 3, 1, bias=False)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def test_a_norm_outside_a_sequential_is_settled_with_its_convolution():
    torch.manual_seed(0)
    net = Beside().eval()
    with torch.no_grad():
        net.norm.bias.uniform_(0.01, 0.02)  # above 0 for all: ReLU passes it
    quantized.attach(net, {"conv": Scheme(8, 0, input_bits=8)})
    scale = net.conv.weight.detach().flatten(1).abs().amax(1) / 127
    quantized.set_weight(net.conv, scale)
    quantized.set_input(net.conv, 0, 1)
    settle_biases(net)
    step = scale / 255 * net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
    counted = (net(torch.zeros(1, 2, 1, 1)).flatten() / step).detach()
    torch.testing.assert_close(counted, counted.round(), rtol=0, atol=2e-3)
