"""What a VAE's evidence lower bound is made of, from its encoder and decoder alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgegen.errors import UnsupportedError
from edgegen.quality import Figure, finite, mean
from edgegen.spec import Array

NEAR_ZERO = 1e-6  # a probability of exactly 0 or 1 in fp32 is a rounded one
LEAST_SIGMA = math.exp(-6.0)  # as in training: a constant pixel has an infinite density

Encode = Callable[[Array], tuple[Array, Array]]  # images in 0..1 -> mean, log variance
Decode = Callable[[Array], Array]  # latents -> images in 0..1


def figures(
    images: Array, encode: Encode, decode: Decode, *, likelihood: str = "gaussian", seed: int = 0
) -> dict[str, Figure]:
    """ELBO and KL in nats an image, and the squared error of a pixel, of images in 0..1.

    The ELBO is of one latent drawn for each image, which depends on `seed` and its number. A
    Gaussian likelihood has one standard deviation for all pixels, a parameter of training that no
    graph holds: its best value on these very images is taken, the root of their mean squared
    error. The reconstruction error is of the mean latent.

    Raises:
        UnsupportedError: a likelihood that is neither "gaussian" nor "bernoulli".
        MismatchError: a latent or pixel that is not finite.

    Source: Kingma and Welling 2014, arXiv:1312.6114; sigma: Rybkin et al. 2021, arXiv:2006.13202.
    """
    if likelihood not in LIKELIHOODS:
        raise UnsupportedError(
            f"likelihood {likelihood!r}, wanted {' or '.join(LIKELIHOODS)}",
            "leave elbo out of --metrics",
        )
    centre, logvar = (part.astype(np.float64) for part in encode(images))
    finite(centre, "the encoder's means")
    finite(logvar, "the encoder's log variances")
    noise = np.random.default_rng(seed).standard_normal(centre.shape)
    drawn = decode((centre + noise * np.exp(0.5 * logvar)).astype(np.float32))
    rebuilt = decode(centre.astype(np.float32))
    kl = 0.5 * (centre**2 + np.exp(logvar) - 1 - logvar).reshape(len(images), -1).sum(1)
    fit = LIKELIHOODS[likelihood](_flat(images), _flat(drawn))
    error = ((_flat(rebuilt) - _flat(images)) ** 2).mean(1)
    return {
        "elbo_nats": mean(fit - kl, "images", "higher", "nats/image"),
        "kl_to_prior_nats": mean(kl, "images", "lower", "nats/image"),
        "reconstruction_mse": mean(error, "images", "lower", "pixel^2"),
    }


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1).astype(np.float64)


def _gaussian(images: Array, found: Array) -> Array:
    """log p(x|z) of each image, at the sigma that is best for all of them."""
    squares = (images - found) ** 2
    variance = max(float(squares.mean()), LEAST_SIGMA**2)
    return np.asarray(-0.5 * (squares / variance + math.log(2 * math.pi * variance)).sum(1))


def _bernoulli(images: Array, found: Array) -> Array:
    p = np.clip(found, NEAR_ZERO, 1 - NEAR_ZERO)
    return np.asarray((images * np.log(p) + (1 - images) * np.log(1 - p)).sum(1))


LIKELIHOODS = {"gaussian": _gaussian, "bernoulli": _bernoulli}
