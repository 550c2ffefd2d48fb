"""Rounds the layers of a net in the order they run, each by what its rounded predecessors give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from edgegen.compress._probe import Probe
from edgegen.compress._replay import Replay, stages
from edgegen.compress._rounding import (
    Fit,
    Grid,
    codebook,
    hqq,
    on_grid,
    recovered,
    searched,
    span,
)
from edgegen.compress._rounding_gptq import gptq
from edgegen.compress._scheme import assign, matrix
from edgegen.spec import Report, Scheme

Method = Literal["rtn", "hqq", "gptq", "awq", "codebook"]
Zero = Literal["auto", "whole", "float"]


COARSE = Scheme(4, 32, symmetric=False)  # GGUF's Q4_1 and Q4_0


class How(NamedTuple):
    """The algorithm for all layers, and what it may be told."""

    method: Method = "rtn"
    clip: bool = False
    zero: Zero = "auto"
    damping: float = 0.01
    act_order: bool = False


class Rounded(NamedTuple):
    """The grids by layer, and by layer what was not simply what was asked for."""

    grids: dict[str, Grid]
    notes: dict[str, str]


def plain(weight: Tensor, scheme: Scheme, how: How, importance: Tensor | None = None) -> Grid:
    """A matrix rounded without inputs; `importance` (columns,) weighs the search for a clip."""
    whole = how.zero != "float"
    if scheme.codebook:
        return codebook(weight, scheme)
    if how.method == "hqq":
        return hqq(weight, scheme, whole=whole)
    return on_grid(weight, scheme, fit_of(scheme, how, importance))


def fit_of(scheme: Scheme, how: How, importance: Tensor | None = None) -> Fit:
    """How a grid is found for groups; `importance` (columns,) only where they are all there."""
    whole = how.zero != "float"

    def find(groups: Tensor) -> tuple[Tensor, Tensor]:
        if not how.clip:
            return span(groups, scheme, whole)
        fits = importance is not None and scheme.group_size >= 0
        mine = importance.reshape(groups.shape[1:]) if fits and importance is not None else None
        return searched(groups, scheme, whole, mine)

    return find


def round_layers(
    net: nn.Module,
    layers: Mapping[str, Scheme],
    how: How,
    probe: Probe | None,
    report: Report,
    importance: Mapping[str, Tensor] | None = None,
) -> Rounded:
    """Round the named layers of `net` in place; with GPTQ one after the other, by their inputs."""
    grids: dict[str, Grid] = {}
    notes: dict[str, str] = {}
    for name, scheme in layers.items():
        weight = matrix(net.get_submodule(name))
        found = recovered(weight, scheme) if how.zero == "auto" else None
        if found is not None:
            grids[name] = found
            zeros = "" if _whole(found) else ", with zeros that are not whole"
            notes[name] = f"lay on such a grid already{zeros}: kept"
        elif scheme.bits == 8 and weight.shape[1] % COARSE.group_size == 0:
            lies = recovered(weight, COARSE) is not None
            notes |= {name: "lies on a 4-bit grid: int4-g32 would lose nothing"} if lies else {}
    left = [name for name in layers if name not in grids]
    if how.method == "gptq":
        assert probe is not None
        able = [name for name in left if _has_hessian(net.get_submodule(name))]
        done = _sequential(net, {n: layers[n] for n in able}, how, probe, report)
        grids |= done
        left = [name for name in left if name not in done]
        notes |= dict.fromkeys(left, "rounded to nearest: GPTQ is for linear layers and Conv2d")
    for index, name in enumerate(left):
        mine = None if importance is None else importance.get(name)
        weight = matrix(net.get_submodule(name))
        grids[name] = plain(weight, layers[name], how, mine)
        report("rounding", index + 1, len(left))
    for name, grid in grids.items():
        assign(net.get_submodule(name), grid.weight)
    return Rounded(grids, notes)


def _whole(grid: Grid) -> bool:
    return grid.zero is None or bool((grid.zero == grid.zero.round()).all())


def _has_hessian(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _sequential(
    net: nn.Module, layers: Mapping[str, Scheme], how: How, probe: Probe, report: Report
) -> dict[str, Grid]:
    grids: dict[str, Grid] = {}
    if not layers:
        return grids
    replay = Replay(net, probe)
    done: list[str] = []
    order = stages(replay, list(layers))
    for index, stage in enumerate(order):
        block = replay.block_of(stage[0])
        for earlier in replay.blocks[: replay.blocks.index(block)] if block else []:
            if earlier not in done:
                replay.finish(earlier)
                done.append(earlier)
        hessian = hessian_of(replay, stage[0])
        for name in stage:
            layer, scheme = net.get_submodule(name), layers[name]
            fit = fit_of(scheme, how)
            weight = matrix(layer)
            grids[name] = gptq(
                weight, hessian, scheme, fit, damping=how.damping, act_order=how.act_order
            )
            assign(layer, grids[name].weight)
        report("rounding by inputs", index + 1, len(order))
    return grids


def hessian_of(replay: Replay, name: str) -> Tensor:
    """X^T X (columns, columns) over all that goes into a linear layer or a convolution."""
    layer: Any = replay.net.get_submodule(name)
    columns = layer.weight[0].numel()
    total = torch.zeros(columns, columns)

    def see(_: str, given: Tensor, __: Any) -> None:
        total.addmm_(*_pair(layer, given))

    replay.watch([name], see)
    return total


def _pair(layer: Any, given: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(layer, nn.Linear):
        rows = given.reshape(-1, given.shape[-1])
    else:
        around = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
        if layer.padding == "same":
            sizes = zip(layer.dilation, layer.kernel_size, strict=True)
            around = tuple(step * (size - 1) // 2 for step, size in sizes)
        patches = nn.functional.unfold(
            given, layer.kernel_size, layer.dilation, around, layer.stride
        )
        rows = patches.transpose(1, 2).flatten(0, 1)
    return rows.T, rows
