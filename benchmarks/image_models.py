"""Four image models of plain torch, with weights drawn at random and norms that have seen data.

Needs torch and numpy alone, so that every peer can build them in its own environment. Each is a
function without arguments, as `edgegen export benchmarks/image_models.py:dcgan` wants it; "_half"
has half the channels.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# Inputs as `edgegen export --input` takes them, shapes without the batch for everybody else.
INPUTS = {
    "dcgan": ["x:float32[batch,100,1,1]"],
    "vae": ["x:float32[batch,128]"],
    "unet": ["x:float32[batch,3,32,32]", "t:int64[batch]@0..999"],
    "latent": ["x:float32[batch,4,64,64]"],
    "tiny": ["x:float32[batch,8]"],
}
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "dcgan": [(100, 1, 1)],
    "vae": [(128,)],
    "unet": [(3, 32, 32), ()],
    "latent": [(4, 64, 64)],
    "tiny": [(8,)],
}


class Generator(nn.Module):
    """DCGAN: latent of 100 -> 3x64x64. Source: Radford et al. 2016, arXiv:1511.06434."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [100, 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for index in range(4):
            stride, pad = (1, 0) if index == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(sizes[index], sizes[index + 1], 4, stride, pad, bias=False),
                nn.BatchNorm2d(sizes[index + 1]),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))


class Decoder(nn.Module):
    """A VAE's decoder with SiLU: latent -> an image of 4 * 2^n a side."""

    def __init__(self, latent: int, sizes: list[int]) -> None:
        super().__init__()
        self.wide = sizes[0]
        self.first = nn.Linear(latent, sizes[0] * 16)
        layers: list[nn.Module] = []
        for wider, wide in pairwise(sizes):
            layers += [nn.ConvTranspose2d(wider, wide, 4, 2, 1), nn.BatchNorm2d(wide), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(sizes[-1], 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.body(self.first(x).view(-1, self.wide, 4, 4)))


class Residual(nn.Module):
    """Three convolutions and a skip."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        parts = [nn.Conv2d(wide, wide, 3, 1, 1) for _ in range(3)]
        self.body = nn.Sequential(parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class Latent(nn.Module):
    """Latent 4x64x64 -> 3x512x512, as small decoders of latent diffusion are built."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(4, wide, 3, 1, 1), nn.ReLU()]
        for _ in range(3):
            layers += [Residual(wide), Residual(wide), Residual(wide), nn.Upsample(scale_factor=2)]
            layers += [nn.Conv2d(wide, wide, 3, 1, 1, bias=False)]
        self.body = nn.Sequential(*layers, Residual(wide), nn.Conv2d(wide, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(x / 3) * 3)


class Block(nn.Module):
    """Two convolutions with group norm and SiLU; the time goes in between."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.time = nn.Linear(time, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.skip(x)


class Attention(nn.Module):
    """Four heads over all pixels."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(8, wide), nn.Conv2d(wide, 3 * wide, 1)
        self.out = nn.Conv2d(wide, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, wide, high, across = x.shape
        heads = self.qkv(self.norm(x)).reshape(batch, 3, 4, wide // 4, high * across)
        q, k, v = heads.transpose(-1, -2).unbind(1)  # (batch, 4, pixels, wide / 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(mixed.reshape(batch, wide, high, across))


class UNet(nn.Module):
    """One step of a denoiser: image and time -> noise. Source: Ho et al. 2020, arXiv:2006.11239."""

    def __init__(self, w: int) -> None:
        super().__init__()
        time, self.wide = 4 * w, w
        self.embed = nn.Sequential(nn.Linear(w, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(3, w, 3, 1, 1)
        self.down1, self.half1 = Block(w, w, time), nn.Conv2d(w, w, 3, 2, 1)
        self.down2, self.look2 = Block(w, 2 * w, time), Attention(2 * w)
        self.half2 = nn.Conv2d(2 * w, 2 * w, 3, 2, 1)
        self.down3, self.look3 = Block(2 * w, 4 * w, time), Attention(4 * w)
        self.middle, self.up3 = Block(4 * w, 4 * w, time), Block(8 * w, 4 * w, time)
        self.twice2, self.up2 = nn.Conv2d(4 * w, 2 * w, 3, 1, 1), Block(4 * w, 2 * w, time)
        self.twice1, self.up1 = nn.Conv2d(2 * w, w, 3, 1, 1), Block(2 * w, w, time)
        self.norm, self.last = nn.GroupNorm(8, w), nn.Conv2d(w, 3, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.wide // 2
        angles = t[:, None].float() * torch.exp(-9.21 * torch.arange(half) / half)
        time = F.silu(self.embed(torch.cat([angles.sin(), angles.cos()], 1)))
        one = self.down1(self.first(x), time)
        two = self.look2(self.down2(self.half1(one), time))
        three = self.look3(self.down3(self.half2(two), time))
        h = self.up3(torch.cat([self.middle(three, time), three], 1), time)
        h = self.twice2(F.interpolate(h, scale_factor=2.0))
        h = self.up2(torch.cat([h, two], 1), time)
        h = self.twice1(F.interpolate(h, scale_factor=2.0))
        return self.last(F.silu(self.norm(self.up1(torch.cat([h, one], 1), time))))


def drawn(name: str, seed: int, batch: int = 1) -> list[Any]:
    """Inputs for one run as arrays: normal, times uniform."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((batch, *shape)).astype(np.float32)
        if shape
        else rng.integers(0, 1000, batch)
        for shape in SHAPES[name.removesuffix("_half")]
    ]


def settled(name: str, net: nn.Module) -> nn.Module:
    """The net in eval mode, its batch norms filled from what it is given."""
    net.train()
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        with torch.no_grad():
            for seed in range(20):
                net(*map(torch.from_numpy, drawn(name, seed, 8)))
    return net.eval()


def made(name: str) -> nn.Module:
    """A model by name, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settled(name, MAKERS[name]())


MAKERS = {
    "dcgan": partial(Generator, 64),
    "dcgan_half": partial(Generator, 32),
    "vae": partial(Decoder, 128, [256, 256, 128, 64, 32]),
    "vae_half": partial(Decoder, 128, [128, 128, 64, 32, 16]),
    "unet": partial(UNet, 64),
    "unet_half": partial(UNet, 32),
    "latent": partial(Latent, 64),
    "latent_half": partial(Latent, 32),
    "tiny": partial(Decoder, 8, [16, 8, 8]),
    "tiny_half": partial(Decoder, 8, [8, 8, 8]),
}
dcgan, dcgan_half = partial(made, "dcgan"), partial(made, "dcgan_half")
vae, vae_half = partial(made, "vae"), partial(made, "vae_half")
unet, unet_half = partial(made, "unet"), partial(made, "unet_half")
latent, latent_half = partial(made, "latent"), partial(made, "latent_half")
tiny, tiny_half = partial(made, "tiny"), partial(made, "tiny_half")
