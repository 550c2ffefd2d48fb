import math

import pytest
import torch
from torch import nn

from edgegen.errors import UsageError
from edgegen.models import gan
from edgegen.models.gan import Config


def seeded():
    return torch.Generator().manual_seed(0)


class Slope(nn.Module):
    """A critic whose gradient has the same length everywhere."""

    def __init__(self, length):
        super().__init__()
        self.weight = nn.Parameter(torch.full((64,), length / 8.0))

    def forward(self, image):
        return image.flatten(1) @ self.weight


def undecided(**config):
    """A GAN whose discriminator answers 0 to everything."""
    net = gan.Net(Config(**config))
    nn.init.zeros_(net.discriminator.head.weight)
    nn.init.zeros_(net.discriminator.head.bias)
    return net


def test_an_undecided_discriminator_costs_one_bit_for_each_image_it_judges():
    net, real = undecided(), torch.rand(4, 1, 8, 8)
    lost = gan.loss(net, real, "discriminator", seeded())["discriminator_loss"]
    assert lost.item() == pytest.approx(2 * math.log(2))
    assert gan.loss(net, real, "generator", seeded())["generator_loss"].item() == pytest.approx(
        math.log(2)
    )


@pytest.mark.parametrize(("length", "penalty"), [(1.0, 0.0), (3.0, 4.0)])
def test_the_penalty_is_the_squared_distance_of_the_slope_from_one(length, penalty):
    net = gan.Net(Config(loss="wgan-gp"))
    net.discriminator = Slope(length)
    found = gan.gradient_penalty(net, torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8), seeded())
    assert found.item() == pytest.approx(penalty, abs=1e-5)


def test_the_wasserstein_loss_is_fake_minus_real_plus_the_penalty():
    net = gan.Net(Config(loss="wgan-gp", penalty=7.0))
    net.discriminator = Slope(3.0)
    losses = gan.loss(net, torch.rand(4, 1, 8, 8), "discriminator", seeded())
    assert next(iter(losses)) == "discriminator_loss"
    torch.testing.assert_close(
        losses["discriminator_loss"], 7 * losses["penalty"] - losses["wasserstein"]
    )
    lost = gan.loss(net, torch.rand(4, 1, 8, 8), "generator", seeded())["generator_loss"]
    fake = net.generator(torch.randn(4, 16, generator=seeded()))
    torch.testing.assert_close(lost, -net.discriminator(fake).mean())


def test_the_penalty_can_be_reported_where_gradients_are_off():
    with torch.no_grad():
        net = gan.Net(Config(loss="wgan-gp")).eval()
        losses = gan.loss(net, torch.rand(2, 1, 8, 8), "discriminator", seeded())
    assert torch.isfinite(losses["penalty"])


def test_spectral_norm_holds_the_largest_singular_value_at_one():
    net = gan.Net(Config(width=4, spectral_norm=True))
    for _ in range(200):
        net.discriminator(torch.rand(1, 1, 8, 8))
    net.eval()
    for layer in (net.discriminator.body[0], net.discriminator.body[2], net.discriminator.head):
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert largest == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [({}, True), ({"spectral_norm": True}, False), ({"loss": "wgan-gp"}, False)],
)
def test_the_discriminator_has_batch_norm_only_where_nothing_else_holds_it(config, wanted):
    layers = gan.Discriminator(Config(**config)).modules()
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in layers) == wanted


def test_the_average_starts_as_the_generator_and_then_follows_slowly():
    net = gan.Net(Config(ema=0.9))
    live, average = net.generator.first.bias, net.average.first.bias
    torch.testing.assert_close(average, live)
    with torch.no_grad():
        live.add_(1.0)
    before = average.clone()
    gan.after_step(net, step=10**6)
    torch.testing.assert_close(average, before + 0.1)
    gan.after_step(net, step=0)
    assert torch.equal(average, live)


def test_the_average_counts_batches_as_the_generator_does():
    net = gan.Net(Config())
    net.generator(torch.randn(2, 16))
    gan.after_step(net, step=1)
    assert net.average.body[0].num_batches_tracked == 1


def test_what_is_exported_and_sampled_is_the_average():
    net = gan.Net(Config())
    module, spec = gan.graphs(net)["generator"]
    assert module is net.average
    latent = torch.randn(6, 16, generator=seeded())
    spec.check({"latent": latent.numpy()})
    with torch.no_grad():
        image, drawn = module(latent), gan.samples(net, 6, seeded())
    spec.outputs[0].check(image.numpy())
    torch.testing.assert_close(drawn, image * 0.5 + 0.5)
    assert gan.loop(net.config).graph == "generator"


def test_the_average_is_not_trained_by_gradients():
    net = gan.Net(Config())
    trained = {id(p) for group in gan.phases(net).values() for p in group}
    assert not trained & {id(p) for p in net.average.parameters()}


@pytest.mark.parametrize("size", [8, 28, 64])
def test_sizes_follow_from_the_config(size):
    net = gan.Net(Config(image_size=size, channels=3, width=4))
    assert net.generator(torch.randn(2, 16)).shape == (2, 3, size, size)
    assert net.discriminator(torch.rand(2, 3, size, size)).shape == (2,)


def test_a_size_that_does_not_halve_down_is_refused():
    with pytest.raises(UsageError, match="image_size 50 halves only down to 25"):
        gan.Net(Config(image_size=50))


@pytest.mark.slow
def test_the_generator_traces_with_a_free_batch():
    module, _ = gan.graphs(gan.Net(Config(image_size=64, channels=3, width=4)))["generator"]
    batch = torch.export.Dim("batch")
    traced = torch.export.export(module, (torch.randn(2, 16),), dynamic_shapes=({0: batch},))
    three = torch.randn(3, 16)
    torch.testing.assert_close(traced.module()(three), module(three))
