"""Features of a data set, computed once."""

import numpy as np
import pytest

from edgegen.quality import features


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An extractor that remembers how often it was asked, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def run(images):
        calls.append(len(images))
        return images.reshape(len(images), -1)

    return features.Extractor("pixels", "1", run), calls


IMAGES = np.random.default_rng(0).random((6, 1, 2, 2)).astype(np.float32)


def test_the_same_images_are_looked_at_once(counting):
    extractor, calls = counting
    first = features.kept(extractor, IMAGES)
    np.testing.assert_array_equal(features.kept(extractor, IMAGES.copy()), first)
    assert calls == [6]


def test_other_pixels_or_another_version_are_looked_at_anew(counting):
    extractor, calls = counting
    features.kept(extractor, IMAGES)
    features.kept(extractor, IMAGES + 1e-6)
    features.kept(extractor._replace(version="2"), IMAGES)
    features.kept(extractor, IMAGES[:5])
    assert calls == [6, 6, 6, 5]


def test_a_broken_file_in_the_cache_is_replaced(counting):
    extractor, calls = counting
    features.kept(extractor, IMAGES)
    file = features._file(extractor, IMAGES)
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(features.kept(extractor, IMAGES), IMAGES.reshape(6, -1))
    features.kept(extractor, IMAGES)
    assert calls == [6, 6]


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(counting, tmp_path):
    extractor, calls = counting
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        np.testing.assert_array_equal(features.kept(extractor, IMAGES), IMAGES.reshape(6, -1))
    assert calls == [6, 6]
