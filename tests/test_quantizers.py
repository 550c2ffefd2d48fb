"""Gradients through rounding: those of the paper."""

import pytest
import torch
from torch import nn

from edgegen import quantized
from edgegen.quantizers import InputQuantizer
from edgegen.spec import Scheme


def test_the_gradient_of_a_step_is_that_of_the_paper():
    """Esser et al. 2020: -v/s + round(v/s) inside, the nearer end outside; over sqrt(N * Q_P)."""
    layer = nn.Linear(4, 1, bias=False)
    quantized.attach(layer_in := nn.Sequential(layer), {"0": Scheme(4, 0)})
    v, s = torch.tensor([[0.3, -0.74, 9.0, -9.0]]), 0.5
    quantized.set_weight(layer, torch.tensor([[s]]), weight=v)
    step = quantized.quantizer_of(layer)
    step.scale.requires_grad_(True)
    slopes = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    (layer.weight * slopes).sum().backward()
    inside = [-0.3 / s + 1, 0.74 / s - 1]
    wanted = torch.tensor([[*inside, 7.0, -8.0]]) * slopes / (4 * 7) ** 0.5
    torch.testing.assert_close(step.scale.grad, wanted.sum()[None, None])
    # The weight's own gradient passes inside and ends outside.
    assert layer.parametrizations["weight"].original.grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert layer_in(torch.ones(1, 4)).item() == pytest.approx(0.5 - 0.5 + 3.5 - 4)


def test_the_gradient_of_an_inputs_step_is_that_of_the_paper():
    step = InputQuantizer()
    with torch.no_grad():
        step.scale.fill_(0.5)
        step.zero.fill_(1)
    step.scale.requires_grad_(True)
    x = torch.tensor([[0.3, -9.0, 999.0], [0.0, 0.0, 0.0]])
    step(x).sum().backward()
    wanted = (-0.3 / 0.5 + 1 - 1 + 254) / (3 * 255) ** 0.5
    assert step.scale.grad.item() == pytest.approx(wanted)
