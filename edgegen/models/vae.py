"""A convolutional (beta-)VAE.

Source: Kingma and Welling 2014, arXiv:1312.6114; beta: Higgins et al. 2017 (ICLR); the learned
scalar sigma of the Gaussian likelihood: Rybkin et al. 2021, arXiv:2006.13202.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional as F

from edgegen.bundle import OneShot
from edgegen.errors import UsageError
from edgegen.spec import GraphSpec, TensorSpec

TRAINING: dict[str, Any] = {
    "steps": 500,
    "batch": 128,
    "lr": 3e-3,
    "betas": (0.9, 0.99),
    "weight_decay": 0.01,
}


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and likelihood. `width` is the number of channels at full resolution."""

    image_size: Annotated[int, Meta(ge=4, le=1024)] = 8
    channels: Annotated[int, Meta(ge=1, le=64)] = 1
    width: Annotated[int, Meta(ge=1, le=1024)] = 32
    latent: Annotated[int, Meta(ge=1, le=65536)] = 16
    beta: Annotated[float, Meta(ge=0, le=1e6)] = 1.0
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"


def widths(config: Config) -> list[int]:
    """Channels at each resolution, from `image_size` down by halves to the smallest map.

    Raises:
        UsageError: the size does not halve down to a map of 3x3 to 8x8.
    """
    size, widths = config.image_size, [config.width]
    while size % 2 == 0 and size > 4:
        size, widths = size // 2, [*widths, min(widths[-1] * 2, config.width * 8)]
    if size > 8:
        raise UsageError(
            f"image_size {config.image_size} halves only down to {size}, wanted 8 or less",
            "use images whose side is a small number times a power of two, such as 28, 32 or 64",
        )
    return widths


def smallest(config: Config) -> int:
    """Height and width of the smallest map."""
    return config.image_size >> (len(widths(config)) - 1)


class Encoder(nn.Module):
    """Image -> mean and log variance of q(z|x)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, s = widths(config), smallest(config)
        layers: list[nn.Module] = [nn.Conv2d(config.channels, w[0], 3, 1, 1), nn.ReLU()]
        for wide, wider in pairwise(w):
            layers += [nn.Conv2d(wide, wider, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(wider), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(w[-1] * s * s, 2 * config.latent)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(image)  # (batch, widest, smallest, smallest)
        mean, logvar = self.head(h.flatten(1)).chunk(2, dim=1)  # (batch, latent) each
        return mean, logvar


class Decoder(nn.Module):
    """Latent -> mean of p(x|z), in 0..1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, s = widths(config), smallest(config)
        self.first = nn.Linear(config.latent, w[-1] * s * s)
        self.shape = (-1, s, s)  # channels as many as there are: pruning takes some
        layers: list[nn.Module] = [nn.ReLU()]
        for wider, wide in zip(w[:0:-1], w[-2::-1], strict=True):
            layers += [nn.ConvTranspose2d(wider, wide, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(wide), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(w[0], config.channels, 3, 1, 1))

    def logits(self, latent: Tensor) -> Tensor:
        """The image before the sigmoid."""
        return self.body(self.first(latent).unflatten(1, self.shape))

    def forward(self, latent: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(latent))


class Net(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))  # of a pixel, in units of 0..1


def graphs(net: Net) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """`encoder`: image -> mean, logvar; `decoder`: latent -> image."""
    c = net.config
    image = TensorSpec("image", "float32", ("batch", c.channels, c.image_size, c.image_size), 0, 1)
    mean, logvar, latent = (
        TensorSpec(name, "float32", ("batch", c.latent)) for name in ("mean", "logvar", "latent")
    )
    net.eval()
    return {
        "encoder": (net.encoder, GraphSpec("encoder", (image,), (mean, logvar))),
        "decoder": (net.decoder, GraphSpec("decoder", (latent,), (image,))),
    }


def loop(config: Config) -> OneShot:
    """One run of the decoder; an image's latent is the encoder's mean."""
    return OneShot(graph="decoder", image="image", pixels=(0.0, 1.0), encoder="encoder")


def phases(net: Net) -> dict[str, list[nn.Parameter]]:
    """One optimiser over everything."""
    return {"net": list(net.parameters())}


def loss(net: Net, batch: Tensor, phase: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Minus the ELBO with the KL term times beta, and the ELBO itself, in nats per image."""
    mean, logvar = net.encoder(batch)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    logits = net.decoder.logits(mean + noise * torch.exp(0.5 * logvar))
    fit = log_likelihood(net, batch, logits.float()).mean()
    kl = kl_to_prior(mean.float(), logvar.float()).mean()
    bound = fit - kl
    return {
        "loss": net.config.beta * kl - fit,
        "elbo_nats": bound,
        "bits_per_dim": bits_per_dim(bound, batch[0].numel()),
        "kl_nats": kl,
    }


def log_likelihood(net: Net, image: Tensor, logits: Tensor) -> Tensor:
    """log p(x|z) of each image in nats, shape (batch,).

    Bernoulli: grey in 0..1 is the probability of a white pixel, so this is the expectation over
    images binarised at random. Gaussian: a density of pixels in 0..1; with 8-bit images subtract
    ln 256 a pixel for a figure of the discrete ones.
    """
    if net.config.likelihood == "bernoulli":
        each = -F.binary_cross_entropy_with_logits(logits, image, reduction="none")
    else:
        sigma = net.log_sigma.clamp(
            min=-6.0
        )  # a constant pixel would drive the density to infinity
        error = (image - torch.sigmoid(logits)) / sigma.exp()
        each = -0.5 * error**2 - sigma - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)


def kl_to_prior(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, 1)) in nats, shape (batch,). Source: arXiv:1312.6114, appendix B."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)


def elbo(net: Net, image: Tensor, generator: torch.Generator) -> Tensor:
    """The evidence lower bound of images in 0..1, the mean over the batch, in nats per image."""
    return loss(net, image, "net", generator)["elbo_nats"]


def bits_per_dim(elbo_nats: Tensor, dims: int) -> Tensor:
    """Minus the ELBO, in bits per pixel and channel."""
    return -elbo_nats / (dims * math.log(2))


def samples(net: Net, num: int, generator: torch.Generator) -> Tensor:
    """Images in 0..1 from latents of the prior, shape (num, channels, size, size)."""
    latent = torch.randn((num, net.config.latent), generator=generator)
    return net.decoder(latent.to(next(net.parameters()).device))
