"""Bias correction from batch norms: exact where the channels are normal, and left out elsewhere."""

import copy

import pytest
import torch
from torch import nn

from edgegen import checkpoint
from edgegen.compress import Setting, Work, quantize
from edgegen.compress._bias import rectified_mean, shift_biases
from edgegen.compress._scheme import assign, matrix
from edgegen.errors import UnsupportedError
from edgegen.spec import ModelSpec


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_the_mean_behind_a_rectifier_is_that_of_normal_numbers(slope):
    mean, spread = torch.tensor([-2.0, 0.0, 0.7, 1.0]), torch.tensor([1.0, 0.5, 2.0, 0.0])
    # Evenly spaced quantiles stand for the whole distribution.
    x = mean + spread * torch.special.ndtri((torch.arange(100_000) + 0.5) / 100_000)[:, None]
    wanted = torch.maximum(x, slope * x).double().mean(0).float()
    torch.testing.assert_close(rectified_mean(mean, spread, slope), wanted, rtol=0, atol=1e-4)


def sequence(layer, between):
    """A batch norm of known channels, `between`, and the layer whose weights are to change."""
    torch.manual_seed(0)
    layer.reset_parameters()
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.3, -0.4, 1.0]))
    return nn.Sequential(norm, *between, layer).eval()


def changed(net):
    """Its last layer's weight, rounded coarsely; what it was and what it is."""
    layer = net[-1]
    before = matrix(layer).clone()
    after = (before * 4).round() / 4
    assign(layer, after)
    return before, after


@pytest.mark.parametrize(
    ("layer", "between"),
    [
        (nn.Conv2d(3, 4, 3), [nn.ReLU()]),
        (nn.Conv2d(3, 4, 1), []),
        (nn.ConvTranspose2d(3, 4, 2, 2), [nn.LeakyReLU(0.2)]),
        (nn.Linear(3 * 64, 4), [nn.ReLU(), nn.Flatten()]),
    ],
)
def test_the_mean_of_outputs_is_again_what_it_was(layer, between):
    net = sequence(copy.deepcopy(layer), between)
    # What the norm gives is normal, with the mean and spread that it says.
    x = torch.randn(4000, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        axes = [i for i in range(net(x[:2]).dim()) if i != 1]
        was = net(x).mean(axes)
        before, after = changed(net)
        off = (net(x).mean(axes) - was).abs().max()
        name = str(len(net) - 1)
        assert shift_biases(net, {name: before}, {name: after}) == [name]
        left = (net(x).mean(axes) - was).abs().max()
    # What is left is the noise of the sample: a linear layer has one output an image.
    assert left < (0.2 if isinstance(layer, nn.Linear) else 0.05) * off


def test_what_has_no_norm_before_it_or_nothing_to_shift_is_left_out():
    body = [nn.BatchNorm2d(3), nn.Sigmoid(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]
    net = nn.Sequential(*body, nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False))
    held = copy.deepcopy(net.state_dict())
    names = ["2", "3", "6"]
    weights = {name: matrix(net.get_submodule(name)) for name in names}
    with pytest.raises(UnsupportedError, match="finds no layer behind a batch norm"):
        shift_biases(net, weights, {n: w + 1 for n, w in weights.items()})
    assert all(torch.equal(value, held[name]) for name, value in net.state_dict().items())


def test_a_norm_right_behind_takes_the_shift():
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    conv = nn.Conv2d(2, 2, 1, bias=False)
    net = nn.Sequential(first, conv, second).eval()
    with torch.no_grad():
        first.bias.fill_(1)
    weight = matrix(conv)
    assert shift_biases(net, {"1": weight}, {"1": weight + 1}) == ["1"]
    assert second.running_mean.tolist() == [2, 2]


def test_it_is_an_option_of_quantize_that_needs_no_data(tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec("gan", {"image_size": 8, "width": 4, "latent": 3})
    work = Work(spec, checkpoint.build(spec).eval())
    options = quantize.Options(bits=4, bias_correction="analytic")
    found = quantize.apply(work, options, Setting(work, None, tmp_path))
    assert found.notes["bias corrected"]
    assert set(found.notes["bias corrected"]) < set(found.spec.layers)
    config = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    spec = ModelSpec("gpt", config | {"intermediate_size": 8, "max_position_embeddings": 8})
    text = Work(spec, checkpoint.build(spec).eval())
    with pytest.raises(UnsupportedError, match="finds no layer behind a batch norm") as error:
        quantize.apply(text, options, Setting(text, None, tmp_path))
    assert "bias_correction = true" in error.value.hint
