"""Figures of images: one to one and as sets."""

import numpy as np
import pytest

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import images
from edgegen.quality.features import Extractor


@pytest.fixture
def pictures():
    return np.random.default_rng(0).random((20, 3, 16, 16)).astype(np.float32)


def test_scaling_cuts_off_what_is_beyond_black_and_white():
    found = images.scale(np.array([[[[-3.0, -1.0, 0.0, 1.0, 2.0]]]]), (-1, 1))
    assert found.ravel().tolist() == [0, 0, 0.5, 1, 1]


def test_a_pixel_that_is_not_finite_is_never_clipped_away():
    with pytest.raises(MismatchError, match=r"images: 1 of 4 .* the first at \[0, 0, 1, 0\]"):
        images.scale(np.array([[[[0, 0], [np.inf, 0]]]], np.float32), (0, 1))


def test_equal_images_have_ssim_1_and_the_capped_psnr(pictures):
    found = images.likeness(pictures, pictures)
    assert (found["ssim"].value, found["ssim"].error) == (1, 0)
    assert (found["psnr_db"].value, found["psnr_db"].unit) == (200, "dB")


def test_psnr_of_a_known_error():
    """Off by 0.1 everywhere: 20 dB."""
    wanted = np.full((3, 1, 4, 4), 0.5)
    found = images.likeness(wanted + 0.1, wanted)["psnr_db"]
    assert found.value == pytest.approx(20)
    assert found.count == 3


def test_ssim_of_flat_images_is_its_brightness_term():
    """No variance: (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b, c1 = 0.25, 0.75, 0.01**2
    found = images.ssim(np.full((1, 1, 16, 16), a), np.full((1, 1, 16, 16), b))
    assert found[0] == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1))


@pytest.mark.parametrize("size", [16, 8, 3])
def test_ssim_is_lower_for_more_noise_at_any_size(size):
    rng = np.random.default_rng(0)
    clean = rng.random((1, 1, size, size))
    noise = rng.normal(size=clean.shape)
    found = [images.ssim(clean + s * noise, clean)[0] for s in (0, 0.1, 0.3)]
    assert found[0] == pytest.approx(1)
    assert found[0] > found[1] > found[2]


def test_ssim_through_one_window_is_the_papers_formula():
    """11x11 pixels: the Gaussian fits once, and all means are weighted by it."""
    x, y = np.random.default_rng(0).random((2, 11, 11))
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(line, line)
    mx, my = np.average(x, weights=weights), np.average(y, weights=weights)
    vx, vy = (np.average((a - m) ** 2, weights=weights) for a, m in ((x, mx), (y, my)))
    both = np.average((x - mx) * (y - my), weights=weights)
    above = (2 * mx * my + 0.01**2) * (2 * both + 0.03**2)
    want = above / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
    assert images.ssim(x[None, None], y[None, None])[0] == pytest.approx(want)


def test_sliced_wasserstein_of_a_shift_of_one_pixel_is_the_shift():
    """One pixel has one direction: W2 of a shifted set is the shift."""
    real = np.random.default_rng(0).random((30, 1, 1, 1))
    assert images.sliced_wasserstein(real + 0.25, real).value == pytest.approx(0.25)
    assert images.sliced_wasserstein(real, real).value == 0


def test_sliced_wasserstein_knows_no_order_and_takes_sets_of_two_sizes():
    real = np.random.default_rng(0).random((30, 1, 4, 4))
    assert images.sliced_wasserstein(real[::-1], real).value == pytest.approx(0, abs=1e-12)
    twice = np.concatenate([real, real])
    assert images.sliced_wasserstein(twice, real).value == pytest.approx(0, abs=1e-12)


def flat(pictures):
    return pictures.reshape(len(pictures), -1)[:, :12]


def test_figures_on_features_carry_the_extractors_name(pictures):
    plain = Extractor("twelve_pixels", "1", flat)
    found = images.image_figures(pictures, pictures, plain)
    assert set(found) == {f"{n}_twelve_pixels" for n in ("fid", "kid", "precision", "recall")}
    assert found["fid_twelve_pixels"].value == pytest.approx(0, abs=1e-10)
    assert found["recall_twelve_pixels"].value == 1


def test_an_extractor_with_classes_also_gives_the_inception_score(pictures):
    classes = lambda rows: np.eye(12)[rows.argmax(1)]  # noqa: E731
    found = images.image_figures(pictures, pictures, Extractor("twelve", "1", flat, classes))
    assert 1 < found["inception_score_twelve"].value <= 12
    assert found["inception_score_twelve"].better == "higher"


def test_mode_collapse_gives_figures_and_no_crash(pictures):
    one = np.repeat(pictures[:1], 20, axis=0)
    found = images.image_figures(one, pictures, Extractor("twelve", "1", flat))
    assert found["recall_twelve"].value == 1 / 20
    assert found["fid_twelve"].value > 0
    assert images.sliced_wasserstein(one, pictures).value > 0


def test_images_of_another_shape_are_refused_with_both(pictures):
    with pytest.raises(MismatchError, match=r"\[20, 3, 8, 16\], wanted \[20, 3, 16, 16\]"):
        images.likeness(pictures[:, :, :8], pictures)
    with pytest.raises(MismatchError, match=r"wanted \[1, 3, 16, 16\]"):
        images.sliced_wasserstein(pictures[:, :1], pictures)
    with pytest.raises(UsageError, match="no images to compare"):
        images.likeness(pictures[:0], pictures[:0])
