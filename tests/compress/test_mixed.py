"""Precisions under a budget: met, and never worse than one precision for all."""

from itertools import pairwise, product

import pytest

pytest.importorskip("torch", reason="the methods are torch's")

import numpy as np

from edgegen.compress._mixed import Choice, good_enough, loss_of, path, size_of, within
from edgegen.errors import UsageError


def table(seed, layers=6):
    """Choices that lose less the more they take, mostly."""
    rng = np.random.default_rng(seed)
    return {
        f"layer{n}": [
            Choice(name, int(size * weight), float(loss * rng.lognormal()))
            for name, size, loss in (("int8", 9, 0.001), ("int4", 5, 0.02), ("int3", 4, 0.2))
        ]
        for n, weight in enumerate(rng.integers(50, 200, layers))
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_budget_is_met_and_no_uniform_precision_within_it_loses_less(seed):
    choices = table(seed)
    for name in ("int8", "int4", "int3"):
        uniform = {layer: next(c for c in cs if c.name == name) for layer, cs in choices.items()}
        found = within(choices, size_of(uniform))
        assert size_of(found) <= size_of(uniform)
        assert loss_of(found) <= loss_of(uniform)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_near_the_optimum_of_all_plans(seed):
    choices = table(seed, layers=5)
    plans = [dict(zip(choices, each, strict=True)) for each in product(*choices.values())]
    budget = int(np.median([size_of(plan) for plan in plans]))
    best = min(loss_of(plan) for plan in plans if size_of(plan) <= budget)
    assert best <= loss_of(within(choices, budget)) <= 2 * best + 1e-3


def test_all_the_budget_buys_the_best_and_too_little_is_refused():
    choices = table(0)
    assert {c.name for c in within(choices, 10**9).values()} == {"int8"}
    smallest = sum(min(c.size for c in cs) for cs in choices.values())
    assert size_of(within(choices, smallest)) == smallest
    with pytest.raises(UsageError, match=r"at least .* MB") as error:
        within(choices, smallest - 1)
    assert "raise the budget" in error.value.hint


def test_each_plan_of_the_path_is_larger_and_loses_less():
    plans = path(table(3))
    assert all(size_of(a) < size_of(b) for a, b in pairwise(plans))
    assert all(loss_of(a) > loss_of(b) for a, b in pairwise(plans))


def test_a_choice_that_takes_more_and_loses_more_is_never_made():
    choices = {"one": [Choice("a", 10, 1.0), Choice("b", 20, 2.0), Choice("c", 10, 0.5)]}
    assert within(choices, 100)["one"].name == "c"


def test_the_smallest_plan_that_is_measured_good_enough():
    choices = table(4)
    plans = path(choices)
    limit = loss_of(plans[3])
    plan, loss = good_enough(choices, limit, loss_of)
    assert plan == plans[3] and loss == limit
    with pytest.raises(UsageError, match="the best of these choices loses"):
        good_enough(choices, loss_of(plans[-1]) / 2, loss_of)
