"""Which figures come, and what is said of those that do not."""

import pytest

from edgegen.errors import MismatchError, MissingExtraError, NotFoundError
from edgegen.quality import Figure
from edgegen.quality.tally import Tally

HAVE = ("kid", "fid", "psnr_db", "ssim")
ONE = Figure(1.0, None, 1, "images", "lower")


def fail(error):
    def compute():
        raise error

    return compute


def test_without_names_everything_is_wanted():
    tally = Tally((), HAVE)
    tally.add(("psnr_db", "ssim"), lambda: {"psnr_db": ONE, "ssim": ONE})
    assert set(tally.figures) == {"psnr_db", "ssim"}


@pytest.mark.parametrize("metric", ["psnr", "psnr_db"])
def test_a_name_or_its_beginning_wants_one_figure_of_a_group(metric):
    tally = Tally((metric,), HAVE)
    tally.add(("psnr_db", "ssim"), lambda: {"psnr_db": ONE, "ssim": ONE})
    tally.add(("kid", "fid"), fail(AssertionError("never computed")))
    assert set(tally.figures) == {"psnr_db"}


@pytest.mark.parametrize("metric", ["kid", "kid_efficientnet_lite0"])
def test_a_figure_may_be_called_with_its_extractor(metric):
    tally = Tally((metric,), HAVE)
    both = {"kid_efficientnet_lite0": ONE, "fid_efficientnet_lite0": ONE}
    tally.add(("kid", "fid"), lambda: both)
    assert set(tally.figures) == {"kid_efficientnet_lite0"}


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(NotFoundError, match="no metric 'sim'") as error:
        Tally(("sim",), HAVE)
    assert error.value.hint == "did you mean 'ssim'?"


def test_what_cannot_be_had_is_skipped_with_its_reason_unless_it_was_asked_for():
    error = MissingExtraError("fid needs torch", "run: pip install x")
    tally = Tally((), HAVE)
    tally.add(("kid", "fid"), fail(error))
    assert tally.skipped() == dict.fromkeys(("kid", "fid"), "fid needs torch; run: pip install x")
    asked = Tally(("fid",), HAVE)
    asked.add(("kid", "fid"), fail(error))
    with pytest.raises(MissingExtraError, match="fid needs torch"):
        asked.skipped()


def test_a_name_of_two_figures_is_content_with_one():
    tally = Tally(("psnr",), ("psnr_db", "psnr_ratio"))
    tally.add(("psnr_db",), lambda: {"psnr_db": ONE})
    tally.add(("psnr_ratio",), fail(MissingExtraError("no reference")))
    assert set(tally.figures) == {"psnr_db"}
    assert tally.skipped() == {"psnr_ratio": "no reference"}


def test_broken_numbers_are_never_skipped():
    with pytest.raises(MismatchError):
        Tally((), HAVE).add(("kid",), fail(MismatchError("not finite")))
