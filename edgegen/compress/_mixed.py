"""Which layer gets which precision: the least loss that a budget of bytes allows.

Choices are the rows of a ledger; the losses of layers are taken to add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from edgegen.errors import UsageError


class Choice(NamedTuple):
    """One precision of one layer: what it takes and what it costs."""

    name: str
    size: int  # bytes
    loss: float


Table = Mapping[str, Sequence[Choice]]  # layer -> its choices
Plan = dict[str, Choice]


def loss_of(plan: Plan) -> float:
    """The ledger's sum."""
    return sum(choice.loss for choice in plan.values())


def size_of(plan: Plan) -> int:
    """Bytes of all layers."""
    return sum(choice.size for choice in plan.values())


def path(table: Table) -> list[Plan]:
    """Plans from the smallest to the best, each better than the last by the step that saves the
    most loss for its bytes.

    Along the lower convex hull of each layer's choices this greedy order is the optimum of the
    relaxed knapsack. Source: Sinha and Zoltners 1979 (multiple-choice knapsack).
    """
    hulls = {layer: _hull(choices) for layer, choices in table.items()}
    plan = {layer: hull[0] for layer, hull in hulls.items()}
    steps = [
        ((old.loss - new.loss) / (new.size - old.size), layer, new)
        for layer, hull in hulls.items()
        for old, new in pairwise(hull)
    ]
    plans = [dict(plan)]
    # Slopes fall along a hull, so a layer's steps keep their order.
    for _, layer, new in sorted(steps, key=lambda step: -step[0]):
        plan[layer] = new
        plans.append(dict(plan))
    return plans


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices worth making, by size: each saves less loss a byte than the one before."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.size, c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        if hull and choice.size == hull[-1].size:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(old: Choice, new: Choice) -> float:
    return (old.loss - new.loss) / (new.size - old.size)


def within(table: Table, budget: int) -> Plan:
    """The plan of the least loss found whose size is at most `budget` bytes.

    Never of more loss than one precision for all layers, where that fits.

    Raises:
        UsageError: even the smallest choices take more.
    """
    plans = path(table)
    if size_of(plans[0]) > budget:
        raise UsageError(
            f"quantize: at least {size_of(plans[0]) / 1e6:.6g} MB for the layers with a choice, "
            f"the budget leaves them {budget / 1e6:.6g} MB",
            "raise the budget, or add smaller precisions to choices",
        )
    within = [p for p in plans if size_of(p) <= budget]
    largest: Plan = max(within, key=size_of)
    plan = dict(largest)
    candidates = [_filled(table, plan, budget)]
    for name in dict.fromkeys(choice.name for choices in table.values() for choice in choices):
        uniform = {layer: c for layer, cs in table.items() for c in cs if c.name == name}
        if len(uniform) == len(table) and size_of(uniform) <= budget:
            candidates.append(_filled(table, uniform, budget))
    return min(candidates, key=loss_of)


def _filled(table: Table, plan: Plan, budget: int) -> Plan:
    """What bytes are left goes to the single changes that save most, as long as one fits."""
    plan, left = dict(plan), budget - size_of(plan)
    while True:
        options = [
            (plan[layer].loss - choice.loss, layer, choice)
            for layer, choices in table.items()
            for choice in choices
            if choice.size - plan[layer].size <= left and choice.loss < plan[layer].loss
        ]
        if not options:
            return plan
        _, layer, choice = max(options, key=lambda option: option[0])
        left -= choice.size - plan[layer].size
        plan[layer] = choice


def good_enough(table: Table, limit: float, measure: Callable[[Plan], float]) -> tuple[Plan, float]:
    """The smallest plan along the path whose measured loss is at most `limit`; and that loss.

    The whole model is measured at each of a few plans: losses only nearly add up.

    Raises:
        UsageError: not even the best plan is good enough.
    """
    plans = path(table)
    low, high = 0, len(plans) - 1
    best, found = plans[high], measure(plans[high])
    if found > limit:
        raise UsageError(
            f"quantize: the best of these choices loses {found:.4g}, the budget is {limit:.4g}",
            "loosen the quality budget, or add finer precisions to choices",
        )
    while low < high:
        middle = (low + high) // 2
        loss = measure(plans[middle])
        if loss <= limit:
            high, best, found = middle, plans[middle], loss
        else:
            low = middle + 1
    return best, found
