"""What can be removed from a net together: rows of one layer with the columns that read them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgegen.structure import resize

Gone = Mapping[str, Sequence[int]]  # units to be removed, by the name of their group


class Slice(NamedTuple):
    """Where the units of a group lie in one tensor: unit u is `index[u]` along `axis`.

    `index` is (units, entries of one unit). `makes` tells a tensor that computes the units from
    one that reads them.
    """

    tensor: str
    axis: int
    index: Tensor
    makes: bool


class Group(NamedTuple):
    """Units (channels, heads, ...) that can be removed one by one, each from all of `slices`.

    Units come in `strata` equal runs, each of which must lose as many as the others (the groups of
    a norm, the queries of a shared key). Groups of one `tie` must lose the same number. `layers`
    are those that make the units. `exact` says that a unit whose slices are all zero does nothing,
    so that removing it is the same: not so where a norm looks at all units together. `kernel` says
    that the number of units is one of a layer's channels, to which the device's kernels are tuned.
    """

    name: str
    units: int
    slices: tuple[Slice, ...]
    layers: tuple[str, ...]
    strata: int = 1
    tie: str = ""
    exact: bool = True
    kernel: bool = True


def weights(group: Group, state: Mapping[str, Tensor]) -> int:
    """How many numbers one unit holds."""
    return sum(
        s.index.shape[1] * state[s.tensor].numel() // state[s.tensor].shape[s.axis]
        for s in group.slices
    )


def kept(state: Mapping[str, Tensor], groups: Iterable[Group], gone: Gone) -> dict[str, Tensor]:
    """The tensors of a net without the units that are `gone`."""
    masks: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        if units := list(gone.get(group.name, ())):
            for place in group.slices:
                size = state[place.tensor].shape[place.axis]
                key = place.tensor, place.axis
                mask = masks.setdefault(key, torch.ones(size, dtype=torch.bool))
                mask[place.index[units].flatten()] = False
    left = dict(state)
    for (name, axis), mask in masks.items():
        left[name] = left[name].index_select(axis, mask.nonzero().flatten())
    return left


def shrink(net: nn.Module, groups: Iterable[Group], gone: Gone) -> nn.Module:
    """A copy of `net` without the units that are `gone`; with none gone, an exact copy."""
    small = copy.deepcopy(net)
    state = net.state_dict()
    left = kept(state, groups, gone)
    resize(small, {n: tuple(t.shape) for n, t in left.items() if t.shape != state[n].shape})
    small.load_state_dict(left)
    return small


def silence(net: nn.Module, group: Group, units: Sequence[int]) -> nn.Module:
    """A copy of `net` in which those units are still there, but all their weights are zero."""
    quiet = copy.deepcopy(net)
    parameters = dict(quiet.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for place in group.slices:
            if place.tensor in parameters:  # the statistics of a batch norm are not weights
                tensor = parameters[place.tensor]
                tensor.index_fill_(place.axis, place.index[list(units)].flatten(), 0.0)
    return quiet


def choose(scores: Tensor, count: int, strata: int = 1) -> list[int]:
    """The `count` units of the lowest scores, as many from each stratum; sorted."""
    runs = scores.view(strata, -1)  # (strata, units of one)
    lowest = runs.argsort(dim=1, stable=True)[:, : count // strata]
    offsets = torch.arange(strata)[:, None] * runs.shape[1]
    return sorted(int(u) for u in (lowest + offsets).flatten())
