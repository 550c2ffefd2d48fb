"""Zeros among the weights: unstructured, and N of every M. They make a compressed file smaller.

Nothing here makes a model faster: engines on CPUs multiply by zero as by any other number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgegen import checkpoint
from edgegen.compress._fit import Fit
from edgegen.compress._groups import shrink
from edgegen.compress._names import select
from edgegen.compress._prune_options import Options
from edgegen.compress._recover import recover
from edgegen.compress._work import Setting, Work
from edgegen.errors import UnsupportedError

SIZE_ONLY = (
    "zeros make a compressed file smaller, not the model faster: engines multiply by them as by "
    "any other number"
)
LAYERS = nn.Linear | nn.modules.conv._ConvNd


def sparse(work: Work, options: Options, setting: Setting) -> Work:
    """Zeros instead of the smallest weights; after training they are zeros still."""
    layers, skipped = _sparse_layers(work, options)
    recovery: list[dict[str, Any]] = []
    masks: dict[str, Tensor] = {}
    for number in range(options.rounds):
        done = 1 - (1 - (number + 1) / options.rounds) ** 3
        masks = _masks(work, layers, options, done)
        whole = shrink(work.net, [], {})
        both = masks
        if work.spec.family == "gan":
            both = masks | {
                n.replace("average.", "generator.", 1): mask for n, mask in masks.items()
            }
        masked(whole, both)
        work = work._replace(net=whole)
        if options.steps:
            work, trained = recover(
                work,
                setting,
                Fit(steps=options.steps, batch=options.batch, lr=options.lr),
                number,
                masks,
            )
            recovery.append(trained)
    zeros = {n: round(1 - float(m.double().mean()), 4) for n, m in masks.items()}
    notes: dict[str, Any] = {"kind": options.kind, "says": SIZE_ONLY, "zeros": zeros}
    notes |= {"fixed": skipped} if skipped else {}
    return work._replace(notes=notes | ({"recovery": recovery} if recovery else {}))


def _sparse_layers(work: Work, options: Options) -> tuple[dict[str, float], dict[str, str]]:
    """The ratio of each layer that gets zeros, and why others get none."""
    layers = layers_of(work)
    if not layers:
        raise UnsupportedError("prune: no linear or convolution layer is exported")
    chosen = select(layers, options.layers, "layers") if options.layers else list(layers)
    ratio = options.ratio or 0.0
    asked = dict.fromkeys(chosen, ratio)
    if options.ratios and options.ratio is None:
        asked = {}
    for pattern, value in options.ratios.items():
        asked |= {n: value for n in select(layers, [pattern], "ratios") if n in chosen}
    if options.kind != "n:m":
        return asked, {}
    fixed = {}
    for name in chosen:
        layer = layers[name]
        channels = layer.weight.shape[input_axis(layer)]
        if channels % options.m:
            fixed[name] = f"{channels} channels go in, no multiple of {options.m}"
    if len(fixed) == len(chosen):
        raise UnsupportedError(
            f"prune: n:m: no layer's inputs divide into groups of {options.m}: "
            + "; ".join(f"{n}: {why}" for n, why in list(fixed.items())[:4]),
            "use another m, or kind = 'unstructured'",
        )
    return {name: 1 - options.n / options.m for name in chosen if name not in fixed}, fixed


def _masks(
    work: Work, asked: Mapping[str, float], options: Options, done: float
) -> dict[str, Tensor]:
    """Which weights stay when the share `done` of all that go is gone."""
    layers = layers_of(work)
    weights = {f"{name}.weight": layers[name].weight.detach() for name in asked}
    if options.kind == "n:m":
        n = options.m - round((options.m - options.n) * done)
        return {
            f"{name}.weight": n_of_m(
                layers[name].weight.detach(), input_axis(layers[name]), n, options.m
            )
            for name in asked
        }
    if options.scope == "global":
        assert options.ratio is not None
        return globally(weights, options.ratio * done)
    ratios = {f"{name}.weight": ratio * done for name, ratio in asked.items()}
    return by_magnitude(weights, ratios)


def layers_of(work: Work) -> dict[str, nn.Module]:
    """Linear and convolution layers of what is exported, by name."""
    parts = checkpoint.graphs(work.spec, work.net).values()
    exported = {id(m) for part, _ in parts for m in part.modules()}
    found = work.net.named_modules()
    return {n: m for n, m in found if isinstance(m, LAYERS) and id(m) in exported}


def by_magnitude(weights: Mapping[str, Tensor], ratios: Mapping[str, float]) -> dict[str, Tensor]:
    """Masks that drop the smallest weights, each layer its own share."""
    return {name: _largest(weights[name].abs(), ratio) for name, ratio in ratios.items()}


def _largest(size: Tensor, ratio: float) -> Tensor:
    """False at the share `ratio` of the smallest."""
    count = round(size.numel() * ratio)
    mask = torch.ones(size.numel(), dtype=torch.bool)
    mask[size.flatten().argsort(stable=True)[:count]] = False
    return mask.view_as(size)


def globally(weights: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Masks that drop the share `ratio` of the smallest weights of all layers together."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    mask, start = _largest(sizes, ratio), 0
    masks = {}
    for name, weight in weights.items():
        masks[name] = mask[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    return masks


def n_of_m(weight: Tensor, axis: int, n: int, m: int) -> Tensor:
    """A mask that keeps the `n` largest of every `m` weights that follow on each other on `axis`.

    Source: Mishra et al. 2021, arXiv:2104.08378 (2:4).
    """
    rows = weight.abs().movedim(axis, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, m)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    return mask.reshape(rows.shape).movedim(-1, axis)


def input_axis(layer: nn.Module) -> int:
    """Where the channels that go in lie in a layer's weight."""
    return int(not getattr(layer, "transposed", False))


def masked(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that are not kept to zero, in place."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask, 0.0)
