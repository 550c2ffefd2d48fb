"""MLPerf's early-stopping rule, against what its load generator itself printed."""

import numpy as np
import pytest

from edgegen import tail
from edgegen.profile import SAMPLES_FOR


# (samples, "would discard that many highest"), from published mlperf_log_summary.txt files.
@pytest.mark.parametrize(("count", "discarded"), [(201, 9), (100, 2), (64, 0)])
def test_the_rank_is_the_load_generator_s(count, discarded):
    assert tail.rank(count, 90) == discarded + 1


@pytest.mark.parametrize("q", [90, 99])
def test_a_profile_s_percentiles_need_the_samples_that_the_rule_needs(q):
    assert tail.rank(SAMPLES_FOR[q], q) == 1
    assert tail.rank(SAMPLES_FOR[q] - 1, q) == 0


def test_the_median_needs_them_too():
    assert tail.rank(SAMPLES_FOR[50], 50) >= 1
    assert tail.rank(SAMPLES_FOR[50] - 1, 50) == 0


def test_what_it_is_not_above_is_a_sample_and_of_too_few_there_is_none():
    values = list(range(201, 0, -1))
    assert tail.at_most(values, 90) == 192  # the tenth highest of 1 to 201
    assert tail.at_most(values, 99) is None
    assert tail.at_most([], 90) is None


def test_a_hundred_thousand_tokens_are_no_trouble():
    values = np.arange(100_000.0)
    assert 99_000 < tail.at_most(values, 99) < 99_200


@pytest.mark.parametrize("count", [64, 300])
def test_it_is_wrong_at_most_once_in_a_hundred_times(count):
    draws = np.random.default_rng(0).random((2000, count))
    assert np.mean([tail.at_most(row, 90) < 0.9 for row in draws]) <= 0.01
