"""Ranges of values whose answer is known."""

import pytest

torch = pytest.importorskip("torch", reason="values are tensors")

from edgegen.compress._observers import OBSERVERS, entropy, minmax, mse, percentile, thinned  # noqa: E402


def normal(count=50_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_minmax_is_the_whole_range():
    assert minmax(torch.tensor([-1.5, 0.0, 4.0])) == (-1.5, 4.0)


def test_a_percentile_leaves_out_as_many_values_at_either_end():
    values = torch.arange(1001.0)[torch.randperm(1001, generator=torch.Generator().manual_seed(0))]
    assert percentile(values, 99.0) == (10.0, 990.0)
    assert percentile(values, 100.0) == (0.0, 1000.0)


@pytest.mark.parametrize("name", ["entropy", "percentile", "mse"])
def test_a_lonely_outlier_is_clipped(name):
    values = torch.cat((normal(), torch.tensor([60.0])))
    low, high = OBSERVERS[name](values)
    assert -6 < low < -2.5 and 2.5 < high < 58


@pytest.mark.parametrize("name", list(OBSERVERS))
def test_values_spread_evenly_are_not_clipped(name):
    low, high = OBSERVERS[name](torch.linspace(0, 1, 20_000))
    assert -1e-6 <= low < 0.02 and 0.97 < high <= 1.0 + 1e-6


@pytest.mark.parametrize("observer", [entropy, mse, minmax])
def test_values_that_are_all_the_same_have_a_range(observer):
    low, high = observer(torch.full((100,), 3.0))
    assert low <= 3.0 and high <= 3.0 + 1e-6


def test_thinning_keeps_the_ends():
    values = normal(10_000)
    few = thinned(values, 100)
    assert len(few) <= 103 and minmax(few) == minmax(values)
