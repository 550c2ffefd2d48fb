"""The metrics of a profile and the ratios of two, on samples whose answer is known by hand."""

import numpy as np
import pytest

from edgegen import metrics
from edgegen.metrics import FASTER, NEITHER, SLOWER, TOO_FEW
from edgegen.spec import Request


def runs(make_profile, times, **fields):
    """A profile of runs that took exactly `times`."""
    times = tuple(map(float, times))
    return make_profile(repeats=len(times), **{"first_ms": times, "steps_ms": ()} | fields)


def found(profile):
    return metrics.estimates(profile, metrics.resampled(profile, 0, 1000))


def ratios(base, other):
    return metrics.ratios(
        base, metrics.resampled(base, 0, 1000), other, metrics.resampled(other, 1, 1000)
    )


def text(make_profile, first, later):
    """A profile of text: `first` for each first token, the same `later` tokens in each repeat."""
    return make_profile(
        tokens=len(later),
        repeats=len(first),
        first_ms=tuple(map(float, first)),
        steps_ms=(tuple(map(float, later)),) * len(first),
    )


def test_of_samples_that_are_all_alike_every_percentile_and_its_ends_are_that_value(make_profile):
    known = found(runs(make_profile, [10] * 20))
    for name in ("p50", "p90", "p99"):
        assert known[name].value == 10
        assert (known[name].low, known[name].high) == pytest.approx((10, 10), rel=1e-12)
    assert [known[name].valid for name in ("p50", "p90", "p99")] == [True, False, False]


def test_a_percentile_counts_from_as_many_samples_as_it_needs(make_profile):
    assert not found(runs(make_profile, range(1, 11)))["p50"].valid
    assert found(runs(make_profile, range(1, 12)))["p50"].valid
    assert not found(runs(make_profile, range(1, 64)))["p90"].valid
    assert found(runs(make_profile, range(1, 65)))["p90"].valid


def test_of_a_hundred_runs_the_percentiles_are_those_by_hand(make_profile):
    known = found(runs(make_profile, range(1, 101)))
    assert known["p50"].value == 50.5
    assert known["p90"].value == pytest.approx(90.1)
    assert known["p90"].at_most == 98  # MLPerf: the third from the top, 99 % sure
    assert known["p99"].at_most is None
    assert known["p50"].low < 50.5 < known["p50"].high


def test_of_fewer_than_five_repeats_there_is_no_interval(make_profile):
    known = found(runs(make_profile, [1, 2, 3, 4]))
    assert (known["p50"].low, known["p50"].high) == (None, None)
    assert (known["rate"].low, known["rate"].high) == (None, None)


def test_runs_have_no_first_and_no_later_tokens(make_profile):
    assert {"ttft", "tpot"}.isdisjoint(found(runs(make_profile, [10] * 20)))


def test_of_text_the_first_token_is_ttft_and_the_later_ones_are_tpot(make_profile):
    profile = text(make_profile, [50] * 12, [4, 6, 5])
    assert metrics.steps_of(profile, "first") == [(50.0,)] * 12
    assert metrics.steps_of(profile, "main") == [(4.0, 6.0, 5.0)] * 12
    known = found(profile)
    assert known["ttft"].value == 50
    assert known["tpot"].value == known["p50"].value == 5
    assert known["rate"].value == 200
    assert known["rate"].unit == "tokens/s"


def test_text_of_one_token_has_its_first_as_what_counts(make_profile):
    profile = runs(make_profile, [7] * 12, steps_ms=((),) * 12)
    assert metrics.steps_of(profile, "main") == [(7.0,)] * 12


def test_the_rate_is_of_the_whole_batch_and_its_ends_are_turned_round(make_profile):
    known = found(runs(make_profile, range(1, 101), request=Request(batch=4)))
    p50, rate = known["p50"], known["rate"]
    assert rate.value == pytest.approx(4000 / 50.5)
    assert rate.low == pytest.approx(4000 / p50.high)
    assert rate.high == pytest.approx(4000 / p50.low)
    assert rate.unit == "images/s"


def test_what_is_known_once_has_its_unit_and_what_is_not_known_is_left_out(make_profile):
    known = found(
        runs(make_profile, [1] * 12, peak_rss_mb=None, energy_j=2.0, quality={"fid": 3.5})
    )
    assert (known["load"].value, known["load"].unit) == (50, "ms")
    assert (known["size"].value, known["size"].unit) == (4, "MB")
    assert (known["energy"].value, known["energy"].unit) == (2, "J")
    assert (known["quality.fid"].value, known["quality.fid"].unit) == (3.5, "")
    assert "peak_rss" not in known


