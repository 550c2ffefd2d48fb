"""Intervals: exact where they can be, and as wrong as they say where they cannot."""

import numpy as np
import pytest

from edgegen import bootstrap

# scipy.stats.t.ppf(0.975, df)
T_975 = {4: 2.776445, 9: 2.262157, 19: 2.093024, 38: 2.024394}


@pytest.mark.parametrize(("df", "want"), T_975.items())
def test_student_t_is_that_of_the_tables(df, want):
    assert bootstrap.student_t(0.975, df) == pytest.approx(want, rel=3e-3)


def test_percentiles_are_numpy_s_of_what_was_drawn():
    rng = np.random.default_rng(0)
    repeats = [rng.random(n).tolist() for n in (3, 0, 5, 1)]  # of unlike length
    counts = rng.integers(1, 4, size=(20, 4))
    found = bootstrap.percentiles(repeats, counts, [50, 90, 99])
    for drawn, row in zip(counts, found, strict=True):
        values = [v for n, r in zip(drawn, repeats, strict=True) for v in r * int(n)]
        assert row == pytest.approx(np.percentile(values, [50, 90, 99]))


def test_large_profiles_are_resampled_piece_by_piece_with_the_same_result(monkeypatch):
    repeats = [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]
    counts = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=50)
    whole = bootstrap.percentiles(repeats, counts, [50])
    monkeypatch.setattr(bootstrap, "CHUNK", 12)
    assert np.array_equal(bootstrap.percentiles(repeats, counts, [50]), whole)


def test_a_resample_draws_as_many_repeats_as_there_are(make_profile):
    counts = bootstrap.draw(make_profile(repeats=7), 0, 100)
    assert counts.shape == (100, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_rounds_are_drawn_whole(make_profile):
    counts = bootstrap.draw(make_profile(repeats=10, rounds=5), 0, 100)
    assert (counts[:, ::2] == counts[:, 1::2]).all()
    assert bootstrap.blocks(make_profile(repeats=10, rounds=5)) == 5
    assert bootstrap.blocks(make_profile(repeats=10, rounds=2)) == 10


def test_profiles_are_drawn_apart_and_always_the_same(make_profile):
    one, two, again = (bootstrap.draw(make_profile(), n, 10) for n in (0, 1, 0))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)


def test_a_ratio_by_rounds_knows_nothing_of_what_a_round_did_to_both():
    slow = [1.0, 3.0, 1.0, 2.0, 1.0]
    base = [[10.0 * s] for s in slow]
    value, resampled = bootstrap.ratios_by_round(base, [[8.0 * s] for s in slow], 5, 50)
    assert value == pytest.approx(0.8)
    assert bootstrap.interval(value, resampled, 5) == pytest.approx((0.8, 0.8))


def test_the_other_order_gives_the_inverse():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 10, 1)).tolist()
    one, _ = bootstrap.ratios_by_round(a, b, 5, 50)
    other, _ = bootstrap.ratios_by_round(b, a, 5, 50)
    assert one * other == pytest.approx(1)


def test_turns_are_compared_only_within_one_block_of_enough_rounds(make_profile):
    turn = {"rounds": 5, "block": "x"}
    assert bootstrap.paired(make_profile(**turn), make_profile(1, **turn))
    for other in ({"block": "y"}, {"block": ""}, {"rounds": 6}):
        assert not bootstrap.paired(make_profile(**turn), make_profile(1, **turn | other))
    few = turn | {"rounds": 4}
    assert not bootstrap.paired(make_profile(**few), make_profile(1, **few))


def test_the_interval_of_the_mean_of_rounds_is_student_s():
    logs = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    value, resampled = bootstrap.ratios_by_round(
        [[1.0]] * 5, [[float(v)] for v in np.exp(logs)], 5, 50, 200_000
    )
    reach = T_975[4] * logs.std(ddof=1) / np.sqrt(5)
    low, high = bootstrap.interval(value, resampled, 5)
    assert np.log([low, high]) == pytest.approx([0.2 - reach, 0.2 + reach], abs=3e-3)


def test_four_blocks_are_too_few_for_an_interval():
    assert bootstrap.interval(1.0, np.ones(10), 4) is None
