"""The ELBO of models whose likelihood is known."""

import math

import numpy as np
import pytest

from edgegen.errors import MismatchError, UnsupportedError
from edgegen.quality import bound

PIXELS = 4


@pytest.fixture
def pictures():
    return np.random.default_rng(0).random((50, 1, 2, 2)).astype(np.float32)


def reads(logvar):
    def encode(images):
        mean = images.reshape(len(images), -1)
        return mean, np.full_like(mean, logvar)

    return encode


def paints(latents):
    return latents.reshape(-1, 1, 2, 2)


def test_kl_and_reconstruction_by_hand(pictures):
    found = bound.figures(pictures, reads(-2.0), paints)
    squares = (pictures.reshape(50, -1).astype(float) ** 2).sum(1)
    want = 0.5 * (squares + PIXELS * (math.exp(-2) - 1 + 2))
    assert found["kl_to_prior_nats"].value == pytest.approx(want.mean(), rel=1e-6)
    assert found["kl_to_prior_nats"].error == pytest.approx(want.std(ddof=1) / 50**0.5, rel=1e-6)
    assert found["reconstruction_mse"].value == 0


def test_the_gaussian_bound_is_at_the_best_sigma(pictures):
    """At sigma^2 = the mean squared error, the fit is -D/2 (1 + log 2 pi e^..) exactly."""
    found = bound.figures(pictures, reads(-2.0), paints, seed=3)
    noise = np.random.default_rng(3).standard_normal((50, PIXELS)) * math.exp(-1)
    variance = (noise**2).mean()
    fit = -PIXELS / 2 * (1 + math.log(2 * math.pi * variance))
    got = found["elbo_nats"].value + found["kl_to_prior_nats"].value
    assert got == pytest.approx(fit, rel=1e-5)


def test_the_bernoulli_bound_by_hand(pictures):
    grey = lambda latents: np.full((len(latents), 1, 2, 2), 0.5)  # noqa: E731
    found = bound.figures(pictures, reads(0.0), grey, likelihood="bernoulli")
    got = found["elbo_nats"].value + found["kl_to_prior_nats"].value
    assert got == pytest.approx(PIXELS * math.log(0.5))


def test_a_pixel_rounded_to_white_does_not_make_the_bound_infinite(pictures):
    white = lambda latents: np.ones((len(latents), 1, 2, 2))  # noqa: E731
    found = bound.figures(pictures, reads(0.0), white, likelihood="bernoulli")
    assert math.isfinite(found["elbo_nats"].value)


def test_a_perfect_reconstruction_does_not_make_the_bound_infinite(pictures):
    found = bound.figures(pictures, reads(-1e3), paints)
    assert math.isfinite(found["elbo_nats"].value)


def test_the_bound_is_that_of_training(pictures):
    """The model's own ELBO, at the sigma that it is given here."""
    torch = pytest.importorskip("torch", reason="the model is torch's")
    from edgegen.models import vae

    torch.manual_seed(0)
    net = vae.Net(vae.Config(width=4)).eval()
    images = np.random.default_rng(0).random((400, 1, 8, 8)).astype(np.float32)

    @torch.inference_mode()
    def encode(given):
        return tuple(part.numpy() for part in net.encoder(torch.from_numpy(given)))

    @torch.inference_mode()
    def decode(latents):
        return net.decoder(torch.from_numpy(latents)).numpy()

    found = bound.figures(images, encode, decode)
    with torch.inference_mode():
        error = ((decode(encode(images)[0]) - images) ** 2).mean()
        net.log_sigma.fill_(0.5 * math.log(error))
        want = vae.elbo(net, torch.from_numpy(images), torch.Generator().manual_seed(0))
    assert found["elbo_nats"].value == pytest.approx(float(want), abs=4 * found["elbo_nats"].error)


def test_an_unknown_likelihood_and_a_broken_encoder_are_refused(pictures):
    with pytest.raises(UnsupportedError, match="likelihood 'poisson', wanted gaussian or bern"):
        bound.figures(pictures, reads(0.0), paints, likelihood="poisson")
    with pytest.raises(MismatchError, match="the encoder's log variances"):
        bound.figures(pictures, reads(np.nan), paints)