def test_half_the_time_is_a_ratio_of_one_half_and_twice_the_rate(make_profile):
    known = ratios(runs(make_profile, [10] * 20), runs(make_profile, [5] * 20))
    p50, rate = known["p50"], known["rate"]
    assert (p50.value, p50.low, p50.high) == pytest.approx((0.5, 0.5, 0.5))
    assert p50.verdict == FASTER
    assert (rate.value, rate.low, rate.high) == pytest.approx((2, 2, 2))
    assert rate.verdict == ""
    back = ratios(runs(make_profile, [5] * 20), runs(make_profile, [10] * 20))["p50"]
    assert back.value == pytest.approx(2)
    assert back.verdict == SLOWER


def test_the_same_times_are_no_difference_that_more_runs_would_show(make_profile):
    profile = runs(make_profile, range(10, 30))
    p50 = ratios(profile, profile)["p50"]
    assert p50.value == 1
    assert p50.low < 1 < p50.high
    assert (p50.verdict, p50.more, p50.of) == (NEITHER, None, "repeats")


def test_a_percentile_of_too_few_samples_has_a_ratio_without_ends_or_verdict(make_profile):
    p90 = ratios(runs(make_profile, [10] * 20), runs(make_profile, [5] * 20))["p90"]
    assert (p90.value, p90.low, p90.high, p90.verdict) == (0.5, None, None, TOO_FEW)


def test_of_fewer_than_five_repeats_there_is_no_verdict(make_profile):
    p50 = ratios(runs(make_profile, [10] * 4), runs(make_profile, [5] * 4))["p50"]
    assert p50.value == pytest.approx(0.5)
    assert (p50.low, p50.high, p50.verdict) == (None, None, TOO_FEW)


@pytest.mark.parametrize("rounds", [5, 10])
def test_what_a_round_did_to_both_cancels_where_the_two_took_turns(make_profile, rounds):
    drift = np.repeat(np.linspace(1, 4, rounds), 2)  # far more than the difference
    turns = {"block": "b", "rounds": rounds}
    base = runs(make_profile, 10 * drift, **turns)
    other = runs(make_profile, 9 * drift, **turns)
    paired = ratios(base, other)["p50"]
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.9, 0.9, 0.9))
    assert paired.verdict == FASTER
    assert metrics.between(base, other) == paired
    apart = ratios(base, runs(make_profile, 9 * drift))["p50"]
    assert apart.verdict == NEITHER
    assert apart.of == "repeats"


def test_a_difference_that_rounds_leave_open_says_how_many_more_would_decide(make_profile):
    turns = {"block": "b", "rounds": 5}
    base = runs(make_profile, [10] * 5, **turns)
    other = runs(make_profile, 10 * np.exp([-0.06, -0.04, -0.02, 0.0, 0.02]), **turns)
    found = metrics.between(base, other)
    # The mean of the logarithms is -0.02, its standard error sqrt(0.001 / 5), t(0.975, 4) is 2.776.
    reach = 2.776 * np.sqrt(0.001 / 5)
    assert found.value == pytest.approx(np.exp(-0.02))
    assert np.log(found.high) == pytest.approx(-0.02 + reach, rel=0.02)
    more = 5 * (reach / 0.02 * (1.95996 + 0.84162) / 1.95996) ** 2 - 5
    assert (found.verdict, found.of) == (NEITHER, "rounds")
    assert found.more == pytest.approx(np.ceil(more), abs=1)


def test_ratios_are_of_what_both_have_and_never_of_nothing(make_profile):
    base = runs(make_profile, [1] * 12, quality={"kid": 0.0, "fid": 4.0}, peak_rss_mb=None)
    other = runs(make_profile, [1] * 12, quality={"kid": 0.1, "fid": 3.0}, size_mb=1.0)
    known = ratios(base, other)
    assert known["quality.fid"].value == 0.75
    assert known["size"].value == 0.25
    assert {"quality.kid", "peak_rss", "energy"}.isdisjoint(known)


def test_a_modelled_energy_is_not_held_against_a_measured_one(make_profile):
    one = runs(make_profile, [1] * 12, energy_j=2.0, energy_source="measured: rapl")
    two = runs(make_profile, [1] * 12, energy_j=1.0, energy_source="modelled: tdp")
    assert ratios(one, one)["energy"].value == 1
    assert "energy" not in ratios(one, two)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("p50", -1), ("ttft", -1), ("peak_rss", -1), ("energy", -1), ("rate", 1)),
        *(("quality.psnr_db", 1), ("quality.accuracy", 1), ("quality.fid", -1)),
        *(("quality.perplexity", -1), ("quality.bits_per_byte", -1), ("quality.taste", 0)),
    ],
)
def test_better_is_more_or_less_or_not_known(name, way):
    assert metrics.better(name) == way
