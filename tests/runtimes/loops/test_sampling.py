import numpy as np
import pytest

from edgegen.errors import MismatchError, UsageError
from edgegen.runtimes.loops import _sampling
from edgegen.spec import Sampling

INF = np.inf
CHANCES = np.log([0.5, 0.3, 0.2])


class Die:
    """A generator whose one number is known."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


@pytest.mark.parametrize(
    ("k", "kept"),
    [(1, [-INF, 3, -INF]), (2, [-INF, 3, 2]), (3, [1, 3, 2]), (9, [1, 3, 2])],
)
def test_top_k_keeps_the_k_largest(k, kept):
    np.testing.assert_array_equal(_sampling.top_k(np.array([1.0, 3, 2]), k), kept)


def test_top_k_keeps_what_equals_the_last_one_kept():
    np.testing.assert_array_equal(_sampling.top_k(np.array([2.0, 3, 2, 1]), 2), [2, 3, 2, -INF])


@pytest.mark.parametrize(("p", "kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3)])
def test_top_p_keeps_the_fewest_that_make_up_p(p, kept):
    assert np.isfinite(_sampling.top_p(CHANCES, p)).tolist() == [i < kept for i in range(3)]


def test_top_p_sees_only_what_earlier_filters_left():
    row = np.array([-INF, 1.0, 0.0, -INF])
    np.testing.assert_array_equal(_sampling.top_p(row, 0.99), row)
    np.testing.assert_array_equal(_sampling.top_p(row, 0.1), [-INF, 1.0, -INF, -INF])


@pytest.mark.parametrize(("p", "kept"), [(0.0, 3), (0.39, 3), (0.41, 2), (0.61, 1), (1.0, 1)])
def test_min_p_is_a_share_of_the_most_likely(p, kept):
    assert np.isfinite(_sampling.min_p(CHANCES, p)).tolist() == [i < kept for i in range(3)]


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    seen = np.array([[True, True, False, False]])
    out = _sampling.penalised(np.array([[2.0, -2, 2, -2]]), seen, 4.0)
    np.testing.assert_array_equal(out, [[0.5, -8, 2, -2]])


@pytest.mark.parametrize(
    ("number", "token"), [(0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 4), (1 - 2**-53, 4)]
)
def test_a_draw_takes_the_token_in_whose_share_the_number_falls(number, token):
    row = np.array([-INF, *CHANCES[:2], -INF, CHANCES[2], -INF])
    assert _sampling.draw(row, Die(number)) == token


def test_draws_come_as_often_as_the_logits_say():
    die, count = np.random.default_rng(0), 20_000
    draws = [_sampling.draw(CHANCES, die) for _ in range(count)]
    found = np.bincount(draws, minlength=3) / count
    sigma = np.sqrt(np.exp(CHANCES) * (1 - np.exp(CHANCES)) / count)
    assert (np.abs(found - np.exp(CHANCES)) < 4 * sigma).all()


def test_temperature_divides_the_logits():
    found = _sampling.filtered(np.array([1.0, 2.0], np.float32), Sampling(temperature=0.5))
    np.testing.assert_array_equal(found, [2.0, 4.0])
    assert found.dtype == np.float64


def test_greedy_takes_the_largest_and_the_first_of_equals():
    logits = np.array([[0, 5, 5], [7, 1, 2]], np.float32)
    assert _sampling.choose(logits, Sampling(), None, [None, None]).tolist() == [1, 0]


def test_greedy_heeds_the_penalty():
    seen = np.array([[False, True, False]])
    options = Sampling(repetition_penalty=2.0)
    logits = np.array([[3, 5, 1]], np.float32)
    assert _sampling.choose(logits, options, seen, [None]).tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_not_a_token(bad):
    with pytest.raises(MismatchError, match="not finite") as error:
        _sampling.choose(np.array([[0, bad, 1]], np.float32), Sampling(), None, [None])
    assert "edgegen verify" in error.value.hint


def test_options_turn_chance_on():
    assert _sampling.sampling() == Sampling()
    assert _sampling.sampling(top_k=5, top_p=None) == Sampling(temperature=1.0, top_k=5)
    assert _sampling.sampling(temperature=0.7, min_p=0.1).temperature == 0.7
    assert _sampling.sampling(repetition_penalty=1.1).temperature == 0


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"temperature": -1}, "temperature is -1.0, wanted 0", ""),
        ({"temperature": np.nan}, "temperature is nan", ""),
        ({"temperature": np.inf}, "temperature is inf", ""),
        ({"top_k": -1}, "top_k is -1, wanted 0", ""),
        ({"top_p": 0}, "top_p is 0.0, wanted above 0, up to 1", ""),
        ({"top_p": 1.5}, "top_p is 1.5", ""),
        ({"min_p": -0.5}, "min_p is -0.5, wanted from 0 to 1", ""),
        ({"repetition_penalty": 0}, "repetition_penalty is 0.0, wanted above 0", ""),
        ({"top_q": 1}, "no sampling option 'top_q'", "did you mean 'top_p'?"),
        ({"top_k": 5, "temperature": 0}, "top_k has no effect at temperature 0", "leave top_k out"),
    ],
)
def test_options_out_of_range_are_named(options, message, hint):
    with pytest.raises(UsageError, match=message) as error:
        _sampling.sampling(**options)
    assert hint in error.value.hint


@pytest.mark.slow  # transformers takes seconds to import
@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")
@pytest.mark.parametrize("seed", range(5))
def test_every_filter_agrees_with_transformers(seed):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((3, 50)) * 4
    ids = rng.integers(0, 50, (3, 8))
    seen = np.zeros((3, 50), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    pairs = [
        (theirs.RepetitionPenaltyLogitsProcessor(1.3), lambda x: _sampling.penalised(x, seen, 1.3)),
        (theirs.TemperatureLogitsWarper(0.7), lambda x: x / 0.7),
        (theirs.TopKLogitsWarper(20), lambda x: np.array([_sampling.top_k(r, 20) for r in x])),
        (theirs.TopPLogitsWarper(0.9), lambda x: np.array([_sampling.top_p(r, 0.9) for r in x])),
        (theirs.MinPLogitsWarper(0.02), lambda x: np.array([_sampling.min_p(r, 0.02) for r in x])),
    ]
    want, found = torch.from_numpy(logits), logits
    for their, our in pairs:  # each on top of the one before, as in generate()
        want = their(torch.from_numpy(ids), want)
        found = our(found)
        np.testing.assert_allclose(found, want.numpy(), rtol=1e-6)
    options = Sampling(0.7, 20, 0.9, 0.02, 1.3)
    whole = [_sampling.filtered(row, options) for row in _sampling.penalised(logits, seen, 1.3)]
    np.testing.assert_allclose(whole, want.numpy(), rtol=1e-6)
