"""NF4: the published values, exact round trips, and training beside a frozen base."""

import copy

import pytest
import torch
from torch import nn

from edgegen import adapters, nf4
from edgegen.errors import UnsupportedError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect"),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
        nn.Flatten(2),
        nn.Linear(64, 10),
    ).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_sixteen_values_are_the_published_ones():
    """bitsandbytes computes them from their definition; so do we, and meet the paper's table."""
    assert len(nf4.VALUES) == 16
    assert (nf4.quantiles() - torch.tensor(nf4.VALUES)).abs().max() < 2e-7


@pytest.mark.parametrize("shape", [(64,), (7, 31), (5, 3, 4, 4), (1, 1)])
def test_values_on_the_grid_come_back_exactly(shape):
    generator = torch.Generator().manual_seed(0)
    count = torch.Size(shape).numel()
    codes = torch.randint(0, 16, (count,), generator=generator)
    codes[::64] = 15  # the largest of each block, so that its scale is known
    scale = torch.rand(-(-count // 64), generator=generator).repeat_interleave(64)[:count] + 0.5
    weight = (torch.tensor(nf4.VALUES)[codes] * scale).reshape(shape)
    assert torch.equal(nf4.decode(*nf4.encode(weight), shape), weight)


def test_rounding_twice_is_rounding_once_and_never_far():
    weight = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    once = nf4.decode(*nf4.encode(weight), (9, 50))
    assert torch.equal(nf4.decode(*nf4.encode(once), (9, 50)), once)
    # Half of the widest gap between two values, times the largest magnitude.
    assert (once - weight).abs().max() <= (1 - 0.6961928) / 2 * weight.abs().max() + 1e-6


def test_zeros_and_tiny_weights_stay_finite():
    for weight in (torch.zeros(3, 5), torch.full((3, 5), 1e-40)):
        assert torch.isfinite(nf4.decode(*nf4.encode(weight), (3, 5))).all()
    assert not nf4.decode(*nf4.encode(torch.zeros(70)), (70,)).any()


def test_a_frozen_net_computes_with_the_rounded_weights_and_its_gradients():
    frozen, rounded = net(), net()
    with torch.no_grad():
        for layer in adapters.adaptable(rounded).values():
            layer.weight.copy_(nf4.decode(*nf4.encode(layer.weight), layer.weight.shape))
    for one in (frozen, rounded):
        torch.manual_seed(1)
        adapters.attach(one, {"0": 2, "1": 2, "3": 2})
        for adapter in adapters.adapted(one).values():
            nn.init.normal_(adapter.B)
    nf4.freeze(frozen, ["0", "1", "3"])
    for one in (frozen, rounded):
        one(X).square().mean().backward()
    assert torch.equal(frozen(X), rounded(X))
    for name, adapter in adapters.adapted(frozen).items():
        assert torch.equal(adapter.A.grad, adapters.adapted(rounded)[name].A.grad)
    nf4.thaw(frozen)
    assert torch.equal(frozen(X), rounded(X))
    assert torch.equal(frozen[3].weight, rounded[3].weight)
    assert set(frozen.state_dict()) == set(rounded.state_dict())


def test_a_frozen_weight_takes_an_eighth_and_is_not_kept_for_the_backward_pass():
    wide = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False))
    adapters.attach(wide, {"0": 1, "1": 1})

    def held():
        """Bytes of the net, and of what the forward pass keeps for the backward pass."""
        saved = {}

        def keep(tensor):
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            wide(torch.ones(1, 256)).sum()
        own = {t.data_ptr(): t.numel() * t.element_size() for t in wide.state_dict().values()}
        return sum((own | saved).values())

    before = held()
    nf4.freeze(wide, ["0", "1"])
    assert held() < before / 6  # 4.5 bits a weight instead of 32, and the adapters


def test_what_cannot_be_frozen_is_refused():
    quantized = pytest.importorskip("edgegen.quantized")
    from edgegen.spec import Scheme

    done = net()
    quantized.attach(done, {"3": Scheme(bits=4)})
    with pytest.raises(UnsupportedError, match="3: is quantized already"):
        nf4.freeze(done, ["3"])
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(UnsupportedError, match="a: shares its weight with another layer") as error:
        nf4.freeze(copy.copy(tied), ["a"])
    assert "leave it out" in error.value.hint
