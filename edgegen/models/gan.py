"""DCGAN, with a moving average of the generator.

Weights start as torch's defaults: the paper's N(0, 0.02) is meant for wide layers and learns
slowly in compact ones.

Source: Radford et al. 2016, arXiv:1511.06434; non-saturating loss: Goodfellow et al. 2014,
arXiv:1406.2661; spectral norm: Miyato et al. 2018, arXiv:1802.05957; WGAN-GP: Gulrajani et al.
2017, arXiv:1704.00028; averaged generator: Yazici et al. 2019, arXiv:1806.04498.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from edgegen.bundle import OneShot
from edgegen.errors import UsageError
from edgegen.spec import GraphSpec, TensorSpec

TRAINING: dict[str, Any] = {
    "steps": 1500,
    "batch": 64,
    "lr": 2e-3,
    "betas": (0.5, 0.99),
    "weight_decay": 0.0,
}


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and loss. `width` is the number of channels at full resolution."""

    image_size: Annotated[int, Meta(ge=4, le=1024)] = 8
    channels: Annotated[int, Meta(ge=1, le=64)] = 1
    width: Annotated[int, Meta(ge=1, le=1024)] = 32
    latent: Annotated[int, Meta(ge=1, le=65536)] = 16
    loss: Literal["non-saturating", "wgan-gp"] = "non-saturating"
    spectral_norm: bool = False
    penalty: Annotated[float, Meta(ge=0, le=1e6)] = 10.0
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.995


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


class Generator(nn.Module):
    """Latent -> image in -1..1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, s = widths(config), smallest(config)
        self.first = nn.Linear(config.latent, w[-1] * s * s)
        self.shape = (-1, s, s)  # channels as many as there are: pruning takes some
        layers: list[nn.Module] = [nn.BatchNorm2d(w[-1]), nn.ReLU()]
        for wider, wide in zip(w[:0:-1], w[-2::-1], strict=True):
            layers += [nn.ConvTranspose2d(wider, wide, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(wide), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(w[0], config.channels, 3, 1, 1))

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.body(self.first(latent).unflatten(1, self.shape)))


def _as_it_is(layer: nn.Module) -> nn.Module:
    return layer


class Discriminator(nn.Module):
    """Image in -1..1 -> logit (or, with WGAN-GP, critic value), shape (batch,)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, s = widths(config), smallest(config)
        norm = parametrizations.spectral_norm if config.spectral_norm else _as_it_is
        # batch norm mixes the images of a batch: the penalty is on each image's own gradient
        batch_norm = not config.spectral_norm and config.loss != "wgan-gp"
        layers: list[nn.Module] = [norm(nn.Conv2d(config.channels, w[0], 3, 1, 1))]
        layers += [nn.LeakyReLU(0.2)]
        for wide, wider in pairwise(w):
            layers += [norm(nn.Conv2d(wide, wider, 4, 2, 1))]
            layers += [nn.BatchNorm2d(wider)] if batch_norm else []
            layers += [nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.head = norm(nn.Linear(w[-1] * s * s, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image).flatten(1)).squeeze(1)


class Net(nn.Module):
    """Generator, discriminator, and `average`: the generator that is sampled and exported."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)


def graphs(net: Net) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """`generator`: latent -> image in -1..1, by the averaged weights."""
    c = net.config
    latent = TensorSpec("latent", "float32", ("batch", c.latent))
    image = TensorSpec("image", "float32", ("batch", c.channels, c.image_size, c.image_size))
    net.eval()
    return {"generator": (net.average, GraphSpec("generator", (latent,), (image,)))}


def loop(config: Config) -> OneShot:
    """One run of the generator."""
    return OneShot(graph="generator", image="image", pixels=(-1.0, 1.0))


def phases(net: Net) -> dict[str, list[nn.Parameter]]:
    """The discriminator moves first."""
    return {
        "discriminator": list(net.discriminator.parameters()),
        "generator": list(net.generator.parameters()),
    }


def loss(net: Net, batch: Tensor, phase: str, generator: torch.Generator) -> dict[str, Tensor]:
    """The loss of one player. `batch` holds real images in 0..1."""
    latent = torch.randn((len(batch), net.config.latent), generator=generator).to(batch)
    if phase == "generator":
        return {
            "generator_loss": _generator_loss(net.config, net.discriminator(net.generator(latent)))
        }
    with torch.no_grad():
        fake = net.generator(latent)
    return _discriminator_loss(net, batch * 2 - 1, fake.float(), generator)


def _generator_loss(config: Config, fake: Tensor) -> Tensor:
    return -fake.mean() if config.loss == "wgan-gp" else F.softplus(-fake).mean()


def _discriminator_loss(
    net: Net, real: Tensor, fake: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    on_real, on_fake = net.discriminator(real), net.discriminator(fake)
    if net.config.loss == "wgan-gp":
        distance = on_real.mean() - on_fake.mean()
        penalty = gradient_penalty(net, real, fake, generator)
        total = net.config.penalty * penalty - distance
        return {"discriminator_loss": total, "wasserstein": distance, "penalty": penalty}
    return {"discriminator_loss": F.softplus(-on_real).mean() + F.softplus(on_fake).mean()}


def gradient_penalty(net: Net, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """(|gradient of the critic| - 1)^2 between real and fake. Source: arXiv:1704.00028, eq. 3."""
    mix = torch.rand((len(real), 1, 1, 1), generator=generator).to(real)
    with torch.enable_grad():
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        value = net.discriminator(between).sum()
        (slope,) = torch.autograd.grad(value, between, create_graph=True)
    return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()


def after_step(net: Net, step: int) -> None:
    """Move the average towards the generator; early steps weigh more, so that it starts well."""
    decay = min(net.config.ema, step / (step + 10))
    mine, live = net.average.state_dict(), net.generator.state_dict()
    for name, value in mine.items():
        if value.is_floating_point():
            value.lerp_(live[name], 1 - decay)
        else:
            value.copy_(live[name])


def samples(net: Net, num: int, generator: torch.Generator) -> Tensor:
    """Images in 0..1 from the averaged generator, shape (num, channels, size, size)."""
    latent = torch.randn((num, net.config.latent), generator=generator)
    return net.average(latent.to(next(net.parameters()).device)) * 0.5 + 0.5
