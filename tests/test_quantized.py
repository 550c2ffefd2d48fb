"""Quantized layers: on the grid, trained through it, kept in a checkpoint, folded away again."""

import copy

import pytest
import torch
from torch import nn

from edgegen import folding, quantized
from edgegen.checkpoint import fill
from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError, UsageError
from edgegen.spec import Scheme

LAYERS = {
    "embed": Scheme(4, 4, symmetric=False),
    "fc": Scheme(8, 0, input_bits=8),
    "conv": Scheme(4, 0, codebook=True),
    "up": Scheme(3, 5),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(11, 8), nn.Linear(8, 6)
        self.conv, self.up = nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 2, 4)

    def forward(self, ids):
        x = self.fc(self.embed(ids))
        return self.up(self.conv(x[:, None])), nn.functional.linear(
            x[..., :1], self.fc.weight[:, :1]
        )


def ready():
    torch.manual_seed(0)
    net = Net().eval()
    quantized.attach(net, LAYERS)
    for name, scheme in LAYERS.items():
        layer = net.get_submodule(name)
        step = quantized.quantizer_of(layer)
        grouped = step.grouped(layer.weight.detach())
        low, high = grouped.amin(-1), grouped.amax(-1)
        if scheme.codebook:
            table = torch.linspace(-1, 1, 16)
            quantized.set_weight(layer, torch.maximum(-low, high), table=table)
        elif scheme.symmetric:
            quantized.set_weight(layer, torch.maximum(-low, high) / step.levels[1])
        else:
            scale = (high - low) / step.levels[1]
            quantized.set_weight(layer, scale, -low / scale)
    quantized.set_input(net.fc, -1, 2)
    return net


IDS = torch.arange(16).reshape(2, 8) % 11


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_quantizers_that_were_not_set_change_nothing():
    torch.manual_seed(0)
    net = Net()
    want = net(IDS)
    quantized.attach(net, LAYERS)
    assert same(net(IDS), want)
    assert quantized.schemes(net) == LAYERS
    assert quantized.is_quantized(net)


def test_scales_are_not_counted_as_parameters():
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    plain = quantized.count(net)
    assert plain == 8 * 4 + 4 + 4 * 2 + 2
    assert quantized.count(net, net[0]) == plain
    quantized.attach(net, {"0": Scheme(4, 4), "1": Scheme(8, 0, input_bits=8)})
    assert quantized.count(net) == plain


def test_a_weight_on_the_grid_stays_where_it_is():
    net = ready()
    for layer in quantized.quantizable(net).values():
        once = layer.weight.detach().clone()
        layer.weight = once
        assert torch.equal(layer.weight, once)


def test_copies_and_files_compute_the_same():
    net = ready()
    want = net(IDS)
    assert same(copy.deepcopy(net)(IDS), want)
    other = Net()
    quantized.attach(other, LAYERS)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert {"fc.weight", "fc.weight_quantizer.scale", "fc.input_quantizer.zero"} <= set(state)
    fill(other, state, "file")
    assert same(other(IDS), want)
    other = Net()
    quantized.attach(other, LAYERS)
    other.load_state_dict(state)
    assert same(other(IDS), want)


def test_a_file_without_a_scale_is_refused():
    net = ready()
    state = {n: v.clone() for n, v in net.state_dict().items() if n != "fc.weight_quantizer.scale"}
    with pytest.raises(FormatError, match=r"fc.weight_quantizer.scale: wanted \[6, 1\]"):
        fill(net, state, "file")


def test_folding_leaves_a_plain_net_and_says_what_it_took_off():
    net = ready()
    folded = folding.fold(net)
    assert same(folded.reference(IDS), net(IDS))
    assert not quantized.is_quantized(folded.net)
    assert type(folded.net.fc) is nn.Linear
    assert set(folded.net.state_dict()) == set(Net().state_dict())
    assert folded.inputs == {"fc": (pytest.approx(3 / 255), 85)}
    assert folded.weights.keys() == LAYERS.keys()
    assert folded.weights["up"].q.shape == (2, 64)
    assert folded.weights["up"].scale.shape == (2, 13)
    assert quantized.is_quantized(net)  # the net itself is as it was


def test_gradients_reach_the_weight_and_the_scale():
    net = ready()
    step = quantized.quantizer_of(net.fc)
    step.scale.requires_grad_(True)
    sum(out.sum() for out in net(IDS)).backward()
    assert net.fc.parametrizations["weight"].original.grad.abs().sum() > 0
    assert step.scale.grad.abs().sum() > 0


def test_zero_is_exact_in_a_rounded_input():
    net = ready()
    rounded = quantized.input_quantizer_of(net.fc)(torch.tensor([-9.0, 0.0, 9.0]))
    assert rounded.tolist() == pytest.approx([-1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    ("layers", "kind", "told"),
    [
        ({"fx": Scheme()}, NotFoundError, "no layer 'fx'"),
        ({"fc": Scheme(bits=9)}, UsageError, "fc: 9 bits"),
        ({"fc": Scheme(group_size=-2)}, UsageError, "group size -2"),
        ({"fc": Scheme(input_bits=4)}, UsageError, "inputs of 4 bits"),
        ({"embed": Scheme(input_bits=8)}, UnsupportedError, "token ids"),
    ],
)
def test_what_cannot_be_quantized_is_refused(layers, kind, told):
    with pytest.raises(kind, match=told) as error:
        quantized.attach(Net(), layers)
    assert error.value.hint


def test_what_is_quantized_already_is_refused():
    with pytest.raises(UsageError, match="quantized already"):
        quantized.attach(ready(), {"fc": Scheme()})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale):
    net = ready()
    with pytest.raises(MismatchError, match="finite and above 0"):
        quantized.set_weight(net.fc, torch.full((6, 1), scale))
    with pytest.raises(FormatError, match=r"model: fc\.weight_quantizer"):
        folding.fold(net)


def test_inputs_of_a_transposed_convolution_that_go_below_zero_get_a_symmetric_range():
    for layer, zero in ((nn.ConvTranspose2d(2, 2, 2), 128), (nn.Conv2d(2, 2, 2), 56)):
        net = nn.Sequential(layer)
        quantized.attach(net, {"0": Scheme(8, 0, input_bits=8)})
        quantized.set_input(net[0], -0.28, 1.0)
        step = quantized.input_quantizer_of(net[0])
        assert int(step.zero) == zero
        assert (255 - zero) * float(step.scale) == pytest.approx(1.0, abs=5e-3)
        quantized.set_input(net[0], 0.0, 1.0)
        assert int(step.zero) == 0
