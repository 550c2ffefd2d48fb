"""The noise floor: measured where one bundle went twice, else from a profile's own rounds."""

import numpy as np
import pytest

from edgegen import noise
from edgegen.compare import compare
from edgegen.metrics import between


def rounds(make_profile, values, **fields):
    count = len(values)
    fields = {"rounds": count, "block": "x", "repeats": count} | fields
    return make_profile(first_ms=tuple(map(float, values)), steps_ms=((),) * count, **fields)


def noisy(make_profile, seed, count=20, sd=0.02, **fields):
    values = 10 * np.exp(np.random.default_rng(seed).normal(0, sd, count))
    return rounds(make_profile, values, **fields)


def test_the_same_bundle_twice_is_a_measured_floor(make_profile):
    one, two = noisy(make_profile, 0), noisy(make_profile, 1)
    found = noise.floor([one, two], ["A", "A #2"])
    ratio = compare([one, two]).rows[1].ratios["p50"]
    assert found.share == pytest.approx(max(ratio.high, 1 / ratio.low) - 1)
    assert found.source == "measured: A and A #2 are the same bundle"
    assert found.pairs == 20
    assert not found.alarm


def test_other_bundles_give_a_floor_from_their_own_rounds(make_profile):
    one = noisy(make_profile, 0, bundle_sha256="1" * 64)
    found = noise.floor([one, noisy(make_profile, 1)], ["A", "B"])
    assert found.source.startswith("from each profile's own rounds")
    assert found.pairs == 2 * 19
    # Two profiles of 20 rounds at 2 %: 2.03 * 0.02 * sqrt(2 / 20)
    assert found.share == pytest.approx(0.0128, rel=0.5)


@pytest.mark.slow
def test_equal_bundles_stay_within_the_floor_as_often_as_promised(make_profile):
    def outside(seed):
        a, b, c, d = (noisy(make_profile, 4 * seed + n, 12) for n in range(4))
        names = {"bundle_sha256": "1" * 64}
        other = rounds(make_profile, d.first_ms, **names)
        share = noise.floor([c, other], ["C", "D"]).share
        ratio = between(a, b).value
        return abs(np.log(ratio)) > np.log1p(share)

    assert 0.01 <= np.mean([outside(seed) for seed in range(300)]) <= 0.09


def test_a_bundle_that_differs_from_itself_is_an_alarm(make_profile):
    one = noisy(make_profile, 0)
    slow = rounds(make_profile, [1.5 * ms for ms in one.first_ms])
    found = noise.floor([one, slow], ["A", "A #2"])
    assert found.alarm == "A and A #2, the same bundle"
    assert "DIFFER: the machine is not steady" in noise.describe(found)


@pytest.mark.parametrize("field", [{"threads": 2}, {"board": "pi5"}, {"device": "gpu"}])
def test_what_was_opened_otherwise_is_not_the_same(make_profile, field):
    found = noise.floor([noisy(make_profile, 0), noisy(make_profile, 1, **field)], ["A", "B"])
    assert found.source.startswith("from each")


def test_of_one_process_there_is_no_floor(make_profile):
    assert noise.floor([make_profile(), make_profile(1)], ["A", "B"]) is None
    assert noise.floor([noisy(make_profile, 0, 5)], ["A"]) is None  # five rounds: too few


def test_it_is_one_line_with_its_unit_its_count_and_where_it_is_from(make_profile):
    found = compare([noisy(make_profile, 0), noisy(make_profile, 1)]).noise
    text = noise.describe(found[0])
    assert text.startswith("vae: noise floor ±")
    assert "% of the median at 20 rounds (measured: " in text
    assert text.endswith("20 A/A pairs)")
