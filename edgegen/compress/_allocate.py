"""How many units go from each group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgegen.compress._groups import Group
from edgegen.compress._importance import Scores
from edgegen.errors import UsageError

Counts = dict[str, int]  # units that go, by group
# What a layer may lose when importance decides: a narrower one passes next to nothing on.
MOST = 0.9


def step_of(group: Group, multiple: int) -> int:
    """What the number of units that stay is a multiple of: as many in each stratum, and `multiple`
    where kernels care and there are that many."""
    step = math.lcm(group.strata, multiple) if group.kernel else group.strata
    return step if step < group.units else group.strata


def share(group: Group, ratio: float, multiple: int) -> int:
    """The units that go when a share `ratio` is to go, rounded to the nearest step.

    Raises:
        UsageError: none would stay.
    """
    if not ratio:
        return 0
    stay = group.units * (1 - ratio)
    if round(stay) < group.strata:
        least = math.floor((1 - group.strata / group.units) * 100) / 100
        raise UsageError(
            f"prune: {group.name}: a ratio of {ratio} leaves none of {group.units} units"
            + (f" in {group.strata} groups" if group.strata > 1 else ""),
            f"use a ratio of at most {least}, or leave it out with layers = [...]",
        )
    step = step_of(group, multiple)
    return group.units - min(group.units, max(step, round(stay / step) * step))


def level(group: Group, ratio: float) -> int:
    """Units that go at that ratio: as many of each stratum, and one of each stays."""
    each = group.units // group.strata
    return min(round(each * ratio), each - 1) * group.strata


class Lane(NamedTuple):
    """Groups from which the same number goes: `cost[i]` and `gain[i]` of `counts[i]` each."""

    groups: tuple[Group, ...]
    counts: Sequence[int]
    cost: Sequence[float]
    gain: Sequence[float]


def lanes_of(groups: Iterable[Group]) -> list[tuple[Group, ...]]:
    """Groups that are tied, together; each of the others by itself."""
    lanes: dict[str, list[Group]] = {}
    for group in groups:
        lanes.setdefault(group.tie or f"={group.name}", []).append(group)
    return [tuple(lane) for lane in lanes.values()]


def counts_of(lane: Sequence[Group], multiple: int) -> list[int]:
    """What may go from each group of a lane: 0, and what leaves a multiple of a step."""
    first = lane[0]
    step = step_of(first, multiple)
    stay = range(first.units // step * step, 0, -step)
    least = first.units * (1 - MOST)
    return sorted({0, *(first.units - n for n in stay if n >= least)})


def lost(lane: Sequence[Group], counts: Sequence[int], scores: Scores) -> list[float]:
    """The importance that goes with each count, in shares of all that a group has; summed."""
    total = np.zeros(len(counts))
    for group in lane:
        order = np.sort(scores[group.name].double().numpy())
        so_far = np.concatenate([[0.0], np.cumsum(order)])
        total += so_far[list(counts)] / max(float(so_far[-1]), 1e-30)
    return [float(value) for value in total]


def allocate(lanes: Sequence[Lane], goal: float) -> Counts | None:
    """The counts that gain `goal` at little cost, the cheapest gain first; None: out of reach."""
    at = [0] * len(lanes)
    while sum(lane.gain[i] for lane, i in zip(lanes, at, strict=True)) < goal - 1e-9:
        moves = [
            ((lane.cost[j] - lane.cost[i]) / (lane.gain[j] - lane.gain[i]), n, j)
            for n, (lane, i) in enumerate(zip(lanes, at, strict=True))
            for j in range(i + 1, len(lane.counts))
            if lane.gain[j] - lane.gain[i] > 1e-9
        ]
        if not moves:
            return None
        _, n, j = min(moves)
        missing = goal - sum(lane.gain[i] for lane, i in zip(lanes, at, strict=True))
        enough = (
            k for k in range(at[n] + 1, j) if lanes[n].gain[k] - lanes[n].gain[at[n]] >= missing
        )
        at[n] = next(enough, j)
    return {
        group.name: lane.counts[i]
        for lane, i in zip(lanes, at, strict=True)
        for group in lane.groups
    }


def by_importance(groups: Iterable[Group], ratio: float, multiple: int, scores: Scores) -> Counts:
    """A share `ratio` of all units, those first that weigh least in their group."""
    lanes = []
    for lane in lanes_of(groups):
        counts = counts_of(lane, multiple)
        gain = [float(n * len(lane)) for n in counts]
        # A unit's importance in those of the layer's average one: wide layers are no cheaper.
        cost = [share * lane[0].units for share in lost(lane, counts, scores)]
        lanes.append(Lane(lane, counts, cost, gain))
    return _reached(lanes, ratio)


def by_loss(
    groups: Iterable[Group],
    ratio: float,
    multiple: int,
    losses: Mapping[str, Mapping[float, float]],
) -> Counts:
    """A share `ratio` of all units, where the measured loss (by group and ratio) is least."""
    lanes = []
    for lane in lanes_of(groups):
        tried = min(max([0.0, *losses[group.name]]) for group in lane)
        counts = [n for n in counts_of(lane, multiple) if n <= tried * lane[0].units + 1e-9]
        cost = np.zeros(len(counts))
        for group in lane:
            known = {0.0: 0.0, **losses[group.name]}
            ratios = sorted(known)
            worst = np.maximum.accumulate([known[r] for r in ratios])  # noise is no reward
            cost += np.interp([n / group.units for n in counts], ratios, worst)
        gain = [float(n * len(lane)) for n in counts]
        lanes.append(Lane(lane, counts, [float(c) for c in cost], gain))
    return _reached(lanes, ratio)


def _reached(lanes: Sequence[Lane], ratio: float) -> Counts:
    total = sum(group.units for lane in lanes for group in lane.groups)
    found = allocate(lanes, ratio * total)
    if found is None:
        most = sum(lane.gain[-1] for lane in lanes) / total
        raise UsageError(
            f"prune: a ratio of {ratio} would leave next to nothing of some layer",
            f"use a ratio of at most {math.floor(most * 100) / 100}, or scope = 'local'",
        )
    return found
