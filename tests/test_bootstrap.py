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
    logs = bootstrap.logs_by_round(base, [[8.0 * s] for s in slow], 5, 50)
    middle, reach = bootstrap.location(logs)
    assert np.exp(middle) == pytest.approx(0.8)
    assert reach == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rounds", [5, 20])
def test_the_other_order_gives_the_inverse(rounds):
    a, b = np.random.default_rng(0).uniform(1, 2, (2, 4 * rounds, 1)).tolist()
    one = bootstrap.location(bootstrap.logs_by_round(a, b, rounds, 50))
    other = bootstrap.location(bootstrap.logs_by_round(b, a, rounds, 50))
    assert one[0] == pytest.approx(-other[0])
    assert one[1] == pytest.approx(other[1])


def test_of_ten_rounds_the_outermost_say_nothing_and_of_nine_they_do():
    ten = np.array([0.1] * 8 + [-50.0, 9.0])
    assert bootstrap.location(ten)[0] == pytest.approx(0.1)
    assert bootstrap.location(ten[1:])[0] < -1


def test_of_less_than_ten_rounds_the_interval_is_student_s():
    logs = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    middle, reach = bootstrap.location(logs)
    assert middle == pytest.approx(0.2)
    assert reach == pytest.approx(T_975[4] * logs.std(ddof=1) / np.sqrt(5), rel=3e-3)


def test_four_rounds_are_too_few_and_equal_ones_leave_no_doubt():
    assert bootstrap.location(np.ones(4)) == (1.0, None)
    assert bootstrap.location(np.ones(12)) == (1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [10, 20, 60])
@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_nothing_is_found_where_nothing_is_as_seldom_as_promised(kind, rounds):
    rng = np.random.default_rng(rounds)
    logs = rng.normal(size=(600, rounds))
    if kind == "outliers":
        logs *= np.where(rng.random(logs.shape) < 0.1, 6, 1)
    found = [bootstrap.location(one, 1000) for one in logs]
    assert 0.02 <= np.mean([abs(middle) > reach for middle, reach in found]) <= 0.08


def test_from_round_to_round_is_the_ratio_of_neighbours():
    logs = bootstrap.from_round_to_round([[1.0], [2.0], [2.0], [1.0]], 4, 50)
    assert np.exp(logs) == pytest.approx([2, 1, 0.5])


def test_the_rounds_that_would_decide_make_the_interval_reach_less_by_the_root():
    # 80 % power asks for 1.96 + 0.8416 standard errors, an interval is 1.96 of them.
    assert bootstrap.rounds_to_decide(0.1, 0.1, 10) == pytest.approx(
        10 * (2.8016 / 1.96) ** 2, 1e-4
    )
    half = bootstrap.rounds_to_decide(0.1, 0.2, 10)
    assert half == pytest.approx(4 * bootstrap.rounds_to_decide(0.1, 0.1, 10))
    assert bootstrap.rounds_to_decide(0.0, 0.1, 10) == np.inf


@pytest.mark.slow
def test_that_many_rounds_do_decide_four_times_out_of_five():
    rng = np.random.default_rng(0)
    # Of one comparison the reach is a guess, so power is promised of its usual size.
    reaches = [bootstrap.location(rng.normal(0, 0.05, 40), 1000)[1] for _ in range(100)]
    rounds = round(bootstrap.rounds_to_decide(0.02, np.median(reaches), 40))
    found = [bootstrap.location(rng.normal(0.02, 0.05, rounds), 1000) for _ in range(400)]
    assert 0.75 < np.mean([middle > reach for middle, reach in found]) < 0.9


def test_turns_are_compared_only_within_one_block_of_enough_rounds(make_profile):
    turn = {"rounds": 5, "block": "x"}
    assert bootstrap.paired(make_profile(**turn), make_profile(1, **turn))
    for other in ({"block": "y"}, {"block": ""}, {"rounds": 6}):
        assert not bootstrap.paired(make_profile(**turn), make_profile(1, **turn | other))
    few = turn | {"rounds": 4}
    assert not bootstrap.paired(make_profile(**few), make_profile(1, **few))


def test_four_blocks_are_too_few_for_an_interval():
    assert bootstrap.interval(1.0, np.ones(10), 4) is None
