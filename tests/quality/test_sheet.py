"""Samples side by side."""

import io

import numpy as np
import pytest

from edgegen.errors import MismatchError, UsageError
from edgegen.quality import sheet


def pixels(png):
    image = pytest.importorskip("PIL.Image", reason="PNGs are Pillow's")
    return np.asarray(image.open(io.BytesIO(png)))


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (3, 64), (1, 100)])
def test_each_model_has_a_row_and_each_latent_a_column(channels, side):
    images = np.zeros((5, channels, side, side), np.float32)
    images[2] = 1
    found = pixels(sheet.png({"before": images, "after": 1 - images}))
    large = max(side, 64)
    assert found.shape == (2 * (sheet.STRIP + large), 5 * large + 4 * 2, 3)
    middle = 2 * (large + 2) + large // 2
    first, second = sheet.STRIP + large // 2, 2 * sheet.STRIP + large + large // 2
    assert found[first, middle].tolist() == [255] * 3
    assert found[second, middle].tolist() == [0] * 3
    assert found[first, large // 2].tolist() == [0] * 3


def test_each_row_says_whose_it_is():
    images = np.ones((2, 1, 8, 8), np.float32)
    strip = pixels(sheet.png({"before": images}))[: sheet.STRIP]
    assert (strip < 128).any()


def test_rows_that_do_not_match_or_cannot_be_drawn_are_refused():
    images = np.zeros((2, 1, 8, 8))
    with pytest.raises(MismatchError, match=r"a \[2, 1, 8, 8\], b \[1, 1, 8, 8\]"):
        sheet.png({"a": images, "b": images[:1]})
    with pytest.raises(MismatchError, match="images of 5 channels cannot be drawn"):
        sheet.png({"a": np.zeros((2, 5, 8, 8))})
    with pytest.raises(UsageError, match="no samples to draw"):
        sheet.png({})
    with pytest.raises(UsageError, match="no samples to draw"):
        sheet.png({"a": images[:0]})


def test_texts_stand_under_their_beginning_and_equal_ones_once():
    found = sheet.markdown(["Once", "In\nthe"], {"before": ["a", "b"], "after": ["a", "c"]})
    assert found.count("> a\n") == 1
    assert "**before, after** (all the same)" in found
    assert "> In\n> the\n" in found
    assert found.index("> b") < found.index("> c")


def test_an_empty_text_keeps_its_place():
    assert "**before**\n\n> \n" in sheet.markdown(["x"], {"before": [""]})
