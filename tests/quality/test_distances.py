"""Distances between sets, against closed forms."""

import numpy as np
import pytest

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import distances
from edgegen.quality.distances import fid, inception_score, jackknife, kid, precision, recall


def exact_gaussian(count, mean, covariance, seed=0):
    """`count` points whose sample mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(count, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return rows @ np.linalg.cholesky(np.array(covariance)).T + mean


def test_fid_of_two_gaussians_in_closed_form():
    """|m1 - m2|^2 + tr(A) + tr(B) - 2 tr((AB)^1/2); these covariances commute."""
    fake = exact_gaussian(50, [0.0, 0.0], [[4, 0], [0, 9]])
    real = exact_gaussian(70, [3.0, 4.0], [[16, 0], [0, 1]], seed=1)
    assert fid(fake, real) == pytest.approx(25 + (2 - 4) ** 2 + (3 - 1) ** 2)


def test_fid_of_covariances_that_do_not_commute_in_closed_form():
    """For 2x2 the trace of a root is sqrt(tr + 2 sqrt(det))."""
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[5.0, -1.0], [-1.0, 1.0]])
    fake, real = exact_gaussian(40, [0, 0], a), exact_gaussian(40, [0, 0], b, seed=1)
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    assert fid(fake, real) == pytest.approx(np.trace(a) + np.trace(b) - 2 * root)


@pytest.mark.parametrize("count", [12, 200])
def test_fid_of_identical_sets_is_0_with_fewer_images_than_features_too(count):
    rows = np.random.default_rng(0).normal(size=(count, 50))
    assert fid(rows, rows) == pytest.approx(0, abs=1e-10)


def test_kid_has_no_bias():
    """Halves of one set, many times: on average 0, and below it half of the time."""
    rng = np.random.default_rng(0)
    found = np.array([kid(*rng.normal(size=(2, 20, 8))) for _ in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20
    assert 0.4 < (found < 0).mean() < 0.8


def test_kid_by_hand():
    """One feature, kernel (xy + 1)^3: within 8 and 1, between 1; 8 + 1 - 2."""
    fake, real = np.ones((4, 1)), np.zeros((5, 1))
    assert kid(fake, real) == 8 + 1 - 2


def test_inception_score_from_one_class_to_all():
    assert inception_score(np.eye(5)[[0, 0, 0]]) == pytest.approx(1)
    assert inception_score(np.eye(5)) == pytest.approx(5)
    assert inception_score(np.full((7, 5), 0.2)) == pytest.approx(1)


def test_precision_and_recall_of_disjoint_sets_are_0_and_of_one_set_1():
    rows = np.random.default_rng(0).normal(size=(30, 6))
    assert precision(rows, rows + 100) == recall(rows, rows + 100) == 0
    assert precision(rows, rows) == recall(rows, rows) == 1


def test_mode_collapse_shows_in_recall():
    """A model that knows one real image is all precision and no recall."""
    real = np.random.default_rng(0).normal(size=(40, 6))
    collapsed = np.repeat(real[:1], 40, axis=0)
    assert precision(collapsed, real) == 1
    assert recall(collapsed, real) == 1 / 40
    assert np.isfinite(fid(collapsed, real)) and np.isfinite(kid(collapsed, real))


def test_the_standard_error_of_a_mean_is_that_of_the_textbook():
    rows = np.random.default_rng(0).normal(size=(1000, 1))
    figure = jackknife(lambda fake, real: fake.mean(), rows, rows, "lower")
    assert figure.error == pytest.approx(1 / np.sqrt(1000), rel=0.6)  # of ten groups
    assert figure.value == rows.mean()
    assert figure.count == 1000


def test_the_standard_error_of_kid_is_how_much_it_varies():
    rng = np.random.default_rng(0)
    pairs = [rng.normal([[[0.5]], [[0.0]]], size=(2, 60, 8)) for _ in range(60)]
    found = [jackknife(kid, *pair, "lower") for pair in pairs]
    said, seen = np.mean([f.error for f in found]), np.std([f.value for f in found])
    assert 0.7 < said / seen < 1.5


def test_too_few_images_are_refused_with_what_to_do():
    with pytest.raises(UsageError, match="9 images, wanted 10 or more") as error:
        jackknife(fid, np.zeros((9, 2)), np.zeros((20, 2)), "lower")
    assert error.value.hint == "use --num 10 or more"


def test_features_of_two_extractors_or_not_finite_are_refused():
    rows = np.zeros((20, 2))
    with pytest.raises(MismatchError, match=r"features of shape \[2\] and \[3\]"):
        jackknife(fid, rows, np.zeros((20, 3)), "lower")
    with pytest.raises(MismatchError, match="the model's images: 40 of 40 numbers are not finite"):
        jackknife(fid, rows * np.nan, rows, "lower")
    with pytest.raises(MismatchError, match="the data's images"):
        jackknife(fid, rows, rows + np.inf, "lower")


def test_ten_groups_leave_every_image_out_once():
    seen = []
    rows = np.arange(23.0)[:, None]
    jackknife(lambda fake, real: seen.append(set(fake[:, 0])) or 0.0, rows, rows, "lower")
    left = [set(rows[:, 0]) - kept for kept in seen[: distances.GROUPS]]
    assert sorted(x for group in left for x in group) == rows[:, 0].tolist()
