"""Scales moved from one layer into its neighbour, so that the weights are easier to round.

In float nothing changes: what one layer is divided by, the next is multiplied with. No operator is
added to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgegen.chains import NORMS, chains
from edgegen.compress._replay import Replay
from edgegen.models.gpt import GatedMLP, Net

TINY = 1e-8
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
HEAVY = (nn.Linear, *CONVS, *TRANSPOSED)


class Seen(NamedTuple):
    """What went into a layer: X^T X (columns, columns), and of each column the mean size and the
    largest.
    """

    hessian: Tensor
    mean: Tensor
    peak: Tensor


class Seam(NamedTuple):
    """Where a scale can go: the rows of `source` (a norm or a linear layer) are the columns of
    `targets`. With `groups` above 1 that many heads of the targets read one of the source.
    """

    source: str
    targets: tuple[str, ...]
    groups: int = 1
    head_dim: int = 1


def seams(net: Net) -> list[Seam]:
    """Of a decoder: norm -> q, k, v; v -> o; norm -> gate, up; and up -> down where the MLP is
    gated, for there is nothing but a product between them.
    """
    found: list[Seam] = []
    for index, layer in enumerate(net.layers):
        at, attention, mlp = f"layers.{index}", layer.self_attn, layer.mlp
        reads = tuple(f"{at}.self_attn.{part}_proj" for part in "qkv")
        found.append(Seam(f"{at}.input_layernorm", reads))
        found.append(
            Seam(reads[2], (f"{at}.self_attn.o_proj",), attention.groups, attention.head_dim)
        )
        gated = isinstance(mlp, GatedMLP)
        first = (f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj") if gated else (f"{at}.mlp.up_proj",)
        found.append(Seam(f"{at}.post_attention_layernorm", first))
        if gated:
            found.append(Seam(f"{at}.mlp.up_proj", (f"{at}.mlp.down_proj",)))
    if hasattr(net, "lm_head"):
        found.append(Seam("norm", ("lm_head",)))
    return found


def seen(replay: Replay, names: Sequence[str]) -> dict[str, Seen]:
    """What goes into linear layers, over all batches; those that read one tensor share a record."""
    found: dict[str, Seen] = {}
    last: list[tuple[Tensor, Seen]] = []

    def see(name: str, given: Tensor, _: object) -> None:
        if not last or last[0][0] is not given:
            x = given.reshape(-1, given.shape[-1])
            size = x.abs()
            last[:] = [(given, Seen(x.T @ x, size.sum(0), size.amax(0)))]
        new, old = last[0][1], found.get(name)
        found[name] = new if old is None else _both(old, new)

    replay.watch(names, see)
    return found


def _both(old: Seen, new: Seen) -> Seen:
    peak = torch.maximum(old.peak, new.peak)
    return Seen(old.hessian + new.hessian, old.mean + new.mean, peak)


def fold(net: nn.Module, seam: Seam, scale: Tensor) -> None:
    """Divide the rows of the source by `scale` (columns of the targets,) and multiply the columns
    of the targets with it, in place.
    """
    source = net.get_submodule(seam.source)
    rows = _of_source(scale, seam)
    with torch.no_grad():
        for name in seam.targets:
            net.get_submodule(name).weight.mul_(scale)
        weight = source.weight
        weight.div_(rows if weight.dim() == 1 else rows[:, None])
        if getattr(source, "bias", None) is not None:
            source.bias.div_(rows)


def _of_source(scale: Tensor, seam: Seam) -> Tensor:
    """One scale a row of the source: heads that read the same one have equal scales."""
    if seam.groups == 1:
        return scale
    return scale.view(-1, seam.groups, seam.head_dim)[:, 0].reshape(-1)


def shared(values: Tensor, seam: Seam) -> Tensor:
    """Per column of the targets, the largest among the heads that read the same row."""
    if seam.groups == 1:
        return values
    heads = values.view(-1, seam.groups, seam.head_dim)
    return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)


def activation_aware(
    net: nn.Module,
    seam: Seam,
    stats: Seen,
    rounded: Callable[[str, Tensor, Tensor], Tensor],
    tries: int = 11,
) -> tuple[Tensor, float]:
    """The scale mean|x|^alpha of the least output error of the rounded targets, and its alpha.

    `rounded(name, weight, importance)` rounds the scaled weight of a target. Alpha 0 is no scale.

    Source: Lin et al. 2023, arXiv:2306.00978 (AWQ).
    """
    strength = shared(stats.mean, seam).clamp(min=TINY)
    importance = stats.hessian.diagonal()
    best: tuple[float, Tensor, float] | None = None
    for step in range(tries):
        alpha = step / (tries - 1)
        scale = _normal(strength.pow(alpha))
        error = 0.0
        for name in seam.targets:
            weight = net.get_submodule(name).weight.detach()
            found = rounded(name, weight * scale, importance / scale.square())
            change = found / scale - weight
            error += float(((change @ stats.hessian) * change).sum())
        if best is None or error < best[0]:
            best = error, scale, alpha
    assert best is not None
    return best[1], best[2]


def migrated(net: nn.Module, seam: Seam, stats: Seen, alpha: float = 0.5) -> Tensor:
    """The scale that moves the spread of the inputs into the weights: max|x|^alpha /
    max|w|^(1 - alpha), as a factor of the weights.

    Source: Xiao et al. 2022, arXiv:2211.10438, equation 4 (SmoothQuant).
    """
    weights = [net.get_submodule(name).weight.detach().abs().amax(0) for name in seam.targets]
    wide = shared(torch.stack(weights).amax(0), seam).clamp(min=TINY)
    peak = shared(stats.peak, seam)
    scale = peak.clamp(min=TINY).pow(alpha) / wide.pow(1 - alpha)
    return torch.where(peak > TINY, scale, torch.ones_like(scale))


def _normal(scale: Tensor) -> Tensor:
    """So that the smallest and the largest lie evenly about 1."""
    return scale / (scale.max() * scale.min()).sqrt().clamp(min=TINY)


class Link(NamedTuple):
    """Two layers with nothing between them that scaling a channel would not pass: ReLU, LeakyReLU,
    and a batch norm, which then carries the scale.
    """

    first: str
    norm: str
    second: str


def links(net: nn.Module) -> Iterator[Link]:
    """Every such pair of `net`, one after the other."""
    for chain in chains(net):
        heavy = [index for index, (_, child) in enumerate(chain) if isinstance(child, HEAVY)]
        for first, second in pairwise(heavy):
            between = chain[first + 1 : second]
            norms = [name for name, child in between if isinstance(child, NORMS)]
            rest = [child for _, child in between if not isinstance(child, NORMS)]
            passes = all(isinstance(k, nn.ReLU | nn.LeakyReLU | nn.Identity) for k in rest)
            leads = not norms or between[0][0] == norms[0]
            plain = _ungrouped(chain[second][1]) and _ungrouped(chain[first][1])
            if passes and leads and len(norms) < 2 and plain:
                yield Link(chain[first][0], norms[0] if norms else "", chain[second][0])


def _ungrouped(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == 1


def equalised(net: nn.Module, link: Link) -> Tensor:
    """Fold, in place, the scales that give both layers the same range in each channel; they are
    (channels,), by which the first layer was divided.

    Source: Nagel et al. 2019, arXiv:1906.04721, equation 11 (cross-layer equalisation).
    """
    first, second = net.get_submodule(link.first), net.get_submodule(link.second)
    norm = net.get_submodule(link.norm) if link.norm else None
    out_axis, in_axis = int(isinstance(first, TRANSPOSED)), int(not isinstance(second, TRANSPOSED))
    with torch.no_grad():
        mine = first.weight.abs().movedim(out_axis, 0).flatten(1).amax(1)
        if norm is not None:
            mine = mine * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
        theirs = second.weight.abs().movedim(in_axis, 0).flatten(1).amax(1)
        live = (mine > TINY) & (theirs > TINY)
        scale = torch.where(live, (mine / theirs.clamp(min=TINY)).sqrt(), torch.ones_like(mine))
        if norm is not None:
            norm.weight.div_(scale)
            norm.bias.div_(scale)
        else:
            _along(first.weight.data, out_axis, 1 / scale)
            if first.bias is not None:
                first.bias.div_(scale)
        _along(second.weight.data, in_axis, scale)
    return scale


def _along(weight: Tensor, axis: int, factor: Tensor) -> None:
    weight.mul_(factor.view(-1, *[1] * (weight.dim() - axis - 1)))
