import math

import pytest
import torch

from edgegen.errors import UsageError
from edgegen.models import vae
from edgegen.models.vae import Config


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("size", "wide", "smallest"),
    [(8, [4, 8], 4), (28, [4, 8, 16], 7), (64, [4, 8, 16, 32, 32], 4), (5, [4], 5)],
)
def test_each_half_of_the_size_doubles_the_channels_up_to_eight_times(size, wide, smallest):
    config = Config(image_size=size, width=4)
    assert vae.widths(config) == wide
    assert vae.smallest(config) == smallest


def test_a_size_that_does_not_halve_down_is_refused():
    with pytest.raises(UsageError, match="image_size 50 halves only down to 25") as error:
        vae.Net(Config(image_size=50))
    assert "28, 32 or 64" in error.value.hint


def test_a_posterior_equal_to_the_prior_has_no_kl():
    assert vae.kl_to_prior(torch.zeros(2, 5), torch.zeros(2, 5)).tolist() == [0, 0]


def test_kl_of_a_gaussian_is_the_closed_form():
    mean, logvar = torch.tensor([[2.0]]), torch.tensor([[math.log(0.25)]])
    torch.testing.assert_close(
        vae.kl_to_prior(mean, logvar), torch.tensor([0.5 * (4 + 0.25 - 1 + math.log(4))])
    )


def test_a_coin_toss_for_each_pixel_costs_one_bit_per_dimension():
    net = vae.Net(Config(likelihood="bernoulli"))
    fit = vae.log_likelihood(net, torch.rand(3, 1, 8, 8), torch.zeros(3, 1, 8, 8))
    torch.testing.assert_close(vae.bits_per_dim(fit, 64), torch.ones(3))


def test_the_gaussian_likelihood_is_the_density_of_a_normal():
    net = vae.Net(Config(likelihood="gaussian"))
    image = torch.rand(2, 1, 8, 8)
    want = torch.distributions.Normal(0.5, net.log_sigma.exp()).log_prob(image).sum((1, 2, 3))
    torch.testing.assert_close(vae.log_likelihood(net, image, torch.zeros(2, 1, 8, 8)), want)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_beta_weighs_the_kl_term_alone(likelihood):
    one = vae.Net(Config(likelihood=likelihood)).eval()
    four = vae.Net(Config(likelihood=likelihood, beta=4.0)).eval()
    four.load_state_dict(one.state_dict())
    image = torch.rand(4, 1, 8, 8)
    a = vae.loss(one, image, "net", seeded())
    b = vae.loss(four, image, "net", seeded())
    torch.testing.assert_close(a["loss"], -a["elbo_nats"])
    torch.testing.assert_close(b["loss"] - a["loss"], 3 * a["kl_nats"])
    torch.testing.assert_close(vae.elbo(one, image, seeded()), a["elbo_nats"])


def test_the_first_loss_is_the_one_minimised():
    assert (
        next(iter(vae.loss(vae.Net(Config()), torch.rand(2, 1, 8, 8), "net", seeded()))) == "loss"
    )


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 28])
def test_the_graphs_keep_to_their_specs(size, batch):
    net = vae.Net(Config(image_size=size, channels=3, width=4))
    for module, spec in vae.graphs(net).values():
        feed = {t.name: torch.rand(batch, *t.shape[1:]) for t in spec.inputs}
        spec.check({name: tensor.numpy() for name, tensor in feed.items()})
        with torch.no_grad():
            found = module(*feed.values())
        found = found if isinstance(found, tuple) else (found,)
        assert not module.training
        for tensor, promised in zip(found, spec.outputs, strict=True):
            promised.check(tensor.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 64])
def test_the_graphs_trace_with_a_free_batch(size):
    for module, spec in vae.graphs(vae.Net(Config(image_size=size, width=4))).values():
        example = torch.rand(2, *spec.inputs[0].shape[1:])
        batch = torch.export.Dim("batch")
        traced = torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).module()
        three = torch.rand(3, *spec.inputs[0].shape[1:])
        torch.testing.assert_close(traced(three), module(three))


def test_samples_are_pixels_and_follow_the_generator():
    net = vae.Net(Config()).eval()
    images = vae.samples(net, 5, seeded())
    assert images.shape == (5, 1, 8, 8)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, vae.samples(net, 5, seeded()))


def test_the_loop_runs_the_decoder_and_knows_the_encoder():
    loop, graphs = vae.loop(Config()), vae.graphs(vae.Net(Config()))
    assert {loop.graph, loop.encoder} == set(graphs)
    assert loop.image in [t.name for t in graphs[loop.graph][1].outputs]
